"""Whatever happens, in any order: no build while the gate is shut; and bugs planted in the rules are found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import building, plan
from agent.core.effects import (
    EffectType,
    StartBuild,
    StopWorker,
)
from agent.core.events import (
    StoreRecovered,
    Unwritten,
)
from agent.core.findings import GateState
from agent.core.state import State, WorkerPhase
from tests.core.builds import TWO, ends, missing
from tests.core.stories import DOOR, check, unwritten
from tests.core.world import Shell

MOVES = ["time", "time", "do", "do", "do", "driver", "leaves", "missing", "none", "crash", "hold", "on", "hot", "cool"]


def play(script: list[str]) -> Shell:  # noqa: C901, PLR0912 - one arm a move
    """Let it all happen; a build is begun only while the gate is open, and outlives no closed gate."""
    shell = Shell()
    shell.open_the_gate()
    for number, move in enumerate(script):
        before = len(shell.effects)
        match move:
            case "time":
                shell.advance(700)
            case "do":
                shell.carry_out()
            case "driver":
                shell.changes = {DOOR: True}
                shell.advance(100)
            case "leaves":
                shell.changes = {}
                shell.advance(3_500)
            case "missing":
                missing(shell, f"{number:064x}", TWO)
            case "none":
                missing(shell)
            case "crash" if shell.state.worker.phase is WorkerPhase.BUILDING:
                ends(shell, expected=False)
            case "hold":
                shell.tell(unwritten(shell, Unwritten.NOTE))
            case "on":
                shell.tell(StoreRecovered(at_ms=shell.now_ms))
            case "hot":
                shell.die_c = 96.0
                shell.advance(600)
            case "cool":
                shell.die_c = 50.0
                shell.advance(600)
            case _:
                pass
        check(shell)
        check_build(shell, [type(one) for one in shell.effects[before:]])
    return shell


def check_build(shell: Shell, step: list[type[EffectType]]) -> None:
    worker, gate = shell.state.worker, shell.state.gates.state
    begun, ended = step.count(StartBuild), step.count(StopWorker)
    if worker.phase is WorkerPhase.BUILDING:
        assert gate is not GateState.CLOSED
        assert worker.build is not None
        assert gate is GateState.OPEN or worker.duty_permille == 0, "on hold it rests"
        assert shell.state.lease is None or shell.state.lease.ending is not None or begun == 0
    elif gate is not GateState.OPEN:
        assert begun <= ended, "a build was begun while the gate was shut"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(MOVES), max_size=80))
def test_no_build_while_the_gate_is_shut_whatever_happens(script: list[str]) -> None:
    shell = play(script)
    shell.changes, shell.die_c = {}, 50.0
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    missing(shell)
    for _ in range(15):
        shell.advance(3_500)
        shell.settle_down(10)
        check(shell)
    assert shell.settled, "work goes on once there is nothing to build"


def forget_to_look_at_the_gate(state: State) -> plan.Step:
    package = state.builds.next(state.now_ms)
    idle = state.worker.phase is WorkerPhase.ABSENT and state.lease is None
    return building.begun(state, package) if package is not None and idle else (state, ())


def forget_that_it_must_rest(state: State) -> plan.Step:
    return (state, ()) if state.worker.phase is WorkerPhase.BUILDING else plan.pace(state)


def let_it_finish(state: State) -> plan.Step:
    return (state, ()) if state.worker.phase is WorkerPhase.BUILDING else plan.vacate(state)


@pytest.mark.parametrize(
    ("rule", "bug", "script"),
    [
        (plan.build_plans, forget_to_look_at_the_gate, ["driver", *["do"] * 12, "missing"]),
        (plan.pace, forget_that_it_must_rest, ["do"] * 20 + ["missing", *["do"] * 9, "missing", "time", "hold"]),
        (plan.vacate, let_it_finish, ["do"] * 20 + ["missing", *["do"] * 9, "missing", "time", "driver"]),
    ],
)
def test_each_planted_bug_is_found(
    rule: plan.Rule, bug: plan.Rule, script: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    play(script)
    monkeypatch.setattr(plan, "RULES", tuple(bug if one is rule else one for one in plan.RULES))
    with pytest.raises(AssertionError):
        play(script)
