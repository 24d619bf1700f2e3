"""The unit's sealing keys: X25519, to which the dispatcher seals inputs, each vouched for by the unit's own key.

A signing key cannot be sealed to, and hardware that signs may do nothing else, so this is a key of its own: 32 bytes in
a file of `state_dir` that its owner alone may read (`sealing-{epoch}.key`). Whoever is root can copy it, also where the
unit's own key is in hardware: sealing protects an input on its way, not from the car that computes on it.

A key is renewed at the first start after `RENEWED_AFTER_S`. The one before it is kept, for leases that run and for a
dispatcher that did not hear of the new one; older ones are gone, and with them what was sealed to them. When a key was
made, its file's time of change says. A start whose clock is far ahead leaves a key from the future: it is renewed too,
as soon as it is as far from now as an old one, unless now is before this version was made and so certainly wrong.

`epoch` rises with every key of a unit: the seconds since 1970 when it was made, and in any case more than before. So it
rises even where `state_dir` was lost, and a dispatcher that takes no lower one is told no old key by who recorded it.
What it is told is a DSSE envelope of a type of its own around a record, signed by the unit's own key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import VerifyingKey
from agent.trust.keyfile import create_secret, read_secret
from agent.trust.records import Identifier, read, spell
from agent.trust.sealing import SealedObject, SealError, SealFault, key_id, unwrap
from agent.trust.time_floor import BUILT_MS

SEALING_KEY_TYPE = "application/vnd.driveway.sealing-key+json"
VERSION = 1
KEY_BYTES = 32
RENEWED_AFTER_S = 90 * 86_400
KEPT = 2
FILE = re.compile(r"sealing-([0-9]{1,12})\.key")
RawKey = Annotated[str, re.compile(r"[A-Za-z0-9+/]{43}=")]
"""32 bytes, base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKeyRecord:
    """What a unit's own key says of a sealing key."""

    v: int
    unit: Identifier
    epoch: int
    public_key: RawKey


@dataclass(frozen=True, slots=True)
class SealingKey:
    """One of the unit's keys."""

    epoch: int
    private: X25519PrivateKey

    @property
    def public(self) -> X25519PublicKey:
        """What is sealed to."""
        return self.private.public_key()

    def record(self, unit: str) -> bytes:
        """What the unit's own key is to sign about it."""
        raw = self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        said = SealingKeyRecord(v=VERSION, unit=unit, epoch=self.epoch, public_key=dsse.to_base64(raw))
        return spell(said)


class SealingKeys:
    """The newest key of a unit, and the one before it."""

    def __init__(self, unit: str, keys: tuple[SealingKey, ...]) -> None:
        """`keys`: at least one, the newest first."""
        self.unit, self.newest = unit, keys[0]
        self._by_id = {key_id(key.public): key for key in keys}

    @classmethod
    def open(cls, folder: Path, unit: str, now_s: int) -> SealingKeys:
        """The keys in `folder`; one is made where there is none, or where the newest is old. Raises TrustError."""
        epochs = _epochs(folder)
        if not epochs or _is_due(_path(folder, epochs[0]), now_s):
            _create(_path(folder, max(now_s, 1 + max(epochs, default=0))), now_s)
            epochs = _epochs(folder)
        for old in epochs[KEPT:]:
            _path(folder, old).unlink(missing_ok=True)
        return cls(unit, tuple(SealingKey(epoch, _load(_path(folder, epoch))) for epoch in epochs[:KEPT]))

    def content_key(self, wrapped: bytes, key: str, sealed: SealedObject) -> bytes:
        """The key of an input that was sealed to `key` of this unit; raises SealError."""
        mine = self._by_id.get(key)
        if mine is None:
            raise SealError(
                SealFault.UNKNOWN_KEY,
                f"the input of {sealed.job}/{sealed.epoch} is sealed to a key that this unit does not have",
            )
        return unwrap(wrapped, mine.private, sealed, self.unit)


def verify_sealing_key(
    envelope: bytes, unit: str, unit_keys: Mapping[str, VerifyingKey]
) -> tuple[SealingKeyRecord, X25519PublicKey]:
    """The sealing key that one of the unit's own keys vouches for in `envelope`; raises TrustError."""
    record = read(SealingKeyRecord, dsse.verify(envelope, SEALING_KEY_TYPE, unit_keys), "sealing key")
    if record.v != VERSION:
        raise TrustError(f"sealing key: version {record.v} is not understood here (this side reads {VERSION})")
    if record.unit != unit:
        raise TrustError(f"sealing key: it is of the unit {record.unit!r}, not {unit!r}")
    return record, X25519PublicKey.from_public_bytes(dsse.from_base64(record.public_key))


def _epochs(folder: Path) -> list[int]:
    """Of the keys in the folder, the newest first."""
    found = (FILE.fullmatch(path.name) for path in folder.glob("sealing-*.key"))
    return sorted((int(one[1]) for one in found if one is not None), reverse=True)


def _is_due(newest: Path, now_s: int) -> bool:
    """Whether the newest key is to be renewed. Its epoch does not say: after a leap ahead each one is in the future."""
    age_s = now_s - int(newest.stat().st_mtime)
    if age_s < 0 and 1000 * now_s < BUILT_MS:
        return False  # a clock that is certainly wrong, as with a dead battery, says nothing of the future
    return abs(age_s) > RENEWED_AFTER_S


def _create(path: Path, now_s: int) -> None:
    raw = X25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    create_secret(path, raw)
    os.utime(path, (now_s, now_s))


def _path(folder: Path, epoch: int) -> Path:
    return folder / f"sealing-{epoch}.key"


def _load(path: Path) -> X25519PrivateKey:
    raw = read_secret(path, most_bytes=KEY_BYTES)
    if len(raw) != KEY_BYTES:
        raise TrustError(f"the sealing key {path} is damaged", hint="remove it: the next start makes another")
    return X25519PrivateKey.from_private_bytes(raw)
