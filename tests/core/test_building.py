"""Engine plans are built only while the computer is lent, before other work, and not for ever in vain."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import building, plan, signals
from agent.core.effects import (
    EffectType,
    KeepAwake,
    RecordVacate,
    Report,
    SendHandIn,
    SendRequest,
    SetPace,
    StartBuild,
    StartWorker,
    StopWorker,
)
from agent.core.events import (
    BuildProgress,
    BuildRefused,
    GrantSeen,
    HostSeen,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlansMissing,
    PlanUnusable,
    StoreRecovered,
    Unwritten,
    WorkerGone,
    WorkerReady,
)
from agent.core.findings import GateState
from agent.core.model import YieldReason
from agent.core.state import State, WorkerPhase, initial
from agent.view import activity, waiting
from tests.core.stories import DOOR, check, ready, until, unwritten
from tests.core.world import POLICY, Shell, grant

ONE, TWO = "1" * 64, "2" * 64
PACKAGE = "a" * 64
"""What the grants of these tests are for."""
REPLACE = msgspec.structs.replace


def missing(shell: Shell, *packages: str) -> list[EffectType]:
    return shell.tell(PlansMissing(at_ms=shell.now_ms, packages=packages))


def at_build(*packages: str, **policy: object) -> Shell:
    """The gate is open and a build is under way."""
    shell = Shell(state=initial("unit-1", REPLACE(POLICY, **policy), 0))
    missing(shell, *(packages or (ONE,)))
    shell.open_the_gate()
    assert isinstance(until(shell, StartBuild), StartBuild)
    return shell


def builds(shell: Shell) -> list[str]:
    return [one.package_sha256 for one in shell.effects if isinstance(one, StartBuild)]


def outcomes(shell: Shell) -> list[object]:
    """What the log says came of the builds."""
    return [one.fields["outcome"] for one in shell.effects if isinstance(one, Report) and one.name == "plan_build"]


def ends(shell: Shell, *, expected: bool = True, detail: str = "") -> list[EffectType]:
    """The build's process is over."""
    shell.waiting = [one for one in shell.waiting if not isinstance(one, StartBuild | StopWorker)]
    return shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=expected, detail=detail))


# --- when -----------------------------------------------------------------------------------------------------


def test_what_is_missing_is_built_one_after_the_other_and_then_work_is_asked_for() -> None:
    shell = at_build(ONE, TWO)
    assert shell.state.worker.phase is WorkerPhase.BUILDING
    for _ in range(2):
        assert not any(isinstance(one, SendRequest) for one in shell.effects)
        shell.carry_out(lambda one: isinstance(one, StartBuild))
    assert (builds(shell), outcomes(shell)) == ([ONE, TWO], ["built", "built"])
    assert shell.state.builds.missing == ()
    shell.settle_down()
    assert shell.settled, "and work goes on"


def test_a_question_still_open_is_waited_for_and_its_lease_done_first() -> None:
    shell = ready()
    missing(shell, ONE)
    assert builds(shell) == []
    until(shell, StartBuild)
    asked = [one for one in shell.effects if isinstance(one, SendRequest)]
    credit = [one.credit for one in shell.effects if isinstance(one, SendHandIn)]
    assert shell.state.lease is None, "it is done and handed in"
    assert (len(asked), credit) == (1, [0]), "no further lease is asked for"


def test_a_question_that_nobody_answers_does_not_keep_a_build_waiting_for_ever() -> None:
    shell = ready()
    missing(shell, ONE)
    shell.advance(POLICY.request_timeout_ms + 500)
    assert builds(shell) == [ONE]
    late = GrantSeen(at_ms=shell.now_ms, rid="unit-1-1", grant=grant(1), retry_ms=0)
    assert shell.tell(late) == []
    assert shell.state.lease is None, "its dispatcher has let it go: nobody knows when it ends"


def test_an_idle_worker_makes_room() -> None:
    shell = ready()
    until(shell, StartWorker)
    shell.tell(WorkerReady(at_ms=shell.now_ms, pid=1, executor="x", device="x", package="x", micro_batch_ms=5.0))
    shell.state = REPLACE(shell.state, lease=None)
    shell.waiting.clear()
    (stop,) = [one for one in missing(shell, ONE) if isinstance(one, StopWorker)]
    assert stop.why == "a plan is to be built"
    assert not any(isinstance(one, SendRequest) for one in shell.waiting)
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail=""))
    assert builds(shell) == [ONE]


