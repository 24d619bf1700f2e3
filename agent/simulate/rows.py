"""The form of a CSV of signals: its header, its times, its rows. What they mean is in `agent.simulate.table`.

Every way in which a row can be wrong is a TraceError that begins with its line.
"""

from __future__ import annotations

import csv
import datetime as dt
import difflib
import io
import math
from collections.abc import Iterable, Iterator

import msgspec

from agent.core.walltime import LATEST_WALL_MS
from agent.errors import TraceError

COLUMNS = ("time", "name", "value")
UNKNOWN = frozenset({"", "na", "n/a", "nan", "null"})
LONGEST_S = 31 * 86_400


class Row(msgspec.Struct, frozen=True):
    """One row that was understood as far as its time and name."""

    line: int
    at_ms: int
    name: str
    value: str

    @property
    def unknown(self) -> bool:
        """Whether it says that nobody knows."""
        return self.value.casefold() in UNKNOWN

    def wrong(self, wanted: str) -> TraceError:
        """The error of a value that is not what its name takes."""
        return TraceError(f"line {self.line}: {self.name} is {self.value!r}", hint=f"it takes {wanted}")


class Times:
    """Understands the column `time`: seconds from the start, or RFC 3339; one kind in one file, never backwards."""

    def __init__(self, start_wall_ms: int | None) -> None:
        self.start_wall_ms = start_wall_ms
        self._first_wall_ms: int | None = None
        self._relative: bool | None = None
        self._latest_ms = 0

    def at_ms(self, text: str, line: int) -> int:
        """Milliseconds since the start. Raises TraceError."""
        try:
            seconds: float | None = float(text)
        except ValueError:
            seconds = None
        if self._relative is not None and self._relative != (seconds is not None):
            raise TraceError(f"line {line}: time {text!r} is of another kind than those before", hint="use one kind")
        self._relative = seconds is not None
        at_ms = self._since_start_ms(text, line) if seconds is None else _whole_ms(seconds, text, line)
        if at_ms < self._latest_ms:
            raise TraceError(f"line {line}: time {text!r} is before the line above", hint="sort the rows by time")
        self._latest_ms = at_ms
        return at_ms

    def _since_start_ms(self, text: str, line: int) -> int:
        try:
            stamp = dt.datetime.fromisoformat(text)
            wall_ms = round(stamp.timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            raise TraceError(
                f"line {line}: time {text!r} is no time", hint="write seconds from the start, or 2026-03-28T22:00:00Z"
            ) from None
        if stamp.tzinfo is None:
            raise TraceError(f"line {line}: time {text!r} has no offset", hint="end it with Z or, for example, +01:00")
        if not 0 <= wall_ms < LATEST_WALL_MS:
            raise TraceError(f"line {line}: time {text!r} is not within 1970 and 2100")
        if self._first_wall_ms is None:
            self._first_wall_ms = wall_ms
        if self.start_wall_ms is None:
            self.start_wall_ms = wall_ms
        if wall_ms - self._first_wall_ms > LONGEST_S * 1000:
            raise TraceError(f"line {line}: time {text!r} is more than 31 days after the first")
        return wall_ms - self._first_wall_ms


def _whole_ms(seconds: float, text: str, line: int) -> int:
    if not math.isfinite(seconds) or not 0 <= seconds <= LONGEST_S:
        raise TraceError(f"line {line}: time {text!r} is not within 0 and {LONGEST_S} seconds (31 days)")
    return round(seconds * 1000)


def read_rows(text: str, times: Times, names: frozenset[str]) -> Iterator[Row]:
    """The rows of a file, each with one of `names`; blank lines and lines that begin with `#` are passed over.

    Raises TraceError with the line.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    order: list[int] | None = None
    try:
        for cells in reader:
            fields = [cell.strip() for cell in cells]
            if not any(fields) or fields[0].startswith("#"):
                continue
            if order is None:
                order = _header(fields, reader.line_num)
                continue
            if len(fields) != len(COLUMNS):
                raise TraceError(f"line {reader.line_num}: {len(fields)} columns, where the header has three")
            time, name, value = (fields[index] for index in order)
            _known(name, names, reader.line_num)
            yield Row(reader.line_num, times.at_ms(time, reader.line_num), name, value)
    except csv.Error as error:
        raise TraceError(f"line {reader.line_num}: no CSV: {error}") from error


def _header(fields: list[str], line: int) -> list[int]:
    names = [field.casefold() for field in fields]
    for field, name in zip(fields, names, strict=True):
        if name not in COLUMNS:
            raise TraceError(f"line {line}: unknown column {field!r}", hint=_nearest(name, COLUMNS))
    if sorted(names) != sorted(COLUMNS):
        raise TraceError(f"line {line}: the header is {','.join(fields)!r}", hint="it must be time,name,value")
    return [names.index(column) for column in COLUMNS]


def _known(name: str, names: frozenset[str], line: int) -> None:
    if name not in names:
        raise TraceError(f"line {line}: unknown name {name!r}", hint=_nearest(name, names))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else "docs/simulate.md lists every name"
