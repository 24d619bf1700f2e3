"""What is handed in always fits into one message, and its statement covers exactly the answers that go with it."""

from __future__ import annotations

import base64
import functools
import hashlib
import string

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import handin
from agent.core.lease import HAVE_WITH_CREDIT_MAX, Lease
from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, Outlook, SliceOutcome, YieldReason
from agent.errors import TrustError
from agent.fleet import messages
from agent.rows import Engine, HandInRow, StoredSlice
from agent.trust import dsse, session, statement
from agent.trust.keys import FileSigner
from agent.trust.session import SessionKey
from tests.core.world import grant

SIGNER = FileSigner(generate_private_key(SECP256R1()))
UNIT = handin.Unit(id="car-0001", device_class="generic", boot="4b" * 16, agent_sha256="a" * 64)
ENGINE = Engine("onnxruntime_cpu", "c" * 64, "d" * 64, version="10.16.1.11", driver="13.0")
FACTS = LeaseFacts(started_ms=1_000, finished_ms=61_000, energy_micro_wh=700, sensor="simulated", gate_state="open")
WALL_MS = 1_790_000_000_000


@functools.cache
def certified(unit: str) -> session.Session:
    """A session of this unit."""
    return session.begin(SIGNER, "file", unit=unit, number=3, boot_id="4b" * 16)


def job(slices: int, **changes: object) -> Grant:
    """A grant of so many slices."""
    one = msgspec.structs.replace(grant(1, slices=tuple(range(slices))), items=4 * slices, ticket_sha256="f" * 64)
    return msgspec.structs.replace(one, **changes)


def finished(index: int, output: bytes = b'[{"text":"x"}]', items: int = 4, engine: Engine = ENGINE) -> StoredSlice:
    sha256 = hashlib.sha256(output).hexdigest()
    return StoredSlice(SliceOutcome(index, items, 0, sha256, "e" * 64, 100, "float32[-1,18710]"), output, engine)


def build(
    slices: list[StoredSlice],
    *,
    one: Grant | None = None,
    unit: handin.Unit = UNIT,
    facts: LeaseFacts = FACTS,
    why: YieldReason | None = None,
    detail: str = "",
    uploaded: tuple[int, ...] = (),
) -> HandInRow:
    """The hand-in of these slices: a result, or a yield when there is a reason for one."""
    return handin.build(
        unit=unit,
        session=certified(unit.id),
        grant=one or job(max(len(slices), 1)),
        facts=facts,
        kind=HandInKind.RESULT if why is None else HandInKind.YIELD,
        why=why,
        detail=detail,
        policy_sha256="b" * 64,
        wall_ms=WALL_MS,
        counter=7,
        log_index=13,
        slices=slices,
        uploaded=uploaded,
    )


def read(body: bytes, kind: HandInKind) -> messages.Result | messages.Yield:
    """The message as the dispatcher reads it."""
    if kind is HandInKind.RESULT:
        return messages.decode(body, messages.Result)
    return messages.decode(body, messages.Yield)


def opened(row: HandInRow) -> messages.Result | messages.Yield:
    """The message of a row, its statement verified and held against everything else there."""
    message = read(row.body, row.kind)
    assert len(message.outputs) == row.slices
    if message.statement is None:
        assert (row.statement, row.statement_sha256, row.slices) == (None, "", 0)
        return message
    assert message.session is not None
    envelope, certificate = msgspec.json.encode(message.statement), msgspec.json.encode(message.session)
    said, _ = statement.verify_statement(envelope, certificate, {SIGNER.keyid: SIGNER.public_key()})
    payload = dsse.parse(envelope).payload
    assert said.outcome == row.kind.value
    assert (said.lease.job, said.lease.epoch) == (message.job, message.epoch)
    assert [(one.index, one.output_sha256) for one in said.slices] == [
        (one.index, one.uploaded.sha256 if one.uploaded else hashlib.sha256(base64.b64decode(one.body)).hexdigest())
        for one in message.outputs
    ]
    assert row.referenced == tuple(one.index for one in message.outputs if one.uploaded)
    assert set(row.missing) <= set(row.referenced)
    assert row.statement is not None
    assert dsse.parse(row.statement).payload == payload
    assert row.statement_sha256 == hashlib.sha256(payload).hexdigest()
    return message


