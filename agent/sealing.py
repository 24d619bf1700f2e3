"""The unit's sealing keys: opened or made at a start, and vouched for by the unit's own key, once for each of both.

What the unit's own key has signed is kept beside the key (`sealing-{epoch}.json`), so that a start needs no hardware
for it. Where nothing can be signed, or no key be made, this run takes no sealed inputs; that is told, and no more.

When the unit takes a new key of its own (`agent.rotation`), that vouches for the same sealing key at once
(`Sealing.vouched_by`): nothing that is sealed to it is lost, and nothing waits for a start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from agent.errors import TrustError
from agent.log import logger
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.keyring import write_whole
from agent.trust.keys import load_public_key
from agent.trust.sealing import can_seal
from agent.trust.sealing_key import SEALING_KEY_TYPE, SealingKeys, verify_sealing_key


class VouchingKey(Protocol):
    """The unit's own key, as far as it is needed here (`agent.trust.hardware.HardwareSigner`)."""

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, as hex."""
        ...

    def public_key_pem(self) -> str:
        """The public key as PEM."""
        ...

    async def sign(self, message: bytes) -> bytes:
        """ECDSA P-256 over SHA-256 of `message`, in DER; raises TrustError."""
        ...


@dataclass(frozen=True)
class Sealing:
    """The keys, and the envelope that tells the dispatcher of the newest. `folder` is where both are kept."""

    keys: SealingKeys
    announcement: bytes
    folder: Path

    async def vouched_by(self, key: VouchingKey) -> Sealing:
        """The same keys, the newest vouched for by `key`, which is the unit's own now; kept. Raises TrustError."""
        if _holds(self.announcement, self.keys, key):
            return self
        said = self.keys.newest.record(self.keys.unit)
        signature = dsse.Signature(key.keyid, await key.sign(dsse.pae(SEALING_KEY_TYPE, said)))
        envelope = dsse.wrap(SEALING_KEY_TYPE, said, (signature,))
        await asyncio.to_thread(_keep, self.folder, self.keys, envelope)
        return replace(self, announcement=envelope)


def establish_sealing(folder: Path, unit: str, signer: Signer, now_s: int | None = None) -> Sealing | None:
    """The unit's sealing keys; None where there can be none. Waits for the unit's own key, once for each new key."""
    if not can_seal():
        logger().warning("no_sealing_key", error="cryptography 47 or newer is needed")
        return None
    try:
        keys = SealingKeys.open(folder, unit, int(time.time()) if now_s is None else now_s)
        return Sealing(keys, _announcement(folder, keys, signer), folder)
    except (TrustError, OSError) as error:
        logger().warning("no_sealing_key", error=str(error))
        return None


def _announcement(folder: Path, keys: SealingKeys, signer: Signer) -> bytes:
    try:
        kept = _path(folder, keys).read_bytes()
        if _holds(kept, keys, signer):
            return kept
    except FileNotFoundError:
        pass  # the first time
    envelope = dsse.sign(SEALING_KEY_TYPE, keys.newest.record(keys.unit), signer)
    _keep(folder, keys, envelope)
    return envelope


def _holds(envelope: bytes, keys: SealingKeys, signer: Signer | VouchingKey) -> bool:
    """Whether the envelope tells of the newest key, signed by what is the unit's own key now."""
    try:
        verify_sealing_key(envelope, keys.unit, {signer.keyid: load_public_key(signer.public_key_pem())})
        return dsse.parse(envelope).payload == keys.newest.record(keys.unit)
    except TrustError:
        return False


def _keep(folder: Path, keys: SealingKeys, envelope: bytes) -> None:
    """Write the announcement down in the place of those before it; raises TrustError."""
    path = _path(folder, keys)
    write_whole(path, envelope)
    for old in folder.glob("sealing-*.json"):
        if old != path:
            old.unlink(missing_ok=True)


def _path(folder: Path, keys: SealingKeys) -> Path:
    return folder / f"sealing-{keys.newest.epoch}.json"
