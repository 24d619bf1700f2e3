"""Short worlds in which one kind of trouble is met often: where planted bugs are looked for."""

from __future__ import annotations

import random

import msgspec

from agent.core.policy import Departure, Policy, Window
from hil.sim.chassis import Traits
from hil.sim.world import HOUR_MS, Focus

REPLACE = msgspec.structs.replace


def _policy(traits: Traits, **changes: object) -> Policy:
    base = Policy(
        parked_for_s=30.0,
        reserve_percent=20.0,
        battery_wh=traits.plant.capacity_wh,
        low_voltage_chemistry=traits.policy.low_voltage_chemistry,
        consent_required_version=1,
    )
    return REPLACE(base, **changes)


def _willing(traits: Traits, _chance: random.Random) -> Traits:
    """Nothing but people and faults keeps it from working."""
    return REPLACE(traits, policy=_policy(traits), charge_percent=70.0, slice_ms=30_000, stays_awake=True)


def _quick(traits: Traits, chance: random.Random) -> Traits:
    """The gate opens again seconds after it has shut."""
    traits = _willing(traits, chance)
    return REPLACE(traits, policy=REPLACE(traits.policy, parked_for_s=5.0))


def _small_battery(traits: Traits, chance: random.Random) -> Traits:
    """A battery that an hour empties, unplugged work allowed."""
    plant = REPLACE(traits.plant, capacity_wh=2_000.0)
    policy = _policy(traits, plug_required=False, reserve_percent=50.0, battery_wh=2_000.0)
    return REPLACE(
        traits, policy=policy, plant=plant, charge_percent=chance.uniform(55.5, 60), charger_w=0.0, stays_awake=True
    )


def _departing(
    traits: Traits, gained: tuple[float, float], chance: random.Random, computer_max_w: float = 60.0
) -> Traits:
    """A small battery, a weak charger, and a departure.

    `gained` is what the charge must rise by, as shares of what there is with work all the time (0) and without (1).
    """
    plant = REPLACE(traits.plant, capacity_wh=4_000.0, charge_limit_percent=100.0, awake_w=150.0)
    plant = REPLACE(plant, computer_max_w=computer_max_w, die_to_sink_k_per_w=0.03, sink_to_air_k_per_w=0.03)
    minutes, charge = chance.randint(80, 115), chance.uniform(27, 33)
    idle_w = 0.85 * 1_400.0 - (plant.awake_w + plant.computer_idle_w + 8.0) / plant.dcdc_efficiency
    work_w = idle_w - (plant.computer_max_w - plant.computer_idle_w) / plant.dcdc_efficiency
    gained_w = work_w + chance.uniform(*gained) * (idle_w - work_w)
    target = charge + 100 * gained_w * minutes / 60 / plant.capacity_wh
    at = f"{19 + minutes // 60:02d}:{minutes % 60:02d}"
    departures = (Departure(at=at, target_percent=round(target, 2)),)
    policy = _policy(traits, departures=departures, battery_wh=plant.capacity_wh, net_drain_percent=10.0)
    policy = REPLACE(policy, power_max_w=computer_max_w, die_to_sink_min_k_per_w=0.02, die_to_sink_max_k_per_w=0.04)
    return REPLACE(
        traits, policy=policy, plant=plant, charge_percent=charge, charger_w=1_400.0, stays_awake=True, slice_ms=60_000
    )


def _just_possible(traits: Traits, chance: random.Random) -> Traits:
    """A departure that is made without any work, and not with much of it."""
    return _departing(traits, (0.4, 0.97), chance, 400.0)


def _barely_possible(traits: Traits, chance: random.Random) -> Traits:
    """A departure for which every minute of charging counts."""
    return _departing(traits, (0.93, 0.998), chance, 400.0)


def _with_little_to_spare(traits: Traits, chance: random.Random) -> Traits:
    """A departure that is made with work too, unless the charger grows weaker."""
    return _departing(traits, (-0.45, 0.0), chance, 120.0)


