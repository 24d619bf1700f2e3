"""What a run of a rig leaves behind: samples over time, what happened, and what was measured.

Everything a report draws or a test judges is in one `RunRecord`, so both read the same numbers. Times are seconds since
the run began; `at_boot_ms` is CLOCK_BOOTTIME where two processes' clocks must agree.
"""

from __future__ import annotations

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon, the car and the dispatcher at one moment; None where nothing was known."""

    t_s: float
    state: str
    gate: str
    reason: str
    die_c: float | None
    power_w: float | None
    power_cap_w: float
    charge_percent: float | None
    pack_power_w: float | None
    lease: str
    slices_kept: int
    images_settled: int
    price_micro_per_kwh: int | None = None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth a mark on the time axis: what the driver did, or what the agent did about it."""

    t_s: float
    who: str
    what: str


class LeaseSpan(msgspec.Struct, frozen=True, kw_only=True):
    """One lease on the time axis; `outcome` is `finished` or the reason it was given back."""

    job: str
    epoch: int
    start_s: float
    end_s: float
    outcome: str
    slices_done: int
    slices_wanted: int
    energy_wh: float
    net: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run: exactly what `--json` writes."""

    images: int
    accuracy: float
    slices_done: int
    slices_lost: int
    vacate_ms: float
    attestations: int
    attestations_verified: int
    energy_wh: float
    gross: float
    energy_cost: float
    net: float
    currency: str


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One figure against its limit, in words."""

    name: str
    value: str
    limit: str
    held: bool


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    title: str
    started_at: str
    samples: list[Sample]
    moments: list[Moment]
    leases: list[LeaseSpan]
    outcome: Outcome
    limits: list[Limit]
    versions: dict[str, str]
    die_limit_c: float
    die_target_c: float
    examples: list[tuple[str, str]]
    """A few of the images' answers: (what was read, what it should be; '' when nobody knows)."""
    counted: str = "Images settled"
    """What `images_settled` of the samples counts, for the plot's heading."""
