"""Engine plans are built only while the computer is lent, before other work, and at the pace that the gate allows."""

from __future__ import annotations

from agent.core import signals
from agent.core.effects import (
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
    GrantSeen,
    HostSeen,
    PlanBuilt,
    PlanMade,
    StoreRecovered,
    Unwritten,
    WorkerGone,
    WorkerReady,
)
from agent.core.findings import GateState
from agent.core.state import WorkerPhase, initial
from agent.view import activity, waiting
from tests.core.builds import ONE, REPLACE, TWO, at_build, builds, ends, missing, outcomes
from tests.core.stories import DOOR, check, ready, until, unwritten
from tests.core.world import POLICY, Shell, grant

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
