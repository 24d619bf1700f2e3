"""Hand-ins that were for nothing, that were not sent, that name lost answers, or that cannot name all that is held."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from agent.core.effects import HandIn, SendHandIn, SendRequest, UploadSlice
from agent.core.events import GrantSeen, HandInNotSent, HandInStored, HandInUndelivered, LinkChanged, VerdictSeen
from agent.core.findings import GateState
from agent.core.lease import HAVE_WITH_CREDIT_MAX, Pending
from agent.core.model import Grant, HandInKind, JobKey, Verdict
from agent.core.state import resume
from agent.core.world import Owner
from tests.core.stories import DOOR, check, ready, until
from tests.core.world import SHA256, Shell, grant

URL = "https://fleet.example/uploads"
BULKY = msgspec.structs.replace(
    grant(1, slices=tuple(range(8)), ttl_ms=10_000_000), items=32, upload_url=URL, upload_token="t" * 16
)


# --- computed for nothing -----------------------------------------------------------------------------------------


class TooLarge(Shell):
    """A world in which one slice's answers are more than a message holds, and the grant names no other place."""

    def _hand_in(self, one: Grant, kind: HandInKind, uploaded: tuple[int, ...]) -> None:
        assert self.disk.pop(one.key), "a slice was computed"
        self.outbox[one.key] = (HandInKind.YIELD, frozenset())
        self.tell(HandInStored(at_ms=self.now_ms, key=one.key, kind=HandInKind.YIELD, statement_sha256=""))


@pytest.mark.parametrize("slice_bytes", [100, 16_000], ids=["all slices", "one slice, and then it is full"])
def test_leases_of_which_nothing_can_be_handed_in_come_further_and_further_apart(slice_bytes: int) -> None:
    shell = TooLarge(slice_bytes=slice_bytes)
    shell.open_the_gate()
    for _ in range(600):
        shell.settle_down()
        shell.advance(1_000)
    leases = sum(isinstance(effect, HandIn) for effect in shell.effects)
    assert 4 <= leases <= 12, "ten minutes"


def test_what_is_full_and_handed_in_is_no_failure() -> None:
    shell = ready()
    shell.slice_bytes = 9_000
    until(shell, HandIn)
    shell.settle_down(2)
    assert shell.outbox
    assert shell.state.fruitless == 0


# --- answers that got lost where they were brought ----------------------------------------------------------------


@dataclass
class Forgetful(Shell):
    """The server loses answers that were brought to it, and the dispatcher misses them."""

    there: set[tuple[JobKey, int]] = field(default_factory=set)
    named: dict[JobKey, tuple[int, ...]] = field(default_factory=dict)
    busy: bool = False
    """It is asked to come again, although all is there."""
    sent: list[int] = field(default_factory=list)
    brought: list[int] = field(default_factory=list)

    def _do(self, effect: object) -> None:
        match effect:
            case UploadSlice(key=key, index=index):
                self.there.add((key, index))
                self.brought.append(self.now_ms)
            case _:
                pass
        super()._do(effect)  # type: ignore[arg-type]

    def _hand_in(self, one: Grant, kind: HandInKind, uploaded: tuple[int, ...]) -> None:
        self.named[one.key] = uploaded
        super()._hand_in(one, kind, uploaded)

    def _verdict(self, key: JobKey, credit: int) -> None:
        self.sent.append(self.now_ms)
        lost = any((key, index) not in self.there for index in self.named.get(key, ()))
        if not (lost or self.busy):
            super()._verdict(key, credit)
            return
        later = VerdictSeen(
            at_ms=self.now_ms,
            key=key,
            verdict=Verdict.LATER,
            reason="",
            paid_micro=0,
            statement_sha256="",
            retry_ms=1_000,
            envelope=b"",
        )
        self.tell(later)


def handed_in() -> Forgetful:
    """A lease whose answers were brought while it ran, its hand-in about to be sent."""
    shell = Forgetful(slice_bytes=4_000)
    shell.open_the_gate()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=BULKY, retry_ms=0))
    until(shell, SendHandIn, limit=200)
    assert shell.there
    return shell


def wait(shell: Shell, seconds: int) -> None:
    for _ in range(seconds):
        shell.settle_down(20)
        shell.advance(1_000)


def test_answers_that_the_server_lost_are_brought_again() -> None:
    shell = handed_in()
    shell.there.clear()
    wait(shell, 8)
    assert BULKY.key in shell.settled
    check(shell)


def test_a_dispatcher_that_is_never_content_has_them_looked_after_less_and_less() -> None:
    shell = handed_in()
    shell.busy = True
    shell.brought.clear()
    shell.sent.clear()
    wait(shell, 600)
    looks = len(shell.brought) / len(shell.named[BULKY.key])
    assert 4 <= looks <= 7, "ten minutes"
    assert len(shell.sent) >= 200, "which the hand-in does not wait for"


def test_a_hand_in_whose_answers_are_in_doubt_goes_also_while_the_gate_is_shut() -> None:
    shell = handed_in()
    shell.busy = True
    shell.changes = {DOOR: True}
    shell.advance(100)
    assert shell.gate() is GateState.CLOSED
    wait(shell, 2)
    assert shell.state.outbox[0].in_doubt
    shell.busy = False
    wait(shell, 5)
    assert BULKY.key in shell.settled


