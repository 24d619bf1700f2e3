"""Expectations are judged by what was seen: each kind can hold, and can fail."""

from __future__ import annotations

from hil.rigs.observation import Measurement, Observation, Why
from hil.scenario.judge import Strictness, judge
from hil.scenario.model import Condition, Expectation

CLOSED = Condition(gate="closed")  # type: ignore[arg-type]
SIM = Strictness("sim")
SEEN = (
    Observation(at_ms=0, gate="closed", reasons=(Why("parked", "moving", "Vehicle.Speed"),)),
    Observation(at_ms=5_000, gate="open", die_c=60.0),
    Observation(at_ms=9_000, gate="open", computing=True, die_c=70.0, slices_kept=2, lease="a/1"),
    Observation(at_ms=20_000, gate="closed", die_c=71.0, slices_kept=5),
)
MARKS = {"begin": 0, "door": 19_950, "end": 30_000}


def one(expectation: Expectation, strictness: Strictness = SIM) -> Measurement:
    return judge([expectation], SEEN, MARKS, strictness)[0]


def test_see_measures_the_time_from_its_mark() -> None:
    measured = one(Expectation(see=CLOSED, after="door", within_ms=100))
    assert (measured.value, measured.held, measured.unit) == (50.0, True, "ms")
    assert not one(Expectation(see=CLOSED, after="door", within_ms=49)).held


def test_see_that_never_comes_says_what_was_so() -> None:
    measured = one(Expectation(see=Condition(state="fault"), within_ms=30_000))
    assert (measured.value, measured.held) == (None, False)
    assert "gate closed" in measured.detail


def test_a_slower_rig_has_longer_and_says_so() -> None:
    measured = one(Expectation(see=CLOSED, after="door", within_ms=10), Strictness("vm", 20.0, 30))
    assert (measured.held, measured.at_most) == (True, 230.0)
    assert "20 times slower" in measured.relaxed


def test_always_and_never_measure_how_long_it_was_otherwise() -> None:
    assert one(Expectation(never=Condition(computing=True), after="door", settle_ms=50)).held
    measured = one(Expectation(never=Condition(computing=True)))
    assert (measured.value, measured.held) == (11.0, False)
    measured = one(Expectation(always=Condition(gate="open")))  # type: ignore[arg-type]
    assert (measured.value, measured.held) == (15.0, False)


def test_totals() -> None:
    assert one(Expectation(total="slices_kept", at_least=5)).held
    assert not one(Expectation(total="slices_kept", at_least=5.5)).held
    assert one(Expectation(total="slices_kept", after="door", at_least=3, at_most=3)).held
    assert one(Expectation(total="die_max_c", at_most=71)).held
    assert one(Expectation(total="open_s", at_least=15, at_most=15)).held
    assert one(Expectation(total="openings", at_most=1, at_least=1)).held
    assert one(Expectation(total="leases", at_most=1, at_least=1)).held


def test_what_nobody_knows_does_not_hold() -> None:
    assert not one(Expectation(total="low_voltage_min_v", at_least=0)).held
    assert not one(Expectation(see=Condition(charge_percent_at_least=0.0), within_ms=30_000)).held


def test_a_mark_that_was_not_reached_does_not_hold() -> None:
    measured = judge([Expectation(see=CLOSED, after="late", within_ms=1)], SEEN, MARKS, SIM)[0]
    assert (measured.held, "never came to" in measured.detail) == (False, True)


def test_an_expectation_may_be_for_one_rig_alone() -> None:
    assert judge([Expectation(see=CLOSED, within_ms=1, rigs=("sil",))], SEEN, MARKS, SIM) == []
