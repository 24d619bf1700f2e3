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

from agent.trust.keys import keyid

_CURVE_ORDER_BITS = 255
"""Fewer bits than the curve's order has, so that every digest is a key."""


class SeededSigner:
    """A signing key that a name and a seed make; see `agent.ports.Signer`."""

    protection = "file"

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        number = int.from_bytes(digest) >> (256 - _CURVE_ORDER_BITS)
        self._key = derive_private_key(number + 1, SECP256R1())
        self._algorithm = ECDSA(SHA256(), deterministic_signing=True)
        self.keyid = keyid(self._key.public_key())

    def public_key(self) -> EllipticCurvePublicKey:
        """The public key, as a verifier wants it."""
        return self._key.public_key()

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return self.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER, by RFC 6979."""
        return self._key.sign(message, self._algorithm)
