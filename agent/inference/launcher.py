"""Starting, feeding and ending one worker process, watched through a pidfd.

It is a plain child on a socket pair, or, where a socket unit is configured, a process that systemd starts on a
connection. What differs is in their bodies (`agent.inference.child`, `agent.inference.unit`) and told here:

* A unit's worker is met when it says Hello. Before that it holds nothing, and is given up by closing the connection.
* Its exit status is known as far as it says it (`agent.wire.Ending`), or as we ended it; what ended without a word, and
  not by us, has crashed. Its last words come by a pipe that it brought; those before Hello are in the journal.
* Its command line is the unit's, so what is required of its cage is said on the wire (`agent.wire.Require`).

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

A worker gets nothing of the daemon's, shuts itself in before anything else (`agent.worker.sandbox`), and says how well;
`confinement` is that and what a child's control group adds, which is made beside it (`agent.inference.enclosure`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import wire
from agent.errors import WorkerError
from agent.inference.body import Body
from agent.inference.child import Cell, start_child
from agent.inference.inbox import Inbox
from agent.inference.ladder import FREED_MS, Ladder
from agent.inference.last_words import LastWords, how_it_ended
from agent.inference.lookout import Lookout
from agent.inference.protocol import Protocol
from agent.inference.unit import UnitBody, connect
from agent.inference.watchdog import Loading, Serving, Unbounded
from agent.ports import Clock
from agent.sealed import InputMemory

OnMessage = Callable[[wire.WorkerMessage], None]
OnGone = Callable[[int, bool, str], None]
"""Called with the pid, whether the end was expected (told to stop, or refused its package), and how it ended."""

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
    socket_unit: Path | None = None,
) -> WorkerProcess:
    """Start a worker; Hello follows as its first message. Raises WorkerError when the process cannot be started.

    What it can reach (`agent.inference.child.Cell`) cannot be widened later: its package has to be `readable` now.
    With a `socket_unit` systemd starts it, and what it runs on and can reach is its unit's to say.
    """
    if socket_unit is not None:
        process = WorkerProcess(clock, on_message, on_gone, connect(socket_unit))
        try:
            process.require(required)
        except WorkerError as error:
            process.condemn(str(error))
        return process
    child, ours = start_child(Cell(python, tuple(readable), accelerator, library_path, memory_mb, required))
    return WorkerProcess(clock, on_message, on_gone, ours, child)


class WorkerProcess:
    """One running worker, until `on_gone`. Use it on the event loop's thread; callbacks come there too."""

    def __init__(
        self,
        clock: Clock,
        on_message: OnMessage,
        on_gone: OnGone,
        connection: socket.socket,
        child: Body | None = None,
    ) -> None:
        """Watch the process at the other end of the connection: a child of ours, or one that is met at its Hello."""
        self._clock = clock
        self._on_message = on_message
        self._on_gone = on_gone
        self._socket = connection
        self._protocol = Protocol()
        self._body: Body | None = None
        self._ladder: Ladder | None = None
        self._has_ended = False
        self._status: int | None = None
        self._last_words: LastWords | None = None
        self._expected = False
        self._fault = ""
        self._unasked = False
        self._stop_asked_ms: int | None = None
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        self._inbox = Inbox(
            connection,
            take=self._take,
            heard=self._heard,
            fault=self.condemn,
            ended=self._closed_its_socket,
            introduces=child is None,
        )
        self._lookout = Lookout(self._inbox.look, self.condemn)
        self._cage: tuple[wire.Confinement, ...] = ()
        self._leaving: asyncio.TimerHandle | None = None
        if child is not None:
            self._meet(child)

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the worker in, and what of that is absent here and why.

        Whole once it has said Hello and its group is made.
        """
        return self._cage if self._body is None else (*self._cage, *self._body.confinement)

    @property
    def is_loading(self) -> bool:
        """Whether it is up and loads a package."""
        return self._protocol.is_loading

    @property
    def pid(self) -> int:
        """The worker's process id; 0 of one that systemd starts and that has not said Hello."""
        return 0 if self._body is None else self._body.pid

    @property
    def lost_accelerator(self) -> bool:
        """Whether it has ended because it lost the accelerator."""
        return self._status == wire.EXIT_LOST

    @property
    def crashed(self) -> bool:
        """Whether a signal has ended it that was none of ours, or nobody knows what."""
        broke = self._status is None or self._status < 0
        return self._has_ended and self._body is not None and broke and not self._expected and not self._fault

    def require(self, measures: tuple[wire.Measure, ...]) -> None:
        """Have it do nothing without these measures of its cage; before any order."""
        if measures:
            self._send(wire.Require(measures=measures))

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
        if self._ladder is None:
            self._give_up()
        else:
            self._ladder.stop_within(budget_ms)

    def condemn(self, fault: str) -> None:
        """Kill a worker that did what it must not; `on_gone` will say so, and that it was not expected."""
        self._fault = self._fault or fault
        self._inbox.shut()
        if self._ladder is None:
            self._give_up()
        elif not self._has_ended:
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
        if isinstance(message, wire.Ending) and isinstance(self._body, UnitBody):
            self._status = message.status
            return
        if self._unasked:
            return
        if isinstance(message, wire.Idle) and not self.is_stopping:
            self._ends_unasked()
            return
        self._protocol.heard(message)
        self._check(message)
        self._note(message)
        self._on_message(message)

    def _ends_unasked(self) -> None:
        """It is not believed, and has the time to free what it holds: somebody else may have sent it SIGTERM."""
        if self._ladder is None:
            raise wire.WireError("it says Idle before Hello")
        self._unasked = True
        self._ladder.kill_after(FREED_MS)

    def _heard(self) -> None:
        self._lookout.heard()

    def _closed_its_socket(self) -> None:
        if self._ladder is None:
            self._fault = self._fault or "ended before it said Hello; the journal has its last words"
            self._give_up()
        else:
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
                if self._ladder is not None:
                    self._ladder.kill_after(_LINGER_MS)
            case _:
                pass

    def _note(self, message: wire.WorkerMessage) -> None:
        """What a message says of the worker's life."""
        match message:
            case wire.Hello():
                if self._body is None:
                    self._meet(UnitBody(message, *self._inbox.introduced()))
                self._cage = message.confinement
                self._lookout.is_up()
            case wire.Loaded():
                self._lookout.does(Serving(call_ms=message.micro_batch_ms))
            case wire.Idle() if self._ladder is not None:
                self._ladder.computes_no_more()
            case _:
                pass

    def _meet(self, body: Body) -> None:
        """From now on the process can be signalled, and its end and its words are seen."""
        self._body, self._ladder = body, Ladder(body.pidfd, body.kill_rest)
        self._loop.add_reader(body.pidfd, self._ended)
        self._last_words = LastWords(body.words)

    def _give_up(self) -> None:
        """Close the connection to one that has not said Hello: it holds nothing, and ends by itself."""
        if not self._has_ended:
            self._has_ended = True
            self._lookout.close()
            self._inbox.shut()
            self._loop.call_soon(self._inbox.finish, self._report)

    def _ended(self) -> None:
        """The process is over: have it reaped and what it left behind killed; then take its last words."""
        assert self._body is not None
        self._has_ended = True
        if (status := self._body.status()) is not None:
            self._status = status
        self._loop.remove_reader(self._body.pidfd)
        self._inbox.pause()
        self._lookout.close()
        self._leaving = self._loop.call_later(LEAVE_S, self._left)
        self._body.leave(self._left)

    def _left(self) -> None:
        """Nothing of it is left, or it was waited for long enough."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
            self._inbox.finish(self._report)

    def _report(self) -> None:
        """Close everything, and tell how it ended."""
        complaint = "" if self._last_words is None else self._last_words.text()
        if self._body is not None and self._ladder is not None:
            if self._status is None and self._ladder.signalled is not None:
                self._status = -self._ladder.signalled  # it would have said any other end
            self._ladder.close()
            self._body.close()
        if self._unasked and self._status != wire.EXIT_TERMINATED:
            self._fault = self._fault or "broke the protocol: it says Idle, which nobody asked for"
        how = how_it_ended(self.pid, self._status)
        if self._stop_asked_ms is not None:
            how += f" {self._clock.boot_ms() - self._stop_asked_ms} ms after it was told to stop"
        self._gone.set()
        detail = "; ".join(part for part in (self._fault, how, complaint) if part)
        self._on_gone(self.pid, self._expected and not self._fault, detail)
