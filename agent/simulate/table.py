"""Reads a night from CSV: columns `time`, `name`, `value`, one change a row (docs/simulate.md).

A value holds until the next row of its name; between rows the car is taken as alive and repeating itself, until a row
`source,lost` says otherwise. An empty value or `NA` means: nobody knows. The file comes from a person or from another
program, and a typing error in a night that should prove something must not pass as a quiet car: whatever is not
understood is a TraceError with its line, and with the nearest name that exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.core import signals
from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    OwnerMode,
    OwnerSaid,
    PriceSlot,
    Quality,
    Sample,
    SignalsSeen,
    SignalValue,
    SourceChanged,
)
from agent.core.signals import ALIASES, LEAVES, Vehicle
from agent.errors import TraceError
from agent.simulate.rows import Row, Times, read_rows
from agent.simulate.trace import ClockSet, NetworkSet, Quantity, Recorded, Stimulus, Trace

SOURCE = "trace"
PERIOD_MS = 100
PRICE, CLOCK, NETWORK, OWNER, DEMAND, LIVENESS = (
    "price_micro_per_kwh",
    "clock",
    "network",
    "owner",
    "demand",
    "source",
)
BOUNDS = {Quantity.DIE_C.value: (-60, 200), Quantity.POWER_W.value: (0, 10_000), Quantity.AMBIENT_C.value: (-60, 80)}
"""What a computer in a car can measure."""
NAMES = frozenset({*LEAVES, *ALIASES, *BOUNDS, PRICE, CLOCK, NETWORK, OWNER, DEMAND, LIVENESS})
"""Every name that a row may have."""

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
GEARS = {"P": 126.0, "R": -1.0, "N": 0.0, "D": 127.0}
LONGEST_PAUSE_S = 7 * 86_400
LARGEST_ERROR_S = 100 * 366 * 86_400


def read_table(path: Path, start_wall_ms: int | None = None, absent: frozenset[str] = frozenset()) -> Trace:
    """The night in a CSV file. `start_wall_ms` is the wall time of its first moment, whatever the file says.

    `absent` are leaves that this model of car does not have. Raises TraceError.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is no text (byte {error.start} is not UTF-8)", hint="save it as UTF-8") from error
    try:
        return parse_table(text, path.name, start_wall_ms, absent)
    except TraceError as error:
        raise TraceError(f"{path}, {error.what}", hint=error.hint) from error


def parse_table(text: str, name: str, start_wall_ms: int | None = None, absent: frozenset[str] = frozenset()) -> Trace:
    """The night in the text of a CSV file. Raises TraceError, whatever the text."""
    times = Times(start_wall_ms)
    rows = list(read_rows(text, times, NAMES))
    if not rows:
        raise TraceError("line 1: the trace has no rows", hint="it needs a header `time,name,value` and what happened")
    offered = frozenset(ALIASES.get(row.name, row.name) for row in rows if row.name.startswith("Vehicle."))
    return Trace(
        name=name,
        kind="csv",
        start_wall_ms=times.start_wall_ms,
        stimuli=tuple(_stimuli(rows)),
        vehicle=Vehicle(offered=offered, absent=absent - offered),
        holding=frozenset({SOURCE}),
        prices=_prices([row for row in rows if row.name == PRICE], rows[-1].at_ms, times.start_wall_ms),
    )


def _stimuli(rows: list[Row]) -> Iterator[Stimulus]:
    """What the rows mean, in their order; samples of one moment arrive together, as the car's first word does."""
    alive = False
    for at_ms, moment in _moments(rows):
        samples = tuple(_sample(row) for row in moment if row.name.startswith("Vehicle."))
        if samples and not alive:
            alive = True
            yield SourceChanged(at_ms=at_ms, source=SOURCE, alive=True)
        if samples:
            yield SignalsSeen(at_ms=at_ms, source=SOURCE, samples=samples)
        for row in moment:
            if row.name in BOUNDS:
                yield Recorded(at_ms=at_ms, quantity=Quantity(row.name), value=_quantity(row))
            elif row.name in SAID:
                yield SAID[row.name](row)
                alive = alive if row.name != LIVENESS else row.value == "alive"


def _moments(rows: list[Row]) -> Iterator[tuple[int, list[Row]]]:
    moment: list[Row] = []
    for row in rows:
        if moment and row.at_ms != moment[0].at_ms:
            yield moment[0].at_ms, moment
            moment = []
        moment.append(row)
    yield moment[0].at_ms, moment


