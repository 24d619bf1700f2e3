"""What the book has of units' ledgers: the newest checkpoint that was countersigned, and what stands against a unit.

The countersigned checkpoint moves forward by compare-and-set, from exactly the one that the new one was held against.
So whichever replicas hear whichever checkpoints, those that are countersigned follow one another: never two roots of
one size, never two logs. What they decide is in `hil.dispatcher.witness`.

A fault is kept with its evidence and outlives being cleared. While it stands, the unit is granted nothing.
"""

from __future__ import annotations

import msgspec

from agent.fleet.messages import Envelope, LedgerFault
from hil.dispatcher.database import ConflictError, Database, Row


class Witnessed(msgspec.Struct, frozen=True, kw_only=True):
    """A unit's newest countersigned checkpoint: `envelope` has both signatures.

    `claim` is the envelope of the largest checkpoint that came without a proof that holds. It outlives what is
    countersigned after it: a copied ledger may go on twice.
    """

    size: int
    root: str
    envelope: bytes
    claim: bytes | None = None


class HeldFault(msgspec.Struct, frozen=True, kw_only=True):
    """What is, or was, held against a unit's ledger. `cleared_ms` is None while it stands; times are the database's."""

    unit: str
    number: int
    fault: LedgerFault
    detail: str
    at_ms: int
    evidence: tuple[Envelope, ...]
    cleared_ms: int | None = None
    cleared_why: str = ""


class Ledgers:
    """Part of the book; see there for threads and errors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self, unit: str) -> Witnessed | None:
        """What was countersigned last of this unit's ledger; None: nothing yet."""
        row = self._database.row("SELECT size, root, envelope, claim FROM ledgers WHERE unit = :unit", unit=unit)
        if row is None:
            return None
        return Witnessed(
            size=row["size"],
            root=row["root"],
            envelope=bytes(row["envelope"]),
            claim=None if row["claim"] is None else bytes(row["claim"]),
        )

    def advance(self, unit: str, before: Witnessed | None, after: Witnessed, now_ms: int) -> None:
        """`after` takes the place of `before`, which it continues; raises ConflictError where that is gone already."""
        if before is None:
            moved = self._database.execute(
                "INSERT INTO ledgers (unit, size, root, envelope, at_ms) VALUES (:unit, :size, :root, :envelope, :now)"
                " ON CONFLICT DO NOTHING",
                unit=unit,
                size=after.size,
                root=after.root,
                envelope=after.envelope,
                now=now_ms,
            )
        else:
            moved = self._database.execute(
                "UPDATE ledgers SET size = :size, root = :root, envelope = :envelope, at_ms = :now, claim = :claim"
                " WHERE unit = :unit AND size = :old_size AND root = :old_root",
                unit=unit,
                size=after.size,
                root=after.root,
                envelope=after.envelope,
                now=now_ms,
                claim=after.claim,
                old_size=before.size,
                old_root=before.root,
            )
        if moved != 1:
            raise ConflictError(f"another replica has countersigned a checkpoint of {unit}")

    def note_unproven(self, unit: str, before: Witnessed, claim: bytes) -> None:
        """A checkpoint without proof, larger than those before; raises ConflictError as `advance` does."""
        noted = self._database.execute(
            "UPDATE ledgers SET claim = :claim WHERE unit = :unit AND size = :size AND root = :root",
            unit=unit,
            claim=claim,
            size=before.size,
            root=before.root,
        )
        if noted != 1:
            raise ConflictError(f"another replica has heard of the ledger of {unit}")

    # --- what stands against a unit -----------------------------------------------------------------------------

    def hold(self, unit: str, fault: LedgerFault, detail: str, evidence: tuple[bytes, ...], now_ms: int) -> None:
        """Hold a fault against the unit, with the envelopes that show it; one that stands already goes on standing."""
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO ledger_faults (unit, number, fault, detail, evidence, at_ms)"
                " SELECT :unit, (SELECT coalesce(max(number), 0) + 1 FROM ledger_faults WHERE unit = :unit),"
                " :fault, :detail, :evidence, :now ON CONFLICT DO NOTHING",
                unit=unit,
                fault=fault.value,
                detail=detail,
                evidence=msgspec.json.encode([msgspec.Raw(one) for one in evidence]),
                now=now_ms,
            )
            self._database.execute(
                "UPDATE units SET ledger_fault = :fault WHERE unit = :unit AND ledger_fault = ''",
                unit=unit,
                fault=fault.value,
            )

    def standing(self, unit: str) -> HeldFault | None:
        """What stands against this unit's ledger."""
        row = self._database.row("SELECT * FROM ledger_faults WHERE unit = :unit AND cleared_ms IS NULL", unit=unit)
        return None if row is None else _held(row)

    def faults(self, first: int, most: int) -> list[HeldFault]:
        """`most` of all faults, those that stand first, then the newest first; from the `first` of them on."""
        rows = self._database.rows(
            "SELECT * FROM ledger_faults ORDER BY CASE WHEN cleared_ms IS NULL THEN 0 ELSE 1 END, at_ms DESC, unit,"
            " number LIMIT :most OFFSET :first",
            most=most,
            first=first,
        )
        return [_held(row) for row in rows]

    def clear(self, unit: str, why: str, now_ms: int) -> HeldFault | None:
        """An operator has looked into it: the fault stands no more; what stood, None when nothing did.

        What was countersigned stays so: a ledger that does not continue it is at fault again.
        """
        with self._database.transaction():
            held = self.standing(unit)
            if held is None:
                return None
            self._database.execute(
                "UPDATE ledger_faults SET cleared_ms = :now, cleared_why = :why"
                " WHERE unit = :unit AND number = :number",
                now=now_ms,
                why=why,
                unit=unit,
                number=held.number,
            )
            self._database.execute("UPDATE units SET ledger_fault = '' WHERE unit = :unit", unit=unit)
            self._database.execute("UPDATE ledgers SET claim = NULL WHERE unit = :unit", unit=unit)
            return held


def _held(row: Row) -> HeldFault:
    return HeldFault(
        unit=row["unit"],
        number=row["number"],
        fault=LedgerFault(row["fault"]),
        detail=row["detail"],
        at_ms=row["at_ms"],
        evidence=tuple(msgspec.json.decode(row["evidence"], type=list[Envelope])),
        cleared_ms=row["cleared_ms"],
        cleared_why=row["cleared_why"],
    )
