"""What a fleet run counts: quantiles are right to five percent, and processes add up."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hil.fleet.figures import (
    CLASS_GROWTH,
    SMALLEST_MS,
    Histogram,
    Tally,
    best_second,
    bin_of,
    merged,
    per_second,
    time_to_share_s,
)

durations = st.lists(st.floats(min_value=0, max_value=600_000, allow_nan=False), min_size=1, max_size=200)
shares = st.sampled_from((0.01, 0.5, 0.9, 0.99, 1.0))


def histogram(values: list[float]) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(durations, shares)
def test_a_quantile_is_right_to_the_width_of_a_class(values: list[float], share: float) -> None:
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    told = histogram(values).quantile_ms(share)
    assert told is not None
    assert exact <= told * (1 + 1e-9)
    assert told <= max(SMALLEST_MS, exact * CLASS_GROWTH) * (1 + 1e-9)
    assert told <= max(values)


@given(durations, durations, shares)
def test_two_processes_add_up_to_one(first: list[float], second: list[float], share: float) -> None:
    whole = histogram(first)
    whole.merge(histogram(second))
    assert whole == histogram(first + second)
    assert whole.quantile_ms(share) == histogram(first + second).quantile_ms(share)


def test_nothing_measured_is_none_and_not_zero() -> None:
    assert Histogram().quantile_ms(0.5) is None


def test_tallies_cross_a_pipe_and_add_up() -> None:
    one, other = Tally(), Tally()
    one.grant.add(3.0)
    one.sent["request"] = 2
    one.ups[10] = 1
    other.grant.add(5.0)
    other.sent["request"], other.sent["result"] = 1, 4
    other.ups[10], other.ups[11] = 2, 1
    carried = [msgspec.json.decode(msgspec.json.encode(tally), type=Tally) for tally in (one, other)]
    whole = merged(carried)
    assert whole.grant.total == 2
    assert whole.grant.max_ms == 5.0
    assert whole.sent == {"request": 3, "result": 4}
    assert whole.ups == {10: 3, 11: 1}
    assert merged([Tally(), Tally()]) == Tally()


def test_a_new_tally_shares_nothing_with_an_old_one() -> None:
    used = Tally()
    used.events["settled"] = 1
    used.verdict.add(1.0)
    assert Tally().events == {}
    assert Tally().verdict.total == 0


def test_moments_by_second() -> None:
    moments = {bin_of(100.0): 2, bin_of(100.95): 1, bin_of(102.1): 4, bin_of(99.9): 7}
    assert per_second(moments, 100.0, 4) == [3, 0, 4, 0]


def test_how_long_until_a_share_of_the_cars_is_there() -> None:
    moments = {1000: 50, 1010: 40, 1100: 10}
    assert time_to_share_s(moments, 100.0, 100, 0.5) == 0.1
    assert time_to_share_s(moments, 100.0, 100, 0.51) == 1.1
    assert time_to_share_s(moments, 100.0, 100, 0.99) == 10.1
    assert time_to_share_s(moments, 100.0, 200, 0.99) is None
    assert time_to_share_s({990: 100}, 100.0, 100, 0.99) == 0.0  # they were there before
    assert time_to_share_s({}, 100.0, 10, 0.5) is None


def test_the_best_second_may_begin_anywhere() -> None:
    assert best_second({}) == 0
    assert best_second({5: 3}) == 3
    assert best_second({5: 3, 14: 3, 15: 3}) == 6
    assert best_second({0: 1, 9: 1, 10: 1, 19: 5}) == 6
