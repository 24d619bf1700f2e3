"""Whether a unit's key lives in a TPM, as the issuer of certificates checks it (the car: `agent.trust.tpm_enrolment`).

Two proofs together. Only the TPM that has the endorsement key can open a credential, and only if it also holds the
attestation key for whose name it was sealed: `make_credential` is TPM2_MakeCredential (TPM 2.0 Library, Part 1, 24) in
software. And what that attestation key says of the unit's key, the TPM says (`check_evidence`): it was made there, is
for signing, and can never leave. A certificate for the unit's key is issued when both hold.

That the endorsement key is a TPM's rests on its certificate: the maker's, or the fleet's own for a board whose firmware
TPM it provisioned (`hil.dispatcher.endorsement`). Without one, anybody's emulator passes.

All failures are `TrustError`.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.hashes import SHA256

from agent.errors import TrustError
from agent.trust.dsse import signature_holds
from agent.trust.keys import keyid
from agent.trust.tpm_enrolment import TpmEvidence
from agent.trust.tpm_structures import Attestation, Public, parse_attestation, parse_public
from agent.trust.tpm_wire import block

SECRET_BYTES = 32
_SEED_BYTES = 32
_AES_KEY_BYTES = 16
_COORDINATE_BYTES = 32
_MAX_SECRET_BYTES = 32
"""TPM2B_DIGEST holds no more than the name algorithm's digest."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A secret that only the TPM can give back, and what it is given for that."""

    secret: bytes
    blob: bytes
    encrypted_seed: bytes


@dataclass(frozen=True, slots=True)
class Attested:
    """A unit's key that lives in the TPM of this endorsement key; `clock` is that TPM's."""

    keyid: str
    key: EllipticCurvePublicKey
    endorsement: Public
    attestation: Attestation


def check_evidence(evidence: TpmEvidence, request: bytes) -> Attested:
    """The unit's key, proven by its attestation key to be of the same TPM, for this certificate request (DER).

    The attestation key itself is proven only when the challenge comes back. Raises TrustError.
    """
    ek, ak, key = parse_public(evidence.ek), parse_public(evidence.ak), parse_public(evidence.key)
    if not ek.is_endorsement_key:
        raise TrustError("evidence: its endorsement key could be used for more than opening credentials")
    if not ak.is_attestation_key or not isinstance(ak.key, EllipticCurvePublicKey):
        raise TrustError("evidence: its attestation key could sign what the TPM did not say")
    if not key.is_signing_key or not isinstance(key.key, EllipticCurvePublicKey):
        raise TrustError("evidence: the unit's key is no P-256 signing key that was made in the TPM and stays there")
    if not signature_holds(ak.key, evidence.signature, evidence.certification):
        raise TrustError("evidence: the certification is not signed by the attestation key")
    said = parse_attestation(evidence.certification)
    if said.kind != Attestation.CERTIFY:
        raise TrustError("evidence: the attestation is no certification of a key")
    if said.certified_name != key.name:
        raise TrustError("evidence: the attestation key certified another key")
    if said.extra_data != hashlib.sha256(request).digest():
        raise TrustError("evidence: it was made for another certificate request")
    if keyid(_requested_key(request)) != keyid(key.key):
        raise TrustError("evidence: the certificate request is for another key")
    return Attested(keyid(key.key), key.key, ek, said)


def make_credential(endorsement: Public, name: bytes, secret: bytes | None = None) -> Challenge:
    """Seal `secret` (default: 32 random bytes) for the key `name` in the TPM of this endorsement key.

    Part 1, 24: a seed goes to the EK; from it come an AES key (with the name) and an HMAC key. Raises TrustError.
    """
    sealed = secrets.token_bytes(SECRET_BYTES) if secret is None else secret
    if not 0 < len(sealed) <= _MAX_SECRET_BYTES:
        raise TrustError(f"a credential of {len(sealed)} bytes; a TPM takes 1 to {_MAX_SECRET_BYTES}")
    seed, encrypted_seed = _seed_for(endorsement)
    cipher_key = _kdf_a(seed, b"STORAGE", name, _AES_KEY_BYTES)
    encryptor = Cipher(AES(cipher_key), CFB(bytes(_AES_KEY_BYTES))).encryptor()
    encrypted = encryptor.update(block(sealed)) + encryptor.finalize()
    integrity = hmac.digest(_kdf_a(seed, b"INTEGRITY", b"", _SEED_BYTES), encrypted + name, "sha256")
    return Challenge(sealed, block(integrity) + encrypted, encrypted_seed)


def is_activated(challenge: Challenge, answer: bytes) -> bool:
    """Whether the answer is the challenge's secret."""
    return hmac.compare_digest(challenge.secret, answer)


def _seed_for(endorsement: Public) -> tuple[bytes, bytes]:
    """(seed, what the EK makes the seed of): Part 1, B.10.4 (RSA: OAEP) and C.6.4 (ECC: one-pass ECDH)."""
    if isinstance(endorsement.key, RSAPublicKey):
        seed = secrets.token_bytes(_SEED_BYTES)
        return seed, endorsement.key.encrypt(seed, OAEP(MGF1(SHA256()), SHA256(), b"IDENTITY\0"))
    own = generate_private_key(SECP256R1())
    shared = own.exchange(ECDH(), endorsement.key)
    (own_x, own_y), (their_x, _) = _point(own.public_key()), _point(endorsement.key)
    return _kdf_e(shared, b"IDENTITY", own_x, their_x), block(own_x) + block(own_y)


def _kdf_a(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa (Part 1, 11.4.10.2), of up to one SHA-256 digest: SP 800-108 in counter mode, with HMAC."""
    return hmac.digest(key, struct.pack(">I", 1) + label + b"\0" + context + struct.pack(">I", size * 8), "sha256")[
        :size
    ]


def _kdf_e(shared: bytes, use: bytes, own_x: bytes, their_x: bytes) -> bytes:
    """KDFe (Part 1, 11.4.10.3), one SHA-256 digest: SP 800-56A's concatenation."""
    return hashlib.sha256(struct.pack(">I", 1) + shared + use + b"\0" + own_x + their_x).digest()


def _point(key: EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(_COORDINATE_BYTES, "big"), numbers.y.to_bytes(_COORDINATE_BYTES, "big")


def _requested_key(request: bytes) -> EllipticCurvePublicKey:
    try:
        parsed = x509.load_der_x509_csr(request)
        key, holds = parsed.public_key(), parsed.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"not a certificate request: {error}") from error
    if not holds or not isinstance(key, EllipticCurvePublicKey):
        raise TrustError("the certificate request's signature does not hold, or is not by an ECDSA key")
    return key
