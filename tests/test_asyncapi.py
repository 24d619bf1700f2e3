"""The published contract is that of the code: current, valid, and what the desk does."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent.core.effects import SendRenewal, SendRequest
from agent.core.model import JobKey
from agent.errors import StoreError
from agent.fleet import messages, operator_messages
from agent.fleet.desk import Desk
from agent.fleet.link import Link
from agent.fleet.orders import Orders
from agent.store import StoreThread
from agent.trust import dsse
from agent.trust.keys import FileSigner
from hil import asyncapi
from hil.asyncapi_fields import COMMON, FIELDS
from hil.dispatcher.answers import Answers
from hil.dispatcher.pump import Carrying
from tests.tools import lacking

SPECIFICATION = Path(os.environ.get("DRIVEWAY_ASYNCAPI", "build/asyncapi/3.0.0.json"))


class FixedClock:
    def boot_ms(self) -> int:
        return 1_000

    def wall_ms(self) -> int:
        return 1_774_000_000_000


class Carried:
    """Takes what the desk sends, and remembers how."""

    def __init__(self) -> None:
        self.sent: dict[str, tuple[str, int, int | None]] = {}

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        assert len(payload) <= messages.MAX_MESSAGE_BYTES
        self.sent[topic.rpartition("/")[2]] = (topic, qos, expiry_s)
        return True

    def spread(self, spread_ms: int) -> None:
        raise AssertionError(spread_ms)


def test_the_document_is_what_the_code_makes() -> None:
    assert asyncapi.FILE.read_bytes() == asyncapi.text(), "run `python -m hil.asyncapi`"


def test_it_is_a_document_of_asyncapi_3() -> None:
    if not SPECIFICATION.exists():
        lacking(f"{SPECIFICATION} is not there: `sh .ci/packages` fetches it where npm is installed")
    schema = msgspec.json.decode(SPECIFICATION.read_bytes())
    check = jsonschema.Draft7Validator(schema)
    document = asyncapi.document()
    assert [error.message for error in check.iter_errors(document)] == []
    document["operations"]["request"]["action"] = "shout"
    assert not check.is_valid(document)


def test_every_field_says_what_it_means_and_nothing_is_said_of_no_field() -> None:
    schemas = asyncapi.document()["components"]["schemas"]
    fields = {
        (name, field): of for name, schema in schemas.items() for field, of in schema.get("properties", {}).items()
    }
    assert [key for key, of in fields.items() if not of["description"]] == []
    assert set(FIELDS) <= {f"{name}.{field}" for name, field in fields}
    assert set(COMMON) <= {field for name, field in fields if f"{name}.{field}" not in FIELDS}


def test_every_message_of_the_protocol_is_in_it() -> None:
    """All types that say the protocol's version, but for those of enrolment, which cross HTTPS."""
    spoken = {
        name
        for module in (messages, operator_messages)
        for name, kind in vars(module).items()
        if getattr(kind, "__module__", "") == module.__name__ and "v" in getattr(kind, "__struct_fields__", ())
        if not name.startswith("_")
    }
    assert {entry.name for entry in asyncapi.CONTRACT} == spoken


@pytest.mark.parametrize("entry", asyncapi.CONTRACT, ids=lambda entry: entry.name)
def test_every_example_is_a_message(entry: asyncapi.Entry) -> None:
    body = messages.encode(entry.example)
    assert messages.decode(body, type(entry.example)) == entry.example
    schemas = asyncapi.document()["components"]["schemas"]
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{entry.name}", "components": {"schemas": schemas}}
    jsonschema.Draft202012Validator(schema).validate(msgspec.json.decode(body))


def test_a_unit_stands_beside_every_number_that_has_one() -> None:
    properties = asyncapi.document()["components"]["schemas"]["JobGrant"]["properties"]
    units = {name: schema["x-unit"] for name, schema in properties.items() if "x-unit" in schema}
    assert units == {
        "ttl_s": "s",
        "expected_s": "s",
        "renew_s": "s",
        "price_micro_per_item": "currency/1000000/item",
    }


