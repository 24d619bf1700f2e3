"""What comes of a build: kept, refused, failed or stopped; tried again later and later, and not for ever in vain."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.effects import (
    Report,
    StartBuild,
    StartWorker,
    StopWorker,
)
from agent.core.events import (
    BuildRefused,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlanUnusable,
    StoreRecovered,
    Unwritten,
    WorkerGone,
)
from agent.core.findings import GateState
from agent.core.model import YieldReason
from agent.core.state import WorkerPhase
from tests.core.builds import ONE, PACKAGE, TWO, at_build, builds, ends, missing, outcomes
from tests.core.stories import ready, until, unwritten
from tests.core.world import Shell


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


@pytest.mark.long
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