def test_a_lease_that_comes_all_the_same_goes_before_the_build() -> None:
    shell = at_build()
    shell.state = REPLACE(shell.state, lease=ready().state.lease)
    other = ready()
    until(other, StartWorker)
    shell.state = REPLACE(shell.state, lease=other.state.lease)
    shell.advance(100)
    (stop,) = [one for one in shell.effects if isinstance(one, StopWorker)]
    assert (stop.budget_ms, stop.why) == (0, "a lease goes before a build")
    assert any(isinstance(one, StartWorker) for one in ends(shell))
    assert shell.state.lease is not None
    assert shell.state.lease.failures == 0, "that was no fault of its worker's"


def test_nothing_is_built_unplugged_even_where_work_is_allowed() -> None:
    shell = Shell(state=initial("unit-1", REPLACE(POLICY, plug_required=False), 0), changes={signals.CABLE: False})
    missing(shell, ONE)
    shell.open_the_gate()
    assert builds(shell) == []
    assert any(isinstance(one, SendRequest) for one in shell.effects), "but work goes on"


def test_nothing_is_built_on_a_computer_that_may_not_run_at_full_power() -> None:
    shell = Shell(die_c=74.9, state=initial("unit-1", REPLACE(POLICY, die_target_c=76.0), 0))
    missing(shell, ONE)
    shell.open_the_gate()
    assert shell.state.heat.cap_w < POLICY.power_max_w
    assert builds(shell) == []


# --- while it goes on -----------------------------------------------------------------------------------------


def test_status_says_how_far_it_is() -> None:
    shell = at_build()
    assert waiting(shell.state).startswith("The engine plan of a package is being built.")
    progress = BuildProgress(at_ms=shell.now_ms, pid=7, package="ocr", phase="Choosing tactics", done_permille=420)
    assert shell.tell(progress) == []
    said = "The engine plan of ocr is being built: Choosing tactics, 42 % done. Work is asked for after that."
    assert (waiting(shell.state), activity(shell.state)) == (said, "ready")
    shell.tell(PlanMade(at_ms=shell.now_ms, package_sha256=ONE, plan_bytes=1_000))
    begun_ms = shell.state.now_ms - 50
    build = shell.state.worker.build
    assert build is not None
    shell.state = REPLACE(shell.state, worker=REPLACE(shell.state.worker, build=REPLACE(build, begun_ms=begun_ms)))
    assert not [one for one in ends(shell) if isinstance(one, Report)], "it is still to be kept"
    kept = shell.tell(PlanBuilt(at_ms=shell.now_ms, package_sha256=ONE, plan_bytes=1_000))
    (line,) = [one for one in kept if isinstance(one, Report)]
    assert line.name == "plan_build"
    assert line.fields | {"detail": ""} == {
        "package_sha256": ONE,
        "package": "ocr",
        "executor": "",
        "outcome": "built",
        "phase": "Choosing tactics",
        "plan_bytes": 1_000,
        "duration_ms": 50,
        "detail": "",
    }


def test_a_closing_gate_kills_a_build_at_once_and_it_begins_again_later() -> None:
    shell = at_build()
    shell.changes = {DOOR: True}
    shell.advance(100)
    (stop,) = [one for one in shell.effects if isinstance(one, StopWorker)]
    assert (stop.budget_ms, stop.why) == (0, "door_open")
    check(shell)
    ends(shell)
    assert outcomes(shell) == ["stopped"]
    assert any(isinstance(one, RecordVacate) for one in shell.effects), "a build is vacated like any work"
    shell.changes = {}
    shell.advance(4_000)
    assert builds(shell) == [ONE, ONE], "as soon as the gate allows it"


def test_on_hold_a_build_is_paced_to_nothing_and_goes_on() -> None:
    shell = at_build()
    shell.tell(unwritten(shell, Unwritten.NOTE))
    assert shell.state.gates.state is GateState.HOLD
    assert [one.duty_permille for one in shell.effects if isinstance(one, SetPace)] == [0]
    assert shell.state.worker.phase is WorkerPhase.BUILDING
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    shell.advance(2_000)
    assert [one.duty_permille for one in shell.effects if isinstance(one, SetPace)] == [0, 1000]


