"""The values the core thinks in: what a lease is, what came of it, and what was said about it.

Frozen, with units in their names: `_ms` are milliseconds of CLOCK_BOOTTIME (or a duration), `_c` degrees Celsius,
`_w` watts, `_wh` watt-hours, `_micro` millionths of the currency unit.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec


class JobKey(msgspec.Struct, frozen=True, order=True, array_like=True):
    """(`job`, `epoch`): the fencing token of a lease. A job granted again gets the next epoch."""

    job: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.job}/{self.epoch}"


class HandInKind(enum.StrEnum):
    """How a lease ended: all slices done, or given back early."""

    RESULT = "result"
    YIELD = "yield"


class YieldReason(enum.StrEnum):
    """Why a lease was given back early (on the wire: coarse, since it tells of the owner's habits)."""

    DRIVER = "driver"
    ENERGY = "energy"
    THERMAL = "thermal"
    OWNER = "owner"
    EXPIRED = "expired"
    FULL = "full"
    FAULT = "fault"
    REFUSED = "refused"
    SHORT = "short"
    """It could not be finished before the gate is expected to shut."""
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"

    @classmethod
    def _missing_(cls, _value: object) -> YieldReason:
        """A reason that only a newer car knows."""
        return cls.FAULT


class Verdict(enum.StrEnum):
    """The dispatcher's word on a hand-in. Only `LATER` asks for it again."""

    SETTLED = "settled"
    DUPLICATE = "dup"
    STALE = "stale"
    BAD = "bad"
    LATER = "later"


class PaceState(enum.StrEnum):
    """What the fleet's operator allows in a cell: work, no new work, or no work at all."""

    OPEN = "open"
    CLOSED = "closed"
    STOP = "stop"


class Pace(msgspec.Struct, frozen=True):
    """How fast a cell's cars may come.

    `interval_permille` stretches every wait between questions; first attempts after an outage spread over `spread_ms`.
    """

    state: PaceState = PaceState.OPEN
    spread_ms: int = 0
    interval_permille: int = 1000


class Readiness(enum.StrEnum):
    """Whether the configured executor can work on this computer's accelerator."""

    ABSENT = "absent"
    """It is not there, or does not answer."""
    STARTING = "starting"
    """It has not been asked yet, or is being asked (again, after the computer slept)."""
    READY = "ready"
    LOST = "lost"
    """It was there, and a worker lost it; it is being asked again."""


class Accelerator(msgspec.Struct, frozen=True):
    """What runs the engines, as the last survey found it, and what is wrong with it where it is not ready."""

    state: Readiness = Readiness.READY
    executor: str = ""
    version: str = ""
    device: str = ""
    detail: str = ""


SUPPOSED_READY = Accelerator()
"""Where nobody surveys it."""


class Outlook(msgspec.Struct, frozen=True):
    """What a car expects to have for work, for the operator alone; coarse, since it tells of the owner's habits.

    `open_for_s`: how long the gate is expected to stay open, rounded down to quarter-hours (0: nobody knows).
    `budget_wh`, `budget_bytes`: energy and traffic that may still be spent; None where nothing limits it.
    """

    open_for_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    budget_wh: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    budget_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)] | None = None


class SealedInput(msgspec.Struct, frozen=True):
    """An input comes sealed (`agent.trust.sealing`): to which of the unit's keys, and the content key under it."""

    keyid: str
    wrapped_key: bytes


