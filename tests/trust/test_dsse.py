"""DSSE envelopes and strict JSON: the public vectors, independent verifiers, tampering, and noise."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256K1,
    SECP256R1,
    SECP384R1,
    EllipticCurve,
    EllipticCurvePublicNumbers,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer._key import SSlibKey

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.keys import FileSigner, keyid, load_public_key, load_verifying_key
from agent.trust.statement import PAYLOAD_TYPE
from tests.trust.conformance import DSSE, ECDSA_P256, ED25519, vector

TYPE = "application/vnd.driveway.test+json"
PAYLOAD = b'{"v":1,"rid":"r1","list":[1,2,34]}'


def test_round_trip_returns_exactly_the_signed_bytes(signer: FileSigner) -> None:
    payload = b'  {"odd" :\t"spacing"}\n'
    envelope = dsse.sign(TYPE, payload, signer)
    assert dsse.verify(envelope, TYPE, {signer.keyid: signer.public_key()}) == payload


def test_an_ed25519_key_in_a_file_is_verified_too() -> None:
    """Publishers and operators may have one; whoever is trusted is named by the key, never by the message."""
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    trusted = load_verifying_key(pem)
    signature = dsse.Signature(keyid(trusted), key.sign(dsse.pae(TYPE, PAYLOAD)))
    envelope = dsse.wrap(TYPE, PAYLOAD, (signature,))
    assert dsse.verify(envelope, TYPE, {keyid(trusted): trusted}) == PAYLOAD
    with pytest.raises(TrustError, match="no signature"):
        dsse.verify(
            envelope.replace(b"driveway.test", b"driveway.tesu"),
            "application/vnd.driveway.tesu+json",
            {keyid(trusted): trusted},
        )
    with pytest.raises(TrustError, match="not ECDSA P-256"):
        load_public_key(pem)  # no unit has one


@pytest.mark.parametrize("curve", [SECP384R1(), SECP256K1()])
def test_a_key_of_another_kind_is_nobodys(curve: EllipticCurve) -> None:
    pem = generate_private_key(curve).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TrustError, match="neither ECDSA P-256 nor Ed25519"):
        load_verifying_key(pem.decode())


def test_the_protocols_own_vector() -> None:
    case = json.loads(vector(DSSE).read_text())
    assert dsse.pae(case["payloadType"], case["payload"].encode()) == case["pae"].encode()
    key = EllipticCurvePublicNumbers(int(case["key"]["x"]), int(case["key"]["y"]), SECP256R1()).public_key()
    raw = base64.b64decode(case["envelope"]["signatures"][0]["sig"])  # r||s there, DER in the field
    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    signature = {"keyid": keyid(key), "sig": base64.b64encode(der).decode()}
    envelope = json.dumps({**case["envelope"], "signatures": [signature]}).encode()
    assert dsse.verify(envelope, case["payloadType"], {keyid(key): key}) == case["payload"].encode()


@pytest.mark.parametrize(("name", "least"), [(ECDSA_P256, 400), (ED25519, 100)])
def test_wycheproof(name: str, least: int) -> None:
    suite = json.loads(vector(name).read_text())
    checked = 0
    for group in suite["testGroups"]:
        key = load_der_public_key(bytes.fromhex(group["publicKeyDer"]))
        for case in group["tests"]:
            holds = dsse.signature_holds(key, bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))  # type: ignore[arg-type]  # the suites' keys are of these kinds
            assert holds == (case["result"] == "valid"), case
            checked += 1
    assert checked == suite["numberOfTests"] > least


def test_securesystemslib_verifies_what_we_sign(signer: FileSigner, stranger: FileSigner) -> None:
    envelope = OtherEnvelope.from_dict(json.loads(dsse.sign(PAYLOAD_TYPE, PAYLOAD, signer)))
    key = SSlibKey.from_crypto(signer.public_key(), keyid=signer.keyid)
    assert set(envelope.verify([key], 1)) == {signer.keyid}
    other = SSlibKey.from_crypto(stranger.public_key(), keyid=signer.keyid)
    with pytest.raises(Exception, match="Accepted signatures"):
        envelope.verify([other], 1)


def test_we_verify_what_others_spell_differently(signer: FileSigner) -> None:
    """Other fields, spaces, URL-safe base64 and further signatures are all legal DSSE."""
    body = json.loads(dsse.sign(TYPE, b"\xfb\xff\xfe" * 20, signer))
    body["payload"] = body["payload"].replace("+", "-").replace("/", "_")
    body["signatures"].insert(0, {"keyid": "elsewhere", "sig": "AAAA"})
    body["comment"] = "ignored"
    envelope = json.dumps(body, indent=2).encode()
    assert dsse.verify(envelope, TYPE, {signer.keyid: signer.public_key()}) == b"\xfb\xff\xfe" * 20


def tampered(envelope: dict[str, Any], stranger: FileSigner) -> Iterator[tuple[str, dict[str, Any]]]:
    signature = envelope["signatures"][0]
    payload = base64.b64decode(envelope["payload"])

    def with_signature(**change: str) -> dict[str, Any]:
        return {**envelope, "signatures": [{**signature, **change}]}

    flipped = bytes([payload[0] ^ 1]) + payload[1:]
    yield "payload changed", {**envelope, "payload": base64.b64encode(flipped).decode()}
    yield "payload cut", {**envelope, "payload": base64.b64encode(payload[:-1]).decode()}
    yield "payload empty", {**envelope, "payload": ""}
    respelled = envelope["payload"].removesuffix("Q==") + "R=="  # the same bytes, with a bit that means nothing
    assert base64.b64decode(respelled, validate=True) == payload
    yield "payload in another spelling", {**envelope, "payload": respelled}
    yield "payload not base64", {**envelope, "payload": envelope["payload"] + "!"}
    yield "payload of another type", {**envelope, "payload": 7}
    yield "payload missing", {name: value for name, value in envelope.items() if name != "payload"}
    yield "type changed", {**envelope, "payloadType": TYPE + "x"}
    yield "type missing", {name: value for name, value in envelope.items() if name != "payloadType"}
    yield "signatures empty", {**envelope, "signatures": []}
    yield "signatures missing", {name: value for name, value in envelope.items() if name != "signatures"}
    yield "signatures too many", {**envelope, "signatures": [signature] * 5}
    yield "signature not an object", {**envelope, "signatures": ["x"]}
    yield "keyid changed", with_signature(keyid="0" * 64)
    yield "keyid of another key", with_signature(keyid=stranger.keyid)
    yield "keyid missing", {**envelope, "signatures": [{"sig": signature["sig"]}]}
    yield "sig empty", with_signature(sig="")
    yield (
        "sig by a stranger",
        with_signature(sig=base64.b64encode(stranger.sign(dsse.pae(TYPE, payload))).decode("ascii")),
    )
    der = base64.b64decode(signature["sig"])
    for position in range(len(der)):
        changed = der[:position] + bytes([der[position] ^ 0x10]) + der[position + 1 :]
        yield f"sig byte {position}", with_signature(sig=base64.b64encode(changed).decode())


def test_every_change_of_an_envelope_is_refused(signer: FileSigner, stranger: FileSigner) -> None:
    good = json.loads(dsse.sign(TYPE, PAYLOAD, signer))
    keys = {signer.keyid: signer.public_key(), stranger.keyid: stranger.public_key()}
    assert dsse.verify(json.dumps(good).encode(), TYPE, keys) == PAYLOAD
    for change, envelope in tampered(good, stranger):
        with pytest.raises(TrustError):
            pytest.fail(f"accepted: {change}: {dsse.verify(json.dumps(envelope).encode(), TYPE, keys)!r}")


def test_a_key_that_is_not_trusted_counts_for_nothing(signer: FileSigner, stranger: FileSigner) -> None:
    envelope = dsse.sign(TYPE, PAYLOAD, stranger)
    with pytest.raises(TrustError, match="trusted key"):
        dsse.verify(envelope, TYPE, {signer.keyid: signer.public_key()})
    with pytest.raises(TrustError, match="trusted key"):
        dsse.verify(envelope, TYPE, {})


def test_too_large_to_sign_is_said_at_once(signer: FileSigner) -> None:
    with pytest.raises(TrustError, match="larger"):
        dsse.sign(TYPE, b"x" * dsse.MAX_BYTES, signer)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1.0}',
        b'{"a":1e3}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e400}',
        b'{"a":-0}',
        b'{"a":9007199254740992}',
        b'{"a":-9007199254740992}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1,"a":2}',
        b'{"a":1,"A":2}',
        b'{"a":1,"\\u0061":2}',
        '{"ä":1}'.encode(),
        b'{"a":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\xff"}',
        '{"a":1}'.encode("utf-16"),
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1} x',
        b'{"a":1',
        b"",
        b"[" * 17 + b"]" * 17,
        b"[" * 60_000,
        b'{"a":' * 9000,
        b'"' + b"a" * dsse.MAX_BYTES + b'"',
        b'{"a":01}',
        b"{'a':1}",
        b'"' + b'\\"' * 32_000,
        b'"' * 65_535,
    ],
)
def test_strict_json_refuses(body: bytes) -> None:
    with pytest.raises(TrustError):
        dsse.strict_json(body)


def test_strict_json_accepts() -> None:
    body = b'{"a":[1,-2,9007199254740991],"b":{"c":null,"d":true},"e":"\\u00e4 [[[[{{{{ \\" \\\\"}'
    assert dsse.strict_json(body) == {
        "a": [1, -2, 2**53 - 1],
        "b": {"c": None, "d": True},
        "e": 'ä [[[[{{{{ " \\',
    }
    assert dsse.strict_json(b"[" * 16 + b"]" * 16)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text("abcdef_", max_size=8), children, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_is_strict_and_round_trips(value: dsse.JsonValue) -> None:
    body = dsse.canonical_json(value)
    assert body.isascii()
    assert dsse.strict_json(body) == value
    assert dsse.canonical_json(dsse.strict_json(body)) == body


def only_trust_errors(call: Callable[[], object]) -> None:
    with contextlib.suppress(TrustError):
        call()


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_noise_never_escapes_as_another_error(body: bytes) -> None:
    only_trust_errors(lambda: dsse.strict_json(body))
    only_trust_errors(lambda: dsse.parse(body))


@pytest.fixture(scope="module")
def good(signer: FileSigner) -> bytes:
    """Signed once: signatures differ in length from one to the next, and with it the positions in the envelope."""
    return dsse.sign(TYPE, PAYLOAD, signer)


@given(st.data())
def test_a_bent_envelope_never_verifies_as_something_else(signer: FileSigner, good: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(good) - 1))
    insert = data.draw(st.binary(max_size=6))
    cut = data.draw(st.integers(0, 6))
    bent = good[:position] + insert + good[position + cut :]
    try:
        payload = dsse.verify(bent, TYPE, {signer.keyid: signer.public_key()})
    except TrustError:
        return
    assert payload == PAYLOAD
