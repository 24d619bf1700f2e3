"""The owner's and the maker's limits, as one table: every threshold a decision uses is here, with its unit.

Loaded from the `[policy]` table of the configuration; the digest of what is in force goes into every statement.
Sources of the defaults: docs/policy.md.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Celsius = Annotated[float, msgspec.Meta(ge=-40, le=150)]
Watts = Annotated[float, msgspec.Meta(gt=0, le=5_000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the computer may work, and how hard. Thresholds come in pairs, so that no gate chatters."""

    parked_for_s: Seconds = 60.0
    """Every sign must say 'parked and empty' for this long before the gate opens; one sign shuts it at once."""
    standstill_kmh: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.5
    """Speed sensors are noisy around zero: up to this counts as standing."""
    plug_required: bool = True
    """Work only while the charging cable is in."""
    reserve_percent: Percent = 50.0
    """The owner's charge: never worked below."""
    reserve_stop_margin_percent: Percent = 2.0
    reserve_start_margin_percent: Percent = 5.0
    die_start_c: Celsius = 75.0
    """Never start on a computer hotter than this (a car parked in the sun)."""
    die_target_c: Celsius = 88.0
    """The power cap falls towards idle between `die_derate_c` and this; above it no new slice starts."""
    die_derate_c: Celsius = 80.0
    die_limit_c: Celsius = 95.0
    """Above this the computer is vacated."""
    power_idle_w: Watts = 8.0
    power_max_w: Watts = 60.0
    compute_stale_ms: Milliseconds = 3_000
    """No temperature for this long is 'too hot'."""
    vacate_budget_ms: Milliseconds = 60
    """What is in flight may take this long to drain; a worker that takes longer is killed."""
    keep_warm_s: Seconds = 600.0
    """An idle worker keeps its engine loaded for this long."""
    request_timeout_ms: Milliseconds = 10_000
    worker_start_timeout_ms: Milliseconds = 30_000
    slice_timeout_ms: Annotated[int, msgspec.Meta(ge=1_000, le=3_600_000)] = 300_000
    """A slice that takes longer than this hangs: its worker is killed."""
    worker_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    """A lease whose worker dies this often is given back."""
    energy_price_micro_per_kwh: Annotated[int, msgspec.Meta(ge=-10_000_000, le=10_000_000)] = 270_000
    """What the owner pays for energy, in millionths of the currency per kWh at the plug."""
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")] = "USD"
    charge_efficiency: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    """Grid to computer: what is measured at the computer costs this much more at the plug."""
