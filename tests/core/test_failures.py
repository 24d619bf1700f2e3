"""What fails under a lease (worker, disk, input, the daemon itself) and that nothing waits for ever."""

from __future__ import annotations

import math

import msgspec
import pytest

from agent.core import lease as leases
from agent.core import plan
from agent.core.effects import (
    EffectType,
    HandIn,
    OpenLease,
    RunSlice,
    SendHandIn,
    SendRequest,
    SettleHandIn,
    StartWorker,
    StopWorker,
)
from agent.core.events import (
    HandInFailed,
    LeaseRefused,
    LinkChanged,
    OwnerMode,
    SliceFailed,
    StoreRecovered,
    Tick,
    Unwritten,
    WorkerGone,
    WorkerRefused,
)
from agent.core.findings import GateState, Reason
from agent.core.lease import Pending
from agent.core.machine import step
from agent.core.model import HandInKind, JobKey, Spent, YieldReason
from agent.core.state import Vacating, initial, resume
from agent.core.world import Owner
from tests.core.stories import ready, until, unwritten
from tests.core.world import POLICY, SHA256, Shell, computer, grant


def test_a_verdict_the_disk_refused_is_written_down_when_it_takes_writes_again() -> None:
    shell = ready()
    settle = until(shell, SettleHandIn)
    assert isinstance(settle, SettleHandIn)
    shell.waiting.clear()
    shell.tell(unwritten(shell, Unwritten.VERDICT, settle.key))
    shell.advance(20_000)
    assert not any(isinstance(effect, SettleHandIn | SendHandIn) for effect in shell.waiting)
    assert settle in shell.tell(StoreRecovered(at_ms=shell.now_ms))


class Refusing(Shell):
    """A world in which no input can be fetched, or no package runs."""

    refusal = "input"

    def _do(self, effect: EffectType) -> None:
        match effect:
            case OpenLease(grant=one) if self.refusal == "input":
                self.tell(LeaseRefused(at_ms=self.now_ms, key=one.key, detail="404"))
            case StartWorker():
                self.tell(WorkerRefused(at_ms=self.now_ms, package="ocr", detail="golden vector"))
                self.tell(WorkerGone(at_ms=self.now_ms, pid=0, expected=True, detail=""))
            case _:
                super()._do(effect)


@pytest.mark.parametrize("refusal", ["input", "package"])
def test_refusals_are_not_repeated_in_a_hot_loop(refusal: str) -> None:
    shell = Refusing()
    shell.refusal = refusal
    shell.open_the_gate()
    asked_ms: list[int] = []
    for _ in range(600):
        before = len(shell.effects)
        shell.settle_down()
        shell.advance(1_000)
        asked_ms += [shell.now_ms for effect in shell.effects[before:] if isinstance(effect, SendRequest)]
    assert 4 <= len(asked_ms) <= 12, "ten minutes"
    assert asked_ms[-1] - asked_ms[-2] > 60_000


def test_nothing_is_owed_for_a_replayed_grant() -> None:
    shell = ready()
    opening = until(shell, OpenLease)
    assert isinstance(opening, OpenLease)
    shell.waiting.clear()
    shell.tell(LeaseRefused(at_ms=shell.now_ms, key=opening.grant.key, detail="a replayed grant", replayed=True))
    assert shell.state.lease is None
    assert not any(isinstance(effect, HandIn) for effect in shell.waiting)
    shell.advance(10_000)
    assert any(isinstance(effect, SendRequest) for effect in shell.waiting)


def test_a_hand_in_that_cannot_be_made_does_not_stop_the_car() -> None:
    shell = ready()
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    shell.waiting.clear()
    shell.tell(HandInFailed(at_ms=shell.now_ms, key=hand_in.grant.key, detail="the key is gone"))
    shell.advance(10_000)
    assert any(isinstance(effect, SendRequest) for effect in shell.waiting)


@pytest.mark.parametrize("phase", ["starting", "in a slice"])
def test_a_worker_that_hangs_is_killed_and_counts_as_lost(phase: str) -> None:
    shell = ready()
    if phase == "in a slice":
        until(shell, RunSlice)
        limit_ms = shell.state.policy.slice_timeout_ms
    else:
        until(shell, StartWorker)
        limit_ms = shell.state.policy.worker_start_timeout_ms
    shell.waiting.clear()
    assert shell.state.lease is not None
    shell.state = msgspec.structs.replace(
        shell.state, lease=msgspec.structs.replace(shell.state.lease, expires_ms=10**9)
    )
    shell.advance(limit_ms + 200)
    stop = until(shell, StopWorker)
    assert isinstance(stop, StopWorker)
    assert stop.budget_ms == 0
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail="killed"))
    lease = shell.state.lease
    assert lease is not None
    assert lease.failures == 1
    assert not any(isinstance(effect, StartWorker) for effect in shell.waiting), "not at once"


