"""The composition root: wires the parts, pumps events through the core, shuts down.

An event is handled in the stack of whoever emits it, so a frame that shows the driver has stopped the worker before
the bus reader returns. One thread, one writer: an event emitted while another is handled waits its turn.

Parts are closed in the reverse order of their use, each whatever becomes of the others (`agent.leaving`): first the
worker ends, then its power limit is put back and the platform may sleep, and the store closes when nobody writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque

from agent import budgets
from agent.assembly import assemble
from agent.clock import boot_id
from agent.config import Config
from agent.core import lease as leases
from agent.core.effects import EffectType
from agent.core.events import EventType, Stopping
from agent.core.machine import step
from agent.core.state import State, WorkerPhase, resume
from agent.errors import ConfigError
from agent.identity import Identity, establish
from agent.leaving import closed, run_and_leave
from agent.log import logger
from agent.store import Store
from agent.ticker import Ticker

SHUTDOWN_S = 5.0


class Daemon:
    """One running agent."""

    def __init__(self, config: Config, identity: Identity) -> None:
        self._unit = config.unit.id
        self._queue: deque[EventType] = deque()
        self._pumping = False
        self._stop = asyncio.Event()
        self._quiet = asyncio.Event()
        self.parts = assemble(config, identity, emit=self.emit, state=lambda: self.state)
        self.state: State = self.parts.start
        self._ticker = Ticker(self.emit, self.parts.clock, lambda: self.state.due_ms)

    def emit(self, event: EventType) -> None:
        """Take one event through the core now, or after the one at hand."""
        self._queue.append(event)
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                effects = self._step(self._queue.popleft())
                for effect in effects:
                    self.parts.hands.perform(effect)
        finally:
            self._pumping = False
        self._ticker.settle()
        state = self.state
        busy = bool(state.lease or state.left_over) or state.worker.phase is not WorkerPhase.ABSENT
        self.parts.rounds.hurry(hurried=busy)
        if state.stopping and not busy:
            self._quiet.set()

    def _step(self, event: EventType) -> tuple[EffectType, ...]:
        """One step, recorded. A core that fails leaves what led there: with it the failure can be played again."""
        before, recorder = self.state, self.parts.recorder
        try:
            self.state, effects = step(before, event)
        except Exception as error:
            recorder.saw(before, event, before, ())
            with contextlib.suppress(OSError):
                recorder.taken().write(self.parts.recordings, self.parts.clock.wall_ms(), f"the core failed: {error!r}")
            raise
        recorder.saw(before, event, self.state, effects)
        return effects

    def stop(self) -> None:
        """End, as on SIGTERM."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises DrivewayError when it cannot begin."""
        parts = self.parts
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(lambda: logger().info("stopped"))
            stack.push_async_callback(closed, parts.store)
            stack.push_async_callback(closed, parts.control)
            await parts.control.start()
            await parts.store.open()
            for part in (parts.orders, parts.link, parts.desk, parts.awake, parts.limits, parts.hands):
                stack.push_async_callback(closed, part)
            await self._resume()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            parts.link.start()
            await self._serve()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(source.run(self.emit)) for source in self.parts.sources]
            tasks.append(group.create_task(self._ticker.run()))
            logger().info("started", unit=self._unit, packages=len(self.parts.shelf.packages))
            await self._stop.wait()
            await self._give_back()
            for task in tasks:
                task.cancel()

    async def _resume(self) -> None:
        """What an earlier run left: hand-ins without a verdict, open leases, words, orders, and spent budgets."""
        store, now_ms = self.parts.store, self.parts.clock.boot_ms()
        pending = [
            leases.Pending(row.key, row.kind, row.statement_sha256, now_ms, missing=row.missing)
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
        """End the worker and hand in what is finished, as far as there is time."""
        self.emit(Stopping(at_ms=self.parts.clock.boot_ms()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), SHUTDOWN_S)


def run(config: Config) -> None:
    """Run the daemon in this process until it is told to stop."""
    if sys.platform != "linux":
        raise ConfigError("the daemon needs Linux (CLOCK_BOOTTIME, pidfd, Unix sockets)")

    async def main() -> None:
        await Daemon(config, await establish(config)).run()

    run_and_leave(main)
