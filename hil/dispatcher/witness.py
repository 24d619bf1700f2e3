"""The witness: countersigns checkpoints of units' ledgers, and finds the ones whose past was rewritten.

A checkpoint is countersigned when it is the first of its unit, or proven to continue the last that was (RFC 9162). Any
answer is the newest one that was countersigned: a car that is behind, or whose answer got lost, goes on from there.

Only what the unit's own key signed is held against it, for the pipe may bend, repeat and reorder the rest. A proof is
not signed: one that does not hold shows nothing, however often it comes; the checkpoint with it is not countersigned.
What a checkpoint signs is its own root, and the root that the unit's log has where it was witnessed last:

* FORK: two checkpoints that name different roots for one size. A unit that goes on with another past than was witnessed
  says so in its next checkpoint. One that hides it has no proof to give, is witnessed no more, and earns nothing
  (`hil.dispatcher.unwitnessed`).
* ROLLBACK: a checkpoint that was issued after another one and is smaller. Ledgers only grow.

Hand-ins have contradictions of their own: `hil.dispatcher.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import msgspec
import structlog

from agent.errors import TrustError
from agent.fleet.messages import CheckpointMessage, Envelope, LedgerFault, WitnessMessage
from agent.printable import printable
from agent.trust import dsse
from agent.trust.checkpoint import Checkpoint, contradicts, countersign, parse_checkpoint, verify_checkpoint
from agent.trust.dsse import SigningKey
from agent.trust.merkle import ProofError, verify_consistency
from hil.dispatcher.book import Book
from hil.dispatcher.ledgers import Witnessed
from hil.dispatcher.units import Unit, UnitKey, verified_by

REMARK_CHARACTERS = 128
"""As long as a witness's `detail` may be."""

log = structlog.get_logger("dispatcher")


@dataclass(frozen=True, slots=True)
class Continues:
    """It continues what was countersigned last, or is the first."""


@dataclass(frozen=True, slots=True)
class Known:
    """It says nothing new, or nothing that can be held against what was countersigned: say that again."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """Its proof does not hold."""


@dataclass(frozen=True, slots=True)
class Faulty:
    """It and what the unit signed before cannot both be of one ledger that only grows; `evidence` are the envelopes."""

    fault: LedgerFault
    detail: str
    evidence: tuple[bytes, ...]


Weighed = Continues | Known | Unproven | Faulty


def weigh(
    newest: Witnessed | None, said: Checkpoint, envelope: bytes, from_size: int, proof: Sequence[bytes]
) -> Weighed:
    """What a checkpoint, which the unit's key signed in `envelope`, is to what the unit's key signed before."""
    if newest is None:
        return Continues()
    for before in (newest.envelope, newest.claim):
        fault = None if before is None else _contradiction(parse_checkpoint(dsse.parse(before).payload), said)
        if before is not None and fault is not None:
            return Faulty(*fault, (before, envelope))
    if said.size <= newest.size or from_size != newest.size:
        return Known()
    try:
        verify_consistency(newest.size, said.size, bytes.fromhex(newest.root), bytes.fromhex(said.root), proof)
    except ProofError:
        if newest.claim is not None and said.size <= parse_checkpoint(dsse.parse(newest.claim).payload).size:
            return Known()  # heard before, or overtaken: the pipe repeats things
        return Unproven()
    return Continues()


def _contradiction(one: Checkpoint, other: Checkpoint) -> tuple[LedgerFault, str] | None:
    size = contradicts(one, other)
    if size is not None:
        return LedgerFault.FORK, f"two roots were signed for the first {size} entries"
    earlier, later = (one, other) if _issued_after(other, one) else (other, one)
    if _issued_after(later, earlier) and later.size < earlier.size:
        return LedgerFault.ROLLBACK, f"{earlier.size} entries were signed for, and {later.size} after that"
    return None


def _issued_after(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether `one` was issued later, by what can be compared: sessions of a key, and one boot's clock within one."""
    if (one.key_epoch, one.session) != (other.key_epoch, other.session):
        return (one.key_epoch, one.session) > (other.key_epoch, other.session)
    return one.boot_id == other.boot_id and one.issued_boot_ms > other.issued_boot_ms


