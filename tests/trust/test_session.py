"""Session certificates and checkpoints: what holds, and every way in which they must not."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.checkpoint import (
    CHECKPOINT_TYPE,
    Checkpoint,
    contradicts,
    countersign,
    verify_checkpoint,
    verify_countersigned,
)
from agent.trust.keys import load_public_key
from agent.trust.session import SESSION_TYPE, SessionCertificate, SessionKey, verify_session

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
    for key in (base64.b64encode(der).decode(), "A" * 64):
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


def test_two_roots_of_one_size_contradict_each_other() -> None:
    signed = dsse.sign(CHECKPOINT_TYPE, checkpoint().to_bytes(), UNIT)
    one = verify_checkpoint(signed, UNIT_KEYS)
    assert contradicts(one, checkpoint(root="cd" * 32))
    assert not contradicts(one, checkpoint())
    assert not contradicts(one, checkpoint(size=6, root="cd" * 32))
    assert not contradicts(one, checkpoint(unit="car-2", root="cd" * 32))
