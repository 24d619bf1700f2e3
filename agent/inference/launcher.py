"""Starting, feeding and ending one worker process: a plain child on a socket pair, watched through a pidfd.

The daemon's loop never waits for the worker. Frames are small and written without blocking: a worker that does not
read them is broken. What is large (a job's input, an engine's plan) crosses in a sealed memfd that was filled before
(`agent.sealed`); a plan that a worker has built comes back in one. Whatever comes back is untrusted: a broken frame, an
answer whose digest is wrong, a descriptor too many or a closed socket ends the process.

Vacating is `stop`: the Stop frame is on its way before the call returns, and the process climbs a ladder of signals
until it has ended (`agent.inference.ladder`). A worker that hangs is found out by its silence
(`agent.inference.lookout`) and killed. `on_gone` is called exactly once, after the last message, when the process is
reaped.

The child gets nothing of the daemon's (`agent.inference.child`), shuts itself in before anything else
(`agent.worker.sandbox`), and says how well; `confinement` is that and what its control group adds.
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
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import wire
from agent.errors import WorkerError
from agent.inference.cgroup import enclose
from agent.inference.child import Cell, start_child
from agent.inference.ladder import Ladder
from agent.inference.lookout import Lookout
from agent.inference.watchdog import Loading, Serving, Unbounded
from agent.ports import Clock
from agent.sealed import InputMemory

OnMessage = Callable[[wire.WorkerMessage], None]
OnGone = Callable[[int, bool, str], None]
"""Called with the pid, whether the end was expected (told to stop, or refused its package), and how it ended."""

_READ_BYTES = 256 * 1024
_MAX_DESCRIPTORS = 2
"""A plan and a timing cache: no worker has more to hand over, in its whole life."""
_STDERR_TAIL_BYTES = 4096
GONE_S = 10.0
"""How long the end of a killed process is waited for."""
_LINGER_MS = 1000
"""How long a worker that closed its socket, or has said its last word, may take to end by itself."""


def launch(
    clock: Clock,
    on_message: OnMessage,
    on_gone: OnGone,
    *,
    python: str = sys.executable,
    readable: Sequence[Path] = (),
    accelerator: bool = False,
    library_path: str = "",
    memory_mb: int | None = None,
    required: tuple[wire.Measure, ...] = (),
) -> WorkerProcess:
    """Start a worker; Hello follows as its first message. Raises WorkerError when the process cannot be started.

    What it can reach (`agent.inference.child.Cell`) cannot be widened later: its package has to be `readable` now.
    """
    cell = Cell(python, tuple(readable), accelerator, library_path, memory_mb, required)
    process, ours = start_child(cell)
    try:
        return WorkerProcess(clock, on_message, on_gone, process, ours, memory_mb=cell.group_mb)
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
        *,
        memory_mb: int | None = None,
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
        self._descriptors: deque[int] = deque()
        self._status: int | None = None
        self._stderr_tail = b""
        self._expected = False
        self._fault = ""
        self._stop_asked_ms: int | None = None
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._group = enclose(process.pid, memory_mb)
        self._ladder = Ladder(self._pidfd, self._group)
        self._lookout = Lookout(self._hear, self.condemn)
        self._confinement = self._group.confinement
        self._socket.setblocking(False)
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._pidfd, self._ended)
        self._loop.add_reader(self._socket, self._readable)
        self._loop.add_reader(self._stderr, self._read_stderr)

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the worker in, and what of that is absent here and why; whole once it has said Hello."""
        return self._confinement

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def lost_accelerator(self) -> bool:
        """Whether it has ended because it lost the accelerator."""
        return self._status == wire.EXIT_LOST

    @property
    def crashed(self) -> bool:
        """Whether a signal has ended it that was none of ours."""
        return self._status is not None and self._status < 0 and not self._expected and not self._fault

    def survey(self, executor: wire.ExecutorName) -> None:
        """Have it say what the executor finds here; answered by Surveyed or Refused. Raises WorkerError, as all do."""
        self._send(wire.Survey(executor=executor))

    def build(
        self,
        package: Path,
        *,
        executor: wire.ExecutorName,
        threads: int,
        memory_mb: int,
        timing: InputMemory | None = None,
    ) -> None:
        """Build the package's plan; answered by Building, then Built (see `take_memory`) or Refused."""
        order = wire.Build(
            path=str(package),
            executor=executor,
            threads=threads,
            memory_mb=memory_mb,
            timing_bytes=0 if timing is None else timing.length,
        )
        self._send(order, [] if timing is None else [timing.descriptor])

    def load(
        self,
        package: Path,
        *,
        executor: wire.ExecutorName,
        threads: int,
        memory_mb: int,
        drain_ms: int,
        load_s: int | None = None,
        plan: InputMemory | None = None,
    ) -> None:
        """Load the package directory, with its plan where the executor needs one; answered by Loaded or Refused.

        A worker that takes longer than `load_s` for it hangs.
        """
        order = wire.Load(
            path=str(package),
            executor=executor,
            threads=threads,
            memory_mb=memory_mb,
            drain_ms=drain_ms,
            plan_bytes=0 if plan is None else plan.length,
        )
        self._send(order, [] if plan is None else [plan.descriptor])
        self._lookout.does(Unbounded() if load_s is None else Loading(limit_ms=load_s * 1000))

    def take_memory(self, length: int) -> InputMemory:
        """The memory that came with the message at hand, to be taken in its order; the caller's to close.

        Raises WireError unless it is sealed and `length` bytes long.
        """
        if not self._descriptors:
            raise wire.WireError("a message without the memory that it names")
        try:
            return InputMemory.adopt(self._descriptors.popleft(), length)
        except WorkerError as error:
            raise wire.WireError(error.what) from error

    def send_input(self, memory: InputMemory, *, items: int) -> None:
        """Hand over a job's input (see `wire.encode_input`), replacing the one before; `memory` stays the caller's."""
        self._send(wire.Input(items=items, bytes=memory.length), [memory.descriptor])

    def run(self, index: int, first: int, last: int) -> None:
        """Compute items [first, last) as slice `index`; answered by SliceDone or SliceError."""
        self._send(wire.Run(index=index, first=first, last=last))

    def forget(self) -> None:
        """The lease is over: drop its input, and overwrite what held any of it. One that ends takes it along anyway."""
        if self._stop_asked_ms is None:
            self._send(wire.Forget())

    def pace(self, duty_permille: int) -> None:
        """Compute for `duty_permille` thousandths of the time; 0 pauses."""
        self._send(wire.Pace(duty_permille=duty_permille))
        self._lookout.paced(duty_permille)

    def stop(self, budget_ms: int) -> None:
        """Have the worker stop computing within `budget_ms` (0: kill it now), whatever that takes. Never raises.

        May be called again with a tighter budget; a looser one changes nothing.
        """
        if self._gone.is_set():
            return
        self._expected = True
        self._lookout.close()
        if self._stop_asked_ms is None:
            self._stop_asked_ms = self._clock.boot_ms()
            if budget_ms > 0:
                try:
                    self._send(wire.Stop())
                except WorkerError:
                    budget_ms = 0
        self._ladder.stop_within(budget_ms)

    def condemn(self, fault: str) -> None:
        """Kill a worker that did what it must not; `on_gone` will say so, and that it was not expected."""
        self._fault = self._fault or fault
        self._ladder.kill_after(0)

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop: it takes no more orders."""
        return self._stop_asked_ms is not None

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended and `on_gone` was called."""
        return self._gone.is_set()

    async def gone(self, limit_s: float = GONE_S) -> bool:
        """Wait for that, though not for ever: a process inside a driver that hangs cannot be killed. Whether it is."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), limit_s)
        return self.is_gone

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
            data = self._receive()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._loop.remove_reader(self._socket)
            self._ladder.kill_after(_LINGER_MS)

    def _receive(self) -> bytes:
        """What there is to read; descriptors that ride with it are kept for `take_memory`."""
        data, descriptors, flags, _ = socket.recv_fds(
            self._socket, _READ_BYTES, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        self._descriptors.extend(descriptors)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > _MAX_DESCRIPTORS:
            self.condemn("broke the protocol: it sent more descriptors than it may")
        return data

    def _take(self, data: bytes) -> None:
        """Pass messages on; a worker that breaks the protocol is killed."""
        if self._fault:
            return
        try:
            for message in self._decoder.feed(data):
                self._check(message)
                self._note(message)
                self._on_message(message)
                if self._condemned():
                    return  # what it says further counts for nothing
        except wire.WireError as error:
            self.condemn(f"broke the protocol: {error.what}")

    def _condemned(self) -> bool:
        return bool(self._fault)

    def _check(self, message: wire.WorkerMessage) -> None:
        """Raise WireError for a message that cannot be right; notes a last word, after which the worker ends."""
        match message:
            case wire.Hello(version=version) if version != wire.VERSION:
                raise wire.WireError(f"the worker speaks wire version {version}, not {wire.VERSION}")
            case wire.SliceDone() if hashlib.sha256(message.output).hexdigest() != message.output_sha256:
                raise wire.WireError(f"slice {message.index} does not have the digest it came with")
            case wire.Refused() | wire.Surveyed() | wire.Built():
                self._expected = True
                self._ladder.kill_after(_LINGER_MS)
            case _:
                pass

    def _note(self, message: wire.WorkerMessage) -> None:
        """What a message says of the worker's life."""
        self._lookout.heard()
        match message:
            case wire.Hello():
                self._confinement = (*message.confinement, *self._group.confinement)
            case wire.Loaded():
                self._lookout.does(Serving(call_ms=message.micro_batch_ms))
            case wire.Idle():
                self._ladder.computes_no_more()
            case _:
                pass

    def _hear(self) -> None:
        """Take what there is to read, while the loop was busy with something else."""
        with contextlib.suppress(OSError):
            if data := self._receive():
                self._take(data)

    def _read_stderr(self) -> None:
        """Keep the end of what the worker complains about."""
        try:
            data = os.read(self._stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]
        if not data:
            self._loop.remove_reader(self._stderr)

    def _ended(self) -> None:
        """The process is over: reap it, take its last words, close everything, report."""
        status = self._status = self._process.wait()
        with contextlib.suppress(OSError):
            while data := self._receive():
                self._take(data)
        self._read_stderr()
        self._lookout.close()
        self._ladder.close()
        for watched in (self._pidfd, self._socket, self._stderr):
            self._loop.remove_reader(watched)
        os.close(self._pidfd)
        while self._descriptors:
            os.close(self._descriptors.popleft())
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
