"""The unit's key in a TPM 2.0: made there, kept at a persistent handle, and used without ever being seen.

The key is a child of the owner hierarchy's storage primary: P-256, for signing alone, fixed to its TPM and parent, its
secret made inside (`tpm_structures.signing_template`). It has no password: who may open the device may use it, so the
device is given to the agent's group alone. It is outside of the dictionary lockout, so that nobody can stop a car from
signing by guessing another key's password. Another kind of key at the handle is refused and left alone.

A firmware TPM (`ftpm`) shares its processor and memory with what it attests; a discrete chip (`tpm`) does not. Which of
the two it is follows from its maker's code. Whoever is not known to make discrete chips is taken for firmware: the
weaker claim is never false. A signature takes a discrete chip or an Orin's firmware 25 to 200 ms, see docs/keys.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.errors import TrustError
from agent.trust.keyfile import read_secret
from agent.trust.keys import KeyAbsentError, Removal, keyid, public_pem
from agent.trust.tpm_commands import OWNER, Tpm
from agent.trust.tpm_structures import Clock, Public, signing_template, storage_template
from agent.trust.tpm_transport import opener

DEFAULT_DEVICE = "/dev/tpmrm0"
DEFAULT_HANDLE = 0x81000100
HANDLES = range(0x81000000, 0x81800000)
"""Persistent handles of the owner (TPM 2.0 Part 2, 7.5; TCG's registry leaves 0x81000100 on to whoever is first)."""
DISCRETE_MAKERS = ("IFX", "STM", "NTC", "NTZ", "ATML", "WEC", "CROS")
"""Infineon, STMicroelectronics, Nuvoton, Nationz, Atmel, Winbond, Google's GSC (TCG's registry of vendor IDs)."""
SIGN_LIMIT_S = 5.0
"""A slow chip needs 0.2 s, at the 95th percentile 0.6; one that tests itself, a second or two."""
MAKE_LIMIT_S = 60.0
"""Making a key: two of them, and an Orin's firmware takes 0.12 s each. Field reports of RSA say 12 s."""
_FIRST_PROPERTY, _PROPERTIES = 0x100, 16
_REVISION, _MAKER, _VENDOR, _FIRMWARE = 0x102, 0x105, range(0x106, 0x10A), (0x10B, 0x10C)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPlace:
    """Where the key is: the device's address (`tpm_transport`) and the handle.

    `kind` is `tpm` or `ftpm` where somebody knows better than the maker's code, else empty. The owner hierarchy's
    password is needed to make a key, where it has one; its file is read then (0600). `ek_chain_file` holds certificates
    between the endorsement key's and its maker's root, where the TPM itself has none (`tpm_enrolment`).
    """

    device: str = DEFAULT_DEVICE
    handle: int = DEFAULT_HANDLE
    kind: str = ""
    owner_auth_file: Path | None = None
    ek_chain_file: Path | None = None
    limit_s: float = SIGN_LIMIT_S

    def opened(self, limit_s: float | None = None) -> Tpm:
        """The TPM, for one use; raises TrustError."""
        return Tpm(opener(self.device), limit_s or self.limit_s, owner_auth=self._owner_auth())

    def _owner_auth(self) -> bytes:
        if self.owner_auth_file is None:
            return b""
        try:
            return read_secret(self.owner_auth_file, most_bytes=64).rstrip(b"\r\n")
        except OSError as error:
            raise TrustError(f"the TPM owner's password {self.owner_auth_file}: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmFacts:
    """What a TPM says of itself, and its clock at the moment."""

    manufacturer: str
    vendor: str
    revision: str
    firmware: str
    kind: str
    clock: Clock


class TpmSigner:
    """A signing key in a TPM; see `agent.ports.Signer`. Opens the TPM for each use."""

    def __init__(self, place: TpmPlace, public: Public, protection: str) -> None:
        assert isinstance(public.key, EllipticCurvePublicKey)
        self._place, self._key = place, public.key
        self.protection = protection
        self.keyid = keyid(public.key)

    @classmethod
    def open(cls, place: TpmPlace) -> TpmSigner:
        """The key at its handle; raises KeyAbsentError when there is none, TrustError when it is of another kind."""
        with place.opened() as tpm:
            public = _signing_key(tpm, place)
            if public is None:
                raise KeyAbsentError(
                    f"the TPM {place.device} has no key at {place.handle:#x}", hint="was it cleared? enrol again"
                )
            return cls(place, public, read_facts(tpm, place).kind)

    @classmethod
    def open_or_create(cls, place: TpmPlace) -> TpmSigner:
        """The key at its handle, made now when there is none; raises TrustError."""
        if place.handle not in HANDLES:
            raise TrustError(f"{place.handle:#x} is no persistent handle of the owner", hint="0x81000000 to 0x817fffff")
        with place.opened(MAKE_LIMIT_S) as tpm:
            if _signing_key(tpm, place) is None:
                _make(tpm, place)
        return cls.open(place)

    @classmethod
    def remove(cls, place: TpmPlace, known_keyid: str) -> Removal:
        """Evict the key from its handle, which is for good: nothing else holds it. Raises TrustError."""
        with place.opened() as tpm:
            public = tpm.read_public(place.handle)
            if public is None:
                return Removal.ABSENT
            if not isinstance(public.key, EllipticCurvePublicKey) or keyid(public.key) != known_keyid:
                return Removal.FOREIGN
            tpm.evict(place.handle)
        return Removal.DONE

    def public_key(self) -> EllipticCurvePublicKey:
        """The public key, as a verifier wants it."""
        return self._key

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        return public_pem(self._key)

    def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError within the time limit."""
        with self._place.opened() as tpm:
            return tpm.sign(self._place.handle, hashlib.sha256(message).digest())

    def close(self) -> None:
        """Nothing is held between two uses."""

    def clock(self) -> Clock:
        """The TPM's own time now; raises TrustError within the time limit."""
        with self._place.opened() as tpm:
            return tpm.read_clock()

    def facts(self) -> TpmFacts:
        """What the TPM says of itself now; raises TrustError within the time limit."""
        with self._place.opened() as tpm:
            return read_facts(tpm, self._place)


def read_facts(tpm: Tpm, place: TpmPlace) -> TpmFacts:
    """What the TPM says of itself; raises TrustError."""
    found = tpm.properties(_FIRST_PROPERTY, _PROPERTIES)
    maker = _text(found.get(_MAKER, 0))
    revision, (high, low) = found.get(_REVISION, 0), (found.get(number, 0) for number in _FIRMWARE)
    return TpmFacts(
        manufacturer=maker,
        vendor="".join(_text(found.get(number, 0)) for number in _VENDOR),
        revision=f"{revision // 100}.{revision % 100:02}",
        firmware=f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}",
        kind=place.kind or ("tpm" if maker in DISCRETE_MAKERS else "ftpm"),
        clock=tpm.read_clock(),
    )


def _signing_key(tpm: Tpm, place: TpmPlace) -> Public | None:
    """The key at the handle, None when there is none; raises TrustError for one that is no unit's key."""
    public = tpm.read_public(place.handle)
    if public is not None and not public.is_signing_key:
        raise TrustError(
            f"the key at {place.handle:#x} of the TPM {place.device} is of another kind (attributes"
            f" {public.attributes:#x}): not a P-256 signing key that was made there and cannot leave",
            hint="give another handle, or remove it: tpm2_evictcontrol -c HANDLE",
        )
    return public


def _make(tpm: Tpm, place: TpmPlace) -> None:
    with tpm.primary(OWNER, storage_template()) as (parent, _):
        private, public = tpm.create(parent, signing_template())
        with tpm.loaded(parent, private, public) as handle:
            tpm.persist(handle, place.handle)


def _text(number: int) -> str:
    """Four characters of a property, without the padding; what cannot be printed becomes `?`."""
    raw = number.to_bytes(4, "big").rstrip(b"\0 ").decode("ascii", "replace")
    return "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in raw)
