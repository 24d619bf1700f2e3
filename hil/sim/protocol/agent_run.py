"""One life of an agent, from its start to when its power fails: the daemon's own parts around the real core.

Desk, hands, orders, owner's desk, store and station are the daemon's; so is how it takes up what an earlier life left.
What is simulated is what they touch: the link, the disk's thread, the worker's process, the web. Between any two steps
the power may fail (`boundary`): before and after each effect, and before and after each commit. A life that is over
does nothing any more, whatever still calls it.

Time leaps. What a car says all the time (that it is parked, that its die is cool) is told just before something
happens, as in `hil.sim.car`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from agent import handin
from agent.core import signals
from agent.core.events import ComputeSeen, EventType, HostSeen, Sample, SignalsSeen, SignalValue, SourceHeard, Tick
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.signals import Vehicle
from agent.core.state import State, initial
from agent.daemon import Daemon
from agent.errors import StoreError
from agent.fleet.desk import Desk
from agent.fleet.link_config import LinkConfig
from agent.fleet.orders import Orders
from agent.hands import Hands
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.owner import OwnerDesk
from agent.telemetry.limits import PowerLimits
from agent.transfers import Transfers
from hil.sim.protocol.carrier import SimulatedLink
from hil.sim.protocol.computer import Bench, SimulatedStation, package
from hil.sim.protocol.disk import NOWHERE, SimulatedStoreThread
from hil.sim.protocol.garage import Garage
from hil.sim.protocol.web import SimulatedTransfers

SOURCE, GROUP = "car", "all"
EMPTY_CAR: dict[str, SignalValue] = {
    signals.SPEED: 0.0,
    signals.GEAR: 126.0,
    signals.DOORS[0]: False,
    signals.CHARGE: 80.0,
    signals.CABLE: True,
}
"""A car that tells no more than every car must."""
ABSENT = frozenset(path for path, leaf in signals.LEAVES.items() if leaf.needed and path not in EMPTY_CAR)
POLICY = Policy(parked_for_s=5.0)
REPEAT_MS, READING_MS = 100, 1_000
SHORTEST_MS = 10
"""Between two ticks, as the daemon's ticker has it."""
RESTART_MS = 5_000
DIE_C = 50.0


class PowerCut(asyncio.CancelledError):
    """The life is over. What waits for something ends quietly, as a cancelled task does."""


