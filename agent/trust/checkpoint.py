"""Checkpoints: the ledger's size and root, signed by the unit's own key and countersigned by the dispatcher.

One signature of the slow key covers all leaves before it. The dispatcher, having checked that the new root continues
the one it signed last (RFC 9162 consistency), adds its signature to the same envelope: two signatures over one payload.
From then on neither side can rewrite what came before: the car not without a second root for the same size under its
own key, the dispatcher not without contradicting its own signature. Such a contradiction is evidence by itself
(`contradicts`), and nothing else is: what no key signed may have been bent on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import SigningKey, VerifyingKey
from agent.trust.records import Identifier, Sha256, Text, read, spell

CHECKPOINT_TYPE = "application/vnd.driveway.checkpoint+json"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The root that the unit's own log has at an earlier size: that of the checkpoint that was witnessed last."""

    size: int
    root: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The unit's log has this RFC 9162 root at this size. The next fields say when, by the unit's own clocks.

    With `continues` a unit that shows another past than was witnessed has signed so: a proof, which nobody signs, may
    have been bent on the way, and says nothing where it does not hold. Checkpoints of older agents are without it.
    """

    v: int
    unit: Identifier
    key_epoch: int
    size: int
    root: Sha256
    session: int
    boot_id: Text
    issued_boot_ms: int
    issued_wall_ms: int
    continues: Earlier | None = None

    def to_bytes(self) -> bytes:
        """The checkpoint's payload; raises TrustError when a field could not be read back."""
        body = spell(self)
        parse_checkpoint(body)
        return body


def parse_checkpoint(body: bytes) -> Checkpoint:
    """The checkpoint in `body`, every field checked; raises TrustError."""
    checkpoint = read(Checkpoint, body, "checkpoint")
    if checkpoint.v != VERSION:
        raise TrustError(f"checkpoint: version {checkpoint.v} is not understood here (this side reads {VERSION})")
    if checkpoint.size < 1:
        raise TrustError("checkpoint: an empty log needs none")
    if checkpoint.continues is not None and not 1 <= checkpoint.continues.size < checkpoint.size:
        raise TrustError("checkpoint: what it continues is no earlier log")
    return checkpoint


def verify_checkpoint(envelope: bytes, keys: Mapping[str, VerifyingKey]) -> Checkpoint:
    """The checkpoint in `envelope`, signed by one of `keys`; raises TrustError."""
    return parse_checkpoint(dsse.verify(envelope, CHECKPOINT_TYPE, keys))


def verify_countersigned(
    envelope: bytes,
    unit_keys: Mapping[str, VerifyingKey],
    witness_keys: Mapping[str, VerifyingKey],
) -> Checkpoint:
    """The checkpoint in `envelope`, signed by the unit and by a witness; raises TrustError.

    One key cannot be both: whoever has a place in both sets would witness itself.
    """
    if unit_keys.keys() & witness_keys.keys():
        raise TrustError("checkpoint: the unit's key and the witness's are the same")
    verify_checkpoint(envelope, witness_keys)
    return verify_checkpoint(envelope, unit_keys)


def countersign(envelope: bytes, witness: SigningKey) -> bytes:
    """The envelope of a checkpoint that was verified, with the witness's signature besides; raises TrustError."""
    return dsse.add_signature(envelope, witness)


def contradicts(one: Checkpoint, other: Checkpoint) -> int | None:
    """The size for which they name two roots, so that they cannot be of one log; None where both can be true."""
    if one.unit != other.unit:
        return None
    roots = _roots(one)
    return next((size for size, root in _roots(other).items() if roots.get(size, root) != root), None)


def _roots(checkpoint: Checkpoint) -> dict[int, str]:
    """What it says of the log, by size."""
    said = checkpoint.continues
    return {checkpoint.size: checkpoint.root} | ({} if said is None else {said.size: said.root})
