"""All that a hostile broker can bring, made up by the thousand: nothing raises or counts unsigned, all is bounded."""

from __future__ import annotations

import asyncio
import base64
import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.events import CancelSeen, EventType, GrantSeen, PaceSeen, VerdictSeen
from agent.core.model import PaceState, Verdict
from agent.fleet import messages, operator_messages
from agent.fleet.desk import CHECK_BURST, CHECKS_PER_S
from agent.trust import dsse
from agent.trust.keys import FileSigner
from tests.fleet.test_desk import JOB, UNIT
from tests.fleet.test_orders import NOW_MS, Listening, demand, prices

TOPICS = [*(f"dw/v1/d/{UNIT}/{verb}" for verb in ("grant", "verdict", "cancel", "config")), "dw/v1/b/00/pace"]
WRONG_TOPICS = [
    "",
    "grant",
    "/",
    "dw/v1/d/car-0002/grant",
    f"dw/v1/d/{UNIT}/grant/",
    f"dw/v1/d/{UNIT}/GRANT",
    "dw/v1/b/01/pace",
]
GRANT, VERDICT, CANCEL, CONFIG, PACE = TOPICS
HONEST: list[tuple[str, str, msgspec.Struct]] = [
    (GRANT, messages.GRANT_TYPE, messages.GrantMessage(rid="r1", unit=UNIT, job=JOB)),
    (GRANT, messages.GRANT_TYPE, messages.GrantMessage(rid="r1", unit=UNIT, retry_s=5)),
    (
        VERDICT,
        messages.VERDICT_TYPE,
        messages.VerdictMessage(rid="r", unit=UNIT, job="j", epoch=1, verdict=Verdict.SETTLED, next_grant=JOB),
    ),
    (
        CANCEL,
        operator_messages.CANCEL_TYPE,
        operator_messages.CancelMessage(unit=UNIT, job="j", epoch=1, grace_s=5, why="w"),
    ),
    (CONFIG, operator_messages.PRICES_TYPE, prices()),
    (CONFIG, operator_messages.DEMAND_TYPE, demand()),
    (
        PACE,
        operator_messages.PACE_TYPE,
        operator_messages.PaceMessage(cell="00", issued_wall_ms=NOW_MS, state=PaceState.STOP, spread_s=9),
    ),
]
KINDS = [kind for _, kind, _ in HONEST]
ONE_LOOP = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def loop() -> Iterator[asyncio.Runner]:
    """Orders are written down by tasks."""
    with asyncio.Runner() as runner:
        yield runner


def hear(
    loop: asyncio.Runner, signer: FileSigner, *arrivals: tuple[str, bytes]
) -> tuple[list[EventType], dict[str, int]]:
    """What a new desk makes of these."""

    async def story() -> Listening:
        one = Listening(Path("never-opened"), signer)
        for topic, body in arrivals:
            one.desk.receive(topic, body)
        await one.orders.close()
        return one

    one = loop.run(story())
    return one.events, dict(one.desk.refused)


def test_what_is_honest_counts(loop: asyncio.Runner, dispatcher_signer: FileSigner) -> None:
    arrivals = [(t, dsse.sign(kind, msgspec.json.encode(said), dispatcher_signer)) for t, kind, said in HONEST]
    events, refused = hear(loop, dispatcher_signer, *arrivals)
    assert len(events) == len(HONEST)
    assert refused == {}


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["swop", "cut", "put", "again"]), st.integers(0, 9_999), st.binary(min_size=1, max_size=20)
    ),
    min_size=1,
    max_size=4,
)
"""What, where (in ten-thousandths of the length), and with which bytes."""


