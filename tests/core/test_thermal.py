"""The law itself: it holds the target, moves the cap seldom, falls at once; missing readings; the pace."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import thermal
from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal import Heat, duty_permille
from hil.car.box import Box, BoxParameters

POLICY = Policy()
STEP_W = 4.0


def reading(
    second: float, die_c: float | None = 50.0, power_w: float | None = 20.0, error_c: float = 1.0
) -> ComputeSeen:
    return ComputeSeen(
        at_ms=round(second * 1000), die_c=die_c, power_w=power_w, sensor="simulated", die_error_c=error_c
    )


@dataclass
class Night:
    """What the law did with a box."""

    caps: list[float] = field(default_factory=list)
    die: list[float] = field(default_factory=list)


def spend(box: Box, air: Callable[[int], float], seconds: int, *, measured: bool = True) -> Night:
    chance, heat, night, power_w = random.Random(1), Heat(), Night(), 8.0
    for second in range(1, seconds + 1):
        read_c = round((box.die_c + chance.gauss(0, 0.5)) * 2) / 2
        heat = heat.seen(reading(second, read_c, power_w if measured else None), POLICY, working=True)
        assert not heat.problem
        power_w = heat.cap_w
        box.advance(power_w, air(second), 1.0)
        night.caps.append(heat.cap_w)
        night.die.append(box.die_c)
    return night


def broken(night: Night) -> Iterator[str]:
    """What the law promises besides safety."""
    settled = night.die[-600:]
    if abs(statistics.fmean(settled) - POLICY.die_target_c) > 1.0:
        yield "does not hold the target"
    moves = [second for second in range(1, len(night.caps)) if night.caps[second] != night.caps[second - 1]]
    if len(moves) > 10 * len(night.caps) / 60:
        yield "moves the cap too often"
    last = 0
    for second in moves:
        if night.caps[second] > night.caps[second - 1] and second - last < 5:
            yield "raises a cap that has not stood"
        last = second
    if any(math.remainder(cap - 8, STEP_W) > 1e-6 for cap in night.caps):
        yield "has caps between the steps"


def warming(second: int) -> float:
    """An hour in cool air, where full power never brings the die to its target; then hot air."""
    return 25.0 if second < 3_600 else 62.0


@pytest.mark.parametrize("seed", range(6))
def test_the_law_holds_the_target_and_moves_seldom(seed: int) -> None:
    parameters = BoxParameters().scattered(random.Random(seed)) if seed else BoxParameters()
    assert not list(broken(spend(Box(parameters, 60.0), lambda _second: 60.0, 2_400)))


def test_a_long_cool_night_does_not_wind_the_law_up() -> None:
    assert not list(broken(spend(Box(BoxParameters(), 25.0), warming, 5_400)))


def wind_up(patch: pytest.MonkeyPatch) -> None:
    def law(heat: Heat, die_c: float, span_s: float, _ceiling_w: float, policy: Policy) -> tuple[float, float]:
        gain, error_c = 52 / thermal.BAND_C, policy.die_target_c - die_c
        return heat.integral_w + gain * error_c, heat.integral_w + gain * error_c * span_s / thermal.INTEGRAL_S

    patch.setattr(Heat, "_law", law)


def hold_the_falls_and_not_the_rises(patch: pytest.MonkeyPatch) -> None:
    def wrong(heat: Heat, law_w: float, ceiling_w: float, now_ms: int, policy: Policy) -> float:
        level_w = 8 + STEP_W * max(0, math.floor((min(law_w, ceiling_w) - 8) / STEP_W))
        stood = now_ms - heat.cap_since_ms >= thermal.HOLD_MS
        return level_w if level_w > heat.cap_w or stood else heat.cap_w

    patch.setattr(Heat, "_next_cap_w", wrong)


def hold_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "HOLD_MS", 0)


def leave_the_integral_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "INTEGRAL_S", 1e9)


def take_the_wrong_sign(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "INTEGRAL_S", -thermal.INTEGRAL_S)


@pytest.mark.parametrize(
    "bug",
    [wind_up, hold_the_falls_and_not_the_rises, hold_nothing, leave_the_integral_out, take_the_wrong_sign],
    ids=lambda bug: bug.__name__,
)
def test_a_bug_in_the_law_breaks_a_promise(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        found = list(broken(spend(Box(BoxParameters(), 60.0), lambda _second: 60.0, 2_400)))
        assert found or list(broken(spend(Box(BoxParameters(), 25.0), warming, 5_400)))


def test_a_cool_computer_gets_full_power_at_once_and_a_hot_one_none() -> None:
    assert Heat().seen(reading(1), POLICY).cap_w == POLICY.power_max_w
    assert Heat().seen(reading(1, 94.5), POLICY).cap_w == POLICY.power_idle_w


def test_a_falling_cap_acts_at_once_and_rises_only_after_it_has_stood() -> None:
    heat = Heat().seen(reading(1), POLICY)
    heat = heat.seen(reading(2, 94.5), POLICY)
    assert heat.cap_w == POLICY.power_idle_w
    caps = []
    for second in range(3, 9):
        heat = heat.seen(reading(second), POLICY)
        caps.append(heat.cap_w)
    assert caps[:4] == [POLICY.power_idle_w] * 4
    assert caps[4] > POLICY.power_idle_w


@pytest.mark.parametrize("die_c", [None, math.nan, math.inf, -math.inf])
def test_no_reading_is_answered_with_idle_after_two_seconds(die_c: float | None) -> None:
    heat = Heat().seen(reading(1), POLICY)
    heat = heat.seen(reading(2.5, die_c), POLICY)
    assert heat.cap_w == POLICY.power_max_w, "one lost reading is nothing"
    assert heat.seen(reading(3.1, die_c), POLICY).cap_w == POLICY.power_idle_w
    assert heat.waited(3_000, POLICY).cap_w == POLICY.power_max_w
    assert heat.waited(3_001, POLICY).cap_w == POLICY.power_idle_w


@given(
    st.lists(
        st.builds(
            ComputeSeen,
            at_ms=st.integers(0, 10_000_000),
            die_c=st.none() | st.floats(),
            power_w=st.none() | st.floats(),
            sensor=st.just("x"),
            die_error_c=st.floats(0, 20),
            power_error_share=st.floats(0, 1),
            throttled=st.booleans(),
        ),
        max_size=20,
    ),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_read_the_cap_is_between_idle_and_full(events: list[ComputeSeen], working: bool) -> None:
    heat = Heat()
    for event in events:
        heat = heat.seen(event, POLICY, working=working)
        assert heat.cap_w == 0.0 or POLICY.power_idle_w <= heat.cap_w <= POLICY.power_max_w
        assert math.isfinite(heat.flow.low_w)
        forecast_c = heat.forecast_c(30, POLICY)
        assert forecast_c is None or not math.isnan(forecast_c)


def test_without_power_the_duty_follows_the_temperature_alone() -> None:
    night = spend(Box(BoxParameters(), 45.0), lambda _second: 45.0, 2_400, measured=False)
    assert abs(statistics.fmean(night.die[-600:]) - POLICY.die_target_c) < 1.0
    assert max(night.die) < POLICY.die_limit_c
    assert Heat().seen(reading(1, 94.5, None), POLICY).cap_w == POLICY.power_idle_w


def test_the_forecast_sees_the_die_follow_its_power_and_the_sink_follow_the_air() -> None:
    box, heat = Box(BoxParameters(), 60.0), Heat()
    for second in range(1, 200):
        heat = heat.seen(reading(second, box.die_c, 8.0), POLICY)
        box.advance(8.0, 60.0, 1.0)
    now_c = box.die_c
    forecast_c = heat.forecast_c(30, POLICY)
    box.advance(heat.cap_w, 60.0, 30.0)
    assert forecast_c is not None
    assert now_c + 8 < forecast_c
    assert abs(forecast_c - box.die_c) < 4.0
    # a sink that is lost: nothing carries the heat away, and the slope says so
    for second in range(200, 260):
        heat = heat.seen(reading(second, now_c + (second - 200) * 0.3, 8.0), POLICY)
    rising_c = heat.forecast_c(30, POLICY)
    assert rising_c is not None
    assert heat.die_c is not None
    assert rising_c > heat.die_c + 0.2 * 30


def test_pace_is_the_share_above_idle_in_steps() -> None:
    assert duty_permille(60.0, POLICY) == 1000
    assert duty_permille(34.0, POLICY) == 500
    assert duty_permille(8.0, POLICY) == 0
    assert duty_permille(0.0, POLICY) == 0
    assert duty_permille(200.0, POLICY) == 1000


@given(st.floats(8, 60), st.floats(0, 10_000), st.booleans())
def test_work_and_rest_never_take_too_long_together(cap_w: float, micro_batch_ms: float, measured: bool) -> None:
    """Five seconds, and one where the guard counts on the mean power from one reading to the next."""
    duty = duty_permille(cap_w, POLICY, micro_batch_ms, measured=measured)
    assert 0 <= duty <= 1000
    if 0 < duty < 1000:
        assert micro_batch_ms * 1000 / duty <= (1_000 if measured else 5_000)
        assert POLICY.power_idle_w + (POLICY.power_max_w - POLICY.power_idle_w) * duty / 1000 <= cap_w + 1e-9
