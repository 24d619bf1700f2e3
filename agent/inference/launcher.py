"""Starting, feeding and ending one worker process: a plain child on a socket pair, watched through a pidfd.

The daemon's loop never waits for the worker. Frames are small and written without blocking: a worker that does not
read them is broken. What it says is taken a little at a time (`agent.inference.inbox`). What is large (a job's input,
an engine's plan) crosses in a sealed memfd that was filled before (`agent.sealed`); a plan that a worker has built
comes back in one. Whatever comes back is untrusted: a broken frame, a message that is not owed
(`agent.inference.protocol`) or cannot be handled, an answer whose digest is wrong, a descriptor too many or a closed
socket ends the process.

Vacating is `stop`: the Stop frame is on its way before the call returns, and the process climbs a ladder of signals
until it has ended (`agent.inference.ladder`). A worker that hangs is found out by its silence
(`agent.inference.lookout`) and killed. `on_gone` is called exactly once, after the last message, when the process has
ended and what it left behind is gone too.

The child gets nothing of the daemon's (`agent.inference.child`), shuts itself in before anything else
(`agent.worker.sandbox`), and says how well; `confinement` is that and what its control group adds, which is made beside
it (`agent.inference.enclosure`).
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
from agent.inference.child import Cell, start_child
from agent.inference.enclosure import Enclosure
from agent.inference.inbox import Inbox
from agent.inference.ladder import FREED_MS, Ladder
from agent.inference.lookout import Lookout
from agent.inference.protocol import Protocol
from agent.inference.watchdog import Loading, Serving, Unbounded
from agent.ports import Clock
from agent.sealed import InputMemory

OnMessage = Callable[[wire.WorkerMessage], None]
OnGone = Callable[[int, bool, str], None]
"""Called with the pid, whether the end was expected (told to stop, or refused its package), and how it ended."""

_STDERR_BYTES = 256 * 1024
_STDERR_TAIL_BYTES = 4096
GONE_S = 10.0
"""How long the end of a killed process is waited for."""
LEAVE_S = 2.0
"""How long it is waited for that a dead process's group is removed: the kernel may hang there too."""
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
    except (OSError, RuntimeError) as error:
        ours.close()
        process.kill()
        process.communicate()
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        raise WorkerError(f"the worker cannot be watched: {why}") from error


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
        self._protocol = Protocol()
        self._status: int | None = None
        self._stderr_tail = b""
        self._expected = False
        self._fault = ""
        self._unasked = False
        self._stop_asked_ms: int | None = None
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._enclosure = Enclosure(process.pid, memory_mb)
        self._ladder = Ladder(self._pidfd, self._enclosure.kill)
        self._socket.setblocking(False)
        self._inbox = Inbox(
            connection, take=self._take, heard=self._heard, fault=self.condemn, ended=self._closed_its_socket
        )
        self._lookout = Lookout(self._inbox.look, self.condemn)
        self._cage: tuple[wire.Confinement, ...] = ()
        self._leaving: asyncio.TimerHandle | None = None
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._pidfd, self._ended)
        self._loop.add_reader(self._stderr, self._read_stderr)

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the worker in, and what of that is absent here and why.

        Whole once it has said Hello and its group is made.
        """
        return (*self._cage, *self._enclosure.confinement)

    @property
    def is_loading(self) -> bool:
        """Whether it is up and loads a package."""
        return self._protocol.is_loading

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

        A worker that takes longer than `load_s` for it, from Hello on, hangs.
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
        return self._inbox.take_memory(length)

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
        self._inbox.shut()
        if self._status is None:
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
            async with asyncio.timeout(limit_s):  # not wait_for, which may swallow a cancellation (until 3.12)
                await self._gone.wait()
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
        self._protocol.sent(message)

    def _take(self, message: wire.WorkerMessage) -> None:
        """Believe a message that is owed, and pass it on; raises WireError for any other."""
        if isinstance(message, wire.Idle) and not self.is_stopping:
            self._ends_unasked()
            return
        self._protocol.heard(message)
        self._check(message)
        self._note(message)
        self._on_message(message)

    def _ends_unasked(self) -> None:
        """It is not believed, and has the time to free what it holds: somebody else may have sent it SIGTERM."""
        self._unasked = True
        self._inbox.shut()
        self._ladder.kill_after(FREED_MS)

    def _heard(self) -> None:
        self._lookout.heard()

    def _closed_its_socket(self) -> None:
        self._ladder.kill_after(_LINGER_MS)

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
        match message:
            case wire.Hello():
                self._cage = message.confinement
                self._lookout.is_up()
            case wire.Loaded():
                self._lookout.does(Serving(call_ms=message.micro_batch_ms))
            case wire.Idle():
                self._ladder.computes_no_more()
            case _:
                pass

    def _read_stderr(self) -> None:
        """Keep the end of what the worker complains about."""
        try:
            data = os.read(self._stderr.fileno(), _STDERR_BYTES)
        except BlockingIOError:
            return
        self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL_BYTES:]
        if not data:
            self._loop.remove_reader(self._stderr)

    def _ended(self) -> None:
        """The process is over: have it reaped and what it left behind killed; then take its last words."""
        self._status = _exit_status(self.pid)
        self._loop.remove_reader(self._pidfd)
        self._inbox.pause()
        self._lookout.close()
        self._leaving = self._loop.call_later(LEAVE_S, self._left)
        self._enclosure.leave(self._process.wait, self._left)

    def _left(self) -> None:
        """Nothing of it is left, or it was waited for long enough."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
            self._inbox.finish(self._report)

    def _report(self) -> None:
        """Close everything, and tell how it ended."""
        assert self._status is not None
        if self._unasked and self._status != wire.EXIT_TERMINATED:
            self._fault = self._fault or "broke the protocol: it says Idle, which nobody asked for"
        self._loop.remove_reader(self._stderr)
        self._read_stderr()
        self._ladder.close()
        os.close(self._pidfd)
        self._stderr.close()
        self._gone.set()
        self._on_gone(self.pid, self._expected and not self._fault, self._words(self._status))

    def _words(self, status: int) -> str:
        """How it ended, for a person."""
        how = f"exited with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
        if self._stop_asked_ms is not None:
            how += f" {self._clock.boot_ms() - self._stop_asked_ms} ms after it was told to stop"
        complaint = self._stderr_tail.decode("utf-8", "replace").strip()
        return "; ".join(part for part in (self._fault, how, complaint) if part)


def _exit_status(pid: int) -> int:
    """The status of a child that has ended, as `subprocess` gives it; it is still to be reaped."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # this process was started to ignore its children's ends
        return 0
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