def test_a_result_binds_answers_grant_code_energy_and_gate() -> None:
    row = build([finished(0), finished(1, b"[2]")])
    message = opened(row)
    assert isinstance(message, messages.Result)
    assert (message.job, message.epoch, message.rid) == ("job1", 1, "job1-1")
    assert [base64.b64decode(one.body) for one in message.outputs] == [b'[{"text":"x"}]', b"[2]"]
    assert row.statement is not None
    said = statement.parse_statement(dsse.parse(row.statement).payload)
    assert said.lease.ticket_sha256 == "f" * 64
    assert (said.unit, said.package.sha256, said.input_sha256) == ("car-0001", "a" * 64, "b" * 64)
    assert (said.model_sha256, said.engine.kernels_sha256, said.engine.executor) == (
        "c" * 64,
        "d" * 64,
        "onnxruntime_cpu",
    )
    assert (said.energy.micro_wh, said.energy.sensor) == (700, "simulated")
    assert (said.gate.state, said.gate.policy_sha256) == ("open", "b" * 64)
    assert (said.times.started_boot_ms, said.times.finished_boot_ms) == (1_000, 61_000)
    assert (said.counter, said.log_index, said.session, said.key_protection) == (7, 13, 3, "file")


def test_a_result_says_precision_batches_and_the_last_golden_vector() -> None:
    told = msgspec.structs.replace(
        ENGINE, precision="tf32", batch=(1, 8), golden_raw_sha256="9" * 64, golden_age_ms=60_000
    )
    row = build([finished(0, engine=told)])
    assert row.statement is not None
    said = statement.parse_statement(dsse.parse(row.statement).payload)
    assert (said.engine.precision, said.engine.batch) == ("tf32", (1, 8))
    assert said.self_test == statement.SelfTest(outcome="passed", raw_sha256="9" * 64, age_ms=60_000)


def test_slices_of_before_that_was_told_are_handed_in_as_they_were() -> None:
    """What an agent had finished when it was updated is paid all the same."""
    row = build([finished(0)])
    assert row.statement is not None
    said = statement.parse_statement(dsse.parse(row.statement).payload)
    assert (said.engine.precision, said.engine.batch, said.self_test) == (None, None, None)


def test_a_yield_carries_what_was_finished_and_why_it_ended() -> None:
    message = opened(build([finished(0), finished(2)], one=job(3), why=YieldReason.DRIVER, detail="door_open"))
    assert isinstance(message, messages.Yield)
    assert (message.why, message.detail) == (YieldReason.DRIVER, "door_open")
    assert [one.index for one in message.outputs] == [0, 2]


@pytest.mark.parametrize("why", [YieldReason.DRIVER, YieldReason.REFUSED])
def test_a_yield_of_nothing_has_no_statement(why: YieldReason) -> None:
    row = build([], why=why, detail="as it was")
    message = opened(row)
    assert isinstance(message, messages.Yield)
    assert (message.why, message.detail, message.outputs) == (why, "as it was", ())


def test_a_result_of_nothing_is_a_yield() -> None:
    message = opened(build([]))
    assert isinstance(message, messages.Yield)
    assert message.why is YieldReason.FAULT


def test_of_answers_that_do_not_fit_the_first_are_handed_in() -> None:
    slices = [finished(index, b"x" * 4_000) for index in range(6)]
    row = build(slices)
    message = opened(row)
    assert isinstance(message, messages.Yield)
    assert message.why is YieldReason.FULL
    assert "more than the" in message.detail
    assert 0 < row.slices < 6
    assert [one.index for one in message.outputs] == list(range(row.slices))
    assert build(slices[: row.slices]).kind is HandInKind.RESULT, "those fit by themselves"
    assert build(slices[: row.slices + 1]).slices == row.slices, "and not one more would"


def test_a_reason_that_was_there_before_the_lack_of_room_stands() -> None:
    message = opened(
        build([finished(index, b"x" * 4_000) for index in range(6)], why=YieldReason.DRIVER, detail="door_open")
    )
    assert isinstance(message, messages.Yield)
    assert (message.why, message.detail) == (YieldReason.DRIVER, "door_open")