class Grant(msgspec.Struct, frozen=True):
    """One leased job, as the signed grant names it. Times are durations: the car's clock counts them down.

    `slices` are the slice numbers still wanted; slice n covers items [n * slice_items, (n + 1) * slice_items).
    """

    job: str
    epoch: int
    nonce: str
    customer: str
    package: str
    package_sha256: str
    input_url: str
    input_sha256: str
    input_bytes: int
    items: int
    slice_items: int
    slices: tuple[int, ...]
    ttl_ms: int
    price_micro_per_item: int
    currency: str
    ticket_sha256: str = ""
    workload_class: str = ""
    """What kind of work it is, as the dispatcher says; the owner may take on certain kinds only."""
    expected_ms: int = 0
    """How long the dispatcher thinks that the wanted slices take; 0 where it does not know."""
    renew_ms: int = 0
    """How often a long lease is renewed; 0: its time needs no renewal."""
    upload_url: str = ""
    """Where answers go that do not fit into a message, by their digest; empty: nowhere, so they have to fit."""
    upload_token: str = ""
    input_sealed: SealedInput | None = None
    """How the input is sealed to this unit; None: it comes as it is. `input_*` are of the plaintext either way."""

    @property
    def key(self) -> JobKey:
        """The fencing token."""
        return JobKey(self.job, self.epoch)

    @property
    def upload_place(self) -> tuple[str, str]:
        """Where answers go and with what token; empty strings: nowhere."""
        return self.upload_url, self.upload_token

    def span(self, index: int) -> tuple[int, int]:
        """Items [first, last) of slice `index`."""
        first = index * self.slice_items
        return first, min(first + self.slice_items, self.items)


class SliceOutcome(msgspec.Struct, frozen=True):
    """What one finished slice was: counts and digests, never the customer's data."""

    index: int
    items: int
    failed_items: int
    output_sha256: str
    raw_sha256: str
    compute_ms: int
    raw_form: str = "none"
    """dtype and shape of one item's raw results, as a statement says them."""


class Spent(msgspec.Struct, frozen=True):
    """What a lease has drawn so far (at the computer), and what that has cost; see `agent.core.energy`."""

    energy_micro_wh: int
    cost_micro: int


class LeaseFacts(msgspec.Struct, frozen=True):
    """What the core measured while a lease ran, for its statement. Times are CLOCK_BOOTTIME.

    `sensor` is "none" when the computer's power was not measured; `gate_state` is the gate's when the last slice began.
    `cost_micro` is what the lease cost the owner: energy at the prices of its time, and wear.
    """

    started_ms: int
    finished_ms: int
    energy_micro_wh: int
    sensor: str
    gate_state: str
    cost_micro: int = 0


# --- budgets ------------------------------------------------------------------------------------------------------

NOT_NEGATIVE = msgspec.Meta(ge=0)


class Kept(msgspec.Struct, frozen=True):
    """What was spent of each budget, at `at_ms` of boot time, `wall_ms` where the wall clock was trusted.

    `taken_wh`: out of the low-voltage battery, not given back; `highest_percent`: charge since plug-in, 0 unplugged.
    `awake_*`: of the day that began at boot time `awake_day_ms`. `stay_*` (wall time; slots as start, end, price) is
    empty where the owner set no work hours. `rests`, `rests_until_ms` (boot time), `allowed_w`: the thermal watch's.
    `metered_used_bytes`: over a metered network, of the day that began at boot time `metered_day_ms`.
    """

    at_ms: int = 0
    wall_ms: int | None = None
    taken_wh: Annotated[float, NOT_NEGATIVE] = 0.0
    highest_percent: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.0
    awake_day_ms: int = 0
    awake_used_ms: Annotated[int, NOT_NEGATIVE] = 0
    awake_used_wh: Annotated[float, NOT_NEGATIVE] = 0.0
    awake_wakes: Annotated[int, NOT_NEGATIVE] = 0
    stay_begins_ms: int = 0
    stay_ends_ms: int = 0
    stay_used_ms: Annotated[int, NOT_NEGATIVE] = 0
    stay_slots: tuple[tuple[int, int, int], ...] = ()
    rests: Annotated[int, NOT_NEGATIVE] = 0
    rests_until_ms: int = 0
    allowed_w: Annotated[float, NOT_NEGATIVE] = 0.0
    metered_day_ms: int = 0
    metered_used_bytes: Annotated[int, NOT_NEGATIVE] = 0
