"""Which unit a key of the configuration is in, and what somebody meant who wrote another one.

The last part of a key's name is its unit (`die_limit_c`, `parked_for_s`). Three mistakes are found by it: a key with
the wrong unit (`ambient_stop_f = 140`), a value with a unit of its own (`parked_for_s = "30 min"`), and a number that
is right only in another unit (`battery_wh = 75`, `power_max_w = 0.06`). The last is a guess: `USUAL` says between which
values each key lies in practice, which is narrower than what the configuration takes.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """`size` of the quantity's base unit each, counted from `zero` of it."""

    quantity: str
    words: str
    size: float
    zero: float = 0.0

    def to(self, other: Unit, value: float) -> float:
        """The value in another unit of the same quantity, without the noise of the division."""
        return float(f"{(value * self.size + self.zero - other.zero) / other.size:.6g}")


MILLISECOND = Unit("time", "milliseconds", 0.001)
SECOND, MINUTE, HOUR, DAY = (
    Unit("time", "seconds", 1.0),
    Unit("time", "minutes", 60.0),
    Unit("time", "hours", 3_600.0),
    Unit("time", "days", 86_400.0),
)
CELSIUS = Unit("temperature", "degrees Celsius", 1.0)
FAHRENHEIT = Unit("temperature", "degrees Fahrenheit", 5 / 9, -160 / 9)
KELVIN = Unit("temperature", "kelvin", 1.0, -273.15)
WATT, KILOWATT, MILLIWATT = Unit("power", "watts", 1.0), Unit("power", "kW", 1_000.0), Unit("power", "mW", 0.001)
WATT_HOUR, KILOWATT_HOUR = Unit("energy", "watt hours", 1.0), Unit("energy", "kWh", 1_000.0)
PERCENT, SHARE = Unit("share", "percent", 0.01), Unit("share", "a share of 1", 1.0)
MEGABYTE, GIGABYTE, BYTE = Unit("data", "MB", 1.0), Unit("data", "GB", 1_000.0), Unit("data", "bytes", 1e-6)
KMH, MPH, METRE_PER_SECOND = Unit("speed", "km/h", 1.0), Unit("speed", "mph", 1.609344), Unit("speed", "m/s", 3.6)
MICRO_PRICE = Unit("price", "millionths of the currency per kWh", 1.0)
PRICE, CENT_PRICE = (
    Unit("price", "units of the currency per kWh", 1e6),
    Unit("price", "hundredths of the currency per kWh", 1e4),
)

SUFFIXES = {
    "micro_per_kwh": MICRO_PRICE, "cents_per_kwh": CENT_PRICE, "ct_per_kwh": CENT_PRICE, "per_kwh": PRICE,
    "ms": MILLISECOND, "s": SECOND, "sec": SECOND, "secs": SECOND, "seconds": SECOND, "min": MINUTE, "mins": MINUTE,
    "minutes": MINUTE, "h": HOUR, "hours": HOUR, "d": DAY, "days": DAY, "c": CELSIUS, "celsius": CELSIUS,
    "degc": CELSIUS, "f": FAHRENHEIT, "degf": FAHRENHEIT, "fahrenheit": FAHRENHEIT, "k": KELVIN, "w": WATT,
    "watts": WATT, "kw": KILOWATT, "mw": MILLIWATT, "wh": WATT_HOUR, "kwh": KILOWATT_HOUR, "percent": PERCENT,
    "pct": PERCENT, "share": SHARE, "mb": MEGABYTE, "mib": MEGABYTE, "gb": GIGABYTE, "gib": GIGABYTE, "bytes": BYTE,
    "kmh": KMH, "mph": MPH, "mps": METRE_PER_SECOND,
}  # fmt: skip
"""How units are written behind a key. Those that no key has are how people miswrite them."""
NOT_A_UNIT = re.compile(r"_(k_per_w|j_per_k)$")
WRITTEN = {"°c": CELSIUS, "°f": FAHRENHEIT, "%": PERCENT, "km/h": KMH, "m/s": METRE_PER_SECOND, "m": MINUTE}
"""How else people write them behind a number."""

USUAL: dict[str, tuple[float, float]] = {
    "policy.parked_for_s": (1, 3_600), "policy.standstill_kmh": (0, 5), "policy.net_drain_percent": (0.5, 20),
    "policy.reserve_percent": (5, 95), "policy.reserve_stop_margin_percent": (0.5, 30),
    "policy.reserve_start_margin_percent": (0.5, 40), "policy.ready_by_share": (0.2, 1),
    "policy.charge_efficiency": (0.5, 1), "policy.battery_wh": (5_000, 250_000), "policy.charger_w": (500, 350_000),
    "policy.pack_min_c": (-30, 20), "policy.pack_start_max_c": (20, 55), "policy.pack_stop_c": (25, 60),
    "policy.awake_overhead_w": (5, 2_000), "policy.low_voltage_budget_wh": (1, 500), "policy.die_start_c": (30, 100),
    "policy.die_target_c": (40, 105), "policy.die_limit_c": (50, 110), "policy.power_idle_w": (0.5, 300),
    "policy.power_max_w": (3, 1_500), "policy.compute_stale_ms": (200, 20_000), "policy.ambient_min_c": (-40, 20),
    "policy.ambient_start_max_c": (20, 65), "policy.ambient_stop_c": (25, 80), "policy.vacate_budget_ms": (5, 5_000),
    "policy.keep_warm_s": (5, 86_400), "policy.request_timeout_ms": (500, 60_000),
    "policy.worker_start_timeout_ms": (1_000, 60_000), "policy.build_timeout_s": (60, 86_400),
    "policy.slice_timeout_ms": (1_000, 3_600_000), "policy.work_hours_per_stay": (0.25, 168),
    "policy.energy_price_micro_per_kwh": (10_000, 2_000_000), "policy.payout_micro_per_kwh": (10_000, 100_000_000),
    "policy.price_floor_micro_per_kwh": (1_000, 10_000_000), "policy.wear_micro_per_kwh": (1_000, 1_000_000),
    "policy.tariff_zones.price_micro_per_kwh": (10_000, 2_000_000), "policy.departures.target_percent": (5, 100),
    "policy.metered_daily_mb": (1, 100_000), "policy.offline_after_s": (1, 3_600),
    "policy.keep_awake_budget_minutes": (5, 1_440), "policy.keep_awake_budget_wh": (50, 20_000),
    "computer.interval_ms": (50, 2_000), "fleet.keepalive_s": (5, 1_200), "fleet.reconnect_max_s": (1, 3_600),
    "inference.memory_mb": (128, 262_144), "inference.plan_cache_mb": (64, 1_048_576),
    "trust.catalogue.refresh_minutes": (1, 10_080), "trust.key.tpm.limit_s": (0.1, 60), "metrics.interval_s": (1, 3600),
}  # fmt: skip
"""Between which values a key lies on vehicles and rigs (0 besides, which mostly means 'none')."""
_SHARES = frozenset({"policy.charge_efficiency"})
_TEXT = re.compile(r"\s*([+-]?\d+(?:[.,]\d+)?)\s*([^\d\s].*?)\s*")
_INDEX = re.compile(r"\[\d+\]")


