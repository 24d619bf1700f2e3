"""Enrolling at a server that says anything: the unit believes the pinned dispatcher about itself, or says why not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DrivewayError, TrustError
from agent.fleet import enrolment_messages, messages
from agent.fleet.channel import Web
from agent.fleet.enrol import enrol
from agent.trust import dsse
from agent.trust.hardware import HardwareSigner
from agent.trust.keys import FileSigner
from agent.trust.tpm import TpmPlace
from tests.fleet.site import Site

UNIT = "car-1"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FUZZ = settings(max_examples=120, deadline=None, derandomize=True)


class FileKey:
    """A key in a file, as the daemon asks it: on another thread, were it slow."""

    def __init__(self) -> None:
        self._signer = FileSigner(generate_private_key(SECP256R1()))
        self.keyid, self.protection = self._signer.keyid, self._signer.protection

    def public_key_pem(self) -> str:
        return self._signer.public_key_pem()

    async def sign(self, message: bytes) -> bytes:
        return self._signer.sign(message)


class Dispatcher:
    """Whoever answers at the enrolment's address."""

    def __init__(self) -> None:
        self.site = Site()
        self.key, self.stranger = (FileSigner(generate_private_key(SECP256R1())) for _ in range(2))
        self.unit_key = FileKey()

    def ask(self, status: int, body: bytes) -> enrolment_messages.Enrolled:
        """Enrol, and be answered this."""
        url = self.site.put("/enrol", body, status=status)
        return asyncio.run(
            enrol(
                Web(allow_loopback_http=True),
                url=url,
                code="welcome",
                unit=UNIT,
                key=cast("HardwareSigner", self.unit_key),
                place=TpmPlace(),
                dispatcher_keys={self.key.keyid: self.key.public_key()},
            )
        )

    def said(self, **bent: Any) -> bytes:
        """The payload of an answer, with these fields other than they should be."""
        honest = {"v": 1, "unit": UNIT, "cell": "0a", "keyid": self.unit_key.keyid, "epoch": 1, "endorsement": ""}
        return json.dumps(honest | bent).encode()


@pytest.fixture(scope="module")
def dispatcher() -> Iterator[Dispatcher]:
    one = Dispatcher()
    yield one
    one.site.close()


def test_the_honest_answer_is_believed(dispatcher: Dispatcher) -> None:
    answer = dsse.sign(enrolment_messages.ENROLMENT_TYPE, dispatcher.said(), dispatcher.key)
    assert dispatcher.ask(200, answer).cell == "0a"


@FUZZ
@given(status=st.sampled_from([200, 200, 204, 301, 400, 403, 500, 503, 599]), body=st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(dispatcher: Dispatcher, status: int, body: bytes) -> None:
    with pytest.raises(DrivewayError):
        dispatcher.ask(status, body)


@FUZZ
@given(envelope=st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "x"]), JUNK) | JUNK)
def test_envelopes_of_any_shape_are_refused(dispatcher: Dispatcher, envelope: Any) -> None:
    with pytest.raises(DrivewayError):
        dispatcher.ask(200, json.dumps(envelope).encode())


@FUZZ
@given(
    bent=st.dictionaries(
        st.sampled_from(["v", "unit", "cell", "keyid", "epoch", "endorsement", "extra"]),
        JUNK | st.sampled_from(["0a\n", "../../x", "a/b", "+", "#", "\x00", "x" * 65, "x" * 600, 2**53, -1]),
        max_size=3,
    ),
    kind=st.sampled_from(
        [enrolment_messages.ENROLMENT_TYPE, enrolment_messages.TPM_CHALLENGE_TYPE, messages.GRANT_TYPE, "x"]
    ),
)
def test_what_the_dispatcher_signed_counts_only_as_far_as_it_can_be_used(
    dispatcher: Dispatcher, bent: dict[str, Any], kind: str
) -> None:
    answer = dsse.sign(kind, dispatcher.said(**bent), dispatcher.key)
    try:
        enrolled = dispatcher.ask(200, answer)
    except DrivewayError:
        return
    assert kind == enrolment_messages.ENROLMENT_TYPE
    assert (enrolled.unit, enrolled.keyid) == (UNIT, dispatcher.unit_key.keyid)
    assert NAME.fullmatch(enrolled.cell), "it becomes part of a topic"
    assert enrolled.epoch >= 1
    assert enrolled.endorsement.isprintable()


def test_what_a_stranger_signed_is_refused(dispatcher: Dispatcher) -> None:
    with pytest.raises(TrustError):
        dispatcher.ask(200, dsse.sign(enrolment_messages.ENROLMENT_TYPE, dispatcher.said(), dispatcher.stranger))


@pytest.mark.parametrize("body", [b"[" * 10_000, b"x" * 20_000, b'{"payload":"' + b"A" * 15_000, b""])
def test_what_is_large_or_deep_is_refused(dispatcher: Dispatcher, body: bytes) -> None:
    with pytest.raises(DrivewayError):
        dispatcher.ask(200, body)
