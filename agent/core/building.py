"""Building engine plans: when the computer is lent to that, and what came of it.

A plan is built by a worker like any other, so everything that holds for work holds for a build without a second
machinery: it begins only while every gate is open, a gate that closes kills it at once (nothing of it can be drained),
on hold it is paced to nothing, and the thermal cap becomes its pace. It keeps the accelerator busy for minutes and
cannot be paced finely, so besides it begins only with the cable in and while the thermal law allows full power.

**Building comes first.** A car that lacks a plan asks for no work until it is built, and ends an idle worker for it:
there is one place for a worker, a build is short and happens once for a package and an engine's version, and from then
on the car can take any work, while a car that went on with what it can do already might never come to it. A lease that
comes all the same (a verdict's next grant) goes before the build. A question still to be answered is waited for.

A build that failed is tried again after a minute, doubled each time up to an hour; so is a plan that is built and yet
missing again, or that the disk did not take. One that we killed is begun anew when the gate next allows it. A model
that cannot be built, or whose builder keeps crashing, is refused by the shell.

A build that hangs is found out by its age, in which only the time counts that it was let work. One that rests keeps its
memory, so it is ended after five minutes of rest, and begun anew when the gate next allows it.

The worker is gone before its plan is kept: what hashing and writing take is none of the accelerator's time.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from agent.core.accelerator_events import (
    AcceleratorEvent,
    AcceleratorSeen,
    BuildProgress,
    BuildRefused,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    PlansMissing,
    PlanUnusable,
)
from agent.core.builds import Build, Keeping
from agent.core.effects import EffectType, Report, StartBuild
from agent.core.events import WorkerGone
from agent.core.findings import GateState
from agent.core.lease import Retry
from agent.core.model import YieldReason
from agent.core.signals import CABLE
from agent.core.state import State, WorkerPhase, WorkerState
from agent.core.thermal import duty_permille
from agent.core.waiting import about_ms, bound_ms

Step = tuple[State, tuple[EffectType, ...]]
Fields = dict[str, str | int | float | bool]

REPLACE = msgspec.structs.replace
AGAIN_FIRST_MS = 60_000
AGAIN_MAX_MS = 3_600_000
FULL_PERMILLE = 1000


# --- when -----------------------------------------------------------------------------------------------------


def wanted(state: State) -> str | None:
    """The package whose plan is to be built before any work is asked for; None where there is nothing to build now."""
    if state.gates.state is not GateState.OPEN or state.lease is not None or state.left_over:
        return None
    package = state.builds.next(state.now_ms)
    return package if package is not None and _may_begin(state) else None


def _may_begin(state: State) -> bool:
    """The cable is in, as far as the car tells, and the thermal law allows full power."""
    plugged = not state.vehicle.reads(CABLE) or state.vehicle.word(CABLE) is True
    heat = state.heat
    return plugged and duty_permille(heat.cap_w, state.policy, measured=heat.measured) == FULL_PERMILLE


def may_survey(state: State) -> bool:
    """Whether a process may be on the accelerator to look at it: no worker is there, and no gate is shut.

    The one that waits for just that answer does not count.
    """
    return state.worker.phase is WorkerPhase.ABSENT and all(
        gate.state is not GateState.CLOSED for gate in state.gates.gates if gate.name != "self_test"
    )


def comes_first(state: State) -> bool:
    """Whether a build is under way or about to begin, so that no work is asked for."""
    return state.worker.build is not None or wanted(state) is not None


def waits_for_answer(state: State) -> bool:
    """A question to the fleet may still be answered with a lease."""
    return state.asking is not None and state.now_ms < state.asking.again_ms


def begun(state: State, package_sha256: str) -> Step:
    """The state with the build begun. A question that nobody answered in time is dropped: its answer would be late."""
    worker = WorkerState(
        WorkerPhase.BUILDING, package_sha256=package_sha256, since_ms=state.now_ms, build=Build(state.now_ms)
    )
    return REPLACE(state, worker=worker, asking=None), (StartBuild(package_sha256=package_sha256),)


def timed(state: State) -> State:
    """The state with the build's clock as the pace that it has now: what is paced to nothing does not age."""
    build = _under_way(state)
    if build is None:
        return state
    timed_build = build.paced(state.now_ms, held=state.worker.duty_permille == 0)
    if timed_build is build:
        return state
    return REPLACE(state, worker=REPLACE(state.worker, build=timed_build))


def cause_to_end(state: State) -> tuple[str, bool]:
    """Why the build at hand is to be ended, empty where it is not; and whether it has failed.

    One that was let work for so long hangs. One that has rested for so long gives its memory back.
    """
    build = _under_way(state)
    if build is not None and build.age_ms(state.now_ms) > _limit_ms(state):
        return "its build takes too long", True
    if build is not None and build.rested_out(state.now_ms):
        return "its build has rested for too long", False
    return "", False


def due_ms(state: State) -> list[int]:
    """When a build begins, or has worked or rested for too long, if nothing happens until then."""
    build = _under_way(state)
    if build is not None:
        return [build.due_ms(_limit_ms(state))]
    return [*state.builds.due_ms(state.now_ms), state.worker.not_before_ms] if state.builds.missing else []


def _under_way(state: State) -> Build | None:
    return state.worker.build if state.worker.phase is WorkerPhase.BUILDING else None


def _limit_ms(state: State) -> int:
    return round(state.policy.build_timeout_s * 1000)