def changed(original: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """A few bytes changed, cut out, put in, or said twice."""
    body = bytearray(original)
    for change, where, put in changes:
        at = len(body) * where // 10_000
        match change:
            case "swop":
                body[at : at + len(put)] = put
            case "cut":
                del body[at : at + len(put)]
            case "put":
                body[at:at] = put
            case _:
                body[at:at] = body[at : at + 10 * len(put)]
    return bytes(body)


@ONE_LOOP
@given(changes=CHANGES, which=st.integers(0, len(HONEST) - 1), elsewhere=st.sampled_from([None, *TOPICS]))
def test_no_mutation_of_a_signed_message_says_anything_else(
    loop: asyncio.Runner,
    dispatcher_signer: FileSigner,
    changes: list[tuple[str, int, bytes]],
    which: int,
    elsewhere: str | None,
) -> None:
    topic, kind, said = HONEST[which]
    payload = msgspec.json.encode(said)
    body = changed(dsse.sign(kind, payload, dispatcher_signer), changes)
    events, refused = hear(loop, dispatcher_signer, (elsewhere or topic, body))
    assert len(events) + sum(refused.values()) == 1
    if events:  # only what the signature does not cover was changed
        assert dsse.parse(body).payload == payload
        assert dsse.parse(body).payload_type == kind


NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.integers(-3, 3), st.floats(allow_nan=False), st.just(2**53))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)


@ONE_LOOP
@given(data=st.data(), which=st.integers(0, len(HONEST) - 1))
def test_no_signed_nonsense_raises_and_what_counts_is_within_bounds(
    loop: asyncio.Runner, dispatcher_signer: FileSigner, data: st.DataObject, which: int
) -> None:
    """Even a dispatcher with a bug: any field of any message may be anything."""
    topic, kind, said = HONEST[which]
    fields = msgspec.to_builtins(said)
    inner = fields.get("job") if isinstance(fields.get("job"), dict) else fields.get("next_grant")
    for target in filter(None, (fields, inner)):
        for name in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=2)):
            target[name] = data.draw(JSON)
    payload = msgspec.json.encode(fields)
    body = dsse.sign(kind, payload, dispatcher_signer)
    events, _ = hear(loop, dispatcher_signer, (topic, body))
    for event in events:
        match event:
            case GrantSeen(grant=grant, retry_ms=retry_ms):
                assert 0 <= retry_ms <= 86_400_000
                assert grant is None or 0 < grant.ttl_ms <= 86_400_000
                assert grant is None or 0 <= grant.epoch < 2**53
            case VerdictSeen(paid_micro=paid, retry_ms=retry_ms):
                assert 0 <= paid <= 10**12
                assert 0 <= retry_ms <= 86_400_000
            case CancelSeen(grace_ms=grace_ms):
                assert 0 <= grace_ms <= 86_400_000
            case PaceSeen(pace=pace):
                assert 0 <= pace.spread_ms <= 3_600_000
                assert 100 <= pace.interval_permille <= 100_000


@ONE_LOOP
@given(st.sampled_from([*TOPICS, *WRONG_TOPICS]), st.sampled_from(KINDS), st.one_of(st.binary(max_size=300), JSON))
def test_signed_bytes_that_are_no_message_are_refused(
    loop: asyncio.Runner, dispatcher_signer: FileSigner, topic: str, kind: str, said: object
) -> None:
    payload = said if isinstance(said, bytes) else msgspec.json.encode(said)
    events, refused = hear(loop, dispatcher_signer, (topic, dsse.sign(kind, payload, dispatcher_signer)))
    assert events == []
    assert sum(refused.values()) == 1


def envelope(payload: bytes, kind: str, signer: FileSigner) -> bytes:
    """As `dsse.sign`, without its limits."""
    sig = base64.b64encode(signer.sign(dsse.pae(kind, payload))).decode()
    whole = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": kind,
        "signatures": [{"keyid": signer.keyid, "sig": sig}],
    }
    return msgspec.json.encode(whole)


