"""Session keys: one for each parking, made in memory, certified by the unit's own key, and gone with the process.

A hardware key signs a few times a second at best, so it signs little: a certificate for each session and a checkpoint
now and then (`agent.trust.checkpoint`). Statements are signed by the session key. A certificate is a DSSE envelope of
its own type around a record; it travels with whatever the session key signed, so that each statement can be verified
alone, with nothing but the unit's public key.

`session` rises strictly for a key epoch. `keyProtection` is where the unit's key lives; a session key lives in memory,
whatever certified it, and is worth what that key is worth for as long as one parking.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.keys import keyid
from agent.trust.records import Identifier, KeyProtection, Text, read, spell

SESSION_TYPE = "application/vnd.driveway.session+json"
VERSION = 1
FIRST_KEY_EPOCH = 1
PublicKey = Annotated[str, re.compile(r"[A-Za-z0-9+/]{64,256}={0,2}")]
"""A SubjectPublicKeyInfo in DER, base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCertificate:
    """What a unit's key says of a session key; times are those of the boot `boot_id`, the wall clock proves nothing."""

    v: int
    unit: Identifier
    key_epoch: int
    key_protection: KeyProtection
    session: int
    public_key: PublicKey
    boot_id: Text
    issued_boot_ms: int
    issued_wall_ms: int

    def to_bytes(self) -> bytes:
        """The certificate's payload; raises TrustError when a field could not be read back."""
        body = spell(self)
        parse_certificate(body)
        return body


@dataclass(frozen=True, slots=True)
class Certified:
    """A certificate that holds, and the key it is about."""

    certificate: SessionCertificate
    key: EllipticCurvePublicKey

    @property
    def keyid(self) -> str:
        """Of the session key."""
        return keyid(self.key)


class SessionKey:
    """A signing key in memory; it has no way out of the process. See `agent.ports.Signer`."""

    def __init__(self, protection: str) -> None:
        """`protection` is that of the key which is to certify it: what a statement says of its signature's worth."""
        self._key = generate_private_key(SECP256R1())
        self.protection = protection
        self.keyid = keyid(self._key.public_key())

    def public_key_base64(self) -> str:
        """The public key as a certificate has it."""
        der = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(der).decode("ascii")

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER."""
        return self._key.sign(message, ECDSA(SHA256()))


@dataclass(frozen=True, slots=True)
class Session:
    """A session: its key, and the certificate that goes with what the key signs."""

    number: int
    key: SessionKey
    certificate: bytes


def certificate_of(
    key: SessionKey, *, unit: str, key_epoch: int, number: int, boot_id: str, boot_ms: int, wall_ms: int
) -> SessionCertificate:
    """What the unit's key is to sign about `key`."""
    return SessionCertificate(
        v=VERSION,
        unit=unit,
        key_epoch=key_epoch,
        key_protection=key.protection,
        session=number,
        public_key=key.public_key_base64(),
        boot_id=boot_id,
        issued_boot_ms=boot_ms,
        issued_wall_ms=wall_ms,
    )


def begin(
    unit_key: dsse.SigningKey, protection: str, *, unit: str, number: int, boot_id: str = "", boot_ms: int = 0
) -> Session:
    """A session that a key at hand certifies at once, in its first epoch; for keys that are slow see `agent.notary`."""
    key = SessionKey(protection)
    said = certificate_of(
        key, unit=unit, key_epoch=FIRST_KEY_EPOCH, number=number, boot_id=boot_id, boot_ms=boot_ms, wall_ms=0
    )
    return Session(number, key, dsse.sign(SESSION_TYPE, said.to_bytes(), unit_key))


def parse_certificate(body: bytes) -> SessionCertificate:
    """The certificate in `body`, every field checked; raises TrustError."""
    certificate = read(SessionCertificate, body, "session")
    if certificate.v != VERSION:
        raise TrustError(f"session: version {certificate.v} is not understood here (this side reads {VERSION})")
    return certificate


def verify_session(envelope: bytes, unit_keys: Mapping[str, EllipticCurvePublicKey]) -> Certified:
    """The session key that one of the unit's keys certified in `envelope`; raises TrustError."""
    certificate = parse_certificate(dsse.verify(envelope, SESSION_TYPE, unit_keys))
    try:
        key = load_der_public_key(base64.b64decode(certificate.public_key, validate=True))
    except (ValueError, binascii.Error, TypeError) as error:
        raise TrustError("session: publicKey is not a public key") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise TrustError("session: publicKey is not ECDSA P-256")
    return Certified(certificate, key)
