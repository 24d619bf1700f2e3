"""What `driveway status` shows of the engines: the accelerator, the worker, and the plan that it may be building."""

from __future__ import annotations

import msgspec

from agent.core.state import State, WorkerPhase
from agent.wire import Confinement


class WorkerView(msgspec.Struct, frozen=True):
    """The inference worker. While it builds an engine plan: what it is at, and how much of that is done."""

    phase: str
    pid: int | None
    executor: str
    device: str
    package: str
    building: str = ""
    done_permille: int | None = None
    confinement: dict[str, str] = {}
    """What shuts it in: `enforced`, or why not on this computer."""
    notes: tuple[str, ...] = ()
    """What its executor has to do without on this computer, a sentence each."""


class AcceleratorView(msgspec.Struct, frozen=True):
    """What runs the engines: absent, starting, ready or lost, and why; `plans_missing` packages wait for their plan."""

    state: str
    executor: str
    version: str
    device: str
    detail: str
    plans_missing: int = 0
    memory_returned_ms: int | None = None
    """How long after the last worker's end its memory was back; None when that was not seen."""


def worker(state: State, confinement: tuple[Confinement, ...] = ()) -> WorkerView | None:
    """The worker, if there is one."""
    cage = {one.name: one.state for one in confinement}
    one = state.worker
    if one.phase is WorkerPhase.ABSENT:
        return None
    build = one.build
    if build is None:
        return WorkerView(
            one.phase.value, one.pid, one.executor, one.device, one.package, confinement=cage, notes=one.notes
        )
    on = state.accelerator
    return WorkerView(
        one.phase.value,
        one.pid,
        on.executor,
        on.device,
        one.package,
        build.phase,
        build.done_permille,
        confinement=cage,
    )


def accelerator(state: State, memory_returned_ms: int | None = None) -> AcceleratorView:
    """The accelerator as it was surveyed last."""
    one, missing = state.accelerator, len(state.builds.missing)
    return AcceleratorView(
        one.state.value, one.executor, one.version, one.device, one.detail, missing, memory_returned_ms
    )


def built(state: State) -> str:
    """What is being built, in a sentence."""
    worker, build = state.worker, state.worker.build
    name = worker.package or "a package"
    if build is None or not build.phase:
        return f"The engine plan of {name} is being built."
    return f"The engine plan of {name} is being built: {build.phase}, {build.done_permille // 10} % done."
