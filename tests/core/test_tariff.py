"""Prices at a moment, and the cheapest slots that fit: by hand, against brute force, and over the clocks' changes."""

from __future__ import annotations

import datetime as dt
import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.events import PriceSlot, PricesSeen
from agent.core.policy import Departure, Policy, TariffZone, Window
from agent.core.tariff import (
    HOUR_MS,
    SLOT_MS,
    Basis,
    Prices,
    Stay,
    break_even,
    dearest,
    lay_out,
    price_at,
    selective,
)
from agent.core.walltime import DAY_MS, UTC, WallClock, Zone, contains
from agent.zones import zone_named

BERLIN = zone_named("Europe/Berlin")
MIDNIGHT = round(dt.datetime(2026, 6, 1, tzinfo=dt.UTC).timestamp() * 1000)
CHEAP_NIGHT = TariffZone(start="00:00", end="06:00", price_micro_per_kwh=100_000)
DEAR_EVENING = TariffZone(start="17:00", end="21:00", price_micro_per_kwh=500_000)


def utc(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp() * 1000)


def stay(policy: Policy, zone: Zone, wall_ms: int, prices: Prices | None = None, **changes: object) -> Stay:
    basis = Basis(policy, zone, prices or Prices(), "", 1)
    return lay_out(Stay(), msgspec.structs.replace(basis, **changes), wall_ms)


def shown(one: Stay, zone: Zone = UTC) -> list[tuple[str, str, int]]:
    def clock(wall_ms: int) -> str:
        minute = zone.local(wall_ms).minute
        return f"{minute // 60:02d}:{minute % 60:02d}"

    return [(clock(slot.start_wall_ms), clock(slot.end_wall_ms), slot.price_micro_per_kwh) for slot in one.chosen]


def curve(start_ms: int, *prices: int, minutes: int = 15, expires_ms: int = 2**60) -> Prices:
    slots = tuple(
        PriceSlot(start_ms + index * minutes * 60_000, start_ms + (index + 1) * minutes * 60_000, price)
        for index, price in enumerate(prices)
    )
    return Prices(start_ms, expires_ms, slots)


def hours(one: Stay) -> float:
    return sum(slot.end_wall_ms - slot.start_wall_ms for slot in one.chosen) / HOUR_MS


# --- prices -------------------------------------------------------------------------------------------------------


def test_the_first_zone_that_matches_wins_in_local_time() -> None:
    policy = Policy(tariff_zones=(DEAR_EVENING, TariffZone(days=("sat", "sun"), price_micro_per_kwh=90_000)))
    assert price_at(policy, BERLIN, Prices(), utc("2026-06-01T14:59")) == 270_000
    assert price_at(policy, BERLIN, Prices(), utc("2026-06-01T15:00")) == 500_000, "17:00 in Berlin's summer"
    assert price_at(policy, BERLIN, Prices(), utc("2026-12-01T15:00")) == 270_000, "16:00 in its winter"
    assert price_at(policy, BERLIN, Prices(), utc("2026-06-06T15:00")) == 500_000, "a Saturday evening"
    assert price_at(policy, BERLIN, Prices(), utc("2026-06-05T22:00")) == 90_000, "Saturday begins"


def test_a_curve_counts_until_it_expires_and_not_in_its_gaps() -> None:
    policy, start = Policy(), MIDNIGHT
    slots = (PriceSlot(start, start + HOUR_MS, 1), PriceSlot(start + 2 * HOUR_MS, start + 5 * HOUR_MS, -2))
    prices = Prices(start, start + 4 * HOUR_MS, slots)
    at = [price_at(policy, UTC, prices, start + round(hour * HOUR_MS)) for hour in (-1, 0, 0.99, 1, 2, 3.99, 4)]
    assert at == [270_000, 1, 1, 270_000, -2, -2, 270_000]


def test_an_older_curve_does_not_replace_a_newer_one() -> None:
    newer = PricesSeen(
        at_ms=0, issued_wall_ms=10, expires_wall_ms=2**60, slots=(PriceSlot(5, 9, 1), PriceSlot(0, 5, 2))
    )
    older = PricesSeen(at_ms=1, issued_wall_ms=9, expires_wall_ms=2**60, slots=())
    prices = Prices().seen(newer).seen(older)
    assert (prices.at(0), prices.at(5), prices.at(9)) == (2, 1, None)


