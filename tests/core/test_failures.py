"""What fails under a lease (worker, disk, input, the daemon itself) and that nothing waits for ever."""

from __future__ import annotations

import msgspec
import pytest

from agent.core import lease as leases
from agent.core.events import (
    EffectType,
    HandIn,
    HandInFailed,
    LeaseRefused,
    OpenLease,
    OwnerMode,
    RunSlice,
    SendHandIn,
    SendRequest,
    SettleHandIn,
    SliceFailed,
    StartWorker,
    StopWorker,
    StoreRecovered,
    Tick,
    Unwritten,
    WorkerGone,
    WorkerRefused,
)
from agent.core.model import HandInKind, YieldReason
from agent.core.state import resume
from agent.core.world import Owner
from tests.core.stories import ready, until, unwritten
from tests.core.world import Shell, grant


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
    left = tuple(leases.left_over(grant(number), (0,), 1, 0) for number in (1, 2))
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


def test_a_lease_that_cannot_be_opened_is_given_back() -> None:
    shell = ready()
    opening = until(shell, OpenLease)
    assert isinstance(opening, OpenLease)
    shell.waiting.clear()
    shell.tell(LeaseRefused(at_ms=shell.now_ms, key=opening.grant.key, detail="the object has another digest"))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.REFUSED


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
    left = leases.left_over(grant(1), (0, 1), 1234, 0)
    shell.disk[left.key] = {0, 1}
    shell.state = resume(shell.state, (), (left,), Owner())
    shell.connect()
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert (hand_in.kind, hand_in.facts.energy_micro_wh) == (HandInKind.YIELD, 1234)
    shell.settle_down()
    assert shell.settled[left.key] == {0, 1}


def test_a_lease_all_of_whose_slices_were_kept_is_a_result_even_after_a_restart() -> None:
    shell = Shell()
    left = leases.left_over(grant(1), (0, 1, 2), 1234, 0)
    shell.state = resume(shell.state, (), (left,), Owner())
    effects = shell.tell(Tick(at_ms=1))
    assert [effect.kind for effect in effects if isinstance(effect, HandIn)] == [HandInKind.RESULT]