class Witness:
    """Use from the thread that owns the book, inside its transaction. `complain(who, reason)` counts what is odd."""

    def __init__(self, book: Book, key: SigningKey, complain: Callable[[str, str], None]) -> None:
        self._book, self._key, self._complain = book, key, complain

    def on_checkpoint(self, unit: Unit, message: CheckpointMessage) -> WitnessMessage | None:
        """What is witnessed of the unit's ledger now; None when nothing shows that the unit said this.

        Raises ConflictError where another replica was first: then look again.
        """
        try:
            said, envelope = _authentic(message, unit, self._book.units.keys_of(unit))
        except TrustError as error:
            self._complain(unit.unit, f"checkpoint: {error.what}")
            return None
        if not unit.ledger_fault:
            self._take(unit, said, envelope, message)
        return self.word(unit.unit, message.rid)

    def word(self, unit: str, rid: str) -> WitnessMessage:
        """What was countersigned last of this unit's ledger, and what stands against it."""
        newest, held = self._book.ledgers.newest(unit), self._book.ledgers.standing(unit)
        return WitnessMessage(
            rid=rid,
            unit=unit,
            checkpoint=None if newest is None else msgspec.json.decode(newest.envelope, type=Envelope),
            fault=LedgerFault.NONE if held is None else held.fault,
            detail="" if held is None else printable(held.detail)[:REMARK_CHARACTERS],
        )

    def _take(self, unit: Unit, said: Checkpoint, envelope: bytes, message: CheckpointMessage) -> None:
        newest, now_ms = self._book.ledgers.newest(unit.unit), self._book.now_ms()
        proof = [bytes.fromhex(one) for one in message.proof]
        match weigh(newest, said, envelope, message.from_size, proof):
            case Continues():
                after = _after(newest, said, countersign(envelope, self._key))
                self._book.ledgers.advance(unit.unit, newest, after, now_ms)
                if self._book.unwitnessed.witnessed(unit.unit):
                    told = partial(log.info, "unit_witnessed_again", unit=unit.unit, leaves=said.size)
                    self._book.database.on_commit(told)
            case Known():
                pass
            case Unproven():
                assert newest is not None
                self._book.ledgers.note_unproven(unit.unit, newest, envelope)
                self._complain(unit.unit, f"checkpoint: not shown to continue the one of {newest.size} entries")
            case Faulty(fault=fault, detail=detail, evidence=evidence):
                self.hold(unit.unit, fault, detail, evidence)
            case other:
                assert_never(other)

    def hold(self, unit: str, fault: LedgerFault, detail: str, evidence: tuple[bytes, ...]) -> None:
        """Hold a fault against the unit, and say so in the log."""
        self._book.ledgers.hold(unit, fault, detail, evidence, self._book.now_ms())
        told = partial(log.error, "ledger_in_dispute", unit=unit, fault=fault.value, detail=detail)
        self._book.database.on_commit(told)


def _after(newest: Witnessed | None, said: Checkpoint, envelope: bytes) -> Witnessed:
    """What is witnessed now. A claim that was proven after all counts no more."""
    if newest is None or newest.claim is None:
        return Witnessed(size=said.size, root=said.root, envelope=envelope)
    claimed = parse_checkpoint(dsse.parse(newest.claim).payload)
    proven = (claimed.size, claimed.root) == (said.size, said.root)
    return Witnessed(size=said.size, root=said.root, envelope=envelope, claim=None if proven else newest.claim)


def _authentic(message: CheckpointMessage, unit: Unit, keys: Mapping[str, UnitKey]) -> tuple[Checkpoint, bytes]:
    """The checkpoint that the unit signed, in an envelope with that signature and no other; raises TrustError."""
    came = msgspec.json.encode(message.checkpoint)
    keyid, said = verified_by(keys, partial(verify_checkpoint, came))
    if keys[keyid].last_session is not None:
        raise TrustError(f"it is signed by the unit's key of epoch {keys[keyid].epoch}, which handed over to the next")
    if (said.unit, said.key_epoch) != (unit.unit, keys[keyid].epoch):
        raise TrustError(f"it is of unit {said.unit} in key epoch {said.key_epoch}")
    parsed = dsse.parse(came)
    signed = dsse.pae(parsed.payload_type, parsed.payload)
    own = [
        one
        for one in parsed.signatures
        if one.keyid == keyid and dsse.signature_holds(keys[keyid].key, one.sig, signed)
    ]
    return said, dsse.wrap(parsed.payload_type, parsed.payload, own[:1])
