"""What happens to the car in virtual time: each stimulus of a scenario as something done to the simulated car."""

from __future__ import annotations

import math
from typing import assert_never

import msgspec

from agent.core import signals
from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    OwnerMode,
    OwnerSaid,
    PaceSeen,
    PriceSlot,
    PricesSeen,
    SelfTested,
    Stopping,
)
from agent.core.model import Pace
from hil.car.body import Action
from hil.rigs import stimuli as s
from hil.rigs.sim_car import RETURNS, ScenarioCar, drives_away, leaves
from hil.sim.disturbances import metered

HOUR_MS = 3_600_000
AT_COMPUTER_K = 3.0
"""The air around the computer is warmer than outside by so much."""
USERS = dict(zip(("update", "sentry", "preconditioning", "camp"), signals.OTHER_USERS, strict=True))


def do(car: ScenarioCar, stimulus: s.Stimulus) -> None:
    """Let it happen now."""
    match stimulus:
        case (
            s.PullHandle()
            | s.OpenDoor()
            | s.CloseDoor()
            | s.Sit()
            | s.Leave()
            | s.Brake()
            | s.Shift()
            | s.Drive()
            | s.Park()
            | s.Plug()
            | s.Lock()
            | s.DriverLeaves()
            | s.DriverReturns()
            | s.DriverDrivesAway()
            | s.CarSleeps()
            | s.CarWakes()
        ):
            _people(car, stimulus)
        case (
            s.Charger()
            | s.ChargeLimit()
            | s.StateOfCharge()
            | s.LowVoltage()
            | s.PackTemperature()
            | s.Ambient()
            | s.DayWeather()
        ):
            _plant(car, stimulus)
        case _:
            _words(car, stimulus)


Person = (
    s.PullHandle
    | s.OpenDoor
    | s.CloseDoor
    | s.Sit
    | s.Leave
    | s.Brake
    | s.Shift
    | s.Drive
    | s.Park
    | s.Plug
    | s.Lock
    | s.DriverLeaves
    | s.DriverReturns
    | s.DriverDrivesAway
    | s.CarSleeps
    | s.CarWakes
)
Plant = s.Charger | s.ChargeLimit | s.StateOfCharge | s.LowVoltage | s.PackTemperature | s.Ambient | s.DayWeather
Word = (
    s.Prices
    | s.DemandOrder
    | s.OtherUser
    | s.PowerSaving
    | s.OwnerPauses
    | s.OwnerResumes
    | s.OwnerFinishes
    | s.CarSwitch
    | s.Consent
    | s.PaceOrder
    | s.Work
    | s.Metered
    | s.UpdatePending
    | s.SelfTest
    | s.StopAgent
    | s.StartAgent
)


def _people(car: ScenarioCar, stimulus: Person) -> None:  # noqa: C901, PLR0912 - one arm a stimulus
    match stimulus:
        case s.PullHandle():
            car.comes(there=True)
            car.do(Action.PULL_HANDLE)
            car.later(0.5, car.release_handle)
        case s.OpenDoor(door=door):
            car.comes(there=True)
            car.do(Action.OPEN_DOOR, door=door)
        case s.CloseDoor(door=door):
            car.do(Action.CLOSE_DOOR, door=door)
            car.comes(there=car.body.seat_occupied or bool(car.body.open_doors))
        case s.Sit():
            car.comes(there=True)
            car.do(Action.SIT)
        case s.Leave():
            car.do(Action.LEAVE)
        case s.Brake(pressed=pressed):
            car.comes(there=True)
            car.do(Action.BRAKE if pressed else Action.RELEASE_BRAKE)
        case s.Shift(gear=gear):
            car.comes(there=True)
            car.do(Action.SHIFT, gear=gear)
        case s.Drive(speed_kmh=speed_kmh):
            car.drives(speed_kmh)
        case s.Park():
            car.do(Action.PARK)
        case s.Plug(connected=connected):
            car.do(Action.PLUG if connected else Action.UNPLUG)
        case s.Lock(locked=locked):
            car.comes(there=not locked)
            car.lock(unlocked=not locked)
        case s.DriverLeaves(plug=plug):
            car.play(leaves(plug=plug))
        case s.DriverReturns():
            car.play(RETURNS)
        case s.DriverDrivesAway(used_percent=used_percent):
            car.play(drives_away(used_percent))
        case s.CarSleeps():
            car.sleep()
        case s.CarWakes():
            car.wake()
        case _:
            assert_never(stimulus)


