"""What each figure is held against, as the policy has it: for people who compare a reading with its limit.

The looks decide (`agent.core.looks`); this repeats their thresholds in words and numbers, and a test holds the two
together by moving each figure over the limit that is said here. Of a pair, `begin` is what work starts from and `stop`
what it is stopped at; in between is what keeps a gate from chattering.
"""

from __future__ import annotations

import msgspec

from agent.core import signals
from agent.core.energy import LOW_VOLTAGE_LIMITS
from agent.core.policy import Policy


class LimitView(msgspec.Struct, frozen=True):
    """A figure's limits: `stop` shuts the gate, `begin` is where work starts again (both in the figure's unit).

    `rising`: what is above is too much; else what is below is too little.
    """

    begin: float
    stop: float
    rising: bool
    unit: str


class LimitsView(msgspec.Struct, frozen=True):
    """What `driveway watch` draws its bars against."""

    die: LimitView
    die_target_c: float
    pack_hot: LimitView
    pack_cold: LimitView
    ambient_hot: LimitView
    ambient_cold: LimitView
    charge: LimitView
    low_voltage: LimitView
    power_max_w: float
    vacate_budget_ms: int


def limits(policy: Policy) -> LimitsView:
    """The limits of the figures that have two."""
    volts = LOW_VOLTAGE_LIMITS[policy.low_voltage_chemistry]
    reserve = policy.reserve_percent
    return LimitsView(
        die=LimitView(policy.die_start_c, policy.die_limit_c, rising=True, unit="celsius"),
        die_target_c=policy.die_target_c,
        pack_hot=LimitView(policy.pack_start_max_c, policy.pack_stop_c, rising=True, unit="celsius"),
        pack_cold=LimitView(policy.pack_min_c, policy.pack_min_c - 2.0, rising=False, unit="celsius"),
        ambient_hot=LimitView(policy.ambient_start_max_c, policy.ambient_stop_c, rising=True, unit="celsius"),
        ambient_cold=LimitView(policy.ambient_min_c, policy.ambient_min_c, rising=False, unit="celsius"),
        charge=LimitView(
            reserve + policy.reserve_start_margin_percent,
            reserve + policy.reserve_stop_margin_percent,
            rising=False,
            unit="%",
        ),
        low_voltage=LimitView(volts.run_v, volts.stop_v, rising=False, unit="V"),
        power_max_w=policy.power_max_w,
        vacate_budget_ms=policy.vacate_budget_ms,
    )


def held_against(policy: Policy) -> dict[str, str]:
    """What each leaf must say for work, in a few words, by its path; a leaf that is only read has none."""
    found = limits(policy)
    words = {
        signals.SPEED: f"{policy.standstill_kmh:g} km/h at most",
        signals.MOVING: "no",
        signals.GEAR: "P",
        signals.PARK_LOCK: "yes",
        signals.BRAKE: "0 %",
        signals.LOW_VOLTAGE_STATE: "LOCK or OFF",
        signals.SEAT: "EMPTY",
        signals.PASSENGER_SEAT: "EMPTY",
        signals.BELT: "no",
        signals.DRIVER_PRESENT: "no",
        signals.DOOR_HANDLE: "no",
        signals.LOCK: "yes" if policy.lock_required else f"not opened for {policy.parked_for_s:g} s",
        signals.POWER_OPTIMIZE: f"below {policy.power_optimize_stop}",
        signals.CHARGE: f"above {found.charge.begin:g} %, stops at {found.charge.stop:g} %",
        signals.PACK_TEMPERATURE: f"{found.pack_cold.begin:g} to {found.pack_hot.begin:g} °C",
        signals.AMBIENT: f"{found.ambient_cold.begin:g} to {found.ambient_hot.begin:g} °C",
        signals.LOW_VOLTAGE: f"from {found.low_voltage.begin:g} V, stops below {found.low_voltage.stop:g} V",
        signals.PAUSE_REQUESTED: "no",
    }
    words |= dict.fromkeys((*signals.DOORS, signals.TRUNK, signals.HOOD), "no")
    words |= dict.fromkeys(signals.OTHER_USERS, "no")
    words |= dict.fromkeys(signals.CONTACTORS, "yes")
    if policy.plug_required:
        words[signals.CABLE] = "yes"
    return words