def test_the_owners_pause_outlives_a_restart() -> None:
    shell = Shell()
    shell.state = resume(shell.state, (), (), Owner(OwnerMode.PAUSED))
    shell.connect()
    shell.advance(5_000)
    assert [reason.code for reason in shell.state.gates.reasons] == ["owner_paused"]


def test_every_lease_that_was_left_open_is_handed_in() -> None:
    shell = Shell()
    left = tuple(leases.left_over(grant(number), (0,), Spent(1, 1), 0) for number in (1, 2))
    for one in left:
        shell.disk[one.key] = {0}
    shell.state = resume(shell.state, (), left, Owner())
    shell.connect()
    shell.settle_down()
    shell.advance(1_000)
    shell.settle_down()
    assert set(shell.settled) == {one.key for one in left}


def test_a_lease_the_disk_refused_to_open_is_opened_when_it_takes_writes_again() -> None:
    shell = ready()
    opening = until(shell, OpenLease)
    assert isinstance(opening, OpenLease)
    shell.waiting.clear()
    shell.tell(unwritten(shell, Unwritten.LEASE, opening.grant.key))
    assert not any(isinstance(effect, OpenLease) for effect in shell.waiting)
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    assert isinstance(until(shell, OpenLease), OpenLease)


def test_a_lost_worker_is_started_again_and_the_slice_done_again() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.waiting.clear()
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=False, detail="killed by SIGSEGV"))
    shell.advance(2_100)
    assert isinstance(until(shell, StartWorker), StartWorker)
    again = until(shell, RunSlice)
    assert isinstance(again, RunSlice)
    assert again.index == 0
    shell.settle_down(30)
    assert shell.settled[again.key] == {0, 1, 2}


def test_a_lease_whose_worker_keeps_dying_is_given_back() -> None:
    shell = ready()
    for _ in range(3):
        until(shell, RunSlice)
        shell.waiting.clear()
        shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=False, detail="killed by SIGSEGV"))
        if not any(isinstance(effect, HandIn) for effect in shell.waiting):
            shell.advance(2_100)
    hand_in = next(effect for effect in shell.effects if isinstance(effect, HandIn))
    assert hand_in.why is YieldReason.FAULT


def test_a_refused_package_gives_the_lease_back_with_the_reason() -> None:
    shell = ready()
    until(shell, StartWorker)
    shell.waiting.clear()
    shell.tell(WorkerRefused(at_ms=shell.now_ms, package="ocr", detail="the golden vector came out wrong"))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert (hand_in.why, hand_in.detail) == (YieldReason.REFUSED, "the golden vector came out wrong")


@pytest.mark.parametrize(("transient", "why"), [(False, YieldReason.REFUSED), (True, YieldReason.FAULT)])
def test_a_lease_that_cannot_be_opened_is_given_back(*, transient: bool, why: YieldReason) -> None:
    """Only what is wrong with the package or its input is held against it."""
    shell = ready()
    opening = until(shell, OpenLease)
    assert isinstance(opening, OpenLease)
    shell.waiting.clear()
    key, detail = opening.grant.key, "the object is not what was promised"
    shell.tell(LeaseRefused(at_ms=shell.now_ms, key=key, detail=detail, transient=transient))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is why


def test_a_full_disk_loses_nothing() -> None:
    shell = ready()
    run = until(shell, RunSlice)
    assert isinstance(run, RunSlice)
    shell.waiting.clear()
    shell.tell(unwritten(shell, Unwritten.SLICE, run.key, run.index))
    shell.advance(1_000)
    assert not any(isinstance(effect, RunSlice | HandIn) for effect in shell.waiting)
    assert shell.state.gates.reasons[0].code == "storage_failed"
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    again = until(shell, RunSlice)
    assert isinstance(again, RunSlice)
    assert again.index == run.index
    shell.settle_down(30)
    assert any(slices == {0, 1, 2} for slices in shell.settled.values())


def test_a_hand_in_the_disk_refused_is_made_again() -> None:
    shell = ready()
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    shell.waiting.clear()
    shell.tell(unwritten(shell, Unwritten.HAND_IN, hand_in.grant.key))
    assert not any(isinstance(effect, HandIn) for effect in shell.waiting)
    shell.tell(StoreRecovered(at_ms=shell.now_ms))
    again = until(shell, HandIn)
    assert isinstance(again, HandIn)
    assert again.grant == hand_in.grant