def test_without_a_clock_the_price_is_the_dearest_of_all() -> None:
    policy = Policy(tariff_zones=(CHEAP_NIGHT, DEAR_EVENING))
    assert dearest(policy, Prices()) == 500_000
    assert dearest(policy, curve(0, 3, 600_000, expires_ms=1)) == 600_000, "nobody knows whether it has expired"


def test_when_work_hangs_on_the_hour() -> None:
    few = Policy(work_hours_per_stay=4)
    assert not selective(Policy(tariff_zones=(CHEAP_NIGHT,)), Prices()), "all hours are wanted"
    assert not selective(few, Prices()), "all hours cost the same"
    assert selective(msgspec.structs.replace(few, tariff_zones=(CHEAP_NIGHT,)), Prices())
    assert selective(few, curve(0, 1))


# --- the cheapest slots -------------------------------------------------------------------------------------------


def test_with_nothing_to_choose_all_of_the_day_is_chosen() -> None:
    (only,) = stay(Policy(), UTC, MIDNIGHT + 1234).chosen
    assert (only.start_wall_ms, only.end_wall_ms) == (MIDNIGHT + 1234, MIDNIGHT + 1234 + DAY_MS)


def test_the_cheapest_hours_before_the_departure() -> None:
    policy = Policy(
        tariff_zones=(CHEAP_NIGHT, DEAR_EVENING),
        departures=(Departure(at="07:00", target_percent=80),),
        work_hours_per_stay=7.5,
    )
    one = stay(policy, BERLIN, utc("2026-06-01T16:00"))
    assert one.ends_ms == utc("2026-06-02T05:00")
    assert shown(one, BERLIN) == [("22:30", "00:00", 270_000), ("00:00", "06:00", 100_000)], "next to the cheap ones"


def test_negative_prices_come_first() -> None:
    prices = curve(MIDNIGHT, 5, -3, 2, -10, 1, 7)
    one = stay(Policy(work_hours_per_stay=0.75), UTC, MIDNIGHT, prices)
    assert shown(one) == [("00:15", "00:30", -3), ("00:45", "01:00", -10), ("01:00", "01:15", 1)]


def test_of_equal_prices_those_in_one_piece() -> None:
    low, high = 1, 9
    prices = curve(MIDNIGHT, low, high, low, low, high, low, low, low, high, expires_ms=MIDNIGHT + 9 * SLOT_MS)
    assert shown(stay(Policy(work_hours_per_stay=0.5), UTC, MIDNIGHT, prices)) == [("00:30", "01:00", low)]
    assert shown(stay(Policy(work_hours_per_stay=0.75), UTC, MIDNIGHT, prices)) == [("01:15", "02:00", low)]
    assert shown(stay(Policy(work_hours_per_stay=0.2), UTC, MIDNIGHT, prices)) == [("00:00", "00:12", low)]


def test_what_is_not_in_the_schedule_is_not_chosen() -> None:
    policy = Policy(schedule=(Window(start="22:10", end="02:00"),), tariff_zones=(CHEAP_NIGHT,), work_hours_per_stay=3)
    assert shown(stay(policy, UTC, MIDNIGHT + 12 * HOUR_MS)) == [
        ("23:00", "00:00", 270_000),
        ("00:00", "02:00", 100_000),
    ]


def test_what_does_not_pay_is_not_chosen() -> None:
    policy = Policy(
        tariff_zones=(CHEAP_NIGHT, DEAR_EVENING), payout_micro_per_kwh=400_000, price_floor_micro_per_kwh=60_000
    )
    assert break_even(policy, plugged=True) == pytest.approx(306_000)
    assert hours(stay(policy, UTC, MIDNIGHT)) == 20, "all but the evening"
    unplugged = stay(policy, UTC, MIDNIGHT, plugged_since_ms=None)
    assert break_even(policy, plugged=False) == pytest.approx(262_800)
    assert hours(unplugged) == 6, "with the battery's wear only the night pays"
    assert break_even(Policy(), plugged=True) is None


