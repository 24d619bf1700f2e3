"""The composition root: wires the parts, pumps events through the core, shuts down.

An event is handled in the stack of whoever emits it, so a frame that shows the driver has stopped the worker before
the bus reader returns. One thread, one writer: an event emitted while another is handled waits its turn.

Nothing stands between the core and its effects: a step is carried out first, and recorded then.

Parts are closed in the reverse order of their use, each whatever becomes of the others (`agent.leaving`): first the
worker ends, then its power limit is put back and the platform may sleep, and the store closes when nobody writes.

A core that raises may have decided half of something, so it decides nothing more: the worker is killed on the spot,
every later event is dropped, and the daemon ends in order, leaves the recording of what led there, and raises CoreError
(exit status 1), so that a supervisor starts it anew from what is on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import traceback
from collections import deque

from agent import budgets, log
from agent.assembly import assemble
from agent.clock import boot_id
from agent.config import Config
from agent.core import lease as leases
from agent.core.building import may_survey
from agent.core.effects import PauseTransfers, StopWorker
from agent.core.events import EventType, Stopping
from agent.core.machine import step
from agent.core.state import State, WorkerPhase, resume
from agent.dumps import stay_out_of_dumps
from agent.errors import ConfigError, CoreError
from agent.identity import Identity, establish
from agent.leaving import closed, run_and_leave
from agent.log import logger
from agent.policy_profile import with_profile
from agent.store import Store
from agent.supervision import Supervision
from agent.ticker import Ticker

SHUTDOWN_S = 5.0
RECORDING_S = 10.0
"""The most that writing the recording of a failed core may take: 2 MB, and half a second of a slow computer."""


class Daemon:
    """One running agent."""

    def __init__(self, config: Config, identity: Identity) -> None:
        self._unit = config.unit.id
        self._queue: deque[EventType] = deque()
        self._pumping = False
        self._failure: CoreError | None = None
        self._stop = asyncio.Event()
        self._quiet = asyncio.Event()
        self.parts = assemble(config, identity, emit=self.emit, state=lambda: self.state)
        self.state: State = self.parts.start
        self._supervision = Supervision.of_this_process(lambda: self.state)
        self._ticker = Ticker(self.emit, self.parts.clock, lambda: self.state.due_ms, on_tick=self._ticked)

    def emit(self, event: EventType) -> None:
        """Take one event through the core now, or after the one at hand; none once the core has failed."""
        if self._over():
            return
        self._queue.append(event)
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._pumping = False
        if self._over():
            return
        self._ticker.settle()
        state = self.state
        busy = bool(state.lease or state.left_over) or state.worker.phase is not WorkerPhase.ABSENT
        self.parts.rounds.hurry(hurried=busy)
        if state.stopping and not busy:
            self._quiet.set()

    def _step(self, event: EventType) -> None:
        """One step: decided, carried out, and recorded."""
        before = self.state
        try:
            self.state, effects = step(before, event)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver comes first
            self._failed(event, error)
            return
        for effect in effects:
            self.parts.hands.perform(effect)
        self.parts.permit(permitted=may_survey(self.state))
        # A signal that is late for a moment does not end the stay: each one would cost a session's certificate.
        self.parts.notary.parked(is_parked=not self.state.gates.is_closed("parked"))
        self.parts.recorder.saw(before, event, self.state, effects)

    def _over(self) -> bool:
        """Whether the core has failed."""
        return self._failure is not None

    def _failed(self, event: EventType, error: Exception) -> None:
        """The core raised: end what it may have begun, and then the daemon."""
        name = type(event).__name__
        self._failure = CoreError(
            f"the core failed on {name}: {error!r}", hint="this is a bug: send its recording, and start the agent anew"
        )
        self._queue.clear()
        for effect in (StopWorker(budget_ms=0, why="core_failed"), PauseTransfers()):
            self.parts.hands.perform(effect)
        self.parts.permit(permitted=False)
        self.parts.recorder.saw(self.state, event, self.state, ())
        logger().error("core_failed", event_type=name, traceback="".join(traceback.format_exception(error)))
        self._stop.set()
        self._quiet.set()

    def _ticked(self, now_s: float, late_s: float) -> None:
        self._supervision.ticked(now_s, late_s)
        log.tell_storms()

    def _at_work(self) -> dict[str, str]:
        """What the log is about at this moment."""
        lease = self.state.lease
        return {"unit": self._unit} if lease is None else {"unit": self._unit, "lease": str(lease.grant.key)}

    def stop(self) -> None:
        """End, as on SIGTERM."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises DrivewayError when it cannot begin, CoreError when the core failed."""
        parts = self.parts
        async with contextlib.AsyncExitStack() as stack:
            log.about(self._at_work)
            stack.callback(log.about, None)
            stack.callback(lambda: logger().info("stopped"))
            stack.callback(log.tell_storms, ending=True)
            stack.callback(self._supervision.close)
            stack.push_async_callback(self._leave_recording)
            stack.push_async_callback(closed, parts.store)
            stack.push_async_callback(closed, parts.control)
            await parts.control.start()
            await parts.store.open()
            stack.push_async_callback(closed, parts.keys)
            for part in parts.closing:
                stack.push_async_callback(closed, part)
            if parts.catalogue is not None:
                stack.push_async_callback(closed, parts.catalogue)
                await parts.catalogue.restore()
            await self._resume()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            if not self._over():
                parts.link.start()
                await self._serve()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(source.run(self.emit)) for source in self.parts.sources]
            tasks.append(group.create_task(self._ticker.run()))
            logger().info("started", packages=len(self.parts.shelf.packages))
            await self._stop.wait()
            self._supervision.stopping()
            await self._give_back()
            for task in tasks:
                task.cancel()

    async def _resume(self) -> None:
        """What an earlier run left: hand-ins without a verdict, open leases, words, orders, and spent budgets."""
        store, now_ms = self.parts.store, self.parts.clock.boot_ms()
        pending = [
            leases.Pending(
                row.key, row.kind, row.statement_sha256, now_ms, missing=row.missing, referenced=row.referenced
            )
            for row in await store.call(Store.outbox)
        ]
        left_over = [
            leases.left_over(row.grant, row.done, row.spent, now_ms) for row in await store.call(Store.open_leases)
        ]
        owner, wishes = await self.parts.owner.restore()
        kept = await budgets.recall(store, boot_id(), now_ms, self.state.policy)
        self.state = resume(self.state, tuple(pending), tuple(left_over), owner, kept)
        for event in (wishes, *await self.parts.orders.restore()):
            self.emit(event)

    async def _give_back(self) -> None:
        """End the worker and hand in what is finished, as far as there is time; nothing, where the core has failed."""
        self.emit(Stopping(at_ms=self.parts.clock.boot_ms()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_S):  # not wait_for, which may swallow a cancellation (until 3.12)
                await self._quiet.wait()

    async def _leave_recording(self) -> None:
        """Of a core that failed: what led there, so that the failure can be played again. Once a run, on a thread."""
        if self._failure is None:
            return
        taken, wall_ms = self.parts.recorder.taken(), self.parts.clock.wall_ms()
        try:
            async with asyncio.timeout(RECORDING_S):
                written = await asyncio.to_thread(taken.write, self.parts.recordings, wall_ms, self._failure.what)
        except Exception as error:  # noqa: BLE001 - a recording is nice to have, and the daemon has to end
            logger().error("recording_not_written", folder=str(self.parts.recordings), error=repr(error))
        else:
            logger().info("recording_written", file=str(written.path), bytes=written.size_bytes)


def run(config: Config) -> None:
    """Run the daemon in this process until it is told to stop; raises DrivewayError."""
    if sys.platform != "linux":
        raise ConfigError("the daemon needs Linux (CLOCK_BOOTTIME, pidfd, Unix sockets)")

    stay_out_of_dumps()

    async def main() -> None:
        configured = with_profile(config)
        await Daemon(configured, await establish(configured)).run()

    run_and_leave(main)
