"""The owner's and the maker's limits, as one table: every threshold a decision uses is here, with its unit.

Loaded from the `[policy]` table of the configuration; the digest of what is in force goes into every statement.
Sources of the defaults: docs/policy.md. Thresholds come in pairs, so that no gate chatters; how long a gate must stay
open or shut besides is in `agent.core.gates.RULES`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Hours = Annotated[float, msgspec.Meta(ge=0, le=168)]
Celsius = Annotated[float, msgspec.Meta(ge=-40, le=150)]
Volts = Annotated[float, msgspec.Meta(ge=0, le=60)]
Watts = Annotated[float, msgspec.Meta(gt=0, le=5_000)]
WattsOrNone = Annotated[float, msgspec.Meta(ge=0, le=350_000)]
WattHours = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=60_000)]
MicroPerKwh = Annotated[int, msgspec.Meta(ge=-10_000_000, le=10_000_000)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WorkloadClass = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
"""A kind of work by name, as the dispatcher and the owner both say it: `ocr`, `speech`."""
MAX_CLASSES = 16
EVERY_DAY: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the policy: immutable, and closed to keys it does not know."""


class Window(Table, frozen=True):
    """A part of the week in local time, from `start` to `end` on each of `days`; over midnight where `end` <= `start`.

    A window over midnight belongs to the day on which it starts.
    """

    days: tuple[Day, ...] = EVERY_DAY
    start: TimeOfDay = "00:00"
    end: TimeOfDay = "00:00"


class TariffZone(Window, frozen=True):
    """A price, in millionths of the currency per kWh, that counts within a window; the first that matches wins."""

    price_micro_per_kwh: MicroPerKwh = 0


class Departure(Table, frozen=True):
    """When the owner leaves, and the charge that must be there by then."""

    at: TimeOfDay
    target_percent: Percent
    days: tuple[Day, ...] = EVERY_DAY