@pytest.mark.parametrize("topic", [*TOPICS, *WRONG_TOPICS])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x" * 10_000_000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 16_000,
        b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
        b'"' * 16_000,
        b"\xff\xfe\x00" * 1_000,
        b'{"payload":"\xed\xa0\x80"}',
        b'{"payload":1e999,"payloadType":-0,"signatures":[' + b"9" * 10_000 + b"]}",
        b'{"payload":"","payloadType":"","signatures":[' + b'{"keyid":"","sig":""},' * 600 + b'{"keyid":"","sig":""}]}',
        b"null",
        b"\x00",
    ],
    ids=range(13),
)
def test_known_tricks(loop: asyncio.Runner, dispatcher_signer: FileSigner, topic: str, body: bytes) -> None:
    events, refused = hear(loop, dispatcher_signer, (topic, body))
    assert events == []
    assert sum(refused.values()) == 1


@pytest.mark.parametrize("payload", [b"[" * 5_500, b'{"a":' * 1_500, b"9" * 5_000, b'{"v":1' + b"0" * 5_000 + b"}"])
@pytest.mark.parametrize("kind", KINDS)
def test_tricks_of_one_who_can_sign(
    loop: asyncio.Runner, dispatcher_signer: FileSigner, kind: str, payload: bytes
) -> None:
    for topic in TOPICS:
        events, refused = hear(loop, dispatcher_signer, (topic, envelope(payload, kind, dispatcher_signer)))
        assert events == []
        assert sum(refused.values()) == 1


ABSURD: dict[str, dict[str, object]] = {
    "no time": {"ttl_s": 0},
    "a time far off": {"ttl_s": 86_401},
    "an epoch below zero": {"epoch": -1},
    "an epoch beyond 2^53": {"epoch": 2**53},
    "slices twice": {"slices": (0, 0)},
    "slices beyond the job": {"slices": (0, 3)},
    "a slice far beyond": {"slices": (2**53 - 1,)},
    "no slices": {"slices": ()},
    "a negative slice": {"slices": (-1,)},
    "too many slices": {"slices": tuple(range(1025)), "items": 5_000},
    "no items": {"items": 0},
    "a price beyond sense": {"price_micro_per_item": 10**9 + 1},
    "a nonce that is none": {"nonce": "xyz"},
    "no currency": {"currency": "$"},
    "a renewal that comes too late": {"renew_s": 600},
    "an upload token for another header": {"upload": {"url": "https://x", "token": "a\r\nHost: evil, and more"}},
    "bytes below zero": {"input": {"url": "u", "sha256": "a" * 64, "bytes": -1}},
}


@pytest.mark.parametrize("changes", ABSURD.values(), ids=ABSURD.keys())
def test_a_grant_of_absurd_numbers_stops_at_the_door_and_takes_no_verdict_with_it(
    loop: asyncio.Runner, dispatcher_signer: FileSigner, changes: dict[str, object]
) -> None:
    job = msgspec.to_builtins(JOB) | changes
    message = {"rid": "r", "unit": UNIT, "job": job}
    body = dsse.sign(messages.GRANT_TYPE, msgspec.json.encode(message), dispatcher_signer)
    events, refused = hear(loop, dispatcher_signer, (GRANT, body))
    assert events == []
    assert refused == {"grant: malformed": 1}


def test_a_verdict_counts_without_the_next_grant_that_makes_no_sense(
    loop: asyncio.Runner, dispatcher_signer: FileSigner
) -> None:
    job = msgspec.structs.replace(JOB, slices=(0, 0))
    said = messages.VerdictMessage(rid="r", unit=UNIT, job="j", epoch=1, verdict=Verdict.SETTLED, next_grant=job)
    body = dsse.sign(messages.VERDICT_TYPE, msgspec.json.encode(said), dispatcher_signer)
    (event,), refused = hear(loop, dispatcher_signer, (VERDICT, body))
    assert isinstance(event, VerdictSeen)
    assert (event.verdict, event.next_grant) == (Verdict.SETTLED, None)
    assert refused == {"grant: malformed": 1}