def _quantity(row: Row) -> float | None:
    if row.unknown:
        return None
    least, most = BOUNDS[row.name]
    wanted = f"a number from {least:g} to {most:g}, or NA"
    value = _number(row, wanted)
    if not least <= value <= most:
        raise row.wrong(wanted)
    return value


def _sample(row: Row) -> Sample:
    if row.unknown:
        return Sample(row.name, None, Quality.UNKNOWN, SOURCE, PERIOD_MS)
    return Sample(row.name, _value(row), Quality.GOOD, SOURCE, PERIOD_MS)


def _value(row: Row) -> SignalValue:
    """The value of a leaf, by its kind. What a sensor may say is passed on, also where the core will not believe it."""
    path = ALIASES.get(row.name, row.name)
    leaf = LEAVES[path]
    if leaf.kind is bool or (path != row.name and path in {signals.SEAT, signals.PASSENGER_SEAT}):
        if row.value.casefold() not in TRUTH:
            raise row.wrong("true or false, or NA")
        return TRUTH[row.value.casefold()]
    if leaf.kind is float:
        if path == signals.GEAR and row.value.upper() in GEARS:
            return GEARS[row.value.upper()]
        return _number(row, "P, R, N, D or a VSS number" if path == signals.GEAR else "a number, or NA")
    if leaf.allowed and row.value not in leaf.allowed:
        raise row.wrong(f"one of {', '.join(sorted(leaf.allowed))}, or NA")
    return row.value


def _number(row: Row, wanted: str) -> float:
    try:
        number = float(row.value)
    except ValueError:
        raise row.wrong(wanted) from None
    if not math.isfinite(number):
        raise row.wrong(wanted)
    return number


def _clock(row: Row) -> ClockSet:
    if row.value in {"kept", "unkept"}:
        return ClockSet(at_ms=row.at_ms, error_ms=0, kept=row.value == "kept")
    error_s = _number(row, "kept, unkept, or the seconds by which the clock is ahead")
    if abs(error_s) > LARGEST_ERROR_S:
        raise row.wrong("an error of less than a hundred years")
    return ClockSet(at_ms=row.at_ms, error_ms=round(error_s * 1000), kept=True)


def _network(row: Row) -> NetworkSet:
    if row.value not in {"up", "down", "metered"}:
        raise row.wrong("up, down or metered")
    return NetworkSet(at_ms=row.at_ms, connected=row.value != "down", metered=row.value == "metered")


def _owner(row: Row) -> OwnerSaid | ConsentSeen:
    if row.value in set(OwnerMode):
        return OwnerSaid(at_ms=row.at_ms, mode=OwnerMode(row.value))
    word, _, version = row.value.partition(" ")
    if word == "consent" and version.isascii() and version.isdecimal() and len(version) < 7:
        return ConsentSeen(at_ms=row.at_ms, version=int(version))
    raise row.wrong("auto, paused, finish, or `consent N`")


def _demand(row: Row) -> DemandSeen:
    stop_s = _number(row, "the seconds to stop for; 0 takes it back")
    if not 0 <= stop_s <= LONGEST_PAUSE_S:
        raise row.wrong("0 to 604800 seconds")
    return DemandSeen(at_ms=row.at_ms, stop_for_ms=round(stop_s * 1000), detail="recorded")


def _source(row: Row) -> SourceChanged:
    if row.value not in {"lost", "alive"}:
        raise row.wrong("lost or alive")
    detail = "" if row.value == "alive" else "lost in the trace"
    return SourceChanged(at_ms=row.at_ms, source=SOURCE, alive=row.value == "alive", detail=detail)


SAID: dict[str, Callable[[Row], Stimulus]] = {
    CLOCK: _clock,
    NETWORK: _network,
    OWNER: _owner,
    DEMAND: _demand,
    LIVENESS: _source,
}


def _prices(rows: list[Row], end_ms: int, start_wall_ms: int | None) -> tuple[PriceSlot, ...]:
    """The recorded prices as one curve. A price holds until the next row, the last one until the trace ends."""
    if rows and start_wall_ms is None:
        raise TraceError(f"line {rows[0].line}: a price needs to know the date", hint="give --start, or RFC 3339 times")
    slots = []
    for number, row in enumerate(rows, start=1):
        price = None if row.unknown else round(_number(row, "millionths of the currency per kWh, or NA"))
        until_ms = rows[number].at_ms if number < len(rows) else end_ms
        if price is not None and abs(price) > 1_000_000_000:
            raise row.wrong("millionths of the currency per kWh")
        if price is not None and until_ms > row.at_ms and start_wall_ms is not None:
            slots.append(PriceSlot(start_wall_ms + row.at_ms, start_wall_ms + until_ms, price))
    return tuple(slots)