def _hot(traits: Traits, _chance: random.Random) -> Traits:
    """A target so near the limit that only the guard is between them."""
    policy = _policy(
        traits,
        die_target_c=99.0,
        parked_for_s=5.0,
        pack_start_max_c=110.0,
        pack_stop_c=120.0,
        ambient_start_max_c=70.0,
        ambient_stop_c=79.0,
        die_start_c=85.0,
        die_to_sink_min_k_per_w=0.30,
        die_to_sink_max_k_per_w=0.32,
        die_min_j_per_k=39.0,
        die_max_j_per_k=41.0,
        sink_min_j_per_k=2_900.0,
    )
    plant = REPLACE(traits.plant, sink_to_air_k_per_w=0.60, sink_j_per_k=3_000.0, die_to_sink_k_per_w=0.31)
    return REPLACE(
        traits, policy=policy, plant=plant, charge_percent=70.0, reading_ms=1_000, stays_awake=True, slice_ms=60_000
    )


def _hot_and_light(traits: Traits, chance: random.Random) -> Traits:
    """The same with a small sink, which a dead fan heats up in a minute."""
    traits = _hot(traits, chance)
    policy = REPLACE(traits.policy, sink_min_j_per_k=300.0)
    return REPLACE(traits, policy=policy, plant=REPLACE(traits.plant, sink_j_per_k=330.0))


def _weak_low_voltage(traits: Traits, _chance: random.Random) -> Traits:
    traits = _willing(traits, _chance)
    return REPLACE(traits, plant=REPLACE(traits.plant, low_voltage_wh=40.0))


def _timed(traits: Traits, chance: random.Random) -> Traits:
    """A schedule, tariffs and a departure: everything that a clock can spoil."""
    policy = _policy(traits, schedule=(Window(start="19:20", end="20:10"),))
    return REPLACE(_willing(traits, chance), policy=policy)


def _focus(name: str, hours: float, channels: tuple[str, ...], **more: object) -> Focus:
    plain = Focus(
        name=name,
        night_ms=round(hours * HOUR_MS),
        channels=channels,
        faults_per_night=6.0,
        visits_per_night=0.0,
        shape=_willing,
        air_c=12.0,
        parked=True,
    )
    return REPLACE(plain, **more)


PEOPLE = _focus("people", 1.0, ("driver", "others"), visits_per_night=8.0, longest_ms=60_000)
SILENCE = _focus("silence", 1.0, ("driver",), kinds=("silent_group",), longest_ms=20_000, faults_per_night=20.0)
NONSENSE = _focus(
    "nonsense", 1.0, ("driver",), kinds=("unknown_leaf",), longest_ms=4_000, faults_per_night=90.0, shape=_quick
)
BATTERY = _focus("battery", 1.5, ("energy",), shape=_small_battery, faults_per_night=12.0)
DEPARTURE = _focus("departure", 2.0, ("clock",), shape=_just_possible, faults_per_night=2.0)
JUMPS = _focus("jumps", 2.0, ("clock",), kinds=("clock_jump",), shape=_barely_possible, faults_per_night=12.0)
CHARGER = _focus(
    "charger", 2.0, ("energy",), kinds=("weaker_charger",), shape=_with_little_to_spare, faults_per_night=2.0
)
HEAT = _focus("heat", 0.5, ("die",), kinds=("noisy_die", "biased_die"), shape=_hot, air_c=66.0, longest_ms=200_000)
BLIND = _focus(
    "blind", 0.5, ("die", "fan"), kinds=("no_die", "dead_fan"), shape=_hot_and_light, air_c=52.0, longest_ms=300_000
)
LOW_VOLTAGE = _focus("low_voltage", 2.0, ("low_voltage",), shape=_weak_low_voltage, faults_per_night=4.0)
LEASES = _focus("leases", 1.5, ("worker", "disk", "network"), longest_ms=900_000)
OWNER = _focus("owner", 1.5, ("owner", "grid"), longest_ms=600_000)
PLANS = _focus("plans", 1.0, ("plans", "plans", "worker", "disk"), visits_per_night=6.0, longest_ms=1_800_000)
GRID = _focus("grid", 1.0, ("grid",), kinds=("demand",), longest_ms=20_000, faults_per_night=12.0)
CLOCK = _focus("clock", 1.5, ("clock",), shape=_timed, longest_ms=900_000)
EVERYTHING = (
    PEOPLE,
    SILENCE,
    NONSENSE,
    BATTERY,
    DEPARTURE,
    JUMPS,
    CHARGER,
    HEAT,
    BLIND,
    LOW_VOLTAGE,
    LEASES,
    PLANS,
    OWNER,
    GRID,
    CLOCK,
)
