"""Keys and names made from a seed, so that a run is the same to the last byte of its last signature.

ECDSA needs a number that nobody knows for each signature; RFC 6979 derives it from the key and the message, so the
same message has the same signature. The keys are worth nothing: whoever knows the seed has them.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.trust import dsse
from agent.trust.keys import keyid
from agent.trust.session import FIRST_KEY_EPOCH, SESSION_TYPE, Session, SessionKey, certificate_of

_CURVE_ORDER_BITS = 255
"""Fewer bits than the curve's order has, so that every digest is a key."""


class SeededSigner:
    """A signing key that a name and a seed make; see `agent.ports.Signer`."""

    protection = "file"

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        number = int.from_bytes(digest) >> (256 - _CURVE_ORDER_BITS)
        self.private_key = derive_private_key(number + 1, SECP256R1())
        self._algorithm = ECDSA(SHA256(), deterministic_signing=True)
        self.keyid = keyid(self.private_key.public_key())

    def public_key(self) -> EllipticCurvePublicKey:
        """The public key, as a verifier wants it."""
        return self.private_key.public_key()

    def begin_session(self, unit: str, number: int, boot_id: str) -> Session:
        """A session that this key certifies, with a key that the seed and the number make."""
        key = SeededSessionKey(SeededSigner(self._seed, f"{self._name}, session {number}"))
        said = certificate_of(
            key, unit=unit, key_epoch=FIRST_KEY_EPOCH, number=number, boot_id=boot_id, boot_ms=0, wall_ms=0
        )
        return Session(number, key, dsse.sign(SESSION_TYPE, said.to_bytes(), self))

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER, by RFC 6979."""
        return self.private_key.sign(message, self._algorithm)


class SeededSessionKey(SessionKey):
    """A session's key whose every signature is known beforehand."""

    def __init__(self, seeded: SeededSigner) -> None:
        super().__init__(seeded.protection)
        self._seeded = seeded
        self._key = seeded.private_key
        self.keyid = seeded.keyid

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER, by RFC 6979."""
        return self._seeded.sign(message)
