"""Carries faults out: each begins at its time, and is mended when its time is over."""

from __future__ import annotations

import random
from collections.abc import Callable

from agent.control import ControlRequest, Pause
from agent.core.model import PaceState
from hil.dispatcher.orders import DemandOrder
from hil.dispatcher.paces import PaceOrder
from hil.sim.protocol.broker import Broker
from hil.sim.protocol.faults import Fault
from hil.sim.protocol.garage import Garage
from hil.sim.protocol.hostility import Hostility
from hil.sim.protocol.replica import Replica
from hil.sim.protocol.world import World

LATE_MAX_MS = 45 * 60_000
COPIES_MAX = 4
REPLAYS = 30
OPERATOR_MS = 2_000
Mend = Callable[[], object] | None


class Trouble:
    """All faults of a run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lasting: dict[tuple[str, int], int] = {}
        """Faults of a kind that overlap end with the last of them."""

    def plan(self) -> None:
        """Put every fault on the agenda."""
        for fault in self._world.plan.faults:
            self._world.loop.after(fault.at_ms, lambda fault=fault: self._begin(fault))  # type: ignore[misc]

    def _begin(self, fault: Fault) -> None:
        world = self._world
        world.faults_seen[fault.kind] += 1
        mend = getattr(self, f"_{fault.kind}")(fault)
        if mend is None:
            return
        key = (fault.kind, fault.target)
        self._lasting[key] = self._lasting.get(key, 0) + 1

        def over() -> None:
            self._lasting[key] -= 1
            if not self._lasting[key]:
                mend()

        world.loop.after(fault.for_ms, over)

    def _car(self, fault: Fault) -> Garage:
        return self._world.cars[fault.target % len(self._world.cars)]

    def _replica(self, fault: Fault) -> Replica:
        return self._world.replicas[fault.target % len(self._world.replicas)]

    @property
    def _broker(self) -> Broker:
        return self._world.broker

    # --- a car -------------------------------------------------------------------------------------------------

    def _crash(self, fault: Fault, *, reboots: bool = False) -> None:
        car = self._car(fault)
        car.fails_at = car.boundaries + 1 + round(fault.amount)
        car.down_ms, car.reboots = float(fault.for_ms), reboots

    def _reboot(self, fault: Fault) -> None:
        self._crash(fault, reboots=True)

    def _suspend(self, fault: Fault) -> None:
        self._car(fault).suspend(fault.for_ms)

    def _driver(self, fault: Fault) -> Mend:
        car = self._car(fault)

        def here(*, is_here: bool) -> None:
            car.driver_here = is_here
            if car.run is not None:
                car.run.soon(0, car.run.tell_car)

        here(is_here=True)
        return lambda: here(is_here=False)

    def _pause(self, fault: Fault) -> None:
        run = self._car(fault).run
        if run is not None and fault.for_ms:
            run.do(run.owner.answer(ControlRequest(verb="pause", pause=Pause(for_ms=fault.for_ms))))

    def _full_disk(self, fault: Fault) -> Mend:
        disk = self._car(fault).disk
        disk.fill(refuses_all=fault.at_ms % 3 == 0)
        return disk.free

    def _wall_jump(self, fault: Fault) -> None:
        car = self._car(fault)
        car.clock.jump(fault.amount)
        if car.run is not None:
            car.run.soon(0, car.run.host)

    def _bad_worker(self, fault: Fault) -> Mend:
        troubles = self._car(fault).troubles
        names = ("crash", "hang", "slow_start", "slice_fails")
        name = names[fault.at_ms % len(names)]
        setattr(troubles, name, fault.amount)

        def mend() -> None:
            for one in names:
                setattr(troubles, one, 0.0)

        return mend

    def _offline(self, fault: Fault) -> Mend:
        car = self._car(fault)
        car.set_network(there=False)
        return lambda: car.set_network(there=True)

    def _half_open(self, fault: Fault) -> None:
        run = self._car(fault).run
        if run is not None:
            run.link.go_deaf()

    def _take_over(self, fault: Fault) -> None:
        self._broker.take_over(self._car(fault).unit)

    def _hang_up(self, fault: Fault) -> None:
        self._broker.drop(self._car(fault).unit, "server busy")

    def _no_objects(self, fault: Fault) -> Mend:
        car = self._car(fault)
        car.objects_fail = fault.amount

        def mend() -> None:
            car.objects_fail = 0.0

        return mend

    # --- a dispatcher ------------------------------------------------------------------------------------------

    def _kill(self, fault: Fault) -> None:
        replica = self._replica(fault)
        replica.dies_at = replica.boundaries + 1 + round(fault.amount)
        replica.down_ms = float(fault.for_ms)

    def _stall(self, fault: Fault) -> None:
        self._replica(fault).stall(fault.for_ms)

    def _race(self, fault: Fault) -> Mend:
        replica = self._replica(fault)
        replica.race = fault.amount

        def mend() -> None:
            replica.race = 0.0

        return mend

    # --- the broker --------------------------------------------------------------------------------------------

    def _broker_restart(self, _fault: Fault) -> Mend:
        self._broker.stop()
        return self._broker.start

    def _lose(self, fault: Fault) -> Mend:
        return self._weather(lose=fault.amount)

    def _duplicate(self, fault: Fault) -> Mend:
        self._broker.weather.copies = COPIES_MAX
        self._broker.weather.late_ms = LATE_MAX_MS
        return self._weather(duplicate=fault.amount)

    def _late(self, fault: Fault) -> Mend:
        self._broker.weather.late_ms = 1_000 if fault.at_ms % 2 else LATE_MAX_MS  # out of order, or much too late
        return self._weather(late=fault.amount)

    def _refuse(self, fault: Fault) -> Mend:
        return self._weather(refuse=fault.amount)

    def _ghosts(self, _fault: Fault) -> Mend:
        return self._weather(ghosts=True)

    def _expired(self, _fault: Fault) -> Mend:
        return self._weather(delivers_expired=True)

    def _old_retained(self, fault: Fault) -> Mend:
        return self._weather(old_retained=True) if fault.at_ms % 2 else self._weather(forgets_retained=True)

    def _weather(self, **now: float | bool) -> Mend:
        weather = self._broker.weather
        for name, value in now.items():
            setattr(weather, name, value)

        def mend() -> None:
            for name, value in now.items():
                setattr(weather, name, type(value)(0))

        return mend

    def _hostile(self, fault: Fault) -> Mend:
        world = self._world
        chance = random.Random(f"{world.plan.seed}/{fault.at_ms}/hostile")
        hostility = self._broker.hostility = Hostility(chance, world.units, fault.amount)

        def replay() -> None:
            old = hostility.replay()
            if old is not None and self._broker.up:
                self._broker.inject(*old)

        for _ in range(REPLAYS):
            world.loop.after(chance.uniform(0, 2 * fault.for_ms), replay)

        def mend() -> None:
            self._broker.hostility = None

        return mend

    # --- the operator ------------------------------------------------------------------------------------------

    def _cancel(self, fault: Fault, *, withdraw: bool = False) -> None:
        """One of the leases that run, whoever has it."""
        world = self._world
        jobs = world.counter.leased_jobs()
        if jobs:
            job = jobs[fault.at_ms % len(jobs)]
            world.operate(lambda service: service.cancel(job, round(fault.amount), "simulated", withdraw=withdraw))

    def _withdraw(self, fault: Fault) -> None:
        self._cancel(fault, withdraw=True)

    def _closed(self, fault: Fault) -> Mend:
        return self._pace(PaceState.CLOSED, round(fault.amount))

    def _stop(self, fault: Fault) -> Mend:
        return self._pace(PaceState.STOP, round(fault.amount))

    def _pace(self, state: PaceState, spread_s: int) -> Mend:
        """For all cells that have cars; taken back by an operator who sees to it that somebody hears."""
        world = self._world
        cells = sorted({car.cell for car in world.cars})

        def set_pace(wanted: PaceOrder) -> bool:
            return world.operate(lambda service: [service.pace(cell, wanted) for cell in cells])

        def mend() -> None:
            if not set_pace(PaceOrder(state=PaceState.OPEN)):
                world.loop.after(OPERATOR_MS, mend)

        set_pace(PaceOrder(state=state, spread_s=spread_s))
        return mend

    def _demand(self, fault: Fault) -> None:
        unit, stop_for_s = self._car(fault).unit, fault.for_ms // 1000
        self._world.operate(lambda service: service.order(unit, DemandOrder(stop_for_s=stop_for_s)))

    # --- the database ------------------------------------------------------------------------------------------

    def _clock_jump(self, fault: Fault) -> None:
        self._world.clock.jump(fault.amount)