def test_the_cars_own_timer_ends_the_stay() -> None:
    one = stay(Policy(), BERLIN, utc("2026-06-01T16:00"), timer="2026-06-02T05:30:00")
    assert one.ends_ms == utc("2026-06-02T03:30")
    assert one.departures[0].target_percent is None
    assert stay(Policy(), BERLIN, utc("2026-06-03T16:00"), timer="2026-06-02T05:30:00").departures == ()


def test_a_new_curve_in_the_middle_does_not_bring_spent_hours_back() -> None:
    policy = Policy(work_hours_per_stay=2, tariff_zones=(CHEAP_NIGHT,))
    first = stay(policy, UTC, MIDNIGHT)
    assert hours(first) == 2
    later = MIDNIGHT + round(1.5 * HOUR_MS)
    second = lay_out(first, Basis(policy, UTC, curve(later + HOUR_MS, *[1] * 8), "", 1), later)
    assert (second.used_ms, hours(second)) == (round(1.5 * HOUR_MS), 0.5)
    assert second.spent_ms(second.ends_ms) == 2 * HOUR_MS
    again = lay_out(second, Basis(policy, UTC, Prices(), "", 2), later)
    assert hours(again) == 2, "a new plug-in is a new stay"


def test_a_stay_holds_until_something_changes_or_it_ends() -> None:
    policy = Policy()
    one, basis = stay(policy, UTC, MIDNIGHT), Basis(policy, UTC, Prices(), "", 1)
    assert one.holds(basis, MIDNIGHT)
    assert one.holds(msgspec.structs.replace(basis, policy=Policy()), MIDNIGHT + DAY_MS - 1), "equal is enough"
    assert not one.holds(basis, MIDNIGHT + DAY_MS)
    assert not one.holds(basis, MIDNIGHT - 1)
    for change in ({"timer": "x"}, {"plugged_since_ms": None}, {"zone": BERLIN}, {"prices": curve(0, 1)}):
        assert not one.holds(msgspec.structs.replace(basis, **change), MIDNIGHT)


@pytest.mark.parametrize(
    ("evening", "length_h", "cheap_h"),
    [("2026-03-28T20:00", 10, 5), ("2026-10-24T19:00", 12, 7), ("2026-06-01T19:00", 11, 6)],
)
def test_the_nights_on_which_the_clocks_change(evening: str, length_h: int, cheap_h: int) -> None:
    """From 21:00 to 08:00 in Berlin an hour is missing in spring and one is told twice in autumn."""
    policy = Policy(tariff_zones=(CHEAP_NIGHT,), departures=(Departure(at="08:00", target_percent=80),))
    one = stay(policy, BERLIN, utc(evening))
    assert (one.ends_ms - one.begins_ms) / HOUR_MS == length_h
    cheap = [slot for slot in one.chosen if slot.price_micro_per_kwh == 100_000]
    assert sum(slot.end_wall_ms - slot.start_wall_ms for slot in cheap) / HOUR_MS == cheap_h


prices_of_a_day = st.lists(st.integers(-5, 5), min_size=4, max_size=16)
zones = st.lists(
    st.builds(
        TariffZone,
        start=st.sampled_from(["00:00", "01:10", "02:30", "05:00"]),
        end=st.sampled_from(["02:00", "03:00", "04:50", "23:00"]),
        price_micro_per_kwh=st.integers(-5, 5),
    ),
    max_size=2,
).map(tuple)


