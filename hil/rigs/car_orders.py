"""What rigs with a simulated car of real frames (`hil.car`) have it do: people, its battery and weather, its sensors.

The car is its control socket (`hil.car.control`), reached in whatever way the rig has: `Order` sends one order, and
raises DrivewayError when the car refuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from agent.errors import DrivewayError
from hil.rigs import faults as f
from hil.rigs import stimuli as s
from hil.sim.bus import GROUPS

RETURN_PAUSE_MS = 500
Change = s.Charger | s.ChargeLimit | s.StateOfCharge | s.LowVoltage | s.PackTemperature | s.Ambient
People = (
    s.PullHandle
    | s.OpenDoor
    | s.CloseDoor
    | s.Sit
    | s.Leave
    | s.Brake
    | s.Shift
    | s.Park
    | s.Plug
    | s.DriverLeaves
    | s.DriverReturns
)
CarFault = f.SensorStuck | f.SensorLies | f.SensorGone | f.BusSilent | f.DieUnread | f.FanDead
Mend = Callable[[], None]


class Order(Protocol):
    """Sends the car one order; its answer."""

    def __call__(self, do: str, /, **arguments: object) -> dict[str, Any]:  # noqa: D102 - the class says it
        ...


def do(car: Order, stimulus: s.Stimulus) -> int | None:
    """Let it happen now; when its first frame was sent (CLOCK_BOOTTIME of the car), None where there was none."""
    match stimulus:
        case s.Charger() | s.ChargeLimit() | s.StateOfCharge() | s.LowVoltage() | s.PackTemperature() | s.Ambient():
            return _change(car, stimulus)
        case _:
            return _people(car, stimulus)


def _people(car: Order, stimulus: s.Stimulus) -> int | None:  # noqa: C901, PLR0911, PLR0912 - one arm a stimulus
    match stimulus:
        case s.PullHandle():
            return _first(car("pull_handle"))
        case s.OpenDoor(door=door):
            return _first(car("open_door", door=door.value))
        case s.CloseDoor(door=door):
            return _first(car("close_door", door=door.value))
        case s.Sit():
            return _first(car("sit"))
        case s.Leave():
            return _first(car("leave"))
        case s.Brake(pressed=pressed):
            return _first(car("brake" if pressed else "release_brake"))
        case s.Shift(gear=gear):
            return _first(car("shift", gear=gear.value))
        case s.Park():
            return _first(car("park"))
        case s.Plug(connected=connected):
            return _first(car("plug" if connected else "unplug"))
        case s.DriverLeaves(plug=plug):
            answer = car("driver_leaves")
            if not plug:
                car("unplug")
            return _first(answer)
        case s.DriverReturns():
            return _first(car("driver_returns", pause_ms=RETURN_PAUSE_MS))
        case _:
            raise AssertionError("why_not says that it cannot")


def _change(car: Order, stimulus: Change) -> int | None:
    match stimulus:
        case s.Charger(power_w=power_w):
            change = {"charger_w": power_w}
        case s.ChargeLimit(percent=percent):
            change = {"charge_limit_percent": percent}
        case s.StateOfCharge(percent=percent):
            change = {"charge_percent": percent}
        case s.LowVoltage(percent=percent):
            change = {"low_voltage_percent": percent}
        case s.PackTemperature(celsius=celsius):
            change = {"pack_c": celsius}
        case s.Ambient(celsius=celsius):
            change = {"ambient_c": celsius}
        case _:
            assert_never(stimulus)
    return _first(car("change", change=change))


def strike(
    car: Order,
    fault: CarFault,
) -> Mend:
    """Begin it now; how to mend it."""
    match fault:
        case f.SensorStuck(signal=name):
            return _trouble(car, "stick", name, "honest")
        case f.SensorLies(signal=name, value=value):
            return _trouble(car, "lie", name, "honest", value=value)
        case f.SensorGone(signal=name, how=how):
            return _trouble(car, how, name, "honest")
        case f.BusSilent(group=group):
            return _hush(car, group)
        case f.DieUnread():
            car("change", change={"sensors": False})
            return lambda: _done(car("change", change={"sensors": True}))
        case f.FanDead():
            car("change", change={"fan": False})
            return lambda: _done(car("change", change={"fan": True}))
        case _:
            assert_never(fault)


def _hush(car: Order, group: str) -> Mend:
    """The message that carries the first signal of the group that this car tells."""
    for path in GROUPS[group][1]:
        with contextlib.suppress(DrivewayError):
            return _trouble(car, "hush", path, "speak")
    raise DrivewayError(f"this rig's car has no group {group!r}")


def _trouble(car: Order, kind: str, name: str, mend: str, **more: object) -> Mend:
    path = name if name.startswith("Vehicle.") else f"Vehicle.{name}"
    car("trouble", trouble={"kind": kind, "signal": path, **more})
    return lambda: _done(car("trouble", trouble={"kind": mend, "signal": path}))


def _done(_answer: object) -> None:
    """Whatever the car answered, it did it."""


def _first(answer: dict[str, Any]) -> int | None:
    at_boot_ms: int | None = answer["at_boot_ms"]
    return at_boot_ms