# --- what came of it ------------------------------------------------------------------------------------------


def heard(state: State, event: AcceleratorEvent) -> Step:
    """What the shell says of the accelerator, of plans, and of the build at hand."""
    match event:
        case AcceleratorSeen():
            return _accelerator_seen(state, event)
        case PlansMissing(packages=packages):
            return REPLACE(state, builds=REPLACE(state.builds, missing=packages)), ()
        case BuildProgress():
            return _progressed(state, event), ()
        case PlanMade() | PlanBuilt() | PlanNotKept() | BuildRefused():
            return _outcome(state, event)
        case PlanUnusable():
            return _unusable(state, event)
        case _:
            assert_never(event)


def _accelerator_seen(state: State, event: AcceleratorSeen) -> Step:
    """Each change of the readiness is told of once."""
    before, now = state.accelerator, event.accelerator
    state = REPLACE(state, accelerator=now)
    if before.state is now.state:
        return state, ()
    fields: Fields = {
        "executor": now.executor,
        "version": now.version,
        "device": now.device,
        "detail": now.detail,
    }
    return state, (Report(name=f"accelerator_{now.state.value}", fields=fields),)


def _progressed(state: State, event: BuildProgress) -> State:
    worker = state.worker
    if worker.build is None:
        return state
    build = REPLACE(worker.build, phase=event.phase, done_permille=event.done_permille)
    return REPLACE(state, worker=REPLACE(worker, pid=event.pid, package=event.package, build=build))


def _outcome(state: State, event: PlanMade | PlanBuilt | PlanNotKept | BuildRefused) -> Step:
    """What the shell says came of a build."""
    package, builds = event.package_sha256, state.builds
    match event:
        case PlanMade(plan_bytes=plan_bytes):
            return _came_out(state, package, "made", plan_bytes=plan_bytes)
        case PlanBuilt(plan_bytes=plan_bytes):
            missing = tuple(one for one in builds.missing if one != package)
            state = REPLACE(state, builds=REPLACE(builds, missing=missing))
            return _came_out(state, package, "built", plan_bytes=plan_bytes)
        case PlanNotKept(detail=detail):
            return _came_out(state, package, "not_kept", detail)
        case BuildRefused(detail=detail):
            refused = tuple(sorted({*builds.refused, package}))
            return _came_out(REPLACE(state, builds=REPLACE(builds, refused=refused)), package, "refused", detail)
        case _:
            assert_never(event)


def _came_out(state: State, package_sha256: str, outcome: str, detail: str = "", plan_bytes: int = 0) -> Step:
    """What came of a build: of the worker's at hand, whose end tells of it, or of one whose worker is gone already."""
    worker, builds = state.worker, state.builds
    if worker.build is not None and worker.package_sha256 == package_sha256:
        size = plan_bytes or worker.build.plan_bytes
        build = REPLACE(worker.build, outcome=outcome, detail=detail, plan_bytes=size)
        return REPLACE(state, worker=REPLACE(worker, build=build)), ()
    for one in builds.keeping:
        if one.package_sha256 == package_sha256:
            others = tuple(other for other in builds.keeping if other is not one)
            build = REPLACE(one.build, outcome=outcome, detail=detail)
            return _over(REPLACE(state, builds=REPLACE(builds, keeping=others)), REPLACE(one, build=build))
    return state, ()


def _unusable(state: State, event: PlanUnusable) -> Step:
    """The lease is given back for no fault of the package's: others can do it sooner than this car can build."""
    package, lease = event.package_sha256, state.lease
    if lease is not None and lease.grant.package_sha256 == package:
        state = REPLACE(state, lease=lease.end(YieldReason.FAULT, event.detail))
    return state, (Report(name="plan_unusable", fields={"package_sha256": package, "detail": event.detail}),)


def gone(state: State, event: WorkerGone) -> Step:
    """The worker of a build has ended. A plan that it made is still to be kept, and all else that came of it told."""
    worker = state.worker
    build = worker.build
    if build is None:
        return state, ()
    stopped = worker.phase is WorkerPhase.STOPPING and not worker.failed
    outcome = build.outcome or ("stopped" if stopped else "failed")
    build = REPLACE(build, outcome=outcome, detail=build.detail or event.detail)
    over = Keeping(worker.package_sha256, worker.package, build)
    if outcome == "made":
        return REPLACE(state, builds=REPLACE(state.builds, keeping=(*state.builds.keeping, over))), ()
    return _over(state, over)


def _over(state: State, one: Keeping) -> Step:
    """What came of a build, in one line of the log, and when the next try may be."""
    build, package = one.build, one.package_sha256
    if build.outcome in {"built", "failed", "not_kept"}:
        retry = state.builds.tries.get(package, Retry())
        wait_ms = about_ms(bound_ms(AGAIN_FIRST_MS, AGAIN_MAX_MS, retry.tries), state.jitter(f"build {package}"))
        retry = Retry(retry.tries + 1, state.now_ms + wait_ms)
        state = REPLACE(state, builds=state.builds.tried(package, retry))
    fields: Fields = {
        "package_sha256": package,
        "package": one.package,
        "executor": state.accelerator.executor,
        "outcome": build.outcome,
        "phase": build.phase,
        "plan_bytes": build.plan_bytes,
        "duration_ms": state.now_ms - build.begun_ms,
        "detail": build.detail,
    }
    return state, (Report(name="plan_build", fields=fields),)
