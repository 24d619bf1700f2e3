"""Questions, grants, hand-ins and verdicts: what the fleet says, late, twice, wrongly or not at all."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from agent.core import asking
from agent.core.effects import HandIn, OpenLease, SendHandIn, SendRequest, SettleHandIn
from agent.core.events import GrantSeen, HandInSettled, LinkChanged, VerdictSeen
from agent.core.model import HandInKind, JobKey, Verdict, YieldReason
from tests.core.stories import DOOR, ready, until
from tests.core.world import SHA256, car, grant


def test_a_grant_that_comes_when_the_gate_has_closed_is_given_back_unopened() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    effects = shell.tell(GrantSeen(at_ms=shell.now_ms + 2, rid=request.rid, grant=grant(1), retry_ms=0))
    assert not any(isinstance(effect, OpenLease) for effect in effects)
    hand_in = next(effect for effect in effects if isinstance(effect, HandIn))
    assert (hand_in.kind, hand_in.why) == (HandInKind.YIELD, YieldReason.DRIVER)


def test_only_the_answer_to_the_open_question_counts() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid="somebody-elses", grant=grant(9), retry_ms=0))
    assert not shell.state.have
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=grant(1), retry_ms=0))
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=grant(2), retry_ms=0))
    assert shell.state.have == (JobKey("job1", 1),)


def test_an_unanswered_request_is_asked_again() -> None:
    shell = ready()
    first = shell.waiting.pop()
    shell.advance(shell.state.policy.request_timeout_ms + 200)
    second = shell.waiting.pop()
    assert isinstance(first, SendRequest)
    assert isinstance(second, SendRequest)
    assert first.rid != second.rid


def test_no_work_means_asking_again_when_told() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=None, retry_ms=8_000))
    shell.advance(5_900)
    assert not any(isinstance(effect, SendRequest) for effect in shell.waiting), "not before three quarters of the time"
    shell.advance(4_200)
    assert isinstance(shell.waiting[-1], SendRequest)


def test_no_work_is_never_asked_for_without_a_pause() -> None:
    shell = ready()
    asked = 0
    for _ in range(100):
        for effect in shell.waiting:
            if isinstance(effect, SendRequest):
                asked += 1
                shell.tell(GrantSeen(at_ms=shell.now_ms, rid=effect.rid, grant=None, retry_ms=0))
                break
        shell.waiting.clear()
        shell.advance(100)
    assert asked <= 14, "ten seconds"


def test_a_hand_in_is_sent_again_until_a_verdict_comes() -> None:
    shell = ready()
    until(shell, SendHandIn)
    shell.waiting.clear()
    sent_ms = []
    for _ in range(400):
        shell.advance(100)
        if any(isinstance(effect, SendHandIn) for effect in shell.waiting):
            sent_ms.append(shell.now_ms)
        shell.waiting.clear()
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_ms)]
    assert len(sent_ms) >= 3
    assert gaps == sorted(gaps), "each wait is longer than the one before"


def test_a_hand_in_sent_again_asks_for_nothing() -> None:
    shell = ready()
    until(shell, SendHandIn)
    shell.waiting.clear()
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
    effects = shell.tell(LinkChanged(at_ms=shell.now_ms, connected=True, broker="b:1"))
    assert [effect.credit for effect in effects if isinstance(effect, SendHandIn)] == [0]
    shell.advance(1_100)
    assert sum(isinstance(effect, SendRequest) for effect in shell.waiting) == 1


@pytest.mark.parametrize("verdict", [Verdict.SETTLED, Verdict.DUPLICATE, Verdict.STALE, Verdict.BAD])
def test_a_final_verdict_ends_the_hand_in_and_a_second_one_changes_nothing(verdict: Verdict) -> None:
    shell = ready()
    send = until(shell, SendHandIn)
    assert isinstance(send, SendHandIn)
    shell.waiting.clear()
    seen = VerdictSeen(
        at_ms=shell.now_ms,
        key=send.key,
        verdict=verdict,
        reason="",
        paid_micro=1,
        statement_sha256=SHA256,
        retry_ms=0,
        envelope=b"e",
    )
    settle = next(effect for effect in shell.tell(seen) if isinstance(effect, SettleHandIn))
    assert (settle.verdict, settle.envelope) == (verdict, b"e")
    assert not any(isinstance(effect, SettleHandIn) for effect in shell.tell(seen))
    shell.tell(HandInSettled(at_ms=shell.now_ms, key=send.key))
    assert shell.state.outbox == ()


@pytest.mark.parametrize("verdict", [Verdict.SETTLED, Verdict.DUPLICATE, Verdict.STALE, Verdict.BAD])
def test_a_verdict_on_another_statement_lets_go_of_nothing(verdict: Verdict) -> None:
    """As when a broker strips the statement from a yield and has the empty one settled."""
    shell = ready()
    send = until(shell, SendHandIn)
    assert isinstance(send, SendHandIn)
    for other in ("", "f" * 64):
        seen = VerdictSeen(
            at_ms=shell.now_ms,
            key=send.key,
            verdict=verdict,
            reason="",
            paid_micro=0,
            statement_sha256=other,
            retry_ms=0,
            envelope=b"",
        )
        assert not any(isinstance(effect, SettleHandIn) for effect in shell.tell(seen))
    assert [pending.key for pending in shell.state.outbox] == [send.key]


def test_later_keeps_the_hand_in() -> None:
    shell = ready()
    send = until(shell, SendHandIn)
    assert isinstance(send, SendHandIn)
    shell.waiting.clear()
    shell.tell(
        VerdictSeen(
            at_ms=shell.now_ms,
            key=send.key,
            verdict=Verdict.LATER,
            reason="",
            paid_micro=0,
            statement_sha256="",
            retry_ms=5_000,
            envelope=b"",
        )
    )
    assert 5_000 <= shell.state.outbox[0].next_ms - shell.now_ms <= 6_250
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
    shell.connect()
    shell.advance(4_900)
    assert not any(isinstance(effect, SendHandIn) for effect in shell.waiting), "not sooner for a reconnect"
    shell.advance(1_500)
    assert any(isinstance(effect, SendHandIn) for effect in shell.waiting)


def test_nothing_more_is_taken_on_while_the_fleet_gives_no_verdicts() -> None:
    shell = ready()
    for _ in range(4_000):
        if not shell.carry_out(lambda effect: not isinstance(effect, SendHandIn)):
            shell.waiting.clear()
            shell.advance(1_000)
    assert len(shell.state.outbox) == asking.OUTBOX_MAX
    assert len(shell.state.have) <= asking.OUTBOX_MAX + 1


def test_a_reconnect_asks_again_and_offers_everything_owed() -> None:
    shell = ready()
    shell.waiting.clear()
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1", detail="gone"))
    shell.advance(20_000)
    assert not any(isinstance(effect, SendRequest | SendHandIn) for effect in shell.waiting), "nothing while offline"
    shell.connect()
    assert isinstance(until(shell, SendRequest), SendRequest)


def test_a_lease_is_handed_in_before_it_outgrows_a_message() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    long = msgspec.structs.replace(grant(1), slices=tuple(range(200)), items=800)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=long, retry_ms=0))
    hand_in = until(shell, HandIn, limit=200)
    assert isinstance(hand_in, HandIn)
    assert (hand_in.kind, hand_in.why) == (HandInKind.YIELD, YieldReason.FULL)
    assert 10 <= len(shell.disk[long.key]) <= 20
