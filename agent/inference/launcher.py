"""Starting, feeding and ending one worker process: a plain child on a socket pair, watched through a pidfd.

The daemon's loop never waits for the worker. Frames are small and written without blocking: a worker that does not
read them is broken. A job's input crosses in a sealed memfd that was filled before (`agent.sealed`). Whatever comes
back is untrusted: a broken frame, an answer whose digest is wrong or a closed socket ends the process.

Vacating is `stop`: the Stop frame is on its way before the call returns, and when the process has not ended within
the budget it is killed through its pidfd, which cannot hit another process. `on_gone` is called exactly once, after
the last message, when the process is reaped and so its memory is free.

The child gets nothing of the daemon's: an empty environment, no descriptor but its socket, its own session, `/` as
its directory, isolated Python. It must be started on the thread that lives as long as the daemon, because the kernel
kills it when that thread ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import wire
from agent.errors import WorkerError
from agent.ports import Clock
from agent.sealed import InputMemory

OnMessage = Callable[[wire.WorkerMessage], None]
OnGone = Callable[[int, bool, str], None]
"""Called with the pid, whether the end was expected (told to stop, or refused its package), and how it ended."""

_READ_BYTES = 256 * 1024
_STDERR_TAIL_BYTES = 4096
_LINGER_MS = 1000
"""How long a worker that closed its socket, or refused its package, may take to end by itself."""
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""NumPy's own thread pool stays small: the engine's threads are set by Load."""


