"""Cars' ledgers as a witness meets them: one that only grows, one that was copied and goes on twice, one set back.

A car here is its ledger and its key, without work. It signs checkpoints as the agent does, and proves what can be
proven: with what was rewritten, that is not what the witness wants to see. The pipe between car and dispatcher is the
test's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.fleet.messages import WITNESS_TYPE, CheckpointMessage, Envelope, LedgerFault, WitnessMessage, decode, encode
from agent.trust import dsse, merkle
from agent.trust.checkpoint import CHECKPOINT_TYPE, VERSION, Checkpoint, Earlier, verify_countersigned
from agent.trust.keys import FileSigner
from tests.hil.honest_car import Car, Desk


@dataclass
class Ledger:
    """The leaves' hashes; a copy goes on by itself."""

    leaves: list[bytes] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.leaves.append(merkle.leaf_hash(text.encode()))

    def copy(self, size: int | None = None) -> Ledger:
        return Ledger(self.leaves[:size])

    def root(self, size: int) -> str:
        return merkle.tree_root(self.leaves[:size]).hex()


class Enrolled(Protocol):
    """What is needed of an enrolled car (`tests.hil.honest_car.Car`)."""

    unit: str
    signer: FileSigner


class LedgerCar:
    """One running agent over one ledger. Two of them with one key and name are a car that was copied."""

    def __init__(self, car: Enrolled, ledger: Ledger, *, session: int = 1) -> None:
        self.unit, self.signer = car.unit, car.signer
        self.ledger, self.session, self.boot_ms = ledger, session, 0
        self.witnessed: tuple[int, str] = (0, "")
        self.hides = False
        """Whether it leaves out what a later agent has to sign of the past."""
        self._said = 0

    def work(self, leaves: int, what: str = "leaf") -> None:
        """The ledger grows; `what` tells one history from another."""
        for _ in range(leaves):
            self.ledger.add(f"{what} {len(self.ledger.leaves)}")

    def park_anew(self) -> None:
        """A new session begins, and its certificate is a leaf."""
        self.session += 1
        self.boot_ms = 0
        self.work(1, f"session {self.session}")

    def checkpoint(self, **change: object) -> CheckpointMessage:
        """The ledger as it is now, proven from what was witnessed last as far as it can be."""
        self.boot_ms += 1_000
        self._said += 1
        size, before = len(self.ledger.leaves), self.witnessed[0]
        said = Checkpoint(
            v=VERSION,
            unit=self.unit,
            key_epoch=1,
            size=size,
            root=self.ledger.root(size),
            session=self.session,
            boot_id="b" * 32,
            issued_boot_ms=self.boot_ms,
            issued_wall_ms=1,
            continues=Earlier(size=before, root=self.ledger.root(before))
            if 0 < before < size and not self.hides
            else None,
        )
        said = replace(said, **change)  # type: ignore[arg-type]  # a test knows the fields' types
        envelope = dsse.sign(CHECKPOINT_TYPE, said.to_bytes(), self.signer)
        proof = merkle.consistency_proof(self.ledger.leaves, before) if before <= size else []
        return CheckpointMessage(
            rid=hashlib.sha256(envelope).hexdigest()[:16],
            checkpoint=msgspec.json.decode(envelope, type=Envelope),
            from_size=before,
            proof=tuple(one.hex() for one in proof),
        )

    def hear(self, message: WitnessMessage, witnesses: Mapping[str, EllipticCurvePublicKey]) -> Checkpoint | None:
        """Take the witness's word: what it countersigned last. Its signature and this car's are both checked."""
        if message.checkpoint is None:
            return None
        keys = {self.signer.keyid: self.signer.public_key()}
        said = verify_countersigned(msgspec.json.encode(message.checkpoint), keys, witnesses)
        assert said.unit == self.unit
        self.witnessed = said.size, said.root
        return said

    def finds_itself_in_dispute(self) -> bool:
        """What the agent's own store would hold against its ledger: another past was witnessed than it has."""
        size, root = self.witnessed
        return size > len(self.ledger.leaves) or (size > 0 and self.ledger.root(size) != root)


def say(desk: Desk, car: Car, message: CheckpointMessage) -> WitnessMessage:
    """The dispatcher's word on a checkpoint."""
    car.say("checkpoint", encode(message))
    topic, envelope = desk.hear()
    assert topic == f"dw/v1/d/{car.unit}/witness"
    return opened(envelope, desk.trusted())


def opened(envelope: bytes, trusted: Mapping[str, EllipticCurvePublicKey]) -> WitnessMessage:
    """A witness as a car reads it from its topic."""
    return decode(dsse.verify(envelope, WITNESS_TYPE, trusted), WitnessMessage)


def in_dispute(message: WitnessMessage) -> bool:
    """Whether the dispatcher holds something against the ledger."""
    return message.fault is not LedgerFault.NONE