def test_the_thermal_cap_is_its_pace() -> None:
    shell = at_build()
    half_w = (POLICY.power_idle_w + POLICY.power_max_w) / 2
    shell.state = REPLACE(shell.state, heat=REPLACE(shell.state.heat, cap_w=half_w))
    shell.advance(100)
    paces = [one.duty_permille for one in shell.effects if isinstance(one, SetPace)]
    assert paces == [500]


def test_the_car_is_kept_awake_for_it() -> None:
    shell = at_build(keep_awake=True)
    shell.tell(HostSeen(at_ms=shell.now_ms, wall_ms=1_790_000_000_000, wall_error_ms=20))
    shell.advance(1_000)
    assert any(isinstance(one, KeepAwake) and one.for_ms for one in shell.effects)


# --- what comes of it -----------------------------------------------------------------------------------------


def test_a_model_of_which_there_can_be_no_plan_is_not_tried_again() -> None:
    shell = at_build(ONE, TWO)
    shell.tell(BuildRefused(at_ms=shell.now_ms, package_sha256=ONE, detail="no such operator"))
    ends(shell)
    assert (outcomes(shell), builds(shell)) == (["refused"], [ONE, TWO])
    missing(shell, TWO, ONE)
    shell.carry_out(lambda one: isinstance(one, StartBuild))
    shell.advance(10_000)
    assert builds(shell) == [ONE, TWO], "not before the agent starts anew"


def test_a_build_that_fails_is_tried_again_later_and_later_and_does_not_keep_others_waiting() -> None:
    shell = at_build(ONE, TWO)
    begun_ms = [shell.now_ms]
    ends(shell, expected=False, detail="killed by SIGSEGV")
    assert builds(shell) == [ONE], "not at once"
    shell.advance(2_100)
    assert builds(shell) == [ONE, TWO]
    shell.carry_out(lambda one: isinstance(one, StartBuild))
    for _ in range(3):
        while len(builds(shell)) == len(begun_ms) + 1:
            shell.advance(10_000)
        begun_ms.append(shell.now_ms)
        ends(shell, expected=False)
    waits = [later - sooner for sooner, later in itertools.pairwise(begun_ms)]
    assert 40_000 < waits[0] < 100_000
    assert waits == sorted(waits)
    assert waits[2] > 150_000


def test_a_worker_that_says_nothing_of_its_build_has_failed() -> None:
    shell = at_build()
    ends(shell)
    assert outcomes(shell) == ["failed"]
    shell.advance(20_000)
    assert builds(shell) == [ONE]


def test_a_build_that_takes_for_ever_is_killed_and_has_failed() -> None:
    shell = at_build(build_timeout_s=30.0)
    shell.advance(31_000)
    (stop,) = [one for one in shell.effects if isinstance(one, StopWorker)]
    assert (stop.budget_ms, stop.why) == (0, "its build takes too long")
    ends(shell)
    assert outcomes(shell) == ["failed"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), min_size=1, max_size=12))
def test_only_the_time_that_it_is_let_work_makes_a_build_old(stretches: list[tuple[bool, int]]) -> None:
    """Stretches of work and of rest, in steps of 10 s: it is ended as soon as either was too long, and no sooner."""
    shell = at_build(build_timeout_s=200.0)
    rested_s, held, why = 0.0, False, ""
    for rests, steps in stretches:
        if rests is not held:
            held, rested_s = rests, 0.0
            shell.tell(unwritten(shell, Unwritten.NOTE) if rests else StoreRecovered(at_ms=shell.now_ms))
        for _ in range(steps):
            before = len(shell.effects)
            gate = shell.state.gates.state
            build = shell.state.worker.build
            assert build is not None
            age_ms, now_ms = build.age_ms(shell.now_ms), shell.now_ms
            shell.advance(10_000)
            stops = [one for one in shell.effects[before:] if isinstance(one, StopWorker)]
            if stops:
                why = stops[0].why
                break
            opened = shell.state.gates.state is GateState.OPEN
            aged_ms = build_age_ms(shell) - age_ms
            if gate is shell.state.gates.state:
                assert aged_ms == (shell.now_ms - now_ms if opened else 0)
            assert build_age_ms(shell) <= 200_000
            rested_s = 0.0 if opened else rested_s + 10
            assert rested_s <= 310
        if why:
            break
    if why == "its build takes too long":
        assert shell.state.worker.failed
        assert build_age_ms(shell) > 200_000
    elif why:
        assert (why, shell.state.worker.failed) == ("its build has rested for too long", False)
        assert rested_s >= 290


