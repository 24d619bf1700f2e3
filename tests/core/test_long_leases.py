"""Leases that are renewed, cancelled, outlived by a sleeping computer, and the cell's pace."""

from __future__ import annotations

import msgspec
import pytest

from agent.core.effects import HandIn, KeepGrant, OpenLease, RunSlice, SendRenewal, SendRequest, StartWorker, StopWorker
from agent.core.events import CancelSeen, EventType, GrantSeen, LinkChanged, PaceSeen, Tick, WorkerGone
from agent.core.lease import Phase, ends_ms, left_over
from agent.core.model import Grant, HandInKind, JobKey, Pace, PaceState, Spent, YieldReason
from agent.core.state import resume
from agent.core.world import Owner
from tests.core.stories import ready, until
from tests.core.world import Shell, car, computer, grant

LONG = msgspec.structs.replace(grant(1, ttl_ms=1_800_000), renew_ms=300_000)


def given(one: Grant = LONG) -> Shell:
    """A car that was just granted this lease."""
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=one, retry_ms=0))
    return shell


def in_a_slice(one: Grant = LONG) -> Shell:
    shell = given(one)
    until(shell, RunSlice)
    shell.waiting.clear()
    return shell


def expires_ms(shell: Shell) -> int:
    assert shell.state.lease is not None
    return shell.state.lease.expires_ms


def renewals(shell: Shell) -> list[SendRenewal]:
    return [effect for effect in shell.waiting if isinstance(effect, SendRenewal)]


def skip(shell: Shell, ms: int) -> None:
    """Time in larger steps, for stories of hours."""
    end_ms = shell.now_ms + ms
    while shell.now_ms < end_ms:
        shell.now_ms += 400
        shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms))
        shell.tell(Tick(at_ms=shell.now_ms))


# --- renewal ------------------------------------------------------------------------------------------------------


def test_a_long_lease_asks_for_time_and_lives_from_when_it_asked() -> None:
    shell = in_a_slice()
    began_ms = expires_ms(shell) - ends_ms(0, LONG.ttl_ms)
    skip(shell, 310_000)
    renewal = renewals(shell)[0]
    assert renewal.key == LONG.key
    assert renewal.have == (LONG.key,)
    assert shell.state.lease is not None
    sent = shell.state.lease.renewals[0]
    assert 225_000 <= sent.sent_ms - began_ms <= 300_000 + 400
    skip(shell, 5_000)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=renewal.rid, grant=LONG, retry_ms=0))
    assert expires_ms(shell) == ends_ms(sent.sent_ms, LONG.ttl_ms)


def test_a_short_lease_is_never_renewed() -> None:
    shell = in_a_slice(grant(1, ttl_ms=900_000))
    skip(shell, 299_000)
    assert not renewals(shell)


def test_a_renewal_that_nobody_answers_is_repeated_and_the_lease_ends_at_its_time() -> None:
    shell = in_a_slice(msgspec.structs.replace(LONG, ttl_ms=240_000, renew_ms=60_000))
    skip(shell, expires_ms(shell) - shell.now_ms - 1_000)
    asked = renewals(shell)
    assert 4 <= len(asked) <= 12
    assert len({one.rid for one in asked}) == len(asked)
    skip(shell, 2_000)
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail=""))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.EXPIRED


def test_a_late_answer_to_an_earlier_renewal_gives_its_own_time_and_never_takes_any() -> None:
    shell = in_a_slice(msgspec.structs.replace(LONG, renew_ms=60_000))
    skip(shell, 200_000)
    first, *_, last = renewals(shell)
    assert shell.state.lease is not None
    sent = {one.rid: one.sent_ms for one in shell.state.lease.renewals}
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=last.rid, grant=LONG, retry_ms=0))
    assert expires_ms(shell) == ends_ms(sent[last.rid], LONG.ttl_ms)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=first.rid, grant=LONG, retry_ms=0))
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=last.rid, grant=LONG, retry_ms=0))
    assert expires_ms(shell) == ends_ms(sent[last.rid], LONG.ttl_ms)


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(LONG, epoch=2),
        msgspec.structs.replace(LONG, nonce="f" * 32),
        msgspec.structs.replace(LONG, job="another"),
        None,
    ],
)
def test_only_the_same_lease_is_renewed(other: Grant | None) -> None:
    shell = in_a_slice()
    skip(shell, 310_000)
    renewal = renewals(shell)[0]
    before_ms = expires_ms(shell)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=renewal.rid, grant=other, retry_ms=0))
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid="not-ours", grant=LONG, retry_ms=0))
    assert expires_ms(shell) == before_ms
    assert shell.state.have == (LONG.key,)