def test_the_desk_sends_as_the_contract_says() -> None:
    def trusted() -> bool:
        raise StoreError("not asked")

    desk = Desk(
        unit="car-0001",
        cell="0a",
        run="b00t",
        dispatcher_keys={},
        orders=Orders(StoreThread(Path("never-opened.db")), FixedClock(), "b00t", trusted),
        emit=lambda event: None,
        clock=FixedClock(),
        sealing_key=msgspec.json.encode(asyncapi.SEALING_KEY),
    )
    carried, key = Carried(), JobKey("job1", 1)
    desk.attach(carried)
    desk.link_changed(True, "b:1", "")
    desk.request(SendRequest(rid="r1", have=()), asyncapi.CAPABILITY)
    desk.renew(SendRenewal(rid="r2", key=key, done=1, have=(key,)))
    desk.hand_in("result", key, b"{}")
    desk.hand_in("yield", key, b"{}")
    desk.checkpoint(next(one.example for one in asyncapi.CONTRACT if one.verb == "checkpoint"))  # type: ignore[arg-type]
    upward = [entry for entry in asyncapi.CONTRACT if isinstance(entry.example, asyncapi.Upward)]
    assert set(carried.sent) == {entry.verb for entry in upward}
    for entry in upward:
        topic, qos, expiry_s = carried.sent[entry.verb]
        assert topic == entry.address.format(cell="0a", unit="car-0001")
        assert qos == entry.qos
        assert entry.expires.startswith("never" if expiry_s is None else f"{expiry_s} s")


class NoTickets:
    """The part of a book that `Answers` writes to."""

    def record_ticket(self, key: JobKey, sha256: str) -> None:
        assert (key.job, len(sha256)) != ("", 0)


def test_the_dispatcher_sends_as_the_contract_says() -> None:
    """Topic, retention, expiry and payload type, and with which quality of service its link publishes."""
    sent: list[tuple[str, bytes, int | None, bool]] = []

    def publish(topic: str, payload: bytes, expiry_s: int | None, /, *, retain: bool = False) -> bool:
        sent.append((topic, payload, expiry_s, retain))
        return True

    signer = FileSigner(generate_private_key(SECP256R1()))
    answers = Answers(NoTickets(), signer, publish, Counter())  # type: ignore[arg-type]
    downward = [entry for entry in asyncapi.CONTRACT if isinstance(entry.example, asyncapi.Downward)]
    for entry in downward:
        match entry.example:
            case messages.GrantMessage() as grant:
                answers.grant(grant)
            case messages.VerdictMessage() as verdict:
                answers.verdict(verdict)
            case operator_messages.CancelMessage() as cancel:
                answers.cancel(cancel)
            case operator_messages.PricesMessage() | operator_messages.DemandMessage() as order:
                answers.order(order)
            case operator_messages.PaceMessage() as pace:
                answers.pace(pace)
            case messages.WitnessMessage() as witness:
                answers.witness(witness)
    answers.flush()
    for entry, (topic, envelope, expiry_s, retain) in zip(downward, sent, strict=True):
        assert topic == entry.address.format(cell="0a", unit="car-0001")
        assert retain == entry.retain
        assert expiry_s == _promised_s(entry)
        assert dsse.verify(envelope, entry.payload_type, {signer.keyid: signer.public_key()})
        assert entry.qos == inspect.signature(Link.publish).parameters["qos"].default, "the outbox names none"
    assert inspect.signature(Carrying.publish).parameters.keys() == {
        *("self", "topic", "payload", "expiry_s", "token", "retain"),
    }


def _promised_s(entry: asyncapi.Entry) -> int | None:
    """What the contract's words say of this example."""
    words = entry.expires.split()
    match entry.example, words:
        case messages.GrantMessage(job=messages.JobGrant(ttl_s=ttl_s)), ["the", "lease's", "`ttl_s`;", *_]:
            return ttl_s
        case operator_messages.CancelMessage(grace_s=grace_s), ["`grace_s`", "and", "another", seconds, "s"]:
            return grace_s + int(seconds)
        case _, [word, *_] if word.startswith("never"):
            return None
        case _, [seconds, *_]:
            return int(seconds)
    raise AssertionError(entry.expires)


@pytest.mark.parametrize("detail", ["a\nb", "a\0b", "\x1b[2J", "\x9b", "last\n", "\x7f"])
def test_no_text_has_control_characters(detail: str) -> None:
    """A NUL is nothing for a database's text, and the rest nothing for a log."""
    status = msgspec.json.encode(messages.Status(state="up", boot="b", conn=1, version=detail))
    with pytest.raises(messages.MessageError, match="version"):
        messages.decode(status, messages.Status)
    ok = messages.Status(state="up", boot="b", conn=1, version="été 試験 🚗")
    assert messages.decode(messages.encode(ok), messages.Status) == ok
