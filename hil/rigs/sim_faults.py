"""What goes wrong in virtual time: each fault of a scenario laid over the simulated car, its computer or its fleet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_never

from agent.core.events import AcceleratorSeen, PlansMissing, Quality, SignalValue
from agent.core.model import Accelerator, Readiness
from agent.errors import ConfigError
from hil.rigs import faults as f
from hil.rigs.sim_car import ScenarioCar
from hil.sim.bus import GROUP_OF, GROUPS, Word

Mend = Callable[[], None]
SURVEY_S = 3.0
"""So long after an accelerator is back a survey finds it."""
GONE: dict[str, Word] = {
    "unknown": (None, Quality.UNKNOWN),
    "not_available": (None, Quality.NOT_AVAILABLE),
    "fault": (None, Quality.FAULT),
    "not_a_number": (math.nan, Quality.GOOD),
    "out_of_range": (1e9, Quality.GOOD),
}


def strike(car: ScenarioCar, fault: f.Fault) -> Mend:
    """Begin it now; how to mend it. Raises ConfigError for a signal or a group that the car does not have."""
    match fault:
        case f.SensorStuck() | f.SensorLies() | f.SensorGone() | f.BusSilent() | f.BusOff() | f.ConverterDead():
            return _car(car, fault)
        case f.BrokerKilled() | f.Partition() | f.BadNetwork() | f.DispatcherKilled():
            return _network(car, fault)
        case (
            f.DieUnread()
            | f.DieBiased()
            | f.PowerUnread()
            | f.PowerDisobeys()
            | f.FanDead()
            | f.AcceleratorLost()
            | f.PlansStale()
        ):
            return _computer(car, fault)
        case f.WorkerKilled() | f.WorkerHangs() | f.PackageRefused() | f.DiskFull() | f.DiskError():
            return _work(car, fault)
        case f.ClockJump() | f.ClockLost():
            return _clock(car, fault)
        case f.AgentKilled() | f.AgentHangs() | f.Suspend() | f.KeyAbsent() | f.KeySlow() | f.PowerCut():
            raise AssertionError("why_not says that it cannot")
        case _:
            assert_never(fault)


def signal_path(name: str) -> str:
    """The VSS path of a signal as a scenario names it. Raises ConfigError for one that no car has."""
    path = name if name.startswith("Vehicle.") else f"Vehicle.{name}"
    if path not in GROUP_OF:
        raise ConfigError(f"the simulated car has no signal {path}", hint=f"it has {', '.join(sorted(GROUP_OF))}")
    return path


def _car(
    car: ScenarioCar,
    fault: f.SensorStuck | f.SensorLies | f.SensorGone | f.BusSilent | f.BusOff | f.ConverterDead,
) -> Mend:
    match fault:
        case f.SensorStuck(signal=signal):
            return _lie(car, signal, (car.bus.honest(signal_path(signal)), Quality.GOOD))
        case f.SensorLies(signal=signal, value=value):
            return _lie(car, signal, (float(value) if type(value) is int else value, Quality.GOOD))
        case f.SensorGone(signal=signal, how=how):
            return _lie(car, signal, GONE[how])
        case f.BusSilent(group=group):
            if group not in GROUPS:
                raise ConfigError(f"the simulated car has no group {group!r}", hint=f"it has {', '.join(GROUPS)}")
            car.quieten((group,))
            return lambda: car.bus.resume(group)
        case f.BusOff():
            car.source(alive=False)
            return lambda: car.source(alive=True)
        case f.ConverterDead():
            car.set_feeds(feeds=False)
            return lambda: car.set_feeds(feeds=True)
        case _:
            assert_never(fault)


def _lie(car: ScenarioCar, signal: str, word: Word) -> Mend:
    path = signal_path(signal)

    def lie(_honest: SignalValue) -> Word:
        return word

    car.bus.lie(path, lie)
    return lambda: car.bus.lie(path, None)


def _network(car: ScenarioCar, fault: f.BrokerKilled | f.Partition | f.BadNetwork | f.DispatcherKilled) -> Mend:
    troubles = car.shells.troubles
    match fault:
        case f.BrokerKilled():
            car.shells.link(connected=False)
            return lambda: car.shells.link(connected=not car.suspended)
        case f.Partition() | f.DispatcherKilled():
            troubles.lose = 1.0
        case f.BadNetwork(lost_share=lost_share, duplicate_share=duplicate_share):
            troubles.lose, troubles.duplicate, troubles.late = lost_share, duplicate_share, lost_share
        case _:
            assert_never(fault)

    def mend() -> None:
        troubles.lose = troubles.duplicate = troubles.late = 0.0

    return mend


def _computer(
    car: ScenarioCar,
    fault: f.DieUnread | f.DieBiased | f.PowerUnread | f.PowerDisobeys | f.FanDead | f.AcceleratorLost | f.PlansStale,
) -> Mend:
    honest = car.telemetry
    match fault:
        case f.DieUnread():
            car.read_nothing(None)
        case f.DieBiased(error_c=error_c):
            car.read_nothing(lambda die_c, power_w: (round(die_c + error_c, 2), round(power_w, 1)))
        case f.PowerUnread():
            car.read_nothing(lambda die_c, _power_w: (round(die_c * 2) / 2, None))
        case f.PowerDisobeys(share=share):
            car.disobey(share)
            return lambda: car.disobey(0.0)
        case f.FanDead():
            car.set_fan(turns=False)
            return lambda: car.set_fan(turns=True)
        case f.AcceleratorLost():
            return _lose_accelerator(car)
        case f.PlansStale(packages=packages):
            missing = tuple(f"{number:064x}" for number in range(packages))
            car.tell(PlansMissing(at_ms=car.clock.now_ms, packages=missing))
            return lambda: car.tell(PlansMissing(at_ms=car.clock.now_ms, packages=()))
        case _:
            assert_never(fault)
    return lambda: car.read_nothing(honest)


def _lose_accelerator(car: ScenarioCar) -> Mend:
    def seen(state: Readiness, detail: str) -> None:
        accelerator = Accelerator(state, "tensorrt", device="orin", detail=detail)
        car.tell(AcceleratorSeen(at_ms=car.clock.now_ms, accelerator=accelerator))

    car.shells.kill_worker(lost_accelerator=True)
    seen(Readiness.LOST, "it fell off the bus")
    return lambda: car.later(SURVEY_S, lambda: seen(Readiness.READY, ""))


def _work(
    car: ScenarioCar, fault: f.WorkerKilled | f.WorkerHangs | f.PackageRefused | f.DiskFull | f.DiskError
) -> Mend:
    troubles = car.shells.troubles
    match fault:
        case f.WorkerKilled():
            car.shells.kill_worker()
        case f.WorkerHangs():
            troubles.hang, troubles.drain_hangs = 1.0, True
        case f.PackageRefused():
            troubles.refuse = 1.0
        case f.DiskFull() | f.DiskError():
            car.shells.disk(full=True)
            return lambda: car.shells.disk(full=False)
        case _:
            assert_never(fault)

    def mend() -> None:
        troubles.hang = troubles.refuse = 0.0
        troubles.drain_hangs = False

    return mend


def _clock(car: ScenarioCar, fault: f.ClockJump | f.ClockLost) -> Mend:
    right_ms = car.wall_offset_ms
    match fault:
        case f.ClockJump(by_s=by_s):
            car.wall_offset_ms += round(by_s * 1000)
        case f.ClockLost(reset=reset):
            car.wall_error_ms = None
            car.wall_offset_ms = 0 if reset else right_ms
        case _:
            assert_never(fault)
    car.tell_host()

    def mend() -> None:
        car.wall_offset_ms, car.wall_error_ms = right_ms, 20
        car.tell_host()

    return mend