def test_a_flood_of_forgeries_costs_so_many_looks_and_no_more(
    dispatcher_signer: FileSigner, stranger_signer: FileSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    verify = dsse.verify

    def counted(body: bytes, kind: str, keys: dict[str, object]) -> bytes:
        looks.append(len(body))
        return verify(body, kind, keys)  # type: ignore[arg-type]

    monkeypatch.setattr(dsse, "verify", counted)
    one = Listening(Path("never-opened"), dispatcher_signer)
    genuine = dsse.sign(messages.GRANT_TYPE, msgspec.json.encode(HONEST[0][2]), dispatcher_signer)
    strange = dsse.sign(messages.GRANT_TYPE, msgspec.json.encode(HONEST[0][2]), stranger_signer)
    forged = strange.replace(stranger_signer.keyid.encode(), dispatcher_signer.keyid.encode())
    for _ in range(5_000):
        one.desk.receive(GRANT, forged)
    assert len(looks) <= CHECK_BURST
    assert one.events == []
    for _ in range(10):
        one.clock.now_ms += 1_000
        for _ in range(1_000):
            one.desk.receive(GRANT, forged)
    assert len(looks) <= CHECK_BURST + 10 * CHECKS_PER_S
    assert set(one.desk.refused) == {"grant: forged", "grant: flood"}
    one.clock.now_ms += 20_000
    one.desk.receive(GRANT, genuine)
    assert len(one.events) == 1, "and then the sender's next attempt counts"


@pytest.mark.parametrize("begins", [b"[", b'{"payload":"QQ==","payloadType":"t","signatures":[', b'{"x":['])
@pytest.mark.parametrize("tiny", [b"{}", b'{"a":{}}', b'{"":1}', b"1", b'""', b"[]", b'{"keyid":"","sig":""}'])
def test_thousands_of_tiny_values_are_counted_and_not_read(
    dispatcher_signer: FileSigner, monkeypatch: pytest.MonkeyPatch, begins: bytes, tiny: bytes
) -> None:
    """They cost ten times what as many bytes of base64 do."""
    one = Listening(Path("never-opened"), dispatcher_signer)
    monkeypatch.setattr(dsse, "strict_json", lambda _body: pytest.fail("it was read"))
    body = begins + b",".join([tiny] * (15_000 // (len(tiny) + 1)))
    for topic in (GRANT, CONFIG):
        one.desk.receive(topic, body + b"]}")
    assert set(one.desk.refused) == {"grant: forged", "config: forged"}


def test_an_honest_burst_passes(dispatcher_signer: FileSigner) -> None:
    """After an outage: a verdict for each hand-in of a full outbox, with a grant, and everything that stands."""
    one = Listening(Path("never-opened"), dispatcher_signer)
    said = messages.VerdictMessage(rid="r", unit=UNIT, job="j", epoch=1, verdict=Verdict.SETTLED, next_grant=JOB)
    body = dsse.sign(messages.VERDICT_TYPE, msgspec.json.encode(said), dispatcher_signer)
    for _ in range(200):
        one.desk.receive(VERDICT, body)
    assert len(one.events) == 200
    assert not one.desk.refused


def test_a_flood_of_everything_takes_no_memory(dispatcher_signer: FileSigner) -> None:
    one = Listening(Path("never-opened"), dispatcher_signer)

    def flood(begin: int) -> None:
        for n in range(begin, begin + 4_000):
            one.clock.now_ms += 5
            one.desk.receive(f"dw/v1/d/{UNIT}/{n}", b"x" * 100)
            one.desk.receive(TOPICS[n % 5], b'{"payload":"%d"}' % n)
            one.desk.receive(TOPICS[n % 5], b"x" * 20_000)

    flood(0)
    gc.collect()
    tracemalloc.start()
    try:
        flood(4_000)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert len(one.desk.refused) <= 20
    assert one.events == []
