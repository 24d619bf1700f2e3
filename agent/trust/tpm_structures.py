"""What a TPM says of keys: public areas, names, attestations and signatures (TPM 2.0 Library, Part 2).

Both sides read these: the car what its own TPM answers, the dispatcher what a car claims that its TPM answered. So
nothing here talks to a TPM, and every parser takes the bytes of a stranger: `TrustError`, or a value that is whole.

The `name` of a key is the hash of its public area, attributes included. An attestation key signs names, which is how
a verifier learns not only which key it is but that it never left the TPM (`is_resident`).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent.errors import TrustError
from agent.trust.tpm_wire import Reader, block

RSA, AES, SHA256, NULL, ECDSA, ECC, CFB = 0x0001, 0x0006, 0x000B, 0x0010, 0x0018, 0x0023, 0x0043
P256 = 0x0003

FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN = 1 << 1, 1 << 4, 1 << 5
USER_WITH_AUTH, ADMIN_WITH_POLICY, NO_DA = 1 << 6, 1 << 7, 1 << 10
RESTRICTED, DECRYPT, SIGN = 1 << 16, 1 << 17, 1 << 18
RESIDENT = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN
"""Made inside this TPM, and can never leave it, nor its parent."""

GENERATED = 0xFF544347
"""TPM_GENERATED_VALUE: what a TPM attests begins with it, and a restricted key signs nothing else that does."""
ATTEST_CERTIFY, ATTEST_QUOTE = 0x8017, 0x8018
COORDINATE_BYTES = 32
RSA_BYTES = 256

_NONE = struct.pack(">H", NULL)
_AES_128_CFB = struct.pack(">HHH", AES, 128, CFB)
_ECDSA_SHA256 = struct.pack(">HH", ECDSA, SHA256)
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(endorsement hierarchy), of TCG's EK Credential Profile, 2.1.5.3: the same in every TPM."""


@dataclass(frozen=True, slots=True)
class Public:
    """A key's public area (TPMT_PUBLIC): RSA-2048 or ECC P-256, named by SHA-256.

    `x` and `y` for ECC, `modulus` for RSA (else empty). `can_sign_ecdsa` where its scheme is ECDSA with SHA-256, or
    left to each signature.
    """

    area: bytes
    attributes: int
    key: EllipticCurvePublicKey | RSAPublicKey
    can_sign_ecdsa: bool

    @property
    def name(self) -> bytes:
        """The TPM's name of it: the hash algorithm and the hash of the public area."""
        return struct.pack(">H", SHA256) + hashlib.sha256(self.area).digest()

    @property
    def is_resident(self) -> bool:
        """Whether the private key was made in the TPM and cannot leave it."""
        return self.attributes & RESIDENT == RESIDENT

    @property
    def is_signing_key(self) -> bool:
        """Whether it is what a unit signs with: P-256, for any message, never for decryption, and resident."""
        use = self.attributes & (SIGN | DECRYPT | RESTRICTED)
        return use == SIGN and self._signs_here

    @property
    def is_attestation_key(self) -> bool:
        """Whether it signs only what the TPM itself says: P-256, restricted, resident."""
        use = self.attributes & (SIGN | DECRYPT | RESTRICTED)
        return use == SIGN | RESTRICTED and self._signs_here

    @property
    def is_endorsement_key(self) -> bool:
        """Whether it can only open what was sealed for another key of its TPM: restricted decryption, resident."""
        use = self.attributes & (SIGN | DECRYPT | RESTRICTED)
        return use == DECRYPT | RESTRICTED and self.is_resident

    @property
    def _signs_here(self) -> bool:
        return self.is_resident and self.can_sign_ecdsa and isinstance(self.key, EllipticCurvePublicKey)


@dataclass(frozen=True, slots=True)
class Clock:
    """The TPM's own time: milliseconds it was powered, and how often it was reset and restarted; all only go up.

    `is_safe` is false when the clock may have gone back since it was last written down (after a power cut).
    """

    clock_ms: int
    reset_count: int
    restart_count: int
    is_safe: bool


@dataclass(frozen=True, slots=True)
class Attestation:
    """What an attestation key signed (TPMS_ATTEST): of which kind, for whose question, when, and what it says."""

    CERTIFY: ClassVar[int] = ATTEST_CERTIFY
    QUOTE: ClassVar[int] = ATTEST_QUOTE

    kind: int
    signer_name: bytes
    extra_data: bytes
    clock: Clock
    firmware_version: int
    certified_name: bytes
    """Of a certification: the key's name."""
    pcr_digest: bytes
    """Of a quote: the digest of the selected registers."""
    pcr_selection: tuple[tuple[int, bytes], ...]
    """Of a quote: (hash algorithm, bit map of registers) of each bank."""


def signing_template() -> bytes:
    """A unit's key: P-256, signs any message by ECDSA with SHA-256, resident, spared by the dictionary lockout."""
    return _ecc(RESIDENT | USER_WITH_AUTH | NO_DA | SIGN, _NONE + _ECDSA_SHA256)


def attestation_template() -> bytes:
    """An attestation key: the same, restricted to what the TPM itself says."""
    return _ecc(RESIDENT | USER_WITH_AUTH | NO_DA | RESTRICTED | SIGN, _NONE + _ECDSA_SHA256)


