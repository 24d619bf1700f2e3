"""What is true besides what the agent was told, and what it means that a promise was broken."""

from __future__ import annotations

import enum

import msgspec


class Truth(msgspec.Struct, frozen=True, omit_defaults=True):
    """The world as it is at `at_ms`, whatever the sensors say. None: go by what the event stream itself says.

    `person`: somebody is in or at the car, and at least one honest signal of it has reached the computer.
    `good`: nothing at all speaks against working, and the computer has been told so.
    `ready_by_percent` is set at the moment of a departure: the charge wanted by then. `charge_without_us_percent` is
    what the charge would be had the computer never worked.
    """

    at_ms: int
    person: bool | None = None
    die_c: float | None = None
    charge_percent: float | None = None
    low_voltage_v: float | None = None
    good: bool | None = None
    ready_by_percent: float | None = None
    charge_without_us_percent: float | None = None


class Promise(enum.StrEnum):
    """The named invariants, in the order of the design's promises."""

    NOBODY_THERE = "never_runs_while_anyone_may_be_in_the_car"
    VACATES = "vacates_within_its_budget"
    RESERVE = "never_below_reserve"
    READY_BY = "never_delays_a_ready_by"
    DIE = "never_above_the_die_limit"
    LOW_VOLTAGE = "low_voltage_never_drained"
    FLAPPING = "no_flapping"
    REASON = "every_stop_has_a_reason"
    CLEARS = "every_reason_clears"
    ASKED = "stops_when_asked"
    ONE_WORKER = "one_worker"
    SETTLED_ONCE = "nothing_settled_twice"
    REMEMBERED = "nothing_durable_forgotten"
    EXPIRY = "lease_ends_before_its_expiry"


class Broken(msgspec.Struct, frozen=True):
    """A promise that was broken: its name (one of `PROMISES`), when (CLOCK_BOOTTIME), and how."""

    name: str
    at_ms: int
    detail: str