class Policy(Table, frozen=True):
    """When the computer may work, and how hard."""

    # --- parked and empty
    parked_for_s: Seconds = 60.0
    """Every sign must say 'parked and empty' for this long before the gate opens; one sign shuts it at once."""
    standstill_kmh: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.5
    """Speed sensors are noisy around zero: up to this counts as standing."""
    lock_required: bool = False
    """Work only in a locked car, where the car tells its locks. Unlocking counts as a sign of the driver anyway."""
    power_optimize_stop: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5
    """The maker's power saving (VSS `PowerOptimizeLevel`, 10 = only essential functions) stops the work from here."""

    # --- plug, charge, departure
    plug_required: bool = True
    """Work only while the charging cable is in."""
    net_drain_percent: Percent = 2.0
    """Plugged in but draining is not plugged in: so far below the highest charge of this stay, work stops."""
    reserve_percent: Percent = 50.0
    """The owner's charge: never worked below."""
    reserve_stop_margin_percent: Percent = 2.0
    reserve_start_margin_percent: Percent = 5.0
    departures: tuple[Departure, ...] = ()
    ready_by_share: Share = 0.85
    """Only this share of the measured charging power is counted on to be ready by the departure."""
    battery_wh: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 75_000.0
    """The traction battery's net capacity, where the car does not tell it."""
    charger_w: WattsOrNone = 0.0
    """What the charger will give (into the battery) while it is not charging yet; 0: count on nothing."""
    pack_min_c: Celsius = 5.0
    pack_start_max_c: Celsius = 40.0
    pack_stop_c: Celsius = 45.0
    awake_overhead_w: WattsOrNone = 200.0
    """What the car draws besides the computer because it is awake: sunk while it charges, else a cost of the work."""

    # --- the low-voltage battery
    low_voltage_chemistry: Literal["lead", "lithium"] = "lead"
    """12 V lead-acid or 16 V lithium; sets the thresholds (docs/policy.md)."""
    low_voltage_budget_wh: WattHours = 30.0
    """What the work may take out of the low-voltage battery before the car must have charged it again."""

    # --- heat
    die_start_c: Celsius = 75.0
    """Never start on a computer hotter than this (a car parked in the sun)."""
    die_target_c: Celsius = 88.0
    """The performance law holds the die here."""
    die_limit_c: Celsius = 95.0
    """The guard never lets the die above this; two readings above it vacate."""
    die_to_sink_min_k_per_w: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.17
    """The bounds that the guard's proof needs, from one step test: `driveway bench --commission`."""
    die_to_sink_max_k_per_w: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.33
    die_min_j_per_k: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 27.0
    die_max_j_per_k: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 53.0
    sink_min_j_per_k: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 300.0
    power_idle_w: Watts = 8.0
    power_max_w: Watts = 60.0
    compute_stale_ms: Milliseconds = 3_000
    """No temperature for this long is 'too hot'."""
    ambient_min_c: Celsius = -25.0
    ambient_start_max_c: Celsius = 50.0
    ambient_stop_c: Celsius = 60.0

    # --- giving back
    vacate_budget_ms: Milliseconds = 60
    """What is in flight may take this long to drain; a worker that takes longer is killed."""
    keep_warm_s: Seconds = 600.0
    """An idle worker keeps its engine loaded for this long."""
    request_timeout_ms: Milliseconds = 10_000
    worker_start_timeout_ms: Milliseconds = 30_000
    build_timeout_s: Seconds = 7_200.0
    """Building an engine plan that takes longer than this, at whatever pace, hangs: its worker is killed."""
    slice_timeout_ms: Annotated[int, msgspec.Meta(ge=1_000, le=3_600_000)] = 300_000
    """A slice that takes longer than this hangs: its worker is killed."""
    worker_attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    """A lease whose worker dies this often is given back."""

    # --- time and money
    time_zone: str = "UTC"
    """IANA name of the zone in which windows, tariff zones and departures are meant."""
    schedule: tuple[Window, ...] = ()
    """Work only within these windows; none: at any time."""
    energy_price_micro_per_kwh: MicroPerKwh = 270_000
    """What energy costs outside of every tariff zone, in millionths of the currency per kWh at the plug."""
    tariff_zones: tuple[TariffZone, ...] = ()
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}$")] = "USD"
    charge_efficiency: Share = 0.9
    """Grid to computer: what is measured at the computer costs this much more at the plug."""
    work_hours_per_stay: Hours = 168.0
    """How much work the owner wants between two departures: the cheapest slots are taken first."""
    payout_micro_per_kwh: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    """What a kWh at the computer earns, as the owner expects it; 0: unknown, so no price is too high."""
    price_floor_micro_per_kwh: MicroPerKwh = 0
    """What must remain of the payout per kWh after energy and wear; the owner may raise it at any time."""
    wear_micro_per_kwh: MicroPerKwh = 48_000
    """Wear of the traction battery per kWh taken from it unplugged."""

    # --- the owner, the network, the platform
    consent_required_version: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """The version of the terms that the owner must have agreed to; 0: none."""
    workload_classes: Annotated[tuple[WorkloadClass, ...], msgspec.Meta(max_length=MAX_CLASSES)] = ()
    """Only work of these classes is taken on; empty: any."""
    update_schedule: tuple[Window, ...] = ()
    """The agent is replaced only within these windows; none: at any time."""
    update_plugged: bool = False
    """The agent is replaced only while the car is plugged in."""
    update_drain_s: Seconds = 1_800.0
    """A lease at work may take so long to its end once an update may begin; then it is given back."""
    update_defer_max_h: Annotated[float, msgspec.Meta(ge=0, le=2_160)] = 168.0
    """How long after the agent was first told of an update the owner may defer it at most."""
    metered_allowed: bool = False
    """Take on new work although the network is metered."""
    metered_daily_mb: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 50
    """So much (MB, up and down) may go over a network that is metered, or not known not to be, in a day."""
    offline_after_s: Seconds = 30.0
    """Without a broker for this long, and nothing leased, the gate says so."""
    keep_awake: bool = False
    """Ask the platform to stay awake while there is work. The three budgets count per day."""
    keep_awake_budget_minutes: Annotated[int, msgspec.Meta(ge=0, le=1_440)] = 240
    keep_awake_budget_wh: WattHours = 1_500.0
    keep_awake_budget_wakes: Annotated[int, msgspec.Meta(ge=0, le=96)] = 4
