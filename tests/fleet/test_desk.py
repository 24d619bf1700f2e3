"""Everything a hostile broker can put on our topics is refused, counted and told of once; the rest becomes an event."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import EventType, GrantSeen, LinkChanged, VerdictSeen
from agent.core.model import JobKey, Verdict
from agent.fleet import messages
from agent.fleet.desk import Desk
from agent.fleet.link_config import LinkConfig
from agent.fleet.orders import Orders
from agent.store import StoreThread
from agent.trust import dsse
from agent.trust.keys import FileSigner
from tests.conftest import FixedClock

UNIT = "car-0001"
GRANT_TOPIC = f"dw/v1/d/{UNIT}/grant"
VERDICT_TOPIC = f"dw/v1/d/{UNIT}/verdict"

JOB = messages.JobGrant(
    job="job1",
    epoch=3,
    nonce="0" * 32,
    customer="acme",
    package=messages.PackageRef(name="ocr", sha256="a" * 64),
    input=messages.ObjectRef(url="http://127.0.0.1/x", sha256="b" * 64, bytes=10),
    items=12,
    slice_items=4,
    slices=(0, 1, 2),
    ttl_s=600,
    price_micro_per_item=25,
    currency="USD",
)


class Listening:
    """A desk that is not connected to anything, and what it told the core."""

    def __init__(self, trusted: FileSigner) -> None:
        self.events: list[EventType] = []
        self.desk = Desk(
            unit=UNIT,
            cell="00",
            run="b00t",
            dispatcher_keys={trusted.keyid: trusted.public_key()},
            orders=Orders(StoreThread(Path("never-opened.db")), FixedClock(), "b00t", lambda: True),
            emit=self.events.append,
            clock=FixedClock(),
        )


@pytest.fixture
def listening(dispatcher_signer: FileSigner) -> Listening:
    return Listening(dispatcher_signer)


def grant(signer: FileSigner, **changes: object) -> bytes:
    message = msgspec.structs.replace(messages.GrantMessage(rid="r1", unit=UNIT, job=JOB), **changes)
    return dsse.sign(messages.GRANT_TYPE, msgspec.json.encode(message), signer)


def test_a_signed_grant_becomes_an_event_with_the_digest_of_its_ticket(
    listening: Listening, dispatcher_signer: FileSigner
) -> None:
    envelope = grant(dispatcher_signer)
    listening.desk.receive(GRANT_TOPIC, envelope)
    (event,) = listening.events
    assert isinstance(event, GrantSeen)
    assert event.grant is not None
    assert (event.rid, event.grant.key, event.grant.ttl_ms) == ("r1", JobKey("job1", 3), 600_000)
    assert event.grant.ticket_sha256 == hashlib.sha256(dsse.parse(envelope).payload).hexdigest()


def test_a_grant_of_nothing_says_when_to_ask_again(listening: Listening, dispatcher_signer: FileSigner) -> None:
    listening.desk.receive(GRANT_TOPIC, grant(dispatcher_signer, job=None, retry_s=7))
    (event,) = listening.events
    assert isinstance(event, GrantSeen)
    assert (event.grant, event.retry_ms) == (None, 7_000)


def test_a_verdict_becomes_an_event_and_its_envelope_is_kept_for_the_ledger(
    listening: Listening, dispatcher_signer: FileSigner
) -> None:
    message = messages.VerdictMessage(
        rid="r2", unit=UNIT, job="job1", epoch=3, verdict=Verdict.SETTLED, paid_micro=300, next_grant=JOB
    )
    envelope = dsse.sign(messages.VERDICT_TYPE, msgspec.json.encode(message), dispatcher_signer)
    listening.desk.receive(VERDICT_TOPIC, envelope)
    (event,) = listening.events
    assert isinstance(event, VerdictSeen)
    assert (event.key, event.verdict, event.paid_micro) == (JobKey("job1", 3), Verdict.SETTLED, 300)
    assert event.envelope == envelope


Forge = Callable[[FileSigner, FileSigner], bytes]


@pytest.mark.parametrize(
    ("topic", "forge"),
    [
        pytest.param(GRANT_TOPIC, lambda _ours, stranger: grant(stranger), id="signed by a stranger"),
        pytest.param(GRANT_TOPIC, lambda ours, _s: grant(ours, unit="car-0002"), id="for another unit"),
        pytest.param(GRANT_TOPIC, lambda ours, _s: grant(ours, v=2), id="unknown version"),
        pytest.param(GRANT_TOPIC, lambda ours, _s: grant(ours).replace(b'"payload":"', b'"payload":"A'), id="altered"),
        pytest.param(
            GRANT_TOPIC,
            lambda _o, _s: msgspec.json.encode(messages.GrantMessage(rid="r1", unit=UNIT, job=JOB)),
            id="not signed at all",
        ),
        pytest.param(
            GRANT_TOPIC,
            lambda ours, _s: dsse.sign(
                messages.VERDICT_TYPE,
                msgspec.json.encode(messages.GrantMessage(rid="r1", unit=UNIT, job=JOB)),
                ours,
            ),
            id="signed as something else",
        ),
        pytest.param(
            GRANT_TOPIC,
            lambda ours, _s: grant(ours, job=msgspec.structs.replace(JOB, ttl_s=10**9)),
            id="a time far off",
        ),
        pytest.param(
            GRANT_TOPIC,
            lambda ours, _s: grant(ours, job=msgspec.structs.replace(JOB, package=None)),
            id="a field of the wrong kind",
        ),
        pytest.param(GRANT_TOPIC, lambda _o, _s: b"x" * 10_000_000, id="ten megabytes"),
        pytest.param(GRANT_TOPIC, lambda _o, _s: b"[" * 16_000, id="deep"),
        pytest.param(GRANT_TOPIC, lambda _o, _s: b"", id="empty"),
        pytest.param(GRANT_TOPIC, lambda _o, _s: b"\xff\xfe", id="not text"),
        pytest.param(f"dw/v1/d/{UNIT}/surprise", lambda ours, _s: grant(ours), id="unknown topic"),
        pytest.param(VERDICT_TOPIC, lambda ours, _s: grant(ours), id="a grant where a verdict belongs"),
    ],
)
def test_what_may_not_be_acted_on_is_refused_counted_and_told_of_once(  # noqa: PLR0917 - pytest's fixtures
    listening: Listening,
    dispatcher_signer: FileSigner,
    stranger_signer: FileSigner,
    capsys: pytest.CaptureFixture[str],
    topic: str,
    forge: Forge,
) -> None:
    body = forge(dispatcher_signer, stranger_signer)
    for _ in range(3):
        listening.desk.receive(topic, body)
    assert listening.events == []
    assert sum(listening.desk.refused.values()) == 3
    out = capsys.readouterr()
    assert (out.out + out.err).count("message_refused") == 1


@given(st.sampled_from([GRANT_TOPIC, VERDICT_TOPIC, "dw/v1/d/other/grant", ""]), st.binary(max_size=400))
def test_no_bytes_do_anything_but_be_refused(dispatcher_signer: FileSigner, topic: str, body: bytes) -> None:
    listening = Listening(dispatcher_signer)
    listening.desk.receive(topic, body)
    assert listening.events == []


def test_the_link_is_told_of_as_an_event(listening: Listening) -> None:
    listening.desk.link_changed(True, "127.0.0.1:1", "")
    assert isinstance(listening.events[0], LinkChanged)


class Carried:
    """A carrier that keeps what it is given."""

    def __init__(self) -> None:
        self.statuses: list[messages.Status] = []

    def publish(self, topic: str, payload: bytes, **_: object) -> bool:
        assert topic == f"dw/v1/u/00/{UNIT}/status"
        self.statuses.append(messages.decode(payload, messages.Status))
        return True

    def spread(self, spread_ms: int) -> None:
        """There is nothing to be spread."""


def test_the_will_of_each_connection_is_told_apart_from_those_of_all_others(listening: Listening) -> None:
    """`lost` names the connection that was lost: a dispatcher ignores it once a later one has said `up`."""
    desk, carried = listening.desk, Carried()
    desk.attach(carried)
    config = desk.link_config(LinkConfig(brokers=(), client_id="", filters=()))
    assert config.will is not None
    lost: list[messages.Status] = []
    for comes_up in (True, False, True):
        topic, body = config.will()
        assert topic == f"dw/v1/u/00/{UNIT}/status"
        lost.append(messages.decode(body, messages.Status))
        if comes_up:
            desk.link_changed(True, "127.0.0.1:1", "")
            desk.link_changed(False, "127.0.0.1:1", "gone")
    assert [(one.state, one.conn) for one in carried.statuses] == [("up", 1), ("up", 3)]
    assert [(one.state, one.conn) for one in lost] == [("lost", 1), ("lost", 2), ("lost", 3)]
    assert {one.boot for one in (*lost, *carried.statuses)} == {"b00t"}