def storage_template() -> bytes:
    """The storage primary key, the parent of the unit's key (TCG's template of an ECC P-256 SRK)."""
    attributes = RESIDENT | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT
    return _ecc(attributes, _AES_128_CFB + _NONE, unique=bytes(COORDINATE_BYTES))


def endorsement_template(*, rsa: bool) -> bytes:
    """The endorsement key to which the maker's certificate belongs (TCG's templates L-1 and L-2)."""
    attributes = RESIDENT | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT
    if not rsa:
        return _ecc(attributes, _AES_128_CFB + _NONE, policy=_EK_POLICY, unique=bytes(COORDINATE_BYTES))
    head = struct.pack(">HHI", RSA, SHA256, attributes) + block(_EK_POLICY)
    return head + _AES_128_CFB + _NONE + struct.pack(">HI", RSA_BYTES * 8, 0) + block(bytes(RSA_BYTES))


def _ecc(attributes: int, symmetric_and_scheme: bytes, *, policy: bytes = b"", unique: bytes = b"") -> bytes:
    head = struct.pack(">HHI", ECC, SHA256, attributes) + block(policy)
    return head + symmetric_and_scheme + struct.pack(">H", P256) + _NONE + block(unique) + block(unique)


def parse_public(area: bytes) -> Public:
    """A key's public area (TPMT_PUBLIC); raises TrustError for kinds of keys that are used nowhere here."""
    reader = Reader(area, "a TPM key's public area")
    kind = reader.number(2)
    reader.expect(2, SHA256, "its name algorithm")
    attributes = reader.number(4)
    reader.block()  # the policy is part of the name, which is compared whole
    _symmetric(reader)
    scheme = reader.number(2)
    digest = reader.number(2) if scheme != NULL else SHA256
    key = _ecc_key(reader) if kind == ECC else _rsa_key(reader, kind)
    reader.end()
    return Public(area, attributes, key, can_sign_ecdsa=scheme in (NULL, ECDSA) and digest == SHA256)


def _symmetric(reader: Reader) -> None:
    """The cipher for a parent's children: algorithm, bits and mode; none for a key that has none."""
    if reader.number(2) != NULL:
        reader.take(4)


def _ecc_key(reader: Reader) -> EllipticCurvePublicKey:
    reader.expect(2, P256, "its curve")
    if reader.number(2) != NULL:
        reader.take(2)
    x, y = reader.block(), reader.block()
    try:
        return EllipticCurvePublicNumbers(_integer(x), _integer(y), SECP256R1()).public_key()
    except ValueError as error:
        raise TrustError("a TPM key's public area: its point is not on P-256") from error


def _rsa_key(reader: Reader, kind: int) -> RSAPublicKey:
    if kind != RSA:
        raise TrustError(f"a TPM key's public area: type 0x{kind:x} is neither ECC nor RSA")
    reader.expect(2, RSA_BYTES * 8, "its size")
    exponent = reader.number(4) or 65_537
    try:
        return RSAPublicNumbers(exponent, _integer(reader.block())).public_key()
    except ValueError as error:
        raise TrustError("a TPM key's public area: not an RSA key") from error


def parse_attestation(body: bytes) -> Attestation:
    """What an attestation key signed (TPMS_ATTEST), once its signature was verified; raises TrustError."""
    reader = Reader(body, "a TPM's attestation")
    reader.expect(4, GENERATED, "its first word")
    kind = reader.number(2)
    signer_name, extra_data = reader.block(), reader.block()
    clock, firmware = parse_clock(reader), reader.number(8)
    name = digest = b""
    selection: tuple[tuple[int, bytes], ...] = ()
    if kind == ATTEST_CERTIFY:
        name = reader.block()
        reader.block()  # the qualified name: the same key under its parents' names
    elif kind == ATTEST_QUOTE:
        selection = parse_selection(reader)
        digest = reader.block()
    else:
        raise TrustError(f"a TPM's attestation: of kind 0x{kind:x}, neither a certification nor a quote")
    reader.end()
    return Attestation(kind, signer_name, extra_data, clock, firmware, name, digest, selection)


def parse_clock(reader: Reader) -> Clock:
    """TPMS_CLOCK_INFO; raises TrustError."""
    clock_ms, resets, restarts, safe = (reader.number(size) for size in (8, 4, 4, 1))
    if safe > 1:
        raise TrustError(f"a TPM's clock: its `safe` is {safe}, neither yes nor no")
    return Clock(clock_ms, resets, restarts, bool(safe))


def parse_selection(reader: Reader) -> tuple[tuple[int, bytes], ...]:
    """TPML_PCR_SELECTION: the banks and their registers; raises TrustError."""
    banks = reader.number(4)
    if banks > 16:
        raise TrustError(f"a TPM's selection of registers: {banks} banks")
    return tuple((reader.number(2), reader.take(reader.number(1))) for _ in range(banks))


def parse_signature(reader: Reader) -> bytes:
    """A TPMT_SIGNATURE that is ECDSA with SHA-256, in DER; raises TrustError."""
    reader.expect(2, ECDSA, "its signature scheme")
    reader.expect(2, SHA256, "its signature's hash")
    r, s = reader.block(), reader.block()
    if not 0 < len(r) <= COORDINATE_BYTES or not 0 < len(s) <= COORDINATE_BYTES:
        raise TrustError("a TPM's signature: its numbers are not of P-256")
    return encode_dss_signature(_integer(r), _integer(s))


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big")
