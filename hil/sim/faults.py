"""What goes wrong in a simulated night. Faults come from here and from the plant, never from the code under test.

The fault model, precisely. There are channels; within one, faults follow each other and never overlap:

* `driver`: one leaf, or one group, of the driver's signals at a time. A leaf sticks at the value of an empty car; says
  that it does not know (UNKNOWN, not available, fault); says NaN, something out of range or of the wrong kind; or
  chatters between honest and guilty. A group falls silent. All other leaves are honest, so somebody who comes to the
  car is always told of by an honest sign, soon: that is what `Truth.person` waits for.
* `bus`: the source goes and comes.
* `energy`: the charge is read with an error of up to 1 %, or sticks until it is wrong by 1.5 % and then says FAULT;
  charge, cable or charging state is not known; cable and charging contradict each other; the charger gives up to a
  third less from then on.
* `low_voltage`: the DC-DC stops feeding; voltage and current stay honest, or are not known.
* `die`: a reading is within its stated error (1 K), or is missing, or none comes. `fan`: the fan stops.
* `power`: the computer draws half as much again as its pace allows, or its power is not read.
* `worker`: crashes, hangs, comes up too slowly, refuses, fails, does not drain. `disk`: takes no writes.
* `plans`: an update leaves every engine plan to be built anew.
* `network`: down, lossy, late, twice, refused; metered; the fleet closed, stopped, or slow.
* `clock`: jumps (and back within ten minutes), loses its discipline, was never set.
* `others`: sentry, update, preconditioning, camp mode, the maker's power saving; the agent's own test and update.
* `owner`: pauses (for a while, until a wall time, without end), finishes, withdraws consent, presses the car's switch.
* `grid`: demand response; prices that change, go negative, or expire.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from agent.core import signals
from agent.core.events import Quality, SignalValue
from hil.sim import disturbances
from hil.sim.bus import DRIVERS_GROUPS, DRIVERS_LEAVES, GROUPS, Lie, Word, empty_car
from hil.sim.car import Car

Begin = Callable[[Car, random.Random], Callable[[], None]]
"""Begins a fault and returns how to mend it."""

QUALITIES = (Quality.UNKNOWN, Quality.NOT_AVAILABLE, Quality.FAULT, Quality.INVALID)
GUILTY: dict[str, SignalValue] = {
    signals.GEAR: 127.0,
    signals.SPEED: 12.0,
    signals.BRAKE: 40.0,
    signals.LOW_VOLTAGE_STATE: "ON",
    signals.SEAT: "OCCUPIED",
    signals.PASSENGER_SEAT: "OCCUPIED",
}
"""What a leaf says when somebody is there, where it is not just the other truth value."""
CHARGE_ERROR_PERCENT = 1.0
CHARGE_STUCK_PERCENT = 1.5


# --- the driver's signals ---------------------------------------------------------------------------------------


def stuck_leaf(car: Car, chance: random.Random) -> Callable[[], None]:
    """A leaf says what an empty car says, whatever happens."""
    path = _leaf(car, chance)
    innocent = empty_car(unlocked=False)[path]
    return _lie(car, path, lambda _value: (innocent, Quality.GOOD))


def unknown_leaf(car: Car, chance: random.Random) -> Callable[[], None]:
    """A leaf says that it does not know, or nonsense."""
    path = _leaf(car, chance)
    nonsense: tuple[SignalValue, ...] = (math.nan, 1e9, "banana")
    word: Word = (None, chance.choice(QUALITIES))
    if chance.random() < 0.5:
        word = (chance.choice(nonsense), Quality.GOOD)
    return _lie(car, path, lambda _value: word)


def chattering_leaf(car: Car, chance: random.Random) -> Callable[[], None]:
    """A leaf changes between what is so and what would be so if somebody came."""
    path = _leaf(car, chance)
    on = [True]
    every_ms = chance.choice((300, 2_000, 9_000, 70_000))

    def lie(value: SignalValue) -> Word:
        guilty = GUILTY.get(path, not value)
        return (guilty if on[0] else value, Quality.GOOD)

    def flip(times: int) -> None:
        if path in car.bus.lies and times:
            on[0] = not on[0]
            car.bus.lie(path, lie)
            car.clock.after(every_ms * chance.uniform(0.5, 1.5), lambda: flip(times - 1))

    mend = _lie(car, path, lie)
    flip(60)
    return mend


def silent_group(car: Car, chance: random.Random) -> Callable[[], None]:
    """A control unit of the car falls silent."""
    groups = [one for one in DRIVERS_GROUPS if set(GROUPS[one][1]) & car.bus.model.leaves]
    group = chance.choice(groups)
    car.quieten((group,))
    return lambda: car.bus.resume(group)


def dead_source(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The bus, or the databroker, is gone."""
    car.source(alive=False)
    return lambda: car.source(alive=True)


# --- energy -----------------------------------------------------------------------------------------------------


def noisy_charge(car: Car, chance: random.Random) -> Callable[[], None]:
    """The charge wobbles within its error, again and again."""

    def lie(value: SignalValue) -> Word:
        noise = chance.uniform(-CHARGE_ERROR_PERCENT, CHARGE_ERROR_PERCENT)
        return (min(100.0, max(0.0, round(float(value) + noise, 1))), Quality.GOOD)

    def again(times: int) -> None:
        if signals.CHARGE in car.bus.lies and times:
            car.bus.lie(signals.CHARGE, lie)
            car.clock.after(chance.uniform(2_000, 90_000), lambda: again(times - 1))

    mend = _lie(car, signals.CHARGE, lie)
    again(80)
    return mend


