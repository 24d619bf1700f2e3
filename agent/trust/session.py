"""Session keys: one for each parking, made in memory, certified by the unit's own key, and gone with the process.

A hardware key signs a few times a second at best, so it signs little: a certificate for each session and a checkpoint
now and then (`agent.trust.checkpoint`). Statements are signed by the session key. A certificate is a DSSE envelope of
its own type around a record; it travels with whatever the session key signed, so that each statement can be verified
alone, with nothing but the unit's public key.

`session` rises strictly for a key epoch. `keyProtection` is where the unit's key lives; a session key lives in memory,
whatever certified it, and is worth what that key is worth for as long as one parking.

Where the unit's key is in a TPM the certificate says what that TPM's clock showed (`tpmClock`). A TPM's counters only
rise, and its time only between two resets, so a unit whose disk was put back, or whose certificates were made up later
and put before others, contradicts itself (`clock_ran_back`). The unit says it; the TPM does not sign it.
"""

from __future__ import annotations

import base64
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
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import VerifyingKey
from agent.trust.keys import keyid, load_der_public_key
from agent.trust.records import Identifier, KeyProtection, Text, read, spell

SESSION_TYPE = "application/vnd.driveway.session+json"
VERSION = 1
FIRST_KEY_EPOCH = 1
PublicKey = Annotated[str, re.compile(r"[A-Za-z0-9+/]{64,256}={0,2}")]
"""A SubjectPublicKeyInfo in DER, base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClock:
    """What TPM2_ReadClock answered: milliseconds the TPM was powered, its resets, and its restarts since the last one.

    `safe` is false when, after a power cut, it may have shown a later time before.
    """

    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCertificate:
    """What a unit's key says of a session key; times are those of the boot `boot_id`, the wall clock proves nothing.

    `tpm_clock` is left out where the unit's key is in no TPM, and in certificates from before it was said.
    """

    v: int
    unit: Identifier
    key_epoch: int
    key_protection: KeyProtection
    session: int
    public_key: PublicKey
    boot_id: Text
    issued_boot_ms: int
    issued_wall_ms: int
    tpm_clock: TpmClock | None = None

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
    key: SessionKey,
    *,
    unit: str,
    key_epoch: int,
    number: int,
    boot_id: str,
    boot_ms: int,
    wall_ms: int,
    tpm_clock: TpmClock | None = None,
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
        tpm_clock=tpm_clock,
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


def clock_ran_back(one: SessionCertificate, other: SessionCertificate) -> str:
    """In which way the TPM's clock ran back between two sessions that one key certified, in words; "" where it did not.

    Both hold already. Of different key epochs nothing is said: a key stays in its TPM, and two may be in two. Across a
    reset the time says nothing, since what was not written down before a power cut is lost; the resets are counted.
    """
    earlier, later = sorted((one, other), key=lambda certificate: certificate.session)
    before, after = earlier.tpm_clock, later.tpm_clock
    comparable = one.key_epoch == other.key_epoch and earlier.session < later.session
    if not comparable or before is None or after is None:
        return ""
    between = f" from session {earlier.session} to {later.session}"
    if after.reset_count < before.reset_count:
        return f"the TPM's resets went from {before.reset_count} to {after.reset_count}{between}"
    if after.reset_count > before.reset_count:
        return ""
    if after.restart_count < before.restart_count:
        return f"the TPM's restarts went from {before.restart_count} to {after.restart_count}{between} in one reset"
    if after.clock_ms < before.clock_ms:
        return f"the TPM's clock went from {before.clock_ms} to {after.clock_ms} ms{between} in one reset"
    return ""


def parse_certificate(body: bytes) -> SessionCertificate:
    """The certificate in `body`, every field checked; raises TrustError."""
    certificate = read(SessionCertificate, body, "session")
    if certificate.v != VERSION:
        raise TrustError(f"session: version {certificate.v} is not understood here (this side reads {VERSION})")
    return certificate


def verify_session(envelope: bytes, unit_keys: Mapping[str, VerifyingKey]) -> Certified:
    """The session key that one of the unit's keys certified in `envelope`; raises TrustError."""
    certificate = parse_certificate(dsse.verify(envelope, SESSION_TYPE, unit_keys))
    try:
        return Certified(certificate, load_der_public_key(certificate.public_key))
    except TrustError as error:
        raise TrustError(f"session: publicKey: {error.what}") from error