def unit_of(key: str) -> Unit | None:
    """The unit that a key's name ends in; None where it names none."""
    name = _INDEX.sub("", key)
    if name in _SHARES:
        return SHARE
    if name.endswith("work_hours_per_stay"):
        return HOUR
    return None if NOT_A_UNIT.search(name) else _split(name.rpartition(".")[2])[1]


def _split(name: str) -> tuple[str, Unit | None]:
    """A key without its unit, and that."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(f"_{suffix}"):
            return name[: -len(suffix) - 1], SUFFIXES[suffix]
    return name, None


def suggestion(key: str, value: object, known: Iterable[str]) -> str:
    """What the unknown last part of `key` was probably meant to be, of the keys that are known in its place."""
    prefix, _, name = key.rpartition(".")
    place = f"{prefix}." if prefix else ""
    known = list(known)
    stem, unit = _split(name)
    if unit is not None:
        right = {one: _split(one)[1] for one in known}
        stems = {_split(one)[0]: one for one in known if (of := right[one]) and of.quantity == unit.quantity}
        close_stems = difflib.get_close_matches(stem, stems, n=5)
        fitting = [close for close in close_stems if _usual(place + stems[close], value, unit)]
        for close in (fitting or close_stems)[:1]:
            one = stems[close]
            meant = right[one]
            if meant is not None and meant != unit:
                return f"did you mean {place}{one}? It is in {meant.words}{_converted(value, unit, meant)}"
    close_names = difflib.get_close_matches(name, known, n=1)
    if close_names:
        return f"did you mean {place}{close_names[0]}?"
    return f"known here: {', '.join(known)}"


def _usual(key: str, value: object, unit: Unit) -> bool:
    """Whether the value, in the unit that was written, is a usual one for the key."""
    usual, right = USUAL.get(_INDEX.sub("", key)), unit_of(key)
    if usual is None or right is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return usual[0] <= unit.to(right, value) <= usual[1]


def _converted(value: object, unit: Unit, meant: Unit) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f": {value:g} {unit.words} are {unit.to(meant, value):g}"


def from_text(key: str, text: str) -> str:
    """What to write in place of a text where a number is wanted; empty where that is not known."""
    name, unit = _INDEX.sub("", key).rpartition(".")[2], unit_of(key)
    if re.fullmatch(r"\s*[+-]?\d+(\.\d+)?\s*", text):
        return f"write it without quotes: {name} = {text.strip()}"
    found = _TEXT.fullmatch(text)
    if unit is None:
        return ""
    if found is None:
        return f"write a number of {unit.words}"
    written = found[2].lower()
    said = SUFFIXES.get(written) or WRITTEN.get(written)
    if said is None or said.quantity != unit.quantity:
        return f"write a number of {unit.words}; {found[2]!r} is no unit for it"
    value = said.to(unit, float(found[1].replace(",", ".")))
    return f"it is in {unit.words}: write {name} = {value:.12g}"


def meant(key: str, value: float) -> tuple[Unit, float] | None:
    """The other unit in which an unusual number would be usual, and the number to write; None for a usual one."""
    name = _INDEX.sub("", key)
    usual, unit = USUAL.get(name), unit_of(name)
    if usual is None or unit is None or usual[0] <= value <= usual[1]:
        return None
    if value == 0 or not math.isfinite(value) or (value < 0 and unit.quantity != "temperature"):
        return None
    for other in _others(unit):
        would = other.to(unit, value)
        if usual[0] <= would <= usual[1]:
            return other, would
    return None


def _others(unit: Unit) -> Iterator[Unit]:
    """Other units of the same quantity, each once."""
    seen = {unit}
    for other in SUFFIXES.values():
        if other.quantity == unit.quantity and other not in seen:
            seen.add(other)
            yield other


def number_of(key: str, value: float) -> str:
    """What to write in place of a number that is out of its range, or of the wrong kind; empty where unknown."""
    guess = meant(key, value)
    if guess is None:
        unit = unit_of(key)
        return "" if unit is None else f"it is in {unit.words}"
    other, would = guess
    unit = unit_of(key)
    assert unit is not None, "a guess has a unit"
    name = key.rpartition(".")[2]
    return f"it is in {unit.words}; {value:g} {other.words} would be {name} = {would:.12g}"