def test_a_restart_forgets_nothing_that_is_named() -> None:
    shell = Forgetful()
    key = JobKey("job7", 1)
    shell.outbox, shell.named = {key: (HandInKind.RESULT, frozenset({0, 1}))}, {key: (0, 1)}
    row = Pending(key, HandInKind.RESULT, SHA256, 0, missing=(0, 1), referenced=(0, 1))
    shell.state = resume(shell.state, (row,), (), Owner())
    shell.open_the_gate()
    until(shell, SendHandIn)
    shell.there.clear()
    wait(shell, 8)
    assert key in shell.settled


# --- what the link does not take ----------------------------------------------------------------------------------


def not_sent(shell: Shell) -> SendHandIn:
    """The next hand-in is not taken by the link."""
    one = until(shell, SendHandIn)
    assert isinstance(one, SendHandIn)
    shell.waiting.remove(one)
    shell.tell(HandInNotSent(at_ms=shell.now_ms, key=one.key))
    return one


def test_what_was_not_sent_was_not_tried_and_goes_once_a_second_until_it_is() -> None:
    shell = ready()
    for _ in range(90):
        assert not_sent(shell).credit == 1, "its question was not asked either"
        assert not any(isinstance(effect, SendHandIn) for effect in shell.waiting), "not at once"
        shell.advance(1_000)
    assert isinstance(until(shell, SendHandIn), SendHandIn)
    (pending,) = shell.state.outbox
    assert pending.tries == 1
    assert 1_000 <= pending.next_ms - shell.now_ms <= 3_000, "the first wait, not one that doubled"


def test_a_full_outbox_that_the_link_does_not_take_is_offered_one_a_second() -> None:
    shell = Shell()
    keys = [JobKey(f"job{number:02d}", 1) for number in range(16)]
    shell.outbox = {key: (HandInKind.RESULT, frozenset({0})) for key in keys}
    shell.state = resume(shell.state, (), (), Owner())
    rows = tuple(Pending(key, HandInKind.RESULT, SHA256, 0) for key in keys)
    shell.state = msgspec.structs.replace(shell.state, outbox=rows)
    shell.advance(2_000)
    shell.connect()
    offered: list[JobKey] = []
    for _ in range(320):
        offered += [effect.key for effect in shell.waiting if isinstance(effect, SendHandIn)]
        while any(isinstance(effect, SendHandIn) for effect in shell.waiting):
            not_sent(shell)
        shell.advance(100)
    assert 28 <= len(offered) <= 33, "half a minute"
    assert set(offered) == set(keys), "each in its turn"


def test_a_question_that_was_asked_is_not_forgotten_for_a_later_sending_that_failed() -> None:
    shell = ready()
    first = until(shell, SendHandIn)
    assert isinstance(first, SendHandIn)
    shell.waiting.clear()
    asking = shell.state.asking
    assert asking is not None
    assert asking.rid == str(first.key)
    shell.advance(3_000)
    assert not_sent(shell).credit == 0
    assert shell.state.asking == asking


def test_what_the_broker_refused_waits_although_the_link_did_not_take_it() -> None:
    """The link tells of both when it knows beforehand that the broker will not have it."""
    shell = ready()
    one = until(shell, SendHandIn)
    assert isinstance(one, SendHandIn)
    shell.waiting.clear()
    shell.tell(HandInUndelivered(at_ms=shell.now_ms, key=one.key, detail="too large"))
    shell.tell(HandInNotSent(at_ms=shell.now_ms, key=one.key))
    assert shell.state.outbox[0].next_ms >= shell.now_ms + 90_000


def test_nothing_goes_for_what_was_not_sent_over_a_link_that_is_down() -> None:
    shell = ready()
    not_sent(shell)
    shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
    shell.advance(5_000)
    assert not any(isinstance(effect, SendHandIn) for effect in shell.waiting)
    shell.tell(HandInNotSent(at_ms=shell.now_ms, key=JobKey("nobodys", 1)))
    check(shell)


# --- what is held -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, HAVE_WITH_CREDIT_MAX - 1, HAVE_WITH_CREDIT_MAX, 14])
def test_a_hand_in_asks_for_more_only_where_it_can_name_all_that_is_held(others: int) -> None:
    shell = ready()
    until(shell, HandIn)
    waiting = 10**9
    rows = tuple(Pending(JobKey(f"old{n}", 1), HandInKind.RESULT, SHA256, waiting, tries=5) for n in range(others))
    shell.outbox |= {row.key: (HandInKind.RESULT, frozenset({0})) for row in rows}
    shell.state = msgspec.structs.replace(shell.state, outbox=rows)
    sent = until(shell, SendHandIn)
    assert isinstance(sent, SendHandIn)
    assert len(sent.have) == others + 1
    assert sent.credit == (others < HAVE_WITH_CREDIT_MAX)
    shell.carry_out(lambda effect: isinstance(effect, SendHandIn))
    shell.settle_down(1)
    shell.advance(1_200)
    request = [effect for effect in shell.waiting if isinstance(effect, SendRequest)]
    assert len(request) == (others >= HAVE_WITH_CREDIT_MAX), "a request names them all"