@pytest.mark.parametrize("why", [None, YieldReason.FULL, YieldReason.EXPIRED, YieldReason.DRIVER])
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_where_not_even_one_slice_fits_that_is_a_fault_whatever_ended_the_lease(
    why: YieldReason | None, slices: int
) -> None:
    """The dispatcher counts faults: the job is not computed in vain for ever."""
    row = build([finished(index, b"x" * 16_000) for index in range(slices)], why=why, detail="" if why is None else "x")
    message = opened(row)
    assert isinstance(message, messages.Yield)
    assert (row.slices, message.why) == (0, YieldReason.FAULT)
    assert message.detail.startswith("not even one slice fits: ")
    assert "more than the" in message.detail


# --- answers that go by digest ------------------------------------------------------------------------------------

UPLOADS = {"upload_url": "https://fleet.example/uploads", "upload_token": "t" * 32}


def test_answers_that_fit_go_in_the_message_also_where_they_could_be_brought() -> None:
    row = build([finished(0), finished(1)], one=job(2, **UPLOADS), uploaded=(0, 1))
    opened(row)
    assert (row.kind, row.referenced, row.missing) == (HandInKind.RESULT, (), ())


@pytest.mark.parametrize(
    ("uploaded", "referenced", "missing"),
    [
        ((), (1, 2, 3), (1, 2, 3)),
        ((0,), (0, 2, 3), (2, 3)),  # one that is there already does for one that is not
        ((0, 1, 2), (0, 1, 2), ()),
        ((0, 1, 2, 3), (0, 1, 2, 3), ()),
        ((2, 9), (1, 2, 3), (1, 3)),
    ],
)
def test_no_more_is_brought_than_makes_the_rest_fit(
    uploaded: tuple[int, ...], referenced: tuple[int, ...], missing: tuple[int, ...]
) -> None:
    sizes = [6_000, 6_100, 6_200, 6_300]
    slices = [finished(index, b"x" * size) for index, size in enumerate(sizes)]
    row = build([*slices, finished(4, b"[]")], one=job(5, **UPLOADS), uploaded=uploaded)
    message = opened(row)
    assert (row.kind, row.slices) == (HandInKind.RESULT, 5)
    assert (row.referenced, row.missing) == (referenced, missing)
    sizes_said = {one.index: one.uploaded.bytes for one in message.outputs if one.uploaded}
    assert sizes_said == {index: sizes[index] for index in referenced}


def test_answers_that_fit_no_message_at_all_are_a_result_where_they_can_be_brought() -> None:
    row = build([finished(0, b"x" * 1_000_000)], one=job(1, **UPLOADS))
    opened(row)
    assert (row.kind, row.referenced, row.missing) == (HandInKind.RESULT, (0,), (0,))


def test_a_slice_without_answers_is_never_brought_and_stops_no_other() -> None:
    message = opened(build([finished(0), finished(1, b"")], one=job(2, **UPLOADS)))
    assert isinstance(message, messages.Yield)
    assert [one.index for one in message.outputs] == [0]
    assert "has no answers" in message.detail


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 400) | st.integers(2, 60_000), min_size=1, max_size=18),
    uploaded=st.sets(st.integers(0, 20)),
    why=st.none() | st.sampled_from(YieldReason),
)
def test_with_somewhere_to_bring_them_no_answers_are_lost_for_want_of_room(
    sizes: list[int], uploaded: set[int], why: YieldReason | None
) -> None:
    slices = [finished(index, b"x" * size) for index, size in enumerate(sizes)]
    row = build(slices, one=job(len(sizes), **UPLOADS), why=why, uploaded=tuple(uploaded))
    opened(row)
    assert row.slices == len(sizes)
    assert row.kind is (HandInKind.RESULT if why is None else HandInKind.YIELD)
    assert set(row.missing) == set(row.referenced) - uploaded
    assert len(sent(row)) <= messages.MAX_MESSAGE_BYTES


