"""What the core makes of the accelerator's readiness: nothing new without it, and a lease that waits for it."""

from __future__ import annotations

import pytest

from agent.core.building import may_survey
from agent.core.effects import HandIn, Report, RunSlice, SendRequest, StartWorker, StopWorker
from agent.core.events import AcceleratorSeen, WorkerGone
from agent.core.findings import GateState
from agent.core.model import Accelerator, Readiness, YieldReason
from agent.core.state import initial
from agent.engine_view import accelerator
from agent.explain import sentence
from tests.core.stories import DOOR, ready, until
from tests.core.world import POLICY, Shell


def seen(shell: Shell, state: Readiness, detail: str = "") -> None:
    one = Accelerator(state, "tensorrt", "10.3.0.30", "Orin", detail)
    shell.tell(AcceleratorSeen(at_ms=shell.now_ms, accelerator=one))


@pytest.mark.parametrize(
    ("state", "code", "gate", "said"),
    [
        (Readiness.STARTING, "accelerator_starting", GateState.HOLD, "is being asked whether it is ready"),
        (Readiness.ABSENT, "accelerator_absent", GateState.CLOSED, "cannot be used: no driver; install it. Install"),
        (Readiness.LOST, "accelerator_lost", GateState.HOLD, "was lost (no driver; install it)"),
    ],
)
def test_while_it_is_not_ready_nothing_is_asked_for_and_why_says_so(
    state: Readiness, code: str, gate: GateState, said: str
) -> None:
    start = initial("unit-1", POLICY, 0, accelerator=Accelerator(state, "tensorrt", detail="no driver; install it"))
    shell = Shell(state=start)
    shell.connect()
    shell.advance(5_000)
    (reason,) = shell.state.gates.reasons
    assert (reason.code, reason.gate, shell.gate()) == (code, "self_test", gate)
    assert said in sentence(reason)
    assert not any(isinstance(one, SendRequest) for one in shell.effects)
    seen(shell, Readiness.READY)
    shell.advance(2_000)
    assert shell.gate() is GateState.OPEN
    assert any(isinstance(one, SendRequest) for one in shell.effects)
    view = accelerator(shell.state)
    assert (view.state, view.executor, view.version, view.device) == ("ready", "tensorrt", "10.3.0.30", "Orin")


def test_each_change_is_told_of_once() -> None:
    shell = ready()
    for state in (Readiness.READY, Readiness.LOST, Readiness.ABSENT, Readiness.ABSENT, Readiness.READY):
        seen(shell, state, "why")
    told = [one.name for one in shell.effects if isinstance(one, Report) and one.name.startswith("accelerator")]
    assert told == ["accelerator_lost", "accelerator_absent", "accelerator_ready"]


def test_a_lease_whose_worker_lost_it_goes_on_when_it_is_back() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.waiting.clear()
    seen(shell, Readiness.LOST, "the context is gone")
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=False, detail="exited with status 5"))
    shell.advance(4_000)
    assert not any(isinstance(one, StartWorker | HandIn) for one in shell.waiting), "it is being asked first"
    assert shell.state.lease is not None
    seen(shell, Readiness.READY)
    shell.advance(2_000)
    assert isinstance(until(shell, StartWorker), StartWorker)
    shell.settle_down(30)
    assert shell.settled


def test_a_lease_is_given_back_when_it_is_not() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.waiting = [one for one in shell.waiting if not isinstance(one, RunSlice)]
    seen(shell, Readiness.ABSENT, "the driver is gone")
    (stop,) = [one for one in shell.effects if isinstance(one, StopWorker)]
    assert stop.why == "accelerator_absent"
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert (hand_in.why, hand_in.detail) == (YieldReason.FAULT, "accelerator_absent")


def test_it_is_looked_at_only_where_a_worker_might_be_and_while_none_is() -> None:
    absent = Accelerator(Readiness.ABSENT, "tensorrt")
    shell = Shell(state=initial("unit-1", POLICY, 0, accelerator=absent, self_test_problem="not yet"))
    assert not may_survey(shell.state), "nothing is known yet"
    shell.connect()
    shell.advance(5_000)
    assert shell.gate() is GateState.CLOSED
    assert may_survey(shell.state), "the gate that waits for it does not count"
    shell.changes = {DOOR: True}
    shell.advance(1_000)
    assert not may_survey(shell.state)


def test_it_is_not_looked_at_beside_a_worker() -> None:
    shell = ready()
    assert may_survey(shell.state)
    until(shell, StartWorker)
    assert not may_survey(shell.state)
    until(shell, RunSlice)
    assert not may_survey(shell.state)
