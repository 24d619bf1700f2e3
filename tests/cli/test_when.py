"""What people write of time and wishes: what it means, and what cannot be meant."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli import when

HOUR_MS = 3_600_000


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time in Central Europe by its rule, so that no zone file is needed."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def now() -> dt.datetime:
    """Wednesday, 14 January 2026, 21:30."""
    return dt.datetime(2026, 1, 14, 21, 30).astimezone()


def said(text: str, at: dt.datetime | None = None) -> str:
    moment = when.moment(text, now() if at is None else at)
    return dt.datetime.fromtimestamp(moment / 1000).astimezone().isoformat(timespec="minutes")


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("07:00", "2026-01-15T07:00+01:00"),
        ("7:00", "2026-01-15T07:00+01:00"),
        ("22:00", "2026-01-14T22:00+01:00"),
        ("today 23:15", "2026-01-14T23:15+01:00"),
        ("tomorrow 23:15", "2026-01-15T23:15+01:00"),
        ("Tomorrow 07:00", "2026-01-15T07:00+01:00"),
        ("wed 22:00", "2026-01-14T22:00+01:00"),
        ("wed 21:00", "2026-01-21T21:00+01:00"),
        ("mon 07:00", "2026-01-19T07:00+01:00"),
        ("2026-02-01T07:00", "2026-02-01T07:00+01:00"),
        ("2026-07-01 07:00", "2026-07-01T07:00+02:00"),
        ("2026-02-01", "2026-02-01T00:00+01:00"),
        ("2026-02-01T07:00Z", "2026-02-01T08:00+01:00"),
        ("2026-02-01T07:00-05:00", "2026-02-01T13:00+01:00"),
        ("2026-10-25T02:30", "2026-10-25T02:30+01:00"),
    ],
)
def test_times_to_come(text: str, means: str) -> None:
    """Of an hour that comes twice the later is meant."""
    assert said(text) == means


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("today 07:00", "is over: that was Wed 2026-01-14 07:00 CET"),
        ("2025-12-31T23:59", "is over"),
        ("2026-01-14T21:30", "is over"),
        ("2036-01-01T00:00", "more than a year away"),
        ("25:00", "no time of day"),
        ("12:60", "no time of day"),
        ("someday 07:00", "is no day"),
        ("soon", "is no time; write 07:00"),
        ("", "is no time"),
        ("2026-03-29T02:30", "the clocks go forward"),
        ("9999-12-31T23:59", "out of this computer's calendar|more than a year"),
        ("0001-01-01T00:00", "is out of this computer's calendar|is over"),
    ],
)
def test_times_that_cannot_be_meant(text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        when.moment(text, now())


def test_a_skipped_hour_by_name() -> None:
    evening = dt.datetime(2026, 3, 28, 22, 0).astimezone()
    with pytest.raises(argparse.ArgumentTypeError, match="there is no 02:30 on 2026-03-29"):
        when.moment("02:30", evening)


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90m", 90 * 60_000), ("2h", 2 * HOUR_MS), ("1h30m", 90 * 60_000), ("1d", 24 * HOUR_MS), ("45s", 45_000)],
)
def test_durations(text: str, ms: int) -> None:
    assert when.duration(text) == ms


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("30", "has no unit; write 30m"),
        ("", "no duration"),
        ("0m", "no time at all"),
        ("-5m", "no duration"),
        ("400d", "more than a year"),
        ("999999999d", "more than a year"),
        ("30m1h", "no duration"),
        ("٣m", "no duration"),
        ("half an hour", "no duration"),
    ],
)
def test_durations_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        when.duration(text)


WORKDAYS = ["mon", "tue", "wed", "thu", "fri"]


@pytest.mark.parametrize(
    ("text", "days", "start", "end", "shown"),
    [
        ("mon-fri 22:00-06:00", WORKDAYS, "22:00", "06:00", "mon-fri 22:00-06:00"),
        ("sat,sun 00:00-24:00", ["sat", "sun"], "00:00", "00:00", "sat,sun 00:00-24:00"),
        ("9:00-17:00", list(when.DAYS), "09:00", "17:00", "daily 09:00-17:00"),
        ("fri-mon 20:00-24:00", ["mon", "fri", "sat", "sun"], "20:00", "00:00", "mon,fri,sat,sun 20:00-24:00"),
        ("MON 1:05-2:00", ["mon"], "01:05", "02:00", "mon 01:05-02:00"),
    ],
)
def test_windows(text: str, days: list[str], start: str, end: str, shown: str) -> None:
    window = when.window(text)
    assert window == {"days": days, "start": start, "end": end}
    assert when.window_text(window) == shown
    assert shown.startswith("daily") or when.window(shown) == window


def test_always_is_no_window() -> None:
    assert when.window("always") is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mon-fri", "is no window"),
        ("mon 22-06", "is no window"),
        ("mon fri 22:00-06:00", "is no window"),
        ("funday 22:00-06:00", "'funday' is no day"),
        ("mon- 22:00-06:00", "is no day"),
        ("mon 24:00-06:00", "no time of day"),
        ("mon 06:00-06:00", "begins and ends at once"),
        ("", "is no window"),
    ],
)
def test_windows_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        when.window(text)


@pytest.mark.parametrize(("text", "micro"), [("0.05", 50_000), ("0", 0), ("10", 10_000_000), ("1e-6", 1)])
def test_prices(text: str, micro: int) -> None:
    assert when.price(text) == micro


@pytest.mark.parametrize("text", ["-0.01", "11", "nan", "inf", "five", "", "0,05", "0.0000001", "0.0500004"])
def test_prices_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"price|between"):
        when.price(text)


def test_classes_and_versions() -> None:
    assert when.classes("ocr, speech,ocr") == ["ocr", "speech"]
    assert when.classes("any") == []
    assert when.version("3") == 3
    for wrong in ("ocr,,speech", "ocr speech", "x" * 33, ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no class"):
            when.classes(wrong)
    for wrong in ("0", "-1", "1.2", "two", "1000000"):
        with pytest.raises(argparse.ArgumentTypeError, match="no version"):
            when.version(wrong)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("+7", 7), ("007", 7), ("9", 9)])
def test_whole_numbers(text: str, number: int) -> None:
    assert when.whole(1, 9)(text) == number


PARSERS: list[Callable[[str], Any]] = [
    when.duration,
    when.moment,
    when.window,
    when.price,
    when.classes,
    when.version,
    when.wish,
    when.whole(1, 9),
]
WRITTEN = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="0123456789:-,.TZdhmsonfri ", max_size=30),
    st.datetimes().map(dt.datetime.isoformat),
)


@given(WRITTEN)
def test_nothing_that_is_written_breaks_a_parser(text: str) -> None:
    for parse in PARSERS:
        with contextlib.suppress(argparse.ArgumentTypeError):
            parse(text)
