"""The unit's sealing keys at a start: opened or made, and vouched for by the unit's own key, once for each.

What the unit's own key has signed is kept beside the key (`sealing-{epoch}.json`), so that a start needs no hardware
for it. Where nothing can be signed, or no key be made, this run takes no sealed inputs; that is told, and no more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from agent.errors import TrustError
from agent.log import logger
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.keys import load_public_key
from agent.trust.sealing import can_seal
from agent.trust.sealing_key import SEALING_KEY_TYPE, SealingKeys, verify_sealing_key


@dataclass(frozen=True)
class Sealing:
    """The keys, and the envelope that tells the dispatcher of the newest."""

    keys: SealingKeys
    announcement: bytes


def establish_sealing(folder: Path, unit: str, signer: Signer, now_s: int | None = None) -> Sealing | None:
    """The unit's sealing keys; None where there can be none. Waits for the unit's own key, once for each new key."""
    if not can_seal():
        logger().warning("no_sealing_key", error="cryptography 47 or newer is needed")
        return None
    try:
        keys = SealingKeys.open(folder, unit, int(time.time()) if now_s is None else now_s)
        return Sealing(keys, _announcement(folder, keys, signer))
    except (TrustError, OSError) as error:
        logger().warning("no_sealing_key", error=str(error))
        return None


def _announcement(folder: Path, keys: SealingKeys, signer: Signer) -> bytes:
    path = folder / f"sealing-{keys.newest.epoch}.json"
    said = keys.newest.record(keys.unit)
    try:
        kept = path.read_bytes()
        known = {signer.keyid: load_public_key(signer.public_key_pem())}
        verify_sealing_key(kept, keys.unit, known)
        if dsse.parse(kept).payload == said:
            return kept
    except (FileNotFoundError, TrustError):
        pass  # the first time, or the unit has another key of its own now
    envelope = dsse.sign(SEALING_KEY_TYPE, said, signer)
    for old in folder.glob("sealing-*.json"):
        old.unlink(missing_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(envelope)
    part.replace(path)
    return envelope
