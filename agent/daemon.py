"""The composition root: builds the shells from the configuration, pumps events through the core, shuts down.

An event is handled in the stack of whoever emits it, so a frame that shows the driver has stopped the worker before
the bus reader returns. One thread, one writer: an event emitted while another is handled waits its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque

from agent import handin
from agent.answers import Answers
from agent.clock import SystemClock, boot_id
from agent.config import Config
from agent.control import ControlServer
from agent.core import lease as leases
from agent.core.events import EventType, OwnerMode, Stopping, Tick
from agent.core.machine import step
from agent.core.state import State, WorkerPhase, initial, resume
from agent.core.world import Owner
from agent.errors import ConfigError
from agent.fleet.desk import Desk
from agent.fleet.link import LinkConfig
from agent.hands import Hands
from agent.identity import Identity, establish, read_key
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.log import logger
from agent.ports import Source
from agent.store import Store, StoreThread
from agent.telemetry.hwmon import Hwmon
from agent.telemetry.jetson import JetsonSysfs
from agent.vehicle.profile import load_profile
from agent.vehicle.source import build_source

TICK_S = 0.1
SHUTDOWN_S = 5.0


class Daemon:
    """One running agent."""

    def __init__(self, config: Config, identity: Identity) -> None:
        self._config = config
        self._clock = SystemClock()
        self._queue: deque[EventType] = deque()
        self._pumping = False
        self._stop = asyncio.Event()
        self._quiet = asyncio.Event()
        self._store = StoreThread(config.path(config.state_dir) / "driveway.db")
        boot = boot_id() or "unknown"
        now_ms = self._clock.boot_ms()
        self.state: State = initial(f"{config.unit.id[:32]}-{now_ms}", config.policy, now_ms)
        publisher_keys = read_key(config, config.inference.publisher_key, "inference.publisher_key")
        self._shelf = Shelf(config.path(config.inference.packages_dir), publisher_keys)
        self._sources = _build_sources(config, self._clock)
        self._desk = Desk(
            unit=config.unit.id,
            cell=identity.cell,
            boot=boot,
            link=LinkConfig(
                brokers=config.fleet.addresses(),
                client_id=config.unit.id,
                filters=(),
                keepalive_s=config.fleet.keepalive_s,
                tls=identity.tls,
            ),
            dispatcher_keys=identity.dispatcher_keys,
            emit=self.emit,
            clock=self._clock,
        )
        self._hands = Hands(
            emit=self.emit,
            clock=self._clock,
            store=self._store,
            desk=self._desk,
            shelf=self._shelf,
            signer=identity.signer,
            unit=handin.Unit(
                id=config.unit.id,
                device_class=config.unit.device_class,
                boot=boot,
                agent_sha256=handin.agent_sha256(),
                policy_sha256=handin.policy_sha256(config.policy),
            ),
            limits=WorkerLimits(config.inference.threads, config.inference.memory_mb),
            executor=config.inference.executor,
            web=identity.web,
            lease_energy=self._lease_energy,
        )
        answers = Answers(
            state=lambda: self.state,
            emit=self.emit,
            clock=self._clock,
            store=self._store,
            hands=self._hands,
            desk=self._desk,
            shelf=self._shelf,
        )
        self._control = ControlServer(config.path(config.control_socket), answers.answer)

    def emit(self, event: EventType) -> None:
        """Take one event through the core now, or after the one at hand."""
        self._queue.append(event)
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._queue:
                self.state, effects = step(self.state, self._queue.popleft())
                for effect in effects:
                    self._hands.perform(effect)
        finally:
            self._pumping = False
        state = self.state
        busy = state.lease is not None or state.left_over or state.worker.phase is not WorkerPhase.ABSENT
        if state.stopping and not busy:
            self._quiet.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; raises DrivewayError when it cannot begin."""
        await self._control.start()
        await self._store.open()
        try:
            await self._resume()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            self._desk.start()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(source.run(self.emit)) for source in self._sources]
                tasks.append(group.create_task(self._tick()))
                logger().info("started", unit=self._config.unit.id, packages=len(self._shelf.packages))
                await self._stop.wait()
                await self._give_back()
                for task in tasks:
                    task.cancel()
        finally:
            await self._hands.close()
            await self._desk.close()
            await self._control.close()
            await self._store.close()
            logger().info("stopped")

    async def _resume(self) -> None:
        """What an earlier run left: hand-ins without a verdict, leases that were open, and the owner's pause."""
        now_ms = self._clock.boot_ms()
        pending = [
            leases.Pending(row.key, row.kind, row.statement_sha256, now_ms)
            for row in await self._store.call(Store.outbox)
        ]
        left_over = [
            leases.left_over(row.grant, row.done, row.energy_micro_wh, now_ms)
            for row in await self._store.call(Store.open_leases)
        ]
        paused = await self._store.call(Store.paused)
        owner = Owner(OwnerMode.PAUSED if paused else OwnerMode.AUTO)
        self.state = resume(self.state, tuple(pending), tuple(left_over), owner)

    async def _tick(self) -> None:
        while True:
            self.emit(Tick(at_ms=self._clock.boot_ms()))
            await asyncio.sleep(TICK_S)

    async def _give_back(self) -> None:
        """End the worker and hand in what is finished, as far as there is time."""
        self.emit(Stopping(at_ms=self._clock.boot_ms()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), SHUTDOWN_S)

    def _lease_energy(self) -> int:
        lease = self.state.lease
        return 0 if lease is None else round(self.state.meter.total_micro_wh - lease.energy_start_micro_wh)


def _build_sources(config: Config, clock: SystemClock) -> list[Source]:
    profiles = [load_profile(name) for name in config.vehicle.profiles]
    sources: list[Source] = [build_source(bus, profiles, clock) for bus in config.vehicle.bus]
    computer = config.computer
    if computer.reader == "jetson":
        sources.append(JetsonSysfs(config.path(computer.sysfs_root), computer.interval_ms, clock))
    else:
        sources.append(Hwmon(computer.interval_ms, clock))
    return sources


def run(config: Config) -> None:
    """Run the daemon in this process until it is told to stop."""
    if sys.platform != "linux":
        raise ConfigError("the daemon needs Linux (CLOCK_BOOTTIME, pidfd, Unix sockets)")

    async def main() -> None:
        await Daemon(config, await establish(config)).run()

    asyncio.run(main())
