"""How long a worker may take to start, and then to load its package, at the pace that applies."""

from __future__ import annotations

import msgspec
import pytest

from agent.core import plan
from agent.core.effects import RunSlice, SetPace, StartWorker, StopWorker
from agent.core.events import WorkerLoading
from agent.core.state import LOAD_MARGIN_MS, WorkerPhase, WorkerState
from tests.core.stories import ready, until
from tests.core.world import Shell


def loading(load_ms: int) -> Shell:
    """A worker that is up, late, and loads a package that says how long this takes; its lease runs for ever."""
    shell = ready()
    until(shell, StartWorker)
    assert shell.state.lease is not None
    lease = msgspec.structs.replace(shell.state.lease, expires_ms=10**9)
    shell.state = msgspec.structs.replace(shell.state, lease=lease)
    shell.advance(shell.state.policy.worker_start_timeout_ms - 1_000)
    shell.waiting.clear()
    shell.tell(WorkerLoading(at_ms=shell.now_ms, pid=1, load_ms=load_ms))
    return shell


def stops(shell: Shell) -> list[StopWorker]:
    return [effect for effect in shell.waiting if isinstance(effect, StopWorker)]


@pytest.mark.parametrize("load_ms", [10_000, 120_000])
def test_a_worker_may_load_for_as_long_as_its_package_says_and_no_longer(load_ms: int) -> None:
    shell = loading(load_ms)
    due_ms = shell.state.worker.load_due_ms
    assert due_ms == shell.now_ms + load_ms * 1000 // shell.state.worker.duty_permille + LOAD_MARGIN_MS
    assert plan.due_ms(shell.state) <= due_ms + 1
    shell.advance(load_ms)
    assert stops(shell) == []
    assert shell.state.worker.load_due_ms is not None
    shell.advance(shell.state.worker.load_due_ms - shell.now_ms + 200)
    (stop,) = stops(shell)
    assert (stop.budget_ms, stop.why) == (0, "it did not load its package in time")


def test_the_time_to_load_is_stretched_by_the_pace() -> None:
    worker = WorkerState(WorkerPhase.STARTING).loads(1_000, 60_000)
    assert worker.load_due_ms == 61_000 + LOAD_MARGIN_MS
    later_ms = 31_000 + LOAD_MARGIN_MS
    half = worker.paced(later_ms, 500)
    assert half.load_due_ms == later_ms + 60_000
    assert half.paced(later_ms, 1000).load_due_ms == worker.load_due_ms
    assert worker.paced(1_000, 0).load_due_ms == 1_000 + 10 * (60_000 + LOAD_MARGIN_MS), "a pause ends too"


def test_a_worker_is_paced_from_its_start_on() -> None:
    """Loading computes as well: it is measured and proven."""
    shell = ready()
    until(shell, StartWorker)
    assert shell.state.worker.phase is WorkerPhase.STARTING
    shell.state = msgspec.structs.replace(shell.state, heat=msgspec.structs.replace(shell.state.heat, cap_w=0.0))
    assert SetPace(duty_permille=0) in plan.pace(shell.state)[1]


def test_a_word_of_loading_that_comes_late_or_twice_changes_nothing() -> None:
    shell = loading(10_000)
    before = shell.state.worker
    shell.tell(WorkerLoading(at_ms=shell.now_ms, pid=1, load_ms=10**9))
    assert shell.state.worker == before
    until(again := ready(), RunSlice)
    assert again.state.worker.phase is WorkerPhase.READY
    again.tell(WorkerLoading(at_ms=again.now_ms, pid=1, load_ms=10))
    assert again.state.worker.load_due_ms is None