@settings(max_examples=150, deadline=None)
@given(prices_of_a_day, zones, st.integers(0, 24), st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def test_no_other_choice_is_cheaper(
    values: list[int], calendar: tuple[TariffZone, ...], quarters: int, name: str
) -> None:
    """Against brute force, minute by minute; and the choice fits, is in order and does not overlap."""
    zone, start = zone_named(name), utc("2026-10-24T23:07")
    policy = Policy(
        tariff_zones=calendar, work_hours_per_stay=quarters / 4, energy_price_micro_per_kwh=2, charge_efficiency=1
    )
    prices = curve(start - start % SLOT_MS, *values)
    one = stay(policy, zone, start, prices)
    wanted = min(quarters * 15, DAY_MS // 60_000)
    by_minute = sorted(price_at(policy, zone, prices, start + minute * 60_000) for minute in range(DAY_MS // 60_000))
    paid = sum((slot.end_wall_ms - slot.start_wall_ms) // 60_000 * slot.price_micro_per_kwh for slot in one.chosen)
    assert round(hours(one) * 60) == wanted
    assert paid == sum(by_minute[:wanted])
    assert all(a.end_wall_ms <= b.start_wall_ms for a, b in itertools.pairwise(one.chosen))
    for slot in one.chosen:
        for moment in (slot.start_wall_ms, slot.end_wall_ms - 1):
            assert price_at(policy, zone, prices, moment) == slot.price_micro_per_kwh
    if one.chosen:
        assert one.chosen[0].start_wall_ms >= start
        assert one.chosen[-1].end_wall_ms <= one.ends_ms


def test_every_part_of_a_slot_has_its_price() -> None:
    """A zone that begins at ten past cuts the quarter of an hour."""
    odd = TariffZone(start="03:10", end="03:20", price_micro_per_kwh=1)
    one = stay(Policy(tariff_zones=(odd,), work_hours_per_stay=0.25), UTC, MIDNIGHT)
    assert shown(one)[0] == ("03:10", "03:20", 1) or shown(one)[1] == ("03:10", "03:20", 1)
    assert hours(one) == 0.25
    assert contains(odd, UTC.local(MIDNIGHT + 190 * 60_000))


def told(issued_ms: int, price: int, at_ms: int = 0, lasts_ms: int = 5 * HOUR_MS) -> PricesSeen:
    ends_ms = issued_ms + lasts_ms
    slots = (PriceSlot(issued_ms, ends_ms, price),)
    return PricesSeen(at_ms=at_ms, issued_wall_ms=issued_ms, expires_wall_ms=ends_ms, slots=slots)


def test_a_curve_from_a_wrong_clock_does_not_lock_out_the_later_ones() -> None:
    clock = WallClock(offset_ms=MIDNIGHT, problem="", error_ms=20)
    future = told(MIDNIGHT + 40 * 365 * 24 * HOUR_MS, 1)
    assert Prices().seen(future, clock) == Prices(), "refused while the time is known"
    kept = Prices().seen(future, WallClock(problem="clock_unset"))
    assert kept.issued_wall_ms == future.issued_wall_ms, "nobody could tell"
    assert kept.seen(told(MIDNIGHT, 7), clock).at(MIDNIGHT) == 7, "and gives way once somebody can"
    assert Prices().seen(told(MIDNIGHT + HOUR_MS, 3), clock).slots, "a clock may be ahead a little"


def test_an_expired_curve_gives_way_to_one_that_holds() -> None:
    clock = WallClock(offset_ms=MIDNIGHT, problem="", error_ms=20)
    short = Prices().seen(told(MIDNIGHT + HOUR_MS, 1, lasts_ms=HOUR_MS), clock)
    early = told(MIDNIGHT, 2, at_ms=90 * 60_000)
    assert short.seen(early, clock) is short, "while it holds it is the newer one"
    late = msgspec.structs.replace(early, at_ms=2 * HOUR_MS)
    assert short.seen(late, clock).at(MIDNIGHT + 3 * HOUR_MS) == 2
    gone = msgspec.structs.replace(early, at_ms=9 * HOUR_MS)
    assert short.seen(gone, clock) is short, "not to one that has expired itself"


def test_of_slots_that_overlap_the_dearer_counts() -> None:
    slots = (PriceSlot(0, 1_000, 500), PriceSlot(200, 400, 100), PriceSlot(600, 1_200, 900), PriceSlot(50, 50, 9_999))
    prices = Prices().seen(PricesSeen(at_ms=0, issued_wall_ms=1, expires_wall_ms=10**9, slots=slots))
    assert [prices.at(at_ms) for at_ms in (50, 300, 599, 700, 1_100, 1_200)] == [500, 500, 500, 900, 900, None]
    assert prices.slots == (PriceSlot(0, 600, 500), PriceSlot(600, 1_200, 900))