def test_a_slice_that_fails_is_tried_again() -> None:
    shell = ready()
    run = until(shell, RunSlice)
    assert isinstance(run, RunSlice)
    shell.waiting.clear()
    effects = shell.tell(SliceFailed(at_ms=shell.now_ms, key=run.key, index=run.index, detail="out of memory"))
    assert any(isinstance(effect, RunSlice) and effect.index == run.index for effect in effects)


def test_what_a_killed_daemon_left_open_is_handed_in_at_the_next_start() -> None:
    shell = Shell()
    left = leases.left_over(grant(1), (0, 1), Spent(1234, -55), 0)
    shell.disk[left.key] = {0, 1}
    shell.state = resume(shell.state, (), (left,), Owner())
    shell.connect()
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    facts = hand_in.facts
    assert (hand_in.kind, facts.energy_micro_wh, facts.cost_micro) == (HandInKind.YIELD, 1234, -55)
    shell.settle_down()
    assert shell.settled[left.key] == {0, 1}


def test_a_lease_all_of_whose_slices_were_kept_is_a_result_even_after_a_restart() -> None:
    shell = Shell()
    left = leases.left_over(grant(1), (0, 1, 2), Spent(1234, 56), 0)
    shell.state = resume(shell.state, (), (left,), Owner())
    effects = shell.tell(Tick(at_ms=1))
    assert [effect.kind for effect in effects if isinstance(effect, HandIn)] == [HandInKind.RESULT]


@pytest.mark.parametrize("watts", [math.nan, math.inf, -math.inf, -5_000.0, 1e12])
def test_a_power_that_no_sensor_can_mean_is_no_reading(watts: float) -> None:
    shell = ready()
    until(shell, RunSlice)
    before = shell.state.meter
    shell.tell(computer(shell.now_ms + 10, power_w=watts))
    shell.tell(computer(shell.now_ms + 20, power_w=watts))
    after = shell.state.meter
    assert shell.state.compute is not None
    assert shell.state.compute.power_w is None
    assert after.total_micro_wh == before.total_micro_wh
    assert after.unmeasured_ms > before.unmeasured_ms
    assert math.isfinite(after.cost_micro)
    assert shell.state.spent.energy_micro_wh >= 0


@pytest.mark.parametrize("degrees", [math.nan, math.inf, -300.0])
def test_a_temperature_that_no_sensor_can_mean_is_no_reading(degrees: float) -> None:
    shell = ready()
    shell.tell(computer(shell.now_ms + 10, die_c=degrees))
    assert shell.state.compute is not None
    assert shell.state.compute.die_c is None
    assert shell.state.heat.die_c == 50.0


def test_what_an_earlier_run_owes_leaves_a_second_apart_although_nothing_else_happens() -> None:
    """The daemon ticks when the core says that something is due; nobody else speaks."""
    keys = [JobKey(job=f"job{number}", epoch=1) for number in range(4)]
    outbox = tuple(Pending(key, HandInKind.RESULT, SHA256, 0) for key in keys)
    state = resume(initial("unit-1", POLICY, 0), outbox, (), Owner())
    state, effects = step(state, LinkChanged(at_ms=10, connected=True, broker="b:1"))
    sent = [(state.now_ms, one.key) for one in effects if isinstance(one, SendHandIn)]
    while len(sent) < len(keys) and state.due_ms < 10_000:
        state, effects = step(state, Tick(at_ms=max(state.due_ms, state.now_ms)))
        sent += [(state.now_ms, one.key) for one in effects if isinstance(one, SendHandIn)]
    assert [key for _, key in sent] == keys
    assert [at_ms for at_ms, _ in sent] == [10, 1_010, 2_010, 3_010]


def test_a_vacate_is_timed_from_the_closing_and_not_from_a_hold_of_the_same_cause() -> None:
    """The budget of the small battery first holds back new work, and much later ends what runs, under one code."""
    shell = ready()
    until(shell, RunSlice)
    held = Reason("low_voltage_budget", "low_voltage", GateState.CLOSED, "battery", 31.0, 30.0, "Wh", 5, None)
    gates = tuple(
        msgspec.structs.replace(gate, state=GateState.CLOSED, since_ms=9_000, tightened_ms=9_000, reasons=(held,))
        if gate.name == "low_voltage"
        else gate
        for gate in shell.state.gates.gates
    )
    closed = msgspec.structs.replace(shell.state.gates, gates=gates, state=GateState.CLOSED)
    after, effects = plan.vacate(msgspec.structs.replace(shell.state, gates=closed))
    assert [one.why for one in effects if isinstance(one, StopWorker)] == ["low_voltage_budget"]
    assert after.vacating == Vacating(cause="low_voltage_budget", sign_ms=9_000)
