"""A unit's next key: named by the key before it, which signs, and by itself, which signs too.

A key lasts for years and then goes: its TPM leaves with the computer, its algorithm grows old, its operator rotates
keys. The unit makes the new key beside the old one and says so in a DSSE envelope of its own type with two signatures:
the old key's, which hands over, and the new key's, which shows that it exists and agrees (nobody can be handed a key of
somebody else's). The old key goes on counting for `overlap_s` seconds from when the dispatcher took the succession, so
that what it signed before is still taken in; how long is the dispatcher's to limit.

The old key certifies no more sessions: `last_session` is the number of its last one, and what says to be of a later one
was not signed by this unit.

`epoch` is the new key's, and always the next after the one that the verifier knows: a succession can be neither
repeated nor rolled back, and none can be skipped. A key that was lost cannot hand over; its unit enrols anew.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import SigningKey
from agent.trust.keys import keyid, load_der_public_key, load_public_key
from agent.trust.records import Identifier, KeyProtection, Sha256, Text, read, spell
from agent.trust.session import PublicKey

SUCCESSION_TYPE = "application/vnd.driveway.key-succession+json"
VERSION = 1
MAX_OVERLAP_S = 90 * 86_400
"""A quarter of a year: a car that was parked for longer than that enrols anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """`public_key` succeeds the key `old_keyid` as the unit's key of this epoch."""

    v: int
    unit: Identifier
    epoch: int
    old_keyid: Sha256
    public_key: PublicKey
    protection: KeyProtection
    overlap_s: int
    last_session: int
    reason: Text

    def to_bytes(self) -> bytes:
        """The succession's payload; raises TrustError when a field could not be read back."""
        body = spell(self)
        parse_succession(body)
        return body


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A succession that holds, and the new key."""

    succession: Succession
    key: EllipticCurvePublicKey

    @property
    def keyid(self) -> str:
        """Of the new key."""
        return keyid(self.key)


class NewKey(SigningKey, Protocol):
    """What is said of the new key; `agent.ports.Signer` has it."""

    @property
    def protection(self) -> str:
        """Where the key lives: `tpm`, `ftpm`, `pkcs11` or `file`."""
        ...

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...


def succeed(
    old: SigningKey, new: NewKey, *, unit: str, epoch: int, overlap_s: int, reason: str, last_session: int = 0
) -> bytes:
    """The envelope in which `old` hands over to `new`, the unit's key of `epoch`, signed by both; raises TrustError."""
    der = load_public_key(new.public_key_pem()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    succession = Succession(
        v=VERSION,
        unit=unit,
        epoch=epoch,
        old_keyid=old.keyid,
        public_key=base64.b64encode(der).decode("ascii"),
        protection=new.protection,
        overlap_s=overlap_s,
        last_session=last_session,
        reason=reason,
    )
    return dsse.add_signature(dsse.sign(SUCCESSION_TYPE, succession.to_bytes(), old), new)


def parse_succession(body: bytes) -> Succession:
    """The succession in `body`, every field checked; raises TrustError."""
    succession = read(Succession, body, "succession")
    if succession.v != VERSION:
        raise TrustError(f"succession: version {succession.v} is not understood here (this side reads {VERSION})")
    if succession.overlap_s > MAX_OVERLAP_S:
        raise TrustError(f"succession: an overlap of {succession.overlap_s} s, more than {MAX_OVERLAP_S}")
    return succession


def verify_succession(envelope: bytes, current: EllipticCurvePublicKey, *, unit: str, epoch: int) -> Succeeded:
    """The unit's next key, when its `current` one, of this `epoch`, hands over to it; raises TrustError."""
    current_id = keyid(current)
    succession = parse_succession(dsse.verify(envelope, SUCCESSION_TYPE, {current_id: current}))
    if succession.unit != unit:
        raise TrustError(f"succession: it is of unit {succession.unit!r}, not {unit!r}")
    if succession.old_keyid != current_id:
        raise TrustError("succession: it is signed by another key than the one that it says hands over")
    if succession.epoch != epoch + 1:
        raise TrustError(f"succession: epoch {succession.epoch} does not follow {epoch}")
    new = load_der_public_key(succession.public_key)
    if keyid(new) == current_id:
        raise TrustError("succession: the key succeeds itself")
    dsse.verify(envelope, SUCCESSION_TYPE, {keyid(new): new})  # the new key's own signature
    return Succeeded(succession, new)
