"""The published contract is that of the code: current, valid, and what the desk does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from agent.core.effects import SendRenewal, SendRequest
from agent.core.model import JobKey
from agent.errors import StoreError
from agent.fleet import messages
from agent.fleet.desk import Desk
from agent.fleet.orders import Orders
from agent.store import StoreThread
from hil import asyncapi

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
        pytest.skip(f"{SPECIFICATION} is not there: `sh .ci/packages` fetches it where npm is installed")
    schema = msgspec.json.decode(SPECIFICATION.read_bytes())
    check = jsonschema.Draft7Validator(schema)
    document = asyncapi.document()
    assert [error.message for error in check.iter_errors(document)] == []
    document["operations"]["request"]["action"] = "shout"
    assert not check.is_valid(document)


def test_every_message_of_the_protocol_is_in_it() -> None:
    """All types that `messages.decode` knows, but for enrolment (over HTTP) and the envelope itself."""
    spoken = {kind.__name__ for kind in messages.Message.__constraints__}
    assert {entry.name for entry in asyncapi.CONTRACT} == spoken - {"Envelope", "Enrolment", "Enrolled"}


@pytest.mark.parametrize("entry", asyncapi.CONTRACT, ids=lambda entry: entry.name)
def test_every_example_is_a_message(entry: asyncapi.Entry) -> None:
    body = messages.encode(entry.example)
    assert messages.decode(body, type(entry.example)) == entry.example  # type: ignore[type-var]
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
        boot="b00t",
        dispatcher_keys={},
        orders=Orders(StoreThread(Path("never-opened.db")), FixedClock(), "b00t", trusted),
        emit=lambda event: None,
        clock=FixedClock(),
    )
    carried, key = Carried(), JobKey("job1", 1)
    desk.attach(carried)
    desk.link_changed(True, "b:1", "")
    desk.request(SendRequest(rid="r1", have=()), asyncapi.CAPABILITY)
    desk.renew(SendRenewal(rid="r2", key=key, done=1, have=(key,)))
    desk.hand_in("result", key, b"{}")
    desk.hand_in("yield", key, b"{}")
    upward = [entry for entry in asyncapi.CONTRACT if isinstance(entry.example, asyncapi.Upward)]
    assert set(carried.sent) == {entry.verb for entry in upward}
    for entry in upward:
        topic, qos, expiry_s = carried.sent[entry.verb]
        assert topic == entry.address.format(cell="0a", unit="car-0001")
        assert qos == entry.qos
        assert entry.expires.startswith("never" if expiry_s is None else f"{expiry_s} s")