def launch(clock: Clock, on_message: OnMessage, on_gone: OnGone, *, python: str = sys.executable) -> WorkerProcess:
    """Start a worker; Hello follows as its first message. Raises WorkerError when the process cannot be started."""
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise WorkerError(f"no socket for a worker: {error.strerror}") from error
    with theirs:
        try:
            process = subprocess.Popen(
                [python, "-I", "-m", "agent.worker", "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(theirs.fileno(),),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise WorkerError(f"{python} cannot be started: {error.strerror}") from error
    try:
        return WorkerProcess(clock, on_message, on_gone, process, ours)
    except OSError as error:
        ours.close()
        process.kill()
        process.communicate()
        raise WorkerError(f"the worker cannot be watched: {error.strerror}") from error


class WorkerProcess:
    """One running worker, until `on_gone`. Use it on the event loop's thread; callbacks come there too."""

    def __init__(
        self,
        clock: Clock,
        on_message: OnMessage,
        on_gone: OnGone,
        process: subprocess.Popen[bytes],
        connection: socket.socket,
    ) -> None:
        """Watch a process that `launch` started with a pipe as its standard error."""
        assert process.stderr is not None
        self._clock = clock
        self._on_message = on_message
        self._on_gone = on_gone
        self._process = process
        self._socket = connection
        self._stderr = process.stderr
        self._pidfd = os.pidfd_open(process.pid)
        self._decoder = wire.worker_messages()
        self._stderr_tail = b""
        self._expected = False
        self._fault = ""
        self._stop_asked_ms: int | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._pidfd, self._ended)
        self._loop.add_reader(self._socket, self._readable)
        self._loop.add_reader(self._stderr, self._read_stderr)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def load(self, package: Path, *, threads: int, memory_mb: int) -> None:
        """Load the package directory; answered by Loaded or Refused. Raises WorkerError, as all orders do."""
        self._send(wire.Load(path=str(package), threads=threads, memory_mb=memory_mb))

    def send_input(self, memory: InputMemory, *, items: int) -> None:
        """Hand over a job's input (see `wire.encode_input`), replacing the one before; `memory` stays the caller's."""
        self._send(wire.Input(items=items, bytes=memory.length), [memory.descriptor])

    def run(self, index: int, first: int, last: int) -> None:
        """Compute items [first, last) as slice `index`; answered by SliceDone or SliceError."""
        self._send(wire.Run(index=index, first=first, last=last))

    def pace(self, duty_permille: int) -> None:
        """Compute for `duty_permille` thousandths of the time; 0 pauses."""
        self._send(wire.Pace(duty_permille=duty_permille))

    def stop(self, budget_ms: int) -> None:
        """Have the worker stop, and kill it when it has not ended after `budget_ms` (0: kill now). Never raises.

        May be called again with a tighter budget; a looser one changes nothing.
        """
        if self._gone.is_set():
            return
        self._expected = True
        if self._stop_asked_ms is None:
            self._stop_asked_ms = self._clock.boot_ms()
            if budget_ms > 0:
                try:
                    self._send(wire.Stop())
                except WorkerError:
                    budget_ms = 0
        self._kill_after(budget_ms)

    def condemn(self, fault: str) -> None:
        """Kill a worker that did what it must not; `on_gone` will say so, and that it was not expected."""
        self._fault = self._fault or fault
        self._kill_after(0)

    async def gone(self) -> None:
        """Wait until the process has ended and `on_gone` was called."""
        await self._gone.wait()

    def _send(self, message: wire.DaemonMessage, descriptors: Sequence[int] = ()) -> None:
        """Write one frame whole, now, or raise WorkerError."""
        if self._gone.is_set():
            raise WorkerError("the worker has ended")
        frame = wire.encode(message)
        try:
            sent = socket.send_fds(self._socket, [frame], descriptors)
        except OSError as error:
            raise WorkerError(f"the worker does not take {type(message).__name__}: {error.strerror}") from error
        if sent != len(frame):
            raise WorkerError(f"the worker does not read: {type(message).__name__} went out in part")

    def _readable(self) -> None:
        """Take what the worker wrote."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._loop.remove_reader(self._socket)
            self._kill_after(_LINGER_MS)

    def _take(self, data: bytes) -> None:
        """Pass messages on; a worker that breaks the protocol is killed."""
        if self._fault:
            return
        try:
            for message in self._decoder.feed(data):
                self._check(message)
                self._on_message(message)
                if self._condemned():
                    return  # what it says further counts for nothing
        except wire.WireError as error:
            self.condemn(f"broke the protocol: {error.what}")

    def _condemned(self) -> bool:
        return bool(self._fault)

    def _check(self, message: wire.WorkerMessage) -> None:
        """Raise WireError for a message that cannot be right; notes a refusal, after which the worker ends."""
        match message:
            case wire.Hello(version=version) if version != wire.VERSION:
                raise wire.WireError(f"the worker speaks wire version {version}, not {wire.VERSION}")
            case wire.SliceDone() if hashlib.sha256(message.output).hexdigest() != message.output_sha256:
                raise wire.WireError(f"slice {message.index} does not have the digest it came with")
            case wire.Refused():
                self._expected = True
                self._kill_after(_LINGER_MS)
            case _:
                pass

    def _read_stderr(self) -> None:
        """Keep the end of what the worker complains about."""
        try:
            data = os.read(self._stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]
        if not data:
            self._loop.remove_reader(self._stderr)

    def _kill_after(self, budget_ms: int) -> None:
        """Kill the process in `budget_ms` unless it is to be killed sooner anyway."""
        when_s = self._loop.time() + budget_ms / 1000
        if budget_ms <= 0:
            self._kill()
        elif self._kill_timer is None or self._kill_timer.when() > when_s:
            if self._kill_timer is not None:
                self._kill_timer.cancel()
            self._kill_timer = self._loop.call_at(when_s, self._kill)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self) -> None:
        """The process is over: reap it, take its last words, close everything, report."""
        status = self._process.wait()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ_BYTES):
                self._take(data)
        self._read_stderr()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        for watched in (self._pidfd, self._socket, self._stderr):
            self._loop.remove_reader(watched)
        os.close(self._pidfd)
        self._socket.close()
        self._stderr.close()
        self._gone.set()
        self._on_gone(self.pid, self._expected and not self._fault, self._words(status))

    def _words(self, status: int) -> str:
        """How it ended, for a person."""
        how = f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        if self._stop_asked_ms is not None:
            how += f" {self._clock.boot_ms() - self._stop_asked_ms} ms after it was told to stop"
        complaint = self._stderr_tail.decode("utf-8", "replace").strip()
        return "; ".join(part for part in (self._fault, how, complaint) if part)
