"""The door of `dw/v1`: too large, too new or malformed is refused with a reason; the rest survives unchanged."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.model import Verdict, YieldReason
from agent.fleet import messages

REQUEST = messages.Request(
    rid="r1",
    have=(),
    credit=1,
    cap=messages.Capability(device_class="rig", executor="onnxruntime", packages=()),
)


def test_a_message_survives_the_wire() -> None:
    assert messages.decode(messages.encode(REQUEST), messages.Request) == REQUEST


def test_fields_of_a_newer_peer_are_ignored() -> None:
    body = messages.encode(REQUEST).replace(b'{"v":1', b'{"mood":"sunny","v":1')
    assert messages.decode(body, messages.Request) == REQUEST


def test_a_reason_of_a_newer_car_is_taken_for_a_fault_and_a_verdict_of_a_newer_dispatcher_for_none() -> None:
    given_back = messages.Yield(rid="r1", job="job1", epoch=1, why=YieldReason.OWNER)
    body = messages.encode(given_back).replace(b'"owner"', b'"moved house"')
    assert messages.decode(body, messages.Yield).why is YieldReason.FAULT
    verdict = messages.VerdictMessage(rid="r1", unit="car-1", job="job1", epoch=1, verdict=Verdict.LATER)
    with pytest.raises(messages.MessageError, match="verdict"):
        messages.decode(messages.encode(verdict).replace(b'"later"', b'"perhaps"'), messages.VerdictMessage)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"x" * 16_385, "16385 bytes, more than the 16384"),
        (messages.encode(REQUEST).replace(b'"v":1', b'"v":2'), "version 2 is not spoken here"),
        (messages.encode(REQUEST).replace(b'"v":1', b'"v":"1"'), "Expected `int`"),
        (messages.encode(REQUEST).replace(b'"credit":1', b'"credit":"one"'), "$.credit"),
        (messages.encode(REQUEST).replace(b'"rid":"r1"', b'"rid":"a/b"'), "$.rid"),
        (b"{}", "missing required field"),
        (b"[]", "Expected `object`"),
        (b"\xff", "not a valid Request"),
        (b"[" * 10_000, "not a valid Request"),
    ],
)
def test_what_is_refused_says_why(body: bytes, said: str) -> None:
    with pytest.raises(messages.MessageError) as error:
        messages.decode(body, messages.Request)
    assert said in str(error.value)


def test_what_would_be_too_large_for_the_broker_is_never_sent() -> None:
    large = msgspec.structs.replace(REQUEST, rid="x" * 17_000)
    with pytest.raises(messages.MessageError, match="use smaller jobs"):
        messages.encode(large)


@given(st.binary(max_size=300), st.sampled_from([messages.Request, messages.Result, messages.GrantMessage]))
def test_random_bytes_only_ever_raise_message_error(body: bytes, kind: type[messages.Request]) -> None:
    with contextlib.suppress(messages.MessageError):
        messages.decode(body, kind)