class AgentRun:
    """From `begin` to `end`. `garage` is the car it lives in; `life` counts its lives."""

    def __init__(self, garage: Garage) -> None:
        self.garage = garage
        self.alive = True
        self.clock = garage.clock
        self._queue: deque[EventType] = deque()
        self._pumping = False
        self._heard_ms = self._read_ms = self.clock.boot_ms()
        self._ticks: asyncio.TimerHandle | None = None
        self._tick_ms = 0.0
        self._task: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[Any]] = set()
        unit, boot, now_ms = garage.unit, self.clock.boot_id, self.clock.boot_ms()
        vehicle = Vehicle(offered=frozenset(EMPTY_CAR), absent=ABSENT)
        self.state: State = initial(f"{unit}-{now_ms}", POLICY, now_ms, vehicle=vehicle)
        self.store = SimulatedStoreThread(garage.disk, self, lambda: garage.loop.now_s * 1000, self._committed)
        self.orders = Orders(self.store, self.clock, boot, trusted=lambda: not self.state.wall.problem)
        self.desk = Desk(
            unit=unit,
            cell=garage.cell,
            run=f"{boot}-{now_ms}",
            dispatcher_keys=garage.dispatcher_keys,
            orders=self.orders,
            emit=self.emit,
            clock=self.clock,
            on_witness=lambda _message: None,
        )
        self.session = garage.signer.begin_session(garage.unit, garage.lives, boot)
        self.hands = self._hands()
        self.link = SimulatedLink(
            self.desk.link_config(LinkConfig(brokers=(("broker", 8883),), client_id="", filters=())),
            garage.cell,
            garage.broker,
            garage.chance,
            self.soon,
            on_message=self.desk.receive,
            on_state=self.desk.link_changed,
            on_undelivered=lambda token, detail, poison: self.desk.undelivered(token, detail, poison=poison),
            on_publish=lambda topic, body: garage.watch.published(garage, topic, body),
        )
        self.link.network = garage.network
        self.desk.attach(self.link)
        self.owner = OwnerDesk(
            state=lambda: self.state, emit=self.emit, clock=self.clock, store=self.store, boot=boot, policy=POLICY
        )

    @property
    def parts(self) -> AgentRun:
        """As the daemon's: the parts that take up what an earlier life left."""
        return self

    def _hands(self) -> Hands:
        garage = self.garage
        shelf = Shelf(NOWHERE, {})
        for name, sha256 in garage.packages:
            shelf.packages[sha256] = package(name, sha256)
        limits = WorkerLimits(threads=1, memory_mb=512)
        plans = PlannedShelf(shelf, None, emit=self.emit, clock=self.clock, memory_mb=limits.memory_mb)
        bench = Bench(
            soon=self.soon,
            chance=garage.chance,
            true_ms=lambda: garage.loop.now_s * 1000,
            item_ms=garage.item_ms,
            worked=lambda worked: garage.watch.worked(garage, worked),
            troubles=garage.troubles,
        )

        transfers = SimulatedTransfers(
            garage.objects,
            inline=self.desk.inputs.get,
            chance=garage.chance,
            wait=self.wait,
            now_ms=lambda: garage.loop.now_s * 1000,
            fails=lambda: 1.0 if not garage.network else garage.objects_fail,
        )

        class SimulatedHands(Hands):
            """The daemon's hands, with a worker in virtual time."""

            def __init__(self, **parts: Any) -> None:
                super().__init__(**parts)
                self._station = SimulatedStation(
                    bench,
                    garage.answer_bytes,
                    emit=self._from_station,
                    clock=garage.clock,
                    shelf=shelf,
                    plans=plans,
                    limits=limits,
                    on_slice=self._slice_done,
                    on_lost=_never_lost,
                )

            @property
            def tasks(self) -> set[asyncio.Task[None]]:
                """What is under way."""
                return self._tasks

        return SimulatedHands(
            emit=self.emit,
            clock=self.clock,
            store=self.store,
            desk=self.desk,
            shelf=shelf,
            plans=plans,
            session=lambda: self.session,
            unit=handin.Unit(id=garage.unit, device_class="simulated", boot=self.clock.boot_id, agent_sha256="a" * 64),
            limits=limits,
            executor="simulated",
            transfers=cast("Transfers", transfers),
            spent=lambda: self.state.spent,
            policy=lambda: self.state.policy,
            power_limits=cast("PowerLimits", _NoLimits()),
            keep_awake=lambda _for_ms: None,
            accelerator_lost=_never_lost,
        )

    # --- life and death ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take up what an earlier life left, and go on."""
        self._task = self.garage.loop.create_task(self._begin())
        self._task.add_done_callback(_raise)

    async def _begin(self) -> None:
        try:
            await self.store.open()
            await Daemon._resume(cast("Daemon", self))  # noqa: SLF001 - the daemon's own way, whatever becomes of it
        except StoreError:
            self.garage.loop.call_soon(self.garage.restart, RESTART_MS)
            return
        self.garage.watch.took_up(self.garage)
        self.host()
        self.tell_car()
        self.link.start()

    def end(self) -> None:
        """The power has failed."""
        self.alive = False
        self.link.end()
        if self._ticks is not None:
            self._ticks.cancel()
        tasks = {self._task, *self._work, *self.hands.tasks, *self.orders._rows.tasks} - {None}  # type: ignore[attr-defined]  # noqa: SLF001
        for task in tasks:
            cast("asyncio.Task[None]", task).cancel()

    def boundary(self, name: str) -> None:
        """Between two steps: here the power may fail."""
        if not self.alive:
            raise PowerCut
        if self.garage.power_fails(name):
            self.garage.power_cut()
            raise PowerCut

    def soon(self, delay_ms: float, action: Callable[[], object]) -> None:
        """So much later, if this life lasts; when a suspended car wakes, if it is asleep then."""

        def act() -> None:
            if not self.alive:
                return
            if self.garage.suspended:
                self.garage.frozen.append(act)
                return
            with contextlib.suppress(PowerCut):
                action()

        self.garage.loop.after(delay_ms, act)

    async def wait(self, delay_ms: float) -> None:
        """As `soon`, for a coroutine."""
        future = self.garage.loop.create_future()

        def over() -> None:
            if not future.done():
                future.set_result(None)

        self.soon(delay_ms, over)
        await future

    def do(self, work: Any) -> None:
        """Run a coroutine of the owner's, who takes no for an answer."""

        async def quietly() -> None:
            with contextlib.suppress(StoreError):
                await work

        task = self.garage.loop.create_task(quietly())
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # --- the pump ----------------------------------------------------------------------------------------------

    def emit(self, event: EventType) -> None:
        """One event through the core now, or after the one at hand; as the daemon has it."""
        if not self.alive:
            raise PowerCut
        if self.garage.suspended:
            self.garage.frozen.append(lambda: self.emit(event))
            return
        self._queue.append(event)
        if self._pumping:
            return
        self._pumping = True
        try:
            self._refresh()
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._pumping = False
        self._plan_tick()

    def _step(self, event: EventType) -> None:
        before = self.state
        try:
            self.state, effects = step(before, event)
        except Exception as error:
            self.garage.watch.failed(f"the core raised over {type(event).__name__}: {error!r}")
            self.garage.restart(RESTART_MS)  # as the daemon ends then, and is started again
            raise PowerCut from error
        self.garage.watch.stepped(self.garage, before, event, self.state, effects)
        for effect in effects:
            self.boundary("before an effect")
            self.hands.perform(effect)
            self.boundary("after an effect")

    def _refresh(self) -> None:
        """What was said all the time until now."""
        now_ms = self.clock.boot_ms()
        if now_ms - self._heard_ms > REPEAT_MS:
            since_ms, self._heard_ms = self._heard_ms, now_ms
            self._step(SourceHeard(at_ms=now_ms, source=SOURCE, groups=(GROUP,), since_ms=since_ms))
        if now_ms - self._read_ms > READING_MS:
            since_ms, self._read_ms = self._read_ms, now_ms
            self._step(ComputeSeen(at_ms=now_ms, die_c=DIE_C, power_w=None, sensor="none", since_ms=since_ms))

    def tell_car(self) -> None:
        """Every signal, as it is now."""
        now_ms = self.clock.boot_ms()
        self._heard_ms = self._read_ms = now_ms
        door = {signals.DOORS[0]: self.garage.driver_here}
        samples = tuple(Sample(path, value, group=GROUP, period_ms=100) for path, value in (EMPTY_CAR | door).items())
        self.emit(SignalsSeen(at_ms=now_ms, source=SOURCE, samples=samples))
        self.emit(ComputeSeen(at_ms=now_ms, die_c=DIE_C, power_w=None, sensor="none"))

    def host(self) -> None:
        """What the computer's system says of its clock."""
        self.emit(HostSeen(at_ms=self.clock.boot_ms(), wall_ms=self.clock.wall_ms(), wall_error_ms=20))

    def _plan_tick(self) -> None:
        """The next moment at which the core has something to do by itself."""
        garage = self.garage
        at_ms = max(self.clock.true_ms(self.state.wakes_ms) + 1, garage.loop.now_s * 1000 + SHORTEST_MS)
        if self._ticks is not None:
            if self._tick_ms <= at_ms:
                return
            self._ticks.cancel()
        self._tick_ms = at_ms
        self._ticks = garage.loop.after(min(at_ms - garage.loop.now_s * 1000, 1e11), self._tick)

    def _tick(self) -> None:
        self._ticks = None
        if self.alive and not self.garage.suspended:
            self.tick()

    def tick(self) -> None:
        """Time has passed."""
        with contextlib.suppress(PowerCut):
            self.emit(Tick(at_ms=self.clock.boot_ms()))

    def _committed(self) -> None:
        self.garage.watch.committed(self.garage)


def _never_lost(detail: str) -> None:
    """A simulated accelerator is always there."""
    raise AssertionError(detail)


def _raise(task: asyncio.Task[None]) -> None:
    """A start that fails in a way that nobody foresees ends the simulation."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raise error


class _NoLimits:
    """A computer without means of its own to hold itself back."""

    def want(self, limit_w: float) -> None:
        """As it likes."""

    def worker_here(self, here: bool) -> None:  # noqa: FBT001 - as the real one
        """It does not matter."""
