"""Local time against the IANA database itself, and a wall clock that is unset, adrift or jumps."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.departures import coming, timer_ends_ms
from agent.core.events import HostSeen
from agent.core.policy import EVERY_DAY, Departure, Window
from agent.core.walltime import (
    DAY_MS,
    DISTRUST_MS,
    MINUTE_MS,
    UTC,
    WallClock,
    Zone,
    contains,
    edges,
    minute_of,
    next_change,
    within,
)
from agent.errors import ConfigError
from agent.zones import zone_named

NAMES = (
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Los_Angeles",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Australia/Sydney",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "America/Santiago",
    "Africa/Cairo",
    "Asia/Tehran",
    "Pacific/Kiritimati",
)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
zones = st.sampled_from(NAMES)
BEGIN_S, END_S = 1_609_459_200, 2_335_219_200  # 2021 to 2043
anytime_s = st.integers(BEGIN_S, END_S)
times = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.sampled_from([0, 1, 15, 29, 30, 45, 59]))
days = st.lists(st.sampled_from(EVERY_DAY), min_size=1, max_size=7, unique=True).map(tuple)
windows = st.builds(Window, days=days, start=times, end=times)


@st.composite
def zone_moments(draw: st.DrawFn) -> tuple[Zone, zoneinfo.ZoneInfo, int]:
    """A zone and a moment in it, half of the time within three hours of a change of its offset."""
    name = draw(zones)
    zone = zone_named(name)
    changes = [from_s for from_s, _ in zone.changes if BEGIN_S < from_s < END_S]
    near: bool = draw(st.booleans())
    if changes and near:
        second = draw(st.sampled_from(changes)) + draw(st.integers(-3 * 3600, 3 * 3600))
    else:
        second = draw(anytime_s)
    return zone, zoneinfo.ZoneInfo(name), second * 1000


def told(info: zoneinfo.ZoneInfo, wall_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(wall_ms / 1000, info)


@settings(max_examples=400, deadline=None)
@given(zone_moments())
def test_local_time_is_what_the_database_says(one: tuple[Zone, zoneinfo.ZoneInfo, int]) -> None:
    zone, info, wall_ms = one
    local, right = zone.local(wall_ms), told(info, wall_ms)
    assert (local.weekday, local.minute) == (right.weekday(), right.hour * 60 + right.minute)
    assert local.day == (right.date() - EPOCH.date()).days


@settings(max_examples=400, deadline=None)
@given(zone_moments())
def test_a_local_time_means_the_moments_the_database_says(one: tuple[Zone, zoneinfo.ZoneInfo, int]) -> None:
    zone, info, wall_ms = one
    shown = told(info, wall_ms).replace(tzinfo=None, second=0, microsecond=0, fold=0)
    day, minute = (shown.date() - EPOCH.date()).days, shown.hour * 60 + shown.minute
    folds = {round(shown.replace(tzinfo=info, fold=fold).timestamp()) * 1000 for fold in (0, 1)}
    assert set(zone.moments(day, minute)) == folds
    assert zone.earliest(day, minute) == min(folds)


def test_a_departure_in_the_skipped_hour_is_read_early() -> None:
    zone = zone_named("Europe/Berlin")
    day = (dt.date(2026, 3, 29) - EPOCH.date()).days
    assert zone.moments(day, 150) == ()
    assert zone.earliest(day, 150) == round(dt.datetime(2026, 3, 29, 0, 30, tzinfo=dt.UTC).timestamp()) * 1000


@settings(max_examples=150, deadline=None)
@given(zone_moments(), st.lists(windows, min_size=1, max_size=3).map(tuple))
def test_windows_change_at_the_next_change_and_not_before(
    one: tuple[Zone, zoneinfo.ZoneInfo, int], some: tuple[Window, ...]
) -> None:
    zone, _, wall_ms = one
    change = next_change(some, zone, wall_ms)
    now = within(some, zone, wall_ms)
    assert now is any(contains(window, zone.local(wall_ms)) for window in some)
    until = wall_ms + 8 * DAY_MS if change is None else change
    step = max(MINUTE_MS, (until - wall_ms) // 200)
    assert all(within(some, zone, moment) is now for moment in range(wall_ms, until, step))
    if change is not None:
        assert within(some, zone, change) is not now
        assert within(some, zone, change - 1) is now


@settings(max_examples=60, deadline=None)
@given(zone_moments(), windows)
def test_every_change_of_a_window_is_among_the_edges(one: tuple[Zone, zoneinfo.ZoneInfo, int], window: Window) -> None:
    zone, _, wall_ms = one
    start_ms = wall_ms - wall_ms % MINUTE_MS
    inside = [contains(window, zone.local(start_ms + minute * MINUTE_MS)) for minute in range(26 * 60)]
    changed = {
        start_ms + minute * MINUTE_MS for minute in range(1, len(inside)) if inside[minute] is not inside[minute - 1]
    }
    assert changed <= set(edges((window,), zone, start_ms, start_ms + 26 * 60 * MINUTE_MS))


@pytest.mark.parametrize(
    ("day", "time", "inside"),
    [
        ("2026-01-09", "22:00", True),  # a Friday
        ("2026-01-10", "05:59", True),
        ("2026-01-10", "06:00", False),
        ("2026-01-10", "22:30", False),
        ("2026-01-09", "05:00", False),
    ],
)
def test_a_window_over_midnight_belongs_to_its_first_day(day: str, time: str, inside: bool) -> None:
    moment = dt.datetime.fromisoformat(f"{day}T{time}+00:00")
    friday_night = Window(days=("fri",), start="22:00", end="06:00")
    assert contains(friday_night, UTC.local(round(moment.timestamp() * 1000))) is inside


def test_a_window_that_ends_where_it_starts_is_a_whole_day() -> None:
    sunday = Window(days=("sun",))
    inside = [contains(sunday, UTC.local(hour * 3_600_000)) for hour in range(7 * 24)]
    assert sum(inside) == 24
    assert next_change((Window(),), UTC, 0) is None


@settings(max_examples=150, deadline=None)
@given(zone_moments(), st.builds(Departure, at=times, target_percent=st.floats(1, 100), days=days))
def test_the_next_departure_is_the_soonest_the_owner_can_mean(
    one: tuple[Zone, zoneinfo.ZoneInfo, int], departure: Departure
) -> None:
    zone, info, wall_ms = one
    (leaving, *_) = coming((departure,), zone, wall_ms)
    assert leaving.wall_ms > wall_ms
    today = told(info, wall_ms).date()
    hour, minute = divmod(minute_of(departure.at), 60)
    candidates = []
    for ahead in range(-1, 10):
        date = today + dt.timedelta(ahead)
        if EVERY_DAY[date.weekday()] in departure.days:
            shown = dt.datetime(date.year, date.month, date.day, hour, minute, tzinfo=info)
            candidates.append(min(round(shown.replace(fold=fold).timestamp()) * 1000 for fold in (0, 1)))
    assert leaving.wall_ms == min(moment for moment in candidates if moment > wall_ms)


def test_departures_come_in_order() -> None:
    friday = 8 * DAY_MS
    daily, weekly = Departure(at="07:30", target_percent=80), Departure(at="06:00", target_percent=90, days=("mon",))
    assert [one.target_percent for one in coming((weekly, daily), UTC, friday)][:5] == [80, 80, 80, 90, 80]
    assert coming((), UTC, friday) == ()


@pytest.mark.parametrize(
    ("text", "wall_ms"),
    [
        ("2026-03-29T02:30:00+02:00", 1_774_744_200_000),
        ("2026-03-29T00:30:00Z", 1_774_744_200_000),
        ("2026-03-29T02:30:00", 1_774_744_200_000),  # skipped in Berlin: the earlier reading
        ("2026-10-25T02:30:00", 1_792_888_200_000),  # told twice: the earlier of the two
        ("tomorrow", None),
        ("", None),
        ("0001-01-01T00:00:00", None),
    ],
)
def test_the_cars_own_timer_is_read_in_its_zone(text: str, wall_ms: int | None) -> None:
    assert timer_ends_ms(text, zone_named("Europe/Berlin")) == wall_ms


def test_an_unknown_zone_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'Europe/Berlinn' is not known; did you mean 'Europe/Berlin'\?"):
        zone_named("Europe/Berlinn")
    with pytest.raises(ConfigError, match="IANA name such as"):
        zone_named("../../etc/passwd")


# --- the clock ----------------------------------------------------------------------------------------------------

NOW_MS = 1_790_000_000_000


def host(at_ms: int, wall_ms: int, error_ms: int | None = 10) -> HostSeen:
    return HostSeen(at_ms=at_ms, wall_ms=wall_ms, wall_error_ms=error_ms)


def test_a_clock_is_believed_with_a_bound_and_only_then() -> None:
    clock = WallClock()
    assert clock.problem == "clock_unset"
    assert clock.seen(host(0, 0)).problem == "clock_unset"
    assert clock.seen(host(0, 5_000_000_000_000)).problem == "clock_unset"
    assert clock.seen(host(0, NOW_MS, None)).problem == "clock_unsynchronised"
    assert clock.seen(host(0, NOW_MS, 120_000)).problem == "clock_unsynchronised"
    believed = clock.seen(host(1_000, NOW_MS))
    assert believed.problem == ""
    assert believed.wall_ms(6_000) == NOW_MS + 5_000
    assert believed.boot_ms(NOW_MS + 5_000) == 6_000


def test_setting_a_clock_that_nobody_kept_is_no_jump() -> None:
    clock = WallClock().seen(host(0, 0)).seen(host(1_000, 1_700_000_000_000, None)).seen(host(2_000, NOW_MS))
    assert clock.problem == ""


@pytest.mark.parametrize("jump_ms", [-3_600_000, -2_000, 2_000, 86_400_000])
def test_a_jump_is_distrusted_until_the_clock_stood_still_for_long_enough(jump_ms: int) -> None:
    clock = WallClock().seen(host(0, NOW_MS))
    at_ms = 5_000
    clock = clock.seen(host(at_ms, NOW_MS + at_ms + jump_ms))
    assert clock.problem == "clock_jumped"
    while at_ms < 5_000 + DISTRUST_MS - 5_000:
        at_ms += 5_000
        clock = clock.seen(host(at_ms, NOW_MS + at_ms + jump_ms))
        assert clock.problem == "clock_jumped"
    at_ms += 5_000
    assert clock.seen(host(at_ms, NOW_MS + at_ms + jump_ms)).problem == ""
    assert clock.seen(host(at_ms, NOW_MS + at_ms)).problem == "clock_jumped", "and back is a jump too"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(100, 60_000), st.floats(-500e-6, 500e-6), st.integers(0, 500)), max_size=50))
def test_drift_within_the_bounds_is_never_a_jump(words: list[tuple[int, float, int]]) -> None:
    clock, at_ms, offset = WallClock(), 0, float(NOW_MS)
    for span_ms, drift, error_ms in words:
        at_ms += span_ms
        offset += span_ms * drift
        clock = clock.seen(host(at_ms, round(at_ms + offset), error_ms))
        assert clock.problem == ""