def stuck_charge(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The charge sticks; once it is wrong by too much, the battery's own check says so."""
    stuck = round(car.physics.charge_percent, 1)

    def lie(value: SignalValue) -> Word:
        wrong = abs(float(value) - stuck) > CHARGE_STUCK_PERCENT
        return (None, Quality.FAULT) if wrong else (stuck, Quality.GOOD)

    return _lie(car, signals.CHARGE, lie)


def unknown_energy(car: Car, chance: random.Random) -> Callable[[], None]:
    """A leaf of the batteries is not known."""
    path = chance.choice((signals.CHARGE, signals.CABLE, signals.CHARGING, *signals.CONTACTORS, signals.PACK_POWER))
    word: Word = (None, chance.choice(QUALITIES))
    return _lie(car, path, lambda _value: word)


def contradicting_cable(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The cable is said to be out."""
    return _lie(car, signals.CABLE, lambda _value: (False, Quality.GOOD))


def weaker_charger(car: Car, chance: random.Random) -> Callable[[], None]:
    """Others charge too: up to a third less for this car."""
    if car.charger_w:
        car.set_charger(car.traits.charger_w * chance.uniform(0.67, 1.0))
    return lambda: None


def dead_converter(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The DC-DC stops: the low-voltage battery carries everything."""
    car.set_feeds(feeds=False)
    return lambda: car.set_feeds(feeds=True)


def unknown_low_voltage(car: Car, chance: random.Random) -> Callable[[], None]:
    """The low-voltage battery's sensor has nothing to say."""
    path = chance.choice((signals.LOW_VOLTAGE, signals.LOW_VOLTAGE_CURRENT))
    word: Word = (None, chance.choice(QUALITIES))
    return _lie(car, path, lambda _value: word)


# --- the computer -----------------------------------------------------------------------------------------------


def no_die(car: Car, chance: random.Random) -> Callable[[], None]:
    """The die's temperature is missing, or no reading comes at all."""
    honest = car.telemetry
    car.read_nothing((lambda _die_c, power_w: (None, power_w)) if chance.random() < 0.5 else None)
    return lambda: car.read_nothing(honest)


def noisy_die(car: Car, chance: random.Random) -> Callable[[], None]:
    """The die is read with as much error as is promised."""
    honest = car.telemetry
    car.read_nothing(lambda die_c, power_w: (round(die_c + chance.uniform(-0.9, 0.9), 1), round(power_w, 1)))
    return lambda: car.read_nothing(honest)


def biased_die(car: Car, chance: random.Random) -> Callable[[], None]:
    """The die is read too cool, or too warm, by nearly as much as is promised."""
    honest, error_c = car.telemetry, chance.choice((-0.95, -0.95, 0.95))
    car.read_nothing(lambda die_c, power_w: (round(die_c + error_c, 2), round(power_w, 1)))
    return lambda: car.read_nothing(honest)


def no_power(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The power is not read."""
    honest = car.telemetry
    car.read_nothing(lambda die_c, _power_w: (round(die_c * 2) / 2, None))
    return lambda: car.read_nothing(honest)


def disobedient(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The computer draws half as much again as its pace allows."""
    car.disobey(0.5)
    return lambda: car.disobey(0.0)


def dead_fan(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The fan stops."""
    car.set_fan(turns=False)
    return lambda: car.set_fan(turns=True)


def bad_worker(car: Car, chance: random.Random) -> Callable[[], None]:
    """The worker, its package or its drain fails often."""
    troubles = car.shells.troubles
    name = chance.choice(("crash", "hang", "slow_start", "refuse", "slice_fails"))
    setattr(troubles, name, 0.3)
    troubles.drain_hangs = chance.random() < 0.5

    def mend() -> None:
        setattr(troubles, name, 0.0)
        troubles.drain_hangs = False

    return mend


def full_disk(car: Car, _chance: random.Random) -> Callable[[], None]:
    """The disk takes no writes."""
    car.shells.disk(full=True)
    return lambda: car.shells.disk(full=False)


LONGEST_MS = {"die": 300_000, "power": 300_000, "fan": 3_600_000}
"""Faults under which every reading of the computer counts are kept short; there are more of them for it."""
CHANNELS: dict[str, tuple[Begin, ...]] = {
    "driver": (stuck_leaf, stuck_leaf, unknown_leaf, chattering_leaf, silent_group),
    "bus": (dead_source,),
    "energy": (noisy_charge, stuck_charge, unknown_energy, contradicting_cable, weaker_charger),
    "low_voltage": (dead_converter, unknown_low_voltage),
    "die": (no_die, noisy_die, biased_die),
    "fan": (dead_fan,),
    "power": (disobedient, no_power),
    "worker": (bad_worker,),
    "disk": (full_disk,),
    "plans": (disturbances.plans_stale,),
    "network": (
        disturbances.no_network,
        disturbances.no_network,
        disturbances.bad_network,
        disturbances.metered,
        disturbances.slow_fleet,
    ),
    "clock": (disturbances.clock_jump, disturbances.clock_lost),
    "others": (disturbances.other_user, disturbances.other_user, disturbances.ill_agent),
    "owner": (disturbances.owner_pauses, disturbances.owner_pauses, disturbances.owner_withdraws),
    "grid": (disturbances.demand, disturbances.price_curve, disturbances.price_curve),
}


def _leaf(car: Car, chance: random.Random) -> str:
    return chance.choice([path for path in DRIVERS_LEAVES if path in car.bus.model.leaves])


def _lie(car: Car, path: str, lie: Lie) -> Callable[[], None]:
    car.bus.lie(path, lie)
    return lambda: car.bus.lie(path, None)
