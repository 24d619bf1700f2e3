"""The watchdog: what is outside of the proof's assumptions is caught, says so, and finds its way back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal import Heat
from agent.core.thermal_guard import Flow
from agent.core.thermal_watch import REST_MS, Seen, Watch
from tests.core.thermal_plants import Fault, Plan, drawn, run

POLICY = Policy()
NEVER = float("inf")


def steady(seed: int) -> Plan:
    """A plant with its usual law, always at work, with a fan and one reading a second."""
    return replace(
        drawn(seed),
        policy=POLICY,
        fan_dies_s=NEVER,
        spacing_s=1.0,
        lost_share=0.0,
        busy_s=1e9,
        swing_s=0.0,
        sink_c=None,
        air_heats=False,
        air_from_c=45.0,
        air_to_c=45.0,
        band_c=13.0,
        integral_s=90.0,
        hold_ms=5_000,
    )


def told(heat: Heat, second: float, die_c: float | None = 50.0, power_w: float | None = 8.0) -> Heat:
    event = ComputeSeen(at_ms=round(second * 1000), die_c=die_c, power_w=power_w, sensor="x")
    return heat.seen(event, POLICY, working=True)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_held_against_a_computer_that_obeys(seed: int) -> None:
    assert run(steady(seed), readings=600).problems == set()


@pytest.mark.parametrize("seed", range(40))
def test_a_cap_that_has_no_effect_stops_the_work(seed: int) -> None:
    plan = replace(steady(seed), air_from_c=62.0, air_to_c=62.0, sink_c=80.0)
    outcome = run(plan, Fault(cap_ignored_s=20.0), readings=300)
    assert outcome.problems & {"power_not_obeyed", "die_above_limit"}
    assert outcome.die_max_c < POLICY.die_limit_c + 1


@pytest.mark.parametrize("seed", range(20))
def test_a_sensor_that_lost_the_die_is_noticed_when_the_power_changes(seed: int) -> None:
    plan = replace(steady(seed), busy_s=120.0, rest_s=120.0, air_from_c=20.0, air_to_c=20.0, error_c=1.0)
    assert "temperature_frozen" in run(plan, Fault(sensor_frozen_s=60.0), readings=400).problems


@pytest.mark.parametrize("seed", range(20))
def test_a_die_that_lost_its_sink_is_stopped_or_held(seed: int) -> None:
    """Four times the resistance of the bounds: the guard is wrong by far, and yet the die stays below its throttle."""
    plan = replace(steady(seed), sink_c=70.0)
    outcome = run(plan, Fault(resistance_factor=4.0), readings=300)
    assert outcome.die_max_c < 99.0


@pytest.mark.parametrize("seed", range(60))
def test_a_die_above_its_limit_is_always_noticed(seed: int) -> None:
    """Outside of the bounds, with nothing but the guard to hold the die, it may get there; not unnoticed."""
    plan = replace(steady(seed), policy=Policy(die_target_c=95.0), band_c=0.1, sink_c=75.0, hold_ms=0)
    outcome = run(plan, Fault(resistance_factor=6.0, cap_ignored_s=60.0, stop_on_problem=False), readings=200)
    assert outcome.die_max_c > 95.0 + plan.error_c
    assert "die_above_limit" in outcome.problems


def test_two_readings_above_the_limit_stop_the_work_and_one_does_not() -> None:
    heat = told(Heat(), 1, 96.0)
    assert heat.problem == ""
    heat = told(heat, 2, 94.0)
    heat = told(told(heat, 3, 96.0), 4, 95.1)
    assert heat.problem == "die_above_limit"
    assert told(heat, 5, 94.9).problem == ""


def test_a_reading_that_is_missing_between_two_hot_ones_does_not_hide_them() -> None:
    assert told(told(told(Heat(), 1, 96.0), 2, None), 3, 96.0).problem == "die_above_limit"


def test_power_that_was_measured_and_is_no_more() -> None:
    heat = told(told(Heat(), 1), 2, power_w=None)
    assert heat.problem == ""
    heat = told(told(heat, 4, power_w=None), 4.1, power_w=None)
    assert heat.problem == "power_missing"
    assert told(heat, 5).problem == ""


def test_power_that_is_promised_and_never_comes() -> None:
    """A computer whose sensor is broken from the start would run without the guard, and nobody would hear of it."""
    heat = Heat()
    for second in range(1, 5):
        event = ComputeSeen(at_ms=second * 1000, die_c=50.0, power_w=None, sensor="x", power_promised=True)
        heat = heat.seen(event, POLICY, working=True)
        assert heat.problem == ""
        assert heat.measured, "the guard counts on no flow at all, and the straight line is not for this computer"
    late = ComputeSeen(at_ms=4_001, die_c=50.0, power_w=None, sensor="x", power_promised=True)
    assert heat.seen(late, POLICY).problem == "power_missing"
    assert told(heat, 5).problem == ""


def test_power_that_was_never_measured_is_not_missed() -> None:
    heat = Heat()
    for second in range(1, 20):
        heat = told(heat, second, power_w=None)
    assert heat.problem == ""
    assert not heat.measured


def disobeying(heat: Heat, second: int, seconds: int) -> Heat:
    """The die is hot, the cap is idle, and the power stays full."""
    for later in range(seconds):
        heat = told(heat, second + later, 94.0, 60.0)
    return heat


def test_power_must_follow_a_cap_and_the_way_back_is_power_that_fell_and_a_rest() -> None:
    heat = told(told(Heat(), 1), 2, 94.0, 60.0)
    heat = disobeying(heat, 3, 4)
    assert heat.problem == "", "it has a second to follow, and is given three of patience"
    heat = disobeying(heat, 7, 2)
    assert heat.problem == "power_not_obeyed"
    rested_s = heat.watch.rests_until_ms // 1000
    assert told(heat, 30, 60.0, 8.0).problem == "power_not_obeyed", "not before the rest is over"
    assert disobeying(heat, rested_s, 5).problem == "power_not_obeyed", "not while power has not fallen"
    assert told(heat, rested_s, 60.0, 8.0).problem == ""


def test_a_computer_that_idles_above_the_cap_is_believed_again_after_its_rest() -> None:
    """At the idle cap of 8 W it draws 12 W by itself: what it draws without our work is no disobedience."""
    heat, second = told(Heat(), 1, 94.5, 12.0), 2
    while heat.problem == "":
        heat, second = told(heat, second, 94.5, 12.0), second + 1
    assert heat.problem == "power_not_obeyed"
    rested_ms = heat.watch.rests_until_ms
    for at_ms in (rested_ms - 1, rested_ms):
        resting = ComputeSeen(at_ms=at_ms, die_c=50.0, power_w=12.0, sensor="x")
        heat = heat.seen(resting, POLICY, working=False)
        assert heat.problem == ("power_not_obeyed" if at_ms < rested_ms else "")


def after_readings(powers_w: list[float], cap_w: float) -> Watch:
    """A reading every half second of a computer at work under this cap."""
    watch = Watch()
    for count, power_w in enumerate(powers_w):
        seen = Seen(
            at_ms=count * 500,
            die_c=60.0,
            power_w=power_w,
            error_c=1.0,
            cap_w=cap_w,
            span_s=0.5,
            promised=True,
            flow=Flow(),
            throttled=False,
            working=True,
        )
        watch = watch.after(seen, POLICY)
    return watch


def test_obedience_is_judged_by_the_mean() -> None:
    """Full power for 3.5 s and idle for 2 s is a mean of 41 W; the same power without the idle is not."""
    assert after_readings([8.0, 8.0, 8.0, 8.0, *[60.0] * 7] * 50, 40.0).problem == ""
    assert after_readings([8.0, *[60.0] * 14], 40.0).problem == "power_not_obeyed"


def test_a_broken_actuator_makes_the_computer_stop_ever_more_rarely() -> None:
    heat, second, rests = told(Heat(), 1, 94.0), 2, []
    for _ in range(5):
        while heat.problem == "":
            heat = told(heat, second, 94.0, 60.0)
            second += 1
        rests.append(heat.watch.rests_until_ms - second * 1000)
        while heat.problem:
            heat = told(heat, second, 60.0, 8.0)
            second += 1
    assert all(later > 1.8 * earlier for earlier, later in itertools.pairwise(rests))
    assert rests[0] > REST_MS - 5_000


def test_power_over_the_cap_without_our_work_is_somebody_elses() -> None:
    heat = Heat()
    for second in range(1, 20):
        event = ComputeSeen(at_ms=second * 1000, die_c=94.0 + second / 100, power_w=60.0, sensor="x")
        heat = heat.seen(event, POLICY, working=False)
    assert heat.problem == ""


def test_a_frozen_reading_stays_a_problem_until_it_moves() -> None:
    heat = Heat()
    for second in range(1, 100):
        heat = told(heat, second, 50.0 + second % 2, 8.0)
    for second in range(100, 160):
        heat = told(heat, second, 50.0, 8.0 if second < 110 else 60.0)
    assert heat.problem == "temperature_frozen"
    for second in range(160, 300):
        heat = told(heat, second, 50.0, 8.0)
    assert heat.problem == "temperature_frozen"
    assert told(heat, 301, 50.5, 8.0).problem == ""


def test_throttling_is_remembered_for_a_while() -> None:
    event = ComputeSeen(at_ms=1_000, die_c=50.0, power_w=8.0, sensor="x", throttled=True)
    assert Heat().seen(event, POLICY).watch.throttled_until_ms > 1_000
    assert Watch().throttled_until_ms == 0
