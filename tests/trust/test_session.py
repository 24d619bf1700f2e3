"""Session certificates and checkpoints: what holds, and every way in which they must not."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.checkpoint import (
    CHECKPOINT_TYPE,
    Checkpoint,
    Earlier,
    contradicts,
    countersign,
    parse_checkpoint,
    verify_checkpoint,
    verify_countersigned,
)
from agent.trust.keys import load_public_key
from agent.trust.session import (
    SESSION_TYPE,
    SessionCertificate,
    SessionKey,
    TpmClock,
    clock_ran_back,
    parse_certificate,
    verify_session,
)

UNIT, WITNESS, STRANGER = SessionKey("file"), SessionKey("file"), SessionKey("file")
UNIT_KEYS = {UNIT.keyid: load_public_key(UNIT.public_key_pem())}
WITNESS_KEYS = {WITNESS.keyid: load_public_key(WITNESS.public_key_pem())}


def certificate(key: SessionKey, **changes: Any) -> SessionCertificate:
    made = SessionCertificate(
        v=1,
        unit="car-1",
        key_epoch=1,
        key_protection="file",
        session=7,
        public_key=key.public_key_base64(),
        boot_id="b",
        issued_boot_ms=1,
        issued_wall_ms=2,
    )
    return dataclasses.replace(made, **changes)


def checkpoint(**changes: Any) -> Checkpoint:
    made = Checkpoint(
        v=1,
        unit="car-1",
        key_epoch=1,
        size=5,
        root="ab" * 32,
        session=7,
        boot_id="b",
        issued_boot_ms=1,
        issued_wall_ms=2,
    )
    return dataclasses.replace(made, **changes)


def test_a_certified_session_key_is_the_one_that_signs() -> None:
    key = SessionKey("file")
    certified = verify_session(dsse.sign(SESSION_TYPE, certificate(key).to_bytes(), UNIT), UNIT_KEYS)
    assert certified.keyid == key.keyid
    assert certified.certificate == certificate(key)
    assert dsse.signature_holds(certified.key, key.sign(b"work"), b"work")


def test_nobody_certifies_himself() -> None:
    key = SessionKey("file")
    for signer in (key, STRANGER):
        with pytest.raises(TrustError, match="trusted key"):
            verify_session(dsse.sign(SESSION_TYPE, certificate(key).to_bytes(), signer), UNIT_KEYS)


def test_a_checkpoint_is_no_certificate() -> None:
    with pytest.raises(TrustError, match="expected"):
        verify_session(dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), UNIT), UNIT_KEYS)


@pytest.mark.parametrize("changes", [{"v": 2}, {"session": -1}, {"key_protection": "paper"}, {"unit": "a car"}])
def test_a_certificate_that_nobody_would_read_is_not_made(changes: dict[str, object]) -> None:
    with pytest.raises(TrustError):
        certificate(SessionKey("file"), **changes).to_bytes()


def test_a_key_of_another_curve_is_refused() -> None:
    der = generate_private_key(SECP384R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    known = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    strange = known.replace(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a811ccf5501822d"))
    assert strange != known  # SM2, which the library knows no keys of
    for key in (*(base64.b64encode(one).decode() for one in (der, strange)), "A" * 64):
        body = certificate(SessionKey("file"), public_key=key).to_bytes()
        with pytest.raises(TrustError, match="publicKey"):
            verify_session(dsse.sign(SESSION_TYPE, body, UNIT), UNIT_KEYS)


def test_a_spelling_of_its_own_is_refused() -> None:
    body = certificate(SessionKey("file")).to_bytes()
    with pytest.raises(TrustError, match="canonical"):
        verify_session(dsse.sign(SESSION_TYPE, body.replace(b",", b", "), UNIT), UNIT_KEYS)


def test_a_countersigned_checkpoint_is_one_envelope_with_two_signatures() -> None:
    signed = dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), UNIT)
    both = countersign(signed, WITNESS)
    assert verify_countersigned(both, UNIT_KEYS, WITNESS_KEYS) == checkpoint()
    assert countersign(both, WITNESS).count(WITNESS.keyid.encode()) == 1  # again changes nothing but the signature
    with pytest.raises(TrustError):
        verify_countersigned(signed, UNIT_KEYS, WITNESS_KEYS)
    with pytest.raises(TrustError):
        verify_countersigned(dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), WITNESS), UNIT_KEYS, WITNESS_KEYS)


def test_nobody_witnesses_himself() -> None:
    signed = dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), UNIT)
    with pytest.raises(TrustError, match="the same"):
        verify_countersigned(signed, UNIT_KEYS, UNIT_KEYS)


def test_an_empty_log_has_no_checkpoint() -> None:
    with pytest.raises(TrustError, match="empty"):
        checkpoint(size=0).to_bytes()


def test_what_a_checkpoint_continues_may_be_left_out_and_has_one_spelling() -> None:
    plain = checkpoint().to_bytes()
    assert b"continues" not in plain
    assert parse_checkpoint(plain).continues is None
    said = checkpoint(continues=Earlier(size=3, root="ab" * 32))
    assert parse_checkpoint(said.to_bytes()) == said
    body = json.loads(said.to_bytes())
    for bad in (None, {}, {"size": 3}, {"size": 3, "root": "ab"}, {"size": 3, "root": "ab" * 32, "more": 1}, 3):
        with pytest.raises(TrustError, match=r"continues|canonical"):
            parse_checkpoint(dsse.canonical_json(body | {"continues": bad}))
    for size in (0, 5, 6):
        with pytest.raises(TrustError, match="no earlier log"):
            checkpoint(continues=Earlier(size=size, root="ab" * 32)).to_bytes()


def test_what_checkpoints_say_of_the_past_contradicts_too() -> None:
    one = checkpoint(continues=Earlier(size=3, root="ab" * 32))
    other = checkpoint(size=9, continues=Earlier(size=3, root="cd" * 32))
    assert contradicts(one, other) == 3
    assert contradicts(checkpoint(size=3, root="cd" * 32), one) == 3
    assert contradicts(one, checkpoint(size=9, continues=Earlier(size=5, root="00" * 32))) == 5
    assert contradicts(one, checkpoint(size=9, continues=Earlier(size=3, root="ab" * 32))) is None
    assert contradicts(one, dataclasses.replace(other, unit="car-2")) is None


def test_two_roots_of_one_size_contradict_each_other() -> None:
    signed = dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), UNIT)
    one = verify_checkpoint(signed, UNIT_KEYS)
    assert contradicts(one, checkpoint(root="cd" * 32))
    assert not contradicts(one, checkpoint())
    assert not contradicts(one, checkpoint(size=6, root="cd" * 32))
    assert not contradicts(one, checkpoint(unit="car-2", root="cd" * 32))


# --- the TPM's clock ----------------------------------------------------------------------------------------------

CLOCK = TpmClock(clock_ms=1_000, reset_count=4, restart_count=2, safe=True)


def with_clock(number: int = 7, **changes: Any) -> SessionCertificate:
    return certificate(STRANGER, session=number, tpm_clock=dataclasses.replace(CLOCK, **changes))


def test_a_certificate_says_what_the_tpms_clock_showed() -> None:
    said = with_clock(safe=False)
    assert b'"tpmClock":{"clockMs":1000,"resetCount":4,"restartCount":2,"safe":false}' in said.to_bytes()
    assert parse_certificate(said.to_bytes()) == said


def test_a_certificate_from_before_the_clock_was_said_still_reads() -> None:
    old = certificate(STRANGER).to_bytes()
    assert b"tpmClock" not in old
    assert parse_certificate(old).tpm_clock is None
    with pytest.raises(TrustError, match="canonical spelling"):
        parse_certificate(dsse.canonical_json({**json.loads(old), "tpmClock": None}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({"safe": 1}, "safe: neither true nor false"),
        ({"clockMs": True}, "clockMs: not a whole number"),
        ({"resetCount": -1}, "resetCount: not a whole number"),
        ({"resets": 3}, "'resets' is unknown"),
    ],
)
def test_a_clock_of_another_form_is_refused(spoil: dict[str, Any], said: str) -> None:
    body = json.loads(with_clock().to_bytes())
    body["tpmClock"] |= spoil
    with pytest.raises(TrustError, match=said):
        parse_certificate(dsse.canonical_json(body))


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (with_clock(8, clock_ms=1_001), ""),
        (with_clock(8), ""),
        (with_clock(8, clock_ms=5, restart_count=0, reset_count=5), ""),
        (with_clock(8, clock_ms=999), "the TPM's clock went from 1000 to 999 ms from session 7 to 8 in one reset"),
        (with_clock(8, clock_ms=2_000, restart_count=1), "the TPM's restarts went from 2 to 1 from session 7 to 8"),
        (with_clock(8, clock_ms=2_000, reset_count=3), "the TPM's resets went from 4 to 3 from session 7 to 8"),
        (dataclasses.replace(with_clock(8, clock_ms=1), key_epoch=2), ""),
        (certificate(STRANGER, session=8), ""),
        (with_clock(7, clock_ms=1), ""),
    ],
)
def test_the_tpms_clock_never_runs_back_between_two_sessions(later: SessionCertificate, said: str) -> None:
    assert clock_ran_back(with_clock(), later).startswith(said)
    assert bool(clock_ran_back(later, with_clock())) == bool(said), "whichever is looked at first"
