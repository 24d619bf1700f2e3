"""Nobody vouched for the time in which nothing was heard: the first word after a gap does not make it good."""

from __future__ import annotations

import pytest

from agent.core.effects import StopWorker
from agent.core.events import EventType, SourceHeard, Tick
from agent.core.findings import GateState
from agent.core.policy import Policy
from agent.core.signals import Staleness
from agent.core.state import initial
from tests.core.full_car import FullCar
from tests.core.world import Shell, car, computer

HOUR_MS = 3_600_000
PATIENCE_S = 60


def patient() -> FullCar:
    full = FullCar(Policy(parked_for_s=PATIENCE_S))
    full.advance(400)
    assert full.state.gates.state is GateState.OPEN, full.state.gates.reasons
    return full


def waits_after(full: FullCar) -> int:
    """How long (ms) the gate of the parked car stays shut from now on, heard ten times a second."""
    began_ms = full.now_ms
    while full.gate("parked") is not GateState.OPEN:
        full.advance(0.1, step_ms=100)
        assert full.now_ms - began_ms < 2 * HOUR_MS
    return full.now_ms - began_ms


def test_after_a_suspend_the_car_must_stand_for_its_time_again() -> None:
    shell = Shell(state=initial("unit-1", Policy(parked_for_s=PATIENCE_S), 0))
    shell.connect()
    shell.advance(62_000)
    assert shell.gate() is GateState.OPEN
    shell.now_ms += HOUR_MS
    shell.tell(car(shell.now_ms))
    assert shell.gate() is GateState.CLOSED
    shell.advance(PATIENCE_S * 1000 - 100)
    assert shell.gate() is GateState.CLOSED
    shell.advance(200)
    assert shell.gate() is GateState.OPEN


def test_the_worker_goes_with_the_first_word_after_a_gap() -> None:
    shell = Shell()
    shell.open_the_gate()
    shell.settle_down(12)
    assert shell.workers_alive
    effects = shell.tell(car(shell.now_ms + HOUR_MS))
    assert [effect.why for effect in effects if isinstance(effect, StopWorker)] == ["signal_stale"]


def test_that_the_source_is_heard_again_after_a_gap_is_found_out_too() -> None:
    full = patient()
    full.now_ms += 2_000
    full.tell(SourceHeard(at_ms=full.now_ms, source="bus", groups=("car",)))
    assert full.gate("parked") is GateState.CLOSED
    assert waits_after(full) >= PATIENCE_S * 1000 - 100


def test_a_source_that_was_heard_all_the_time_leaves_no_gap() -> None:
    full = patient()
    since_ms, full.now_ms = full.now_ms, full.now_ms + HOUR_MS
    full.tell(SourceHeard(at_ms=full.now_ms, source="bus", groups=("car",), since_ms=since_ms))
    full.tell(Tick(at_ms=full.now_ms))
    assert full.gate("parked") is GateState.OPEN


def test_since_when_it_was_heard_says_nothing_of_the_time_before() -> None:
    full = patient()
    gap_ends_ms, full.now_ms = full.now_ms + 2_000, full.now_ms + HOUR_MS
    full.tell(SourceHeard(at_ms=full.now_ms, source="bus", groups=("car",), since_ms=gap_ends_ms))
    assert full.gate("parked") is GateState.CLOSED


@pytest.mark.parametrize("gap_ms", [100, 251, 400, 501, 3_000])
def test_a_gap_does_what_ticks_in_it_would_have_done(gap_ms: int) -> None:
    ends = []
    for ticks in (True, False):
        full = patient()
        for at_ms in range(full.now_ms + 1, full.now_ms + gap_ms):
            if ticks:
                full.tell(Tick(at_ms=at_ms))
        full.now_ms += gap_ms
        full.tell(SourceHeard(at_ms=full.now_ms, source="bus", groups=("car",)))
        ends.append((full.gate("parked"), waits_after(full)))
    assert ends[0][0] is ends[1][0]
    assert 0 <= ends[1][1] - ends[0][1] <= gap_ms, "found out at the end of the gap, not in it"


def test_an_old_leaf_that_is_heard_again_is_looked_at_with_the_next_tick() -> None:
    """Nothing else happens: no news, no reading of the computer."""
    full = patient()
    for wait_ms in (Staleness.GATE_EDGE.stale_ms + 1, 1, 100):
        full.now_ms += wait_ms
        full.tell(Tick(at_ms=full.now_ms))
    assert "signal_stale" in full.codes("parked")
    repeated: list[EventType] = [
        SourceHeard(at_ms=full.now_ms + 10, source="bus", groups=("car",)),
        Tick(at_ms=full.now_ms + 11),
    ]
    for event in repeated:
        full.tell(event)
    assert full.codes("parked") == ["parked_not_long_enough"]


def test_a_reading_after_a_gap_does_not_hide_it() -> None:
    shell = Shell()
    shell.open_the_gate()
    for _ in range(50):
        shell.now_ms += 100
        shell.tell(car(shell.now_ms))
    shell.tell(computer(shell.now_ms))
    (gate,) = (one for one in shell.state.gates.gates if one.name == "temperature")
    assert gate.state is GateState.CLOSED