def _plant(car: ScenarioCar, stimulus: Plant) -> None:
    physics = car.physics
    match stimulus:
        case s.Charger(power_w=power_w):
            car.set_charger(power_w)
        case s.ChargeLimit(percent=percent):
            physics.limit_percent = percent
            car.touched()
        case s.StateOfCharge(percent=percent):
            car.set_charge(percent)
        case s.LowVoltage(percent=percent):
            physics.low_voltage_wh = physics.parameters.low_voltage_wh * percent / 100
            car.show_slow()
        case s.PackTemperature(celsius=celsius):
            physics.pack_c = celsius
            car.show_slow()
        case s.Ambient(celsius=celsius, at_computer_c=at_computer_c):
            air_c = celsius + AT_COMPUTER_K if at_computer_c is None else at_computer_c
            car.weather = lambda: (celsius, air_c)
            car.set_air(celsius, air_c)
        case s.DayWeather():
            car.weather = lambda: _air_c(car, stimulus)
            car.set_air(*car.weather())
        case _:
            assert_never(stimulus)


def _air_c(car: ScenarioCar, day: s.DayWeather) -> tuple[float, float]:
    """(outside, at the computer): coolest at three, the sun from seven to twenty, by the clock of the car's zone."""
    wall_ms = car.clock.now_ms + car.traits.wall_offset_ms
    hour = (wall_ms + car.traits.zone.offset_ms(wall_ms)) / HOUR_MS % 24
    outside_c = day.mean_c - day.swing_c * math.cos(2 * math.pi * (hour - 3) / 24)
    sun = max(0.0, math.sin(math.pi * (hour - 7) / 13)) if 7 < hour < 20 else 0.0
    return outside_c, outside_c + AT_COMPUTER_K + day.sun_c * sun


def _words(car: ScenarioCar, stimulus: Word) -> None:  # noqa: C901, PLR0912 - one arm a stimulus
    now_ms = car.clock.now_ms
    match stimulus:
        case s.Prices():
            _prices(car, stimulus)
        case s.DemandOrder(stop_for_s=stop_for_s):
            car.tell(DemandSeen(at_ms=now_ms, stop_for_ms=round(stop_for_s * 1000), detail="the grid"))
        case s.OtherUser(user=user, active=active):
            car.say(USERS[user], value=active)
        case s.PowerSaving(level=level):
            car.say(signals.POWER_OPTIMIZE, float(level))
        case s.OwnerPauses(pause_s=pause_s):
            until_ms = None if pause_s is None else now_ms + round(pause_s * 1000)
            car.tell(OwnerSaid(at_ms=now_ms, mode=OwnerMode.PAUSED, until_ms=until_ms))
        case s.OwnerResumes():
            car.tell(OwnerSaid(at_ms=now_ms, mode=OwnerMode.AUTO))
        case s.OwnerFinishes():
            car.tell(OwnerSaid(at_ms=now_ms, mode=OwnerMode.FINISH))
        case s.CarSwitch(paused=paused):
            car.say(signals.PAUSE_REQUESTED, value=paused)
        case s.Consent(version=version):
            car.tell(ConsentSeen(at_ms=now_ms, version=version))
        case s.PaceOrder(state=state):
            car.tell(PaceSeen(at_ms=now_ms, pace=Pace(state)))
        case s.Work(jobs=jobs):
            car.shells.uplink.dispatcher.work = jobs > 0
        case s.Metered(metered=is_metered):
            mend = metered(car, car.chance)
            if not is_metered:
                mend()
        case s.UpdatePending(pending=pending):
            car.host = msgspec.structs.replace(car.host, update_pending=pending)
            car.tell_host()
        case s.SelfTest(problem=problem):
            car.tell(SelfTested(at_ms=now_ms, problem=problem))
        case s.StopAgent():
            car.tell(Stopping(at_ms=now_ms))
        case s.StartAgent():
            raise AssertionError("why_not says that it cannot")
        case _:
            assert_never(stimulus)


def _prices(car: ScenarioCar, stimulus: s.Prices) -> None:
    now_ms = car.clock.now_ms
    wall_ms, slot_ms = now_ms + car.wall_offset_ms, stimulus.slot_min * 60_000
    first_ms = wall_ms - wall_ms % slot_ms
    slots = tuple(
        PriceSlot(first_ms + number * slot_ms, first_ms + (number + 1) * slot_ms, price)
        for number, price in enumerate(stimulus.micro_per_kwh)
    )
    expires_ms = wall_ms + round(stimulus.valid_for_s * 1000)
    car.tell(PricesSeen(at_ms=now_ms, issued_wall_ms=wall_ms, expires_wall_ms=expires_ms, slots=slots))
