"""An accelerator that is lost, by a sleep or a fault, costs one worker; the lease and its package go on."""

from __future__ import annotations

import msgspec
import pytest

from agent.core.effects import HandIn, Report, RunSlice, StartWorker, StopWorker
from agent.core.events import AcceleratorSeen, ComputerSlept, WorkerGone
from agent.core.model import Accelerator, Readiness, YieldReason
from agent.core.state import WorkerPhase
from tests.core.stories import ready, until
from tests.core.world import Shell

ON_A_GPU = Accelerator(state=Readiness.READY, executor="tensorrt", device="Orin")
ON_A_CPU = Accelerator(state=Readiness.READY, executor="onnxruntime", device="cpu")


def at_work(accelerator: Accelerator = ON_A_GPU) -> Shell:
    """In the middle of a slice."""
    shell = ready()
    shell.tell(AcceleratorSeen(at_ms=shell.now_ms, accelerator=accelerator))
    assert isinstance(until(shell, RunSlice), RunSlice)
    shell.waiting.clear()
    return shell


def lose(shell: Shell) -> None:
    shell.tell(
        WorkerGone(at_ms=shell.now_ms, pid=1, expected=False, detail="exited with status 5", lost_accelerator=True)
    )


def sleep(shell: Shell, slept_ms: int = 3_600_000) -> None:
    shell.tell(ComputerSlept(at_ms=shell.now_ms, slept_ms=slept_ms))


def test_a_worker_that_slept_with_the_computer_is_ended_and_another_does_its_slice() -> None:
    shell = at_work()
    sleep(shell)
    stop = next(effect for effect in shell.waiting if isinstance(effect, StopWorker))
    assert (stop.why, stop.budget_ms) == ("the computer slept", shell.state.policy.vacate_budget_ms)
    shell.carry_out(lambda effect: isinstance(effect, StopWorker))
    lease = shell.state.lease
    assert lease is not None
    assert (lease.failures, lease.in_flight, lease.ending) == (0, None, None)
    again = until(shell, RunSlice)
    assert isinstance(again, RunSlice)
    assert again.index == 0
    assert not shell.state.worker.stale, "it is a new one"


def test_a_worker_that_was_coming_up_is_not_waited_for() -> None:
    shell = ready()
    shell.tell(AcceleratorSeen(at_ms=shell.now_ms, accelerator=ON_A_GPU))
    until(shell, StartWorker)
    shell.waiting.clear()
    sleep(shell)
    assert [effect.budget_ms for effect in shell.waiting if isinstance(effect, StopWorker)] == [0]


def test_no_slice_is_begun_on_a_worker_that_slept() -> None:
    shell = at_work()
    shell.waiting.clear()
    sleep(shell)
    assert not any(isinstance(effect, RunSlice) for effect in shell.waiting)
    assert shell.state.worker.phase is WorkerPhase.STOPPING


def test_a_cpu_is_after_a_sleep_what_it_was_before() -> None:
    shell = at_work(ON_A_CPU)
    sleep(shell)
    assert shell.state.worker.phase is WorkerPhase.READY
    assert not any(isinstance(effect, StopWorker) for effect in shell.waiting)


def test_a_sleep_without_a_worker_is_told_and_that_is_all() -> None:
    shell = ready()
    shell.waiting.clear()
    sleep(shell)
    told = [effect for effect in shell.waiting if isinstance(effect, Report)]
    assert [(one.name, one.fields) for one in told] == [("computer_slept", {"slept_ms": 3_600_000})]
    assert not shell.state.worker.stale


def test_a_lost_accelerator_costs_the_worker_and_no_attempt_of_the_lease() -> None:
    shell = at_work()
    lose(shell)
    lease = shell.state.lease
    assert lease is not None
    assert (lease.failures, lease.in_flight, lease.ending) == (0, None, None)
    shell.advance(2_100)
    assert isinstance(until(shell, StartWorker), StartWorker)
    again = until(shell, RunSlice)
    assert isinstance(again, RunSlice)
    assert again.index == 0
    shell.settle_down(30)
    assert shell.settled[again.key] == {0, 1, 2}


def test_a_lease_on_which_it_is_lost_every_time_is_given_back() -> None:
    """A kernel that reads where it must not loses the context too."""
    shell = at_work()
    losses = 0
    while not any(isinstance(effect, HandIn) for effect in shell.effects):
        lose(shell)
        losses += 1
        assert losses < 10
        shell.advance(2_100)
        if not any(isinstance(effect, HandIn) for effect in shell.effects):
            until(shell, RunSlice)
            shell.waiting.clear()
    hand_in = next(effect for effect in shell.effects if isinstance(effect, HandIn))
    assert hand_in.why is YieldReason.FAULT
    assert losses == shell.state.policy.worker_attempts + 1


@pytest.mark.parametrize("bereft", [False, True])
def test_any_other_loss_counts_at_once(bereft: bool) -> None:
    shell = at_work()
    lease = shell.state.lease
    assert lease is not None
    shell.state = msgspec.structs.replace(shell.state, lease=msgspec.structs.replace(lease, bereft=bereft))
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=False, detail="killed by SIGSEGV"))
    assert shell.state.lease is not None
    assert shell.state.lease.failures == 1