def test_the_ticket_that_was_opened_is_the_one_that_is_named() -> None:
    one = msgspec.structs.replace(LONG, ticket_sha256="1" * 64, upload_url="https://a", upload_token="old")
    shell = in_a_slice(one)
    skip(shell, 310_000)
    renewal = renewals(shell)[0]
    again = msgspec.structs.replace(
        one, ticket_sha256="2" * 64, upload_token="new", slices=(0,), price_micro_per_item=1
    )
    effects = shell.tell(GrantSeen(at_ms=shell.now_ms, rid=renewal.rid, grant=again, retry_ms=0))
    assert shell.state.lease is not None
    told = shell.state.lease.grant
    assert KeepGrant(grant=told) in effects, "the place for the answers outlives a restart"
    assert (told.ticket_sha256, told.upload_token, told.slices) == ("1" * 64, "new", one.slices)
    assert told.price_micro_per_item == one.price_micro_per_item


def test_a_renewal_that_only_gives_time_is_not_written_down() -> None:
    shell = in_a_slice(msgspec.structs.replace(LONG, upload_url="https://a", upload_token="old"))
    skip(shell, 310_000)
    again = msgspec.structs.replace(LONG, ttl_ms=2_000_000)
    effects = shell.tell(GrantSeen(at_ms=shell.now_ms, rid=renewals(shell)[0].rid, grant=again, retry_ms=0))
    assert not any(isinstance(effect, KeepGrant) for effect in effects)


# --- cancel -------------------------------------------------------------------------------------------------------


def cancel(shell: Shell, key: JobKey = LONG.key, grace_ms: int = 0) -> list[object]:
    return list(shell.tell(CancelSeen(at_ms=shell.now_ms, key=key, grace_ms=grace_ms, why="another car was faster")))


def test_a_cancelled_lease_is_given_back_with_what_is_finished() -> None:
    shell = given()
    until(shell, RunSlice)
    shell.carry_out(lambda effect: isinstance(effect, RunSlice))
    until(shell, RunSlice)
    cancel(shell)
    shell.carry_out(lambda effect: isinstance(effect, StopWorker))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert (hand_in.kind, hand_in.why, hand_in.detail) == (
        HandInKind.YIELD,
        YieldReason.CANCELLED,
        "another car was faster",
    )
    shell.settle_down(20)
    assert shell.settled[LONG.key] == {0}


def test_a_grace_lets_the_work_go_on_and_the_earliest_end_stands() -> None:
    shell = in_a_slice()
    cancel(shell, grace_ms=5_000)
    cancel(shell, grace_ms=60_000)
    shell.advance(4_500)
    assert shell.state.lease is not None
    assert shell.state.lease.ending is None
    shell.advance(600)
    assert shell.state.lease.ending is YieldReason.CANCELLED


def test_a_lease_that_is_still_opening_is_called_back() -> None:
    shell = given()
    until(shell, OpenLease)
    cancel(shell)
    shell.settle_down(10)
    assert not any(isinstance(effect, StartWorker) for effect in shell.effects)
    hand_in = next(effect for effect in shell.effects if isinstance(effect, HandIn))
    assert hand_in.why is YieldReason.CANCELLED


def test_a_cancel_of_a_lease_that_is_not_held_changes_nothing_nor_does_a_second_one() -> None:
    shell = in_a_slice()
    before = shell.state
    assert not cancel(shell, JobKey("job1", 2))
    assert not cancel(shell, JobKey("another", 1))
    assert msgspec.structs.replace(shell.state, gates=before.gates) == before
    assert cancel(shell, grace_ms=9_000)
    assert not cancel(shell, grace_ms=9_000)


def test_a_lease_of_an_earlier_run_that_is_called_back_is_no_fault() -> None:
    shell = Shell()
    left = tuple(left_over(grant(number), (0,), Spent(1, 1), 0) for number in (1, 2))
    shell.state = resume(shell.state, (), left, Owner())
    cancel(shell, left[1].key)
    shell.settle_down(6)
    why = {effect.grant.key: effect.why for effect in shell.effects if isinstance(effect, HandIn)}
    assert why == {left[0].key: YieldReason.FAULT, left[1].key: YieldReason.CANCELLED}