def test_a_key_signs_once_however_the_answers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store waits for it."""

    def sign(signer: SessionKey, message: bytes) -> bytes:
        signed.append(message)
        return real(signer, message)

    certified(UNIT.id)
    signed: list[bytes] = []
    real = SessionKey.sign
    monkeypatch.setattr(SessionKey, "sign", sign)
    build([finished(index, b"x" * 5_000) for index in range(12)], one=job(12, **UPLOADS))
    assert len(signed) == 1


def test_an_engine_that_cannot_be_stated_among_answers_that_do_not_fit_is_no_exception() -> None:
    strange = Engine("two words", "c" * 64, "d" * 64)
    row = build([finished(0, b"x" * 6_000, engine=strange), finished(1, b"x" * 6_000)])
    message = opened(row)
    assert isinstance(message, messages.Yield)
    assert row.slices == 0


@pytest.mark.parametrize(
    "slices",
    [
        [finished(0, items=0)],
        [finished(0), finished(1, items=0)],
        [finished(0, engine=Engine("two words", "c" * 64, "d" * 64))],
        [finished(1), finished(0)],
        [StoredSlice(SliceOutcome(0, 4, 5, "a" * 64, "b" * 64, 1), b"", ENGINE)],
        [StoredSlice(SliceOutcome(0, 4, 0, "no digest", "b" * 64, 1), b"", ENGINE)],
        [StoredSlice(SliceOutcome(0, 4, 0, "a" * 64, "b" * 64, 2**60), b"", ENGINE)],
    ],
)
def test_what_cannot_be_signed_is_left_out_and_the_reason_given(slices: list[StoredSlice]) -> None:
    message = opened(build(slices))
    assert isinstance(message, messages.Yield)
    assert len(message.outputs) < len(slices), "at most what comes before it"
    assert message.why is YieldReason.FAULT
    assert message.detail.startswith("no statement could be made: ")


def test_a_key_that_does_not_sign_is_a_yield_of_nothing_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def sign(_signer: SessionKey, _message: bytes) -> bytes:
        raise TrustError("the key is locked")

    certified(UNIT.id)
    monkeypatch.setattr(SessionKey, "sign", sign)
    message = opened(build([finished(0)]))
    assert isinstance(message, messages.Yield)
    assert message.detail == "no statement could be made: the key is locked"


# --- sizes ------------------------------------------------------------------------------------------------------

HAVE = tuple(JobKey(f"{number:064d}", 2**53 - 1) for number in range(20))
"""More than is ever held, each token as long as can be."""


def sent(row: HandInRow) -> bytes:
    """The hand-in as it is published by a car that holds much."""
    return handin.address(row.body, row.kind, credit=1, have=HAVE, outlook=Outlook())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 4_000), min_size=1, max_size=200)
    | st.builds(lambda size, count: [size] * count, st.integers(2, 4_000), st.integers(1, 200)),
    why=st.none() | st.sampled_from(YieldReason),
    detail=st.text(alphabet=st.characters(codec="utf-8"), max_size=700),
)
def test_whatever_was_finished_gives_a_message_that_fits_and_can_be_read(
    sizes: list[int], why: YieldReason | None, detail: str
) -> None:
    row = build([finished(index, b"x" * size) for index, size in enumerate(sizes)], why=why, detail=detail)
    assert len(row.body) <= messages.MAX_MESSAGE_BYTES
    opened(row)
    body = sent(row)
    assert len(body) <= messages.MAX_MESSAGE_BYTES
    assert read(body, row.kind).have == HAVE[:HAVE_WITH_CREDIT_MAX]


def test_a_hand_in_says_what_is_held_when_it_is_sent() -> None:
    row = build([finished(0)])
    first = messages.decode(
        handin.address(row.body, row.kind, credit=1, have=HAVE[:2], outlook=Outlook()), messages.Result
    )
    again = messages.decode(handin.address(row.body, row.kind, credit=0, have=(), outlook=Outlook()), messages.Result)
    assert (first.credit, first.have) == (1, HAVE[:2])
    assert (again.credit, again.have) == (0, ())
    assert first.statement == again.statement


def test_of_very_many_slices_as_many_as_fit_are_handed_in() -> None:
    row = build([finished(index, b"[]") for index in range(200)])
    assert row.slices > 20


identifiers = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
amounts = st.integers(0, 10**12)


@st.composite
def leases_in_words(draw: st.DrawFn) -> tuple[handin.Unit, Grant, LeaseFacts]:
    """Who, what and when, each as long as the contracts let it be."""
    unit = handin.Unit(
        id=draw(identifiers),
        device_class=draw(st.text(alphabet=string.printable[:95], max_size=64)),
        boot="4b" * 16,
        agent_sha256="a" * 64,
    )
    one = job(
        1024,
        job=draw(identifiers),
        epoch=draw(amounts),
        nonce="0" * draw(st.integers(16, 64)),
        package=draw(identifiers),
    )
    began = draw(amounts)
    facts = LeaseFacts(began, began + draw(amounts), draw(amounts), "simulated", "closed")
    return unit, one, facts


def filled(one: Grant, sizes: list[int]) -> list[StoredSlice]:
    """Slices of these sizes, in order, for as long as the lease is not full by its own estimate.

    After the first, none is larger than the largest before it, which is what the estimate reckons with.
    """
    lease, slices = Lease(grant=one, expires_ms=0), list[StoredSlice]()
    for index, wanted in enumerate(sizes):
        size = wanted if index == 0 else min(wanted, lease.largest_output_bytes)
        if index and lease.full:
            break
        lease = lease.stored(index, size)
        slices.append(finished(index, b"x" * size, items=1_000_000))
    return slices


@settings(max_examples=60, deadline=None)
@given(
    words=leases_in_words(),
    sizes=st.lists(st.integers(2, 7_800), min_size=1, max_size=40)
    | st.builds(lambda size: [size] * 40, st.integers(2, 7_800)),
    why=st.sampled_from([None, *YieldReason]),
    detail=st.text(alphabet=string.ascii_lowercase + "_ ", max_size=64),
)
def test_a_lease_that_is_not_full_has_room_for_one_more_slice_as_large_as_its_largest(
    words: tuple[handin.Unit, Grant, LeaseFacts], sizes: list[int], why: YieldReason | None, detail: str
) -> None:
    unit, one, facts = words
    slices = filled(one, sizes)
    row = build(slices, one=one, unit=unit, facts=facts, why=why, detail=detail)
    assert row.slices == len(slices)
    assert row.kind is (HandInKind.RESULT if why is None else HandInKind.YIELD)
    assert len(sent(row)) <= messages.MAX_MESSAGE_BYTES
    opened(row)


@pytest.mark.parametrize("why", [None, YieldReason.SHUTDOWN])
def test_so_it_has_when_every_name_is_as_long_as_can_be(why: YieldReason | None) -> None:
    unit = msgspec.structs.replace(UNIT, id="u" * 64, device_class="d" * 64)
    one = job(1024, job="j" * 64, epoch=10**12, nonce="0" * 64, package="p" * 64)
    facts = LeaseFacts(10**12, 2 * 10**12, 10**12, "simulated", "closed")
    for size in range(2, 7_800, 101):
        slices = filled(one, [size] * 40)
        row = build(slices, one=one, unit=unit, facts=facts, why=why, detail="" if why is None else "d" * 64)
        assert row.slices == len(slices)


@pytest.mark.parametrize("size", [2, 100, 500, 1_000, 2_000, 4_000])
def test_the_estimate_is_not_so_careful_that_messages_go_half_empty(size: int) -> None:
    slices = filled(job(1024), [size] * 1024)
    row = build(slices)
    assert row.slices == len(slices)
    assert len(row.body) + size * 4 // 3 > messages.MAX_MESSAGE_BYTES * 3 // 4


@pytest.mark.parametrize("detail", ["x" * 512, "\n" * 512, "ü" * 512])
def test_a_long_reason_costs_no_slice(detail: str) -> None:
    unit = msgspec.structs.replace(UNIT, id="u" * 64, device_class="d" * 64)
    one = job(1024, job="j" * 64, package="p" * 64, nonce="0" * 64)
    slices = filled(one, [4_462] * 10)
    row = build(slices, one=one, unit=unit, why=YieldReason.REFUSED, detail=detail)
    assert row.slices == len(slices)
