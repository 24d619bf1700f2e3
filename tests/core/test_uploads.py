"""Answers that do not fit into a message: brought away one by one, paused with the gate, tried again."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.effects import HandIn, OpenLease, PauseTransfers, Report, RunSlice, SendHandIn, SendRequest, UploadSlice
from agent.core.events import GrantSeen, LeaseRefused, LinkChanged, SliceUploaded, TransferFailed
from agent.core.findings import GateState
from agent.core.lease import Pending
from agent.core.model import Grant, HandInKind, JobKey, YieldReason
from agent.core.state import resume
from agent.core.world import Owner
from tests.core.stories import DOOR, check, ready, until
from tests.core.world import SHA256, Shell, car, grant

URL = "https://fleet.example/uploads"
BULKY = msgspec.structs.replace(
    grant(1, slices=tuple(range(12)), ttl_ms=10_000_000), items=48, upload_url=URL, upload_token="t" * 16
)


def given_lease(one: Grant = BULKY, slice_bytes: int = 3_000) -> Shell:
    shell = ready()
    shell.slice_bytes = slice_bytes
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=one, retry_ms=0))
    return shell


def uploads(shell: Shell) -> list[UploadSlice]:
    return [effect for effect in shell.effects if isinstance(effect, UploadSlice)]


def lacking(*keys: JobKey, missing: tuple[int, ...] = (0, 1)) -> Shell:
    """A car that an earlier run left hand-ins which lack answers; its gate is shut for want of signals."""
    shell = Shell()
    rows = tuple(Pending(key, HandInKind.RESULT, SHA256, 0, missing=missing) for key in keys)
    shell.outbox = {key: (HandInKind.RESULT, frozenset(missing)) for key in keys}
    shell.state = resume(shell.state, rows, (), Owner())
    return shell


def test_a_bulky_lease_is_worked_to_its_end_and_its_answers_go_up_one_at_a_time() -> None:
    shell = given_lease()
    hand_in = until(shell, HandIn, limit=200)
    assert isinstance(hand_in, HandIn)
    assert hand_in.kind is HandInKind.RESULT
    assert hand_in.uploaded
    assert set(hand_in.uploaded) <= set(BULKY.slices)
    assert {(one.url, one.token) for one in uploads(shell)} == {(URL, "t" * 16)}
    until(shell, SendHandIn)
    (pending,) = shell.state.outbox
    assert not pending.missing
    assert len({one.index for one in uploads(shell)}) == len(uploads(shell)), "each once"


def test_without_a_place_for_them_the_lease_is_handed_in_early() -> None:
    shell = given_lease(msgspec.structs.replace(BULKY, upload_url="", upload_token=""))
    hand_in = until(shell, HandIn, limit=200)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.FULL
    assert not uploads(shell)


def test_more_slices_than_a_statement_holds_are_too_many_wherever_the_answers_go() -> None:
    many = msgspec.structs.replace(BULKY, slices=tuple(range(200)), items=800)
    shell = given_lease(many, slice_bytes=10)
    hand_in = until(shell, HandIn, limit=400)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.FULL
    assert 17 <= len(shell.disk[many.key]) <= 24


def test_a_hand_in_that_lacks_answers_is_not_sent_before_they_are_up() -> None:
    shell = given_lease(slice_bytes=2_000)
    shell.inline_bytes = 0
    until(shell, HandIn, limit=200)
    shell.carry_out(lambda effect: isinstance(effect, HandIn))
    (pending,) = shell.state.outbox
    assert pending.missing
    shell.advance(2_000)
    assert not any(isinstance(effect, SendHandIn) for effect in shell.effects)
    sent = until(shell, SendHandIn, limit=100)
    assert isinstance(sent, SendHandIn)
    assert {index for key, index in shell.uploaded if key == BULKY.key} == set(BULKY.slices)
    check(shell)


def test_work_goes_on_while_answers_are_on_their_way() -> None:
    shell = given_lease(slice_bytes=2_000)
    shell.inline_bytes = 0
    until(shell, HandIn, limit=200)
    shell.carry_out(lambda effect: isinstance(effect, HandIn))
    shell.advance(1_100)
    request = until(shell, SendRequest)
    assert isinstance(request, SendRequest)
    assert request.have == (BULKY.key,)


def test_what_an_earlier_run_left_is_brought_to_where_its_stored_grant_says() -> None:
    shell = lacking(JobKey("job7", 1))
    shell.connect()
    shell.advance(1_000)
    assert not uploads(shell), "the gate is shut"
    shell.advance(4_000)
    first = until(shell, UploadSlice)
    assert isinstance(first, UploadSlice)
    assert (first.key, first.index, first.url) == (JobKey("job7", 1), 0, "")
    shell.settle_down(40)
    assert JobKey("job7", 1) in shell.settled


def failed(shell: Shell, one: UploadSlice, *, paused: bool = False) -> list[object]:
    return list(
        shell.tell(TransferFailed(at_ms=shell.now_ms, key=one.key, index=one.index, detail="502", paused=paused))
    )


def test_a_failed_upload_is_tried_again_later_each_time_and_told_once_with_its_recovery() -> None:
    shell = lacking(JobKey("job7", 1))
    shell.connect()
    shell.advance(4_000)
    tried_ms: list[int] = []
    for _ in range(900):
        for one in [effect for effect in shell.waiting if isinstance(effect, UploadSlice)]:
            tried_ms.append(shell.now_ms)
            failed(shell, one)
        shell.waiting.clear()
        shell.advance(1_000)
    assert 5 <= len(tried_ms) <= 25, "a quarter of an hour"
    assert min(later - earlier for earlier, later in itertools.pairwise(tried_ms)) >= 1_000
    shell.tell(SliceUploaded(at_ms=shell.now_ms, key=JobKey("job7", 1), index=0))
    names = [effect.name for effect in shell.effects if isinstance(effect, Report) and "transfer" in effect.name]
    assert names == ["transfer_failed", "transfer_recovered"]


def test_answers_that_nobody_takes_keep_no_others() -> None:
    bad, good = JobKey("job1", 1), JobKey("job2", 1)
    shell = lacking(bad, good)
    shell.connect()
    shell.advance(4_000)
    for _ in range(100):
        for one in [effect for effect in shell.waiting if isinstance(effect, UploadSlice)]:
            if one.key == bad:
                shell.waiting.remove(one)
                failed(shell, one)
        shell.carry_out(lambda effect: isinstance(effect, UploadSlice))
        shell.advance(500)
    sent = [effect.key for effect in shell.effects if isinstance(effect, SendHandIn)]
    assert good in sent
    assert 1 <= sent.count(bad) <= 10, "the dispatcher is asked whether anybody still wants it"


def test_the_driver_pauses_an_upload_once_and_it_goes_on_afterwards() -> None:
    shell = lacking(JobKey("job7", 1))
    shell.connect()
    shell.advance(4_000)
    one = until(shell, UploadSlice)
    assert isinstance(one, UploadSlice)
    shell.waiting.clear()
    shell.changes = {DOOR: True}
    shell.advance(3_000)
    assert shell.gate() is GateState.CLOSED
    assert sum(isinstance(effect, PauseTransfers) for effect in shell.effects) == 1
    failed(shell, one, paused=True)
    shell.advance(5_000)
    assert len(uploads(shell)) == 1
    shell.changes = {}
    shell.advance(8_000)
    assert [again.index for again in uploads(shell)] == [0, 0]
    assert not any(isinstance(effect, Report) and effect.name == "transfer_failed" for effect in shell.effects)


def test_an_input_on_its_way_is_paused_by_the_driver_and_the_lease_given_back_for_that() -> None:
    shell = given_lease()
    until(shell, OpenLease)
    shell.waiting.clear()
    effects = shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    assert sum(isinstance(effect, PauseTransfers) for effect in effects) == 1
    effects = shell.tell(LeaseRefused(at_ms=shell.now_ms + 2, key=BULKY.key, detail="paused"))
    hand_in = next(effect for effect in effects if isinstance(effect, HandIn))
    assert hand_in.why is YieldReason.DRIVER
    assert not any(isinstance(effect, Report) and effect.name == "lease_refused" for effect in effects)
    assert shell.state.fruitless == 0


@pytest.mark.parametrize("order", list(itertools.permutations(["stored", "uploaded"])))
def test_an_upload_that_ends_around_the_hand_in_counts_whichever_is_first(order: tuple[str, ...]) -> None:
    shell = given_lease()
    one = until(shell, UploadSlice, limit=100)
    assert isinstance(one, UploadSlice)
    while not any(isinstance(effect, HandIn) for effect in shell.waiting):
        if not shell.carry_out(lambda effect: isinstance(effect, RunSlice)):
            shell.tell(car(shell.now_ms + 1, {DOOR: True}))
            shell.carry_out(lambda effect: not isinstance(effect, UploadSlice | PauseTransfers | HandIn))
    shell.inline_bytes = 0
    for what in order:
        if what == "stored":
            shell.carry_out(lambda effect: isinstance(effect, HandIn))
        else:
            shell.tell(SliceUploaded(at_ms=shell.now_ms, key=one.key, index=one.index))
    (pending,) = shell.state.outbox
    assert one.index not in pending.missing
    assert len(pending.missing) == 11


def test_what_is_said_of_a_transfer_that_nobody_made_changes_nothing() -> None:
    shell = lacking(JobKey("job7", 1))
    shell.connect()
    shell.advance(4_000)
    under_way = shell.state.uploading
    shell.tell(SliceUploaded(at_ms=shell.now_ms, key=JobKey("job7", 1), index=9))
    shell.tell(SliceUploaded(at_ms=shell.now_ms, key=JobKey("job8", 1), index=0))
    shell.tell(TransferFailed(at_ms=shell.now_ms, key=JobKey("job8", 1), index=0, detail="x"))
    assert shell.state.uploading == under_way == (JobKey("job7", 1), 0)
    assert shell.state.outbox[0].missing == (0, 1)


def test_nothing_goes_up_while_the_link_is_down() -> None:
    shell = lacking(JobKey("job7", 1))
    shell.connect()
    shell.tell(LinkChanged(at_ms=0, connected=False, broker="b:1"))
    shell.advance(10_000)
    assert not uploads(shell)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["time", "do", "do", "do", "driver", "leaves", "fail", "offline", "online"]), max_size=80)
)
def test_never_two_uploads_at_once_and_everything_arrives_in_the_end(script: list[str]) -> None:  # noqa: C901 - an arm a move
    shell = given_lease()
    shell.inline_bytes = 0
    for move in script:
        match move:
            case "time":
                shell.advance(600)
            case "do":
                shell.carry_out()
            case "driver":
                shell.changes = {DOOR: True}
                shell.advance(100)
            case "leaves":
                shell.changes = {}
                shell.advance(3_500)
            case "fail":
                for one in [effect for effect in shell.waiting if isinstance(effect, UploadSlice)]:
                    shell.waiting.remove(one)
                    failed(shell, one)
            case "offline":
                shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
            case "online":
                shell.connect()
        assert sum(isinstance(effect, UploadSlice) for effect in shell.waiting) <= 1
        check(shell)
    shell.changes = {}
    shell.connect()
    for _ in range(20):
        shell.advance(4_000)
        shell.settle_down(60)
    assert BULKY.key in shell.settled
    check(shell)