def build_age_ms(shell: Shell) -> int:
    build = shell.state.worker.build
    assert build is not None
    return build.age_ms(shell.now_ms)


def test_a_build_that_rests_for_long_gives_its_memory_back_and_begins_anew() -> None:
    shell = at_build(build_timeout_s=60.0)
    shell.tell(unwritten(shell, Unwritten.NOTE))
    shell.advance(299_000)
    assert shell.state.worker.phase is WorkerPhase.BUILDING, "it is far over its limit, and not by its own fault"
    shell.advance(2_000)
    (stop,) = [one for one in shell.effects if isinstance(one, StopWorker)]
    assert (stop.budget_ms, stop.why) == (0, "its build has rested for too long")
    ends(shell)
    assert outcomes(shell) == ["stopped"]
    assert shell.state.builds.tries == {}, "it did not fail"
    shell.advance(60_000)
    assert builds(shell) == [ONE]
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    shell.advance(3_000)
    assert builds(shell) == [ONE, ONE]


def test_a_plan_is_kept_after_its_worker_is_gone_and_not_built_again_meanwhile() -> None:
    shell = at_build(ONE, TWO)
    shell.tell(PlanMade(at_ms=shell.now_ms, package_sha256=ONE, plan_bytes=9))
    ends(shell)
    assert shell.state.worker.phase is not WorkerPhase.STOPPING
    assert (outcomes(shell), builds(shell)) == ([], [ONE, TWO]), "the accelerator is free for the next"
    shell.tell(PlanMade(at_ms=shell.now_ms, package_sha256=TWO, plan_bytes=7))
    ends(shell)
    shell.advance(60_000)
    assert builds(shell) == [ONE, TWO], "neither is built again"
    shell.tell(PlanBuilt(at_ms=shell.now_ms, package_sha256=TWO, plan_bytes=7))
    shell.tell(PlanBuilt(at_ms=shell.now_ms, package_sha256=ONE, plan_bytes=9))
    assert outcomes(shell) == ["built", "built"]
    assert (shell.state.builds.missing, shell.state.builds.keeping) == ((), ())


def test_a_plan_that_the_disk_does_not_take_is_told_of_once_and_tried_again_later() -> None:
    shell = at_build()
    shell.tell(PlanMade(at_ms=shell.now_ms, package_sha256=ONE, plan_bytes=9))
    ends(shell)
    shell.tell(PlanNotKept(at_ms=shell.now_ms, package_sha256=ONE, detail="the disk is nearly full"))
    told = [one.fields for one in shell.effects if isinstance(one, Report) and one.name == "plan_build"]
    assert [(one["outcome"], one["detail"]) for one in told] == [("not_kept", "the disk is nearly full")]
    assert shell.state.builds.refused == ()
    shell.advance(20_000)
    assert builds(shell) == [ONE], "not at once"
    shell.advance(100_000)
    assert builds(shell) == [ONE, ONE]


def test_a_plan_that_is_built_and_lost_again_and_again_does_not_go_round_in_circles() -> None:
    shell = at_build()
    for _ in range(60):
        shell.carry_out(lambda one: isinstance(one, StartBuild))
        missing(shell, ONE)
        shell.advance(10_000)
    assert 3 <= len(builds(shell)) <= 7, "ten minutes"


def test_a_plan_that_loads_is_forgiven_its_past() -> None:
    shell = at_build(PACKAGE)
    shell.carry_out(lambda one: isinstance(one, StartBuild))
    assert PACKAGE in shell.state.builds.tries
    until(shell, StartWorker)
    shell.carry_out(lambda one: isinstance(one, StartWorker))
    assert shell.state.worker.phase is WorkerPhase.READY
    assert shell.state.builds.tries == {}


def test_a_plan_that_does_not_load_gives_the_lease_back_and_is_built_anew() -> None:
    shell = ready()
    until(shell, StartWorker)
    shell.waiting = [one for one in shell.waiting if not isinstance(one, StartWorker)]
    shell.tell(PlanUnusable(at_ms=shell.now_ms, package_sha256=PACKAGE, detail="built by another release"))
    lease = shell.state.lease
    assert lease is not None
    assert (lease.ending, lease.ending_detail) == (YieldReason.FAULT, "built by another release")
    missing(shell, PACKAGE)
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail=""))
    shell.settle_down()
    assert builds(shell) == [PACKAGE]
    assert shell.settled


# --- whatever happens -----------------------------------------------------------------------------------------

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