def test_a_dispatcher_that_cancels_every_lease_is_asked_less_and_less() -> None:
    shell = ready()
    asked = 0
    for _ in range(600):
        for effect in list(shell.waiting):
            if isinstance(effect, SendRequest):
                asked += 1
                shell.waiting.remove(effect)
                one = grant(asked)
                shell.tell(GrantSeen(at_ms=shell.now_ms, rid=effect.rid, grant=one, retry_ms=0))
                cancel(shell, one.key)
        shell.settle_down()
        shell.advance(1_000)
    assert 4 <= asked <= 12, "ten minutes"


# --- pace ---------------------------------------------------------------------------------------------------------


def pace(shell: Shell, state: PaceState, spread_ms: int = 0, permille: int = 1000) -> None:
    shell.tell(PaceSeen(at_ms=shell.now_ms, pace=Pace(state, spread_ms, permille)))


def test_a_closed_fleet_is_asked_for_nothing_and_what_is_leased_goes_on() -> None:
    shell = ready()
    until(shell, RunSlice)
    pace(shell, PaceState.CLOSED)
    asked = sum(isinstance(effect, SendRequest) for effect in shell.effects)
    for _ in range(20):
        shell.settle_down()
        shell.advance(1_000)
    assert shell.settled == {JobKey("job1", 1): frozenset({0, 1, 2})}
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == asked
    assert [reason.code for reason in shell.state.gates.reasons] == ["fleet_closed"]
    pace(shell, PaceState.OPEN)
    shell.advance(6_000)
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == asked + 1


def test_a_stopped_fleet_gets_back_what_is_leased() -> None:
    shell = in_a_slice()
    pace(shell, PaceState.STOP)
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail=""))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.CANCELLED
    shell.settle_down()
    shell.advance(30_000)
    assert [reason.code for reason in shell.state.gates.reasons] == ["fleet_stopped"]


def test_cars_that_hear_together_that_the_fleet_opens_ask_spread() -> None:
    asked_ms = set()
    for number in range(8):
        shell = Shell()
        shell.state = msgspec.structs.replace(shell.state, name=f"unit-{number}")
        pace(shell, PaceState.CLOSED)
        shell.connect()
        shell.advance(10_000)
        pace(shell, PaceState.OPEN, spread_ms=60_000)
        opened_ms = shell.now_ms
        while not any(isinstance(effect, SendRequest) for effect in shell.effects):
            shell.advance(200)
        asked_ms.add(shell.now_ms - opened_ms)
    assert max(asked_ms) <= 61_000
    assert len(asked_ms) >= 7
    assert max(asked_ms) - min(asked_ms) > 20_000


def test_a_slower_pace_stretches_the_waits_and_a_faster_one_cuts_them() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    pace(shell, PaceState.OPEN, permille=10_000)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=None, retry_ms=10_000))
    stretched_ms = shell.state.ask_not_before_ms - shell.now_ms
    assert 75_000 <= stretched_ms <= 125_000
    pace(shell, PaceState.OPEN, permille=1_000)
    assert shell.state.ask_not_before_ms - shell.now_ms == pytest.approx(stretched_ms / 10, abs=1)


# --- suspends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        lambda now_ms: Tick(at_ms=now_ms),
        lambda now_ms: LinkChanged(at_ms=now_ms, connected=True, broker="b:1"),
        car,
        computer,
        lambda now_ms: GrantSeen(at_ms=now_ms, rid="x", grant=LONG, retry_ms=0),
    ],
    ids=["tick", "link", "car", "computer", "grant"],
)
def test_hours_of_sleep_end_the_lease_before_anything_else_is_sent_for_it(first: object) -> None:
    assert callable(first)
    shell = in_a_slice()
    event: EventType = first(shell.now_ms + 5 * 3_600_000)
    shell.now_ms = event.at_ms
    effects = shell.tell(event)
    for _ in range(20):
        shell.advance(100)
        effects += shell.effects[-1:]
        assert not any(isinstance(one, RunSlice | SendRenewal | StartWorker | OpenLease) for one in shell.waiting)
    shell.tell(WorkerGone(at_ms=shell.now_ms, pid=1, expected=True, detail=""))
    shell.settle_down(30)
    assert set(shell.settled) == {LONG.key}
    assert shell.state.lease is None or shell.state.lease.phase is not Phase.RUNNING
