"""Anybody may ask to be enrolled, with anything: who may gets a place in the book, others a reason; nothing crashes."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.errors import TrustError
from agent.fleet.enrolment_messages import ENROLMENT_TYPE, Enrolled
from agent.fleet.messages import MessageError, decode
from agent.trust import dsse
from agent.trust.succession import SUCCESSION_TYPE, Succession
from hil.dispatcher.memory import MemoryDatabase
from hil.dispatcher.units import EnrolmentRefusedError
from hil.dispatcher.web import WebServer
from tests.hil.honest_car import Desk, new_signer

SPKI = PublicFormat.SubjectPublicKeyInfo
UNIT = re.compile(r"[A-Za-z0-9_-]{1,64}")
REFUSALS = (TrustError, MessageError, EnrolmentRefusedError)
FUZZ = settings(max_examples=200, deadline=None, derandomize=True)
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = itertools.count()


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, SPKI)
    return text.decode("ascii")


OTHER_KEYS = (
    pem(ec.generate_private_key(ec.SECP384R1())),
    pem(rsa.generate_private_key(public_exponent=65_537, key_size=1024)),
    "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"), database=MemoryDatabase)
    yield desk
    desk.book.close()


def request(desk: Desk, **bent: Any) -> bytes:
    """An enrolment that a new key signed, with these fields other than they should be; its code is good."""
    signer, number = new_signer(), next(NUMBERS)
    desk.book.units.add_code(f"code-{number}")
    honest = {
        "v": 1,
        "code": f"code-{number}",
        "unit": f"unit-{number}",
        "public_key_pem": signer.public_key_pem(),
        "key_protection": "file",
    }
    return dsse.sign(ENROLMENT_TYPE, json.dumps(honest | bent).encode(), signer)


def test_the_honest_request_is_answered(desk: Desk) -> None:
    answer = dsse.verify(desk.enrol(request(desk)), ENROLMENT_TYPE, desk.trusted())
    assert UNIT.fullmatch(decode(answer, Enrolled).unit)


@FUZZ
@given(body=st.binary(max_size=300) | st.builds(lambda value: json.dumps(value).encode(), JUNK))
def test_bytes_of_any_kind_are_refused(desk: Desk, body: bytes) -> None:
    for ask in (desk.service.enrol, desk.service.rotate):
        with pytest.raises(REFUSALS):
            ask(body)


@FUZZ
@given(
    bent=st.dictionaries(
        st.sampled_from(["v", "code", "unit", "public_key_pem", "key_protection", "tpm", "extra"]),
        JUNK
        | st.sampled_from(["car\n", "../../x", "a/b", "+", "#", "\x00", "x" * 65, "x" * 2_000, 2**53, *OTHER_KEYS]),
        min_size=1,
        max_size=3,
    )
)
def test_a_unit_is_admitted_under_a_name_that_can_be_used_or_not_at_all(desk: Desk, bent: dict[str, Any]) -> None:
    before = len(desk.book.database.rows("SELECT unit FROM units"))
    try:
        answer = desk.enrol(request(desk, **bent))
    except REFUSALS as error:
        assert str(error)  # noqa: PT017 - either may happen
        assert len(desk.book.database.rows("SELECT unit FROM units")) == before
        return
    enrolled = decode(dsse.verify(answer, ENROLMENT_TYPE, desk.trusted()), Enrolled)
    assert UNIT.fullmatch(enrolled.unit), "it becomes part of a topic and of a path"
    unit = desk.book.units.get(enrolled.unit)
    assert unit is not None
    assert (unit.cell, unit.keyid) == (enrolled.cell, enrolled.keyid)


@FUZZ
@given(
    tpm=st.dictionaries(
        st.sampled_from(
            ["request", "ek_certificate", "ek", "ak", "key", "certification", "signature", "activation", "x"]
        ),
        JUNK | st.sampled_from(["", "AAAA", "!", "A" * 3_000]),
        min_size=1,
    ),
    protection=st.sampled_from(["tpm", "ftpm"]),
)
def test_nobody_is_believed_to_have_a_tpm_for_saying_so(desk: Desk, tpm: dict[str, Any], protection: str) -> None:
    whole = dict.fromkeys(("request", "ek_certificate", "ek", "ak", "key", "certification", "signature"), "AAAA")
    with pytest.raises(REFUSALS):
        desk.enrol(request(desk, key_protection=protection, tpm=whole | tpm))


@FUZZ
@given(
    bent=st.dictionaries(
        st.sampled_from(
            ["v", "unit", "epoch", "oldKeyid", "publicKey", "protection", "overlapS", "lastSession", "reason"]
        ),
        JUNK | st.sampled_from(["unit-0\n", "file", "tpm", 1, 2, 3, 2**53, -1, "0" * 64]),
        max_size=3,
    ),
    kind=st.sampled_from([SUCCESSION_TYPE, SUCCESSION_TYPE, ENROLMENT_TYPE]),
)
def test_no_key_hands_over_that_is_another_units(desk: Desk, bent: dict[str, Any], kind: str) -> None:
    """A thief who has a key of its own, and says that the unit's key handed over to it."""
    thief, number = new_signer(), next(NUMBERS)
    desk.enrol(request(desk, unit=f"robbed-{number}"))
    robbed = desk.book.units.get(f"robbed-{number}")
    assert robbed is not None
    said = Succession(
        v=1,
        unit=robbed.unit,
        epoch=2,
        old_keyid=robbed.keyid,
        public_key=base64.b64encode(thief.public_key().public_bytes(Encoding.DER, SPKI)).decode("ascii"),
        protection="file",
        overlap_s=3_600,
        last_session=1,
        reason="theft",
    )
    honest = json.loads(said.to_bytes())
    payload = json.dumps(honest | bent, sort_keys=True, separators=(",", ":")).encode()
    envelope = json.loads(dsse.sign(kind, payload, thief))
    with pytest.raises(REFUSALS):
        desk.service.rotate(json.dumps({"v": 1, "succession": envelope}).encode())
    assert desk.book.units.get(robbed.unit) == robbed


def test_over_http_every_refusal_is_a_sentence_and_the_next_one_is_served(tmp_path: Path) -> None:
    desk = Desk(tmp_path, database=MemoryDatabase)
    web = WebServer(0, desk.objects, desk.service.enrol, rotate=desk.service.rotate)
    web.start()
    address = ("127.0.0.1", int(web.url.rpartition(":")[2]))

    def post(path: str, body: bytes) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*address, timeout=10)
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        path=st.sampled_from(["/enrol", "/succession"]),
        body=st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), JUNK),
    )
    def refused(path: str, body: bytes) -> None:
        status, said = post(path, body)
        assert status in {400, 403}
        assert said["error"]

    with capture_logs() as logs:
        refused()
        assert post("/enrol", b"x" * 20_000)[0] == 413
    web.close()
    desk.book.close()
    assert [one for one in logs if one["event"] == "web_failed"] == []
