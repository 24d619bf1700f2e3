"""How much of a unit's ledger may stand unwitnessed, and what happens to a unit that goes beyond.

Without a countersigned checkpoint a unit's past is its own word: it could be written anew. So a unit has to be
witnessed as it goes on. A hand-in whose place in the ledger (`logIndex`) is more than `leaves` beyond what was
countersigned last is put off, and so is any while a hand-in that was settled `age_ms` ago is still not covered. The
answer is `later`, and says what it waits for; an honest car then sends a checkpoint of its whole ledger, and hands in
again. Nothing is lost: its lease runs on for a while, its answers stay where they are, and its word is not doubted.

A unit that is put off is granted nothing, and earns nothing, until a checkpoint of it is countersigned. One that never
sends any has earned what fits into the bound, once. What hinders it (a broker that drops checkpoints) may be no fault
of its own, so nothing is held against it.
"""

from __future__ import annotations

import msgspec

from hil.dispatcher.database import Database
from hil.dispatcher.judge import UnprovenError

LEAVES = 256
"""Four checkpoints' worth, at one in 64 leaves (`agent.notary`)."""
AGE_MS = 24 * 3_600_000


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """How many leaves beyond the last countersigned one, and for how long, a unit's hand-ins count."""

    leaves: int = LEAVES
    age_ms: int = AGE_MS


class UnwitnessedError(UnprovenError):
    """Too much of the unit's ledger stands unwitnessed."""


class Unwitnessed:
    """Part of the book; see there for threads and errors. Call inside a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def check(self, unit: str, log_index: int, bound: Bound, now_ms: int) -> None:
        """Raises UnwitnessedError for a hand-in at `log_index` that is to wait for the witness."""
        witnessed = self._witnessed(unit)
        if log_index >= witnessed + bound.leaves:
            what = f"the hand-in is leaf {log_index} of the ledger, and {witnessed} are witnessed"
        elif self.is_overdue(unit, bound, now_ms):
            what = f"no checkpoint came for more than {bound.age_ms // 1000} s; {witnessed} leaves are witnessed"
        else:
            return
        raise UnwitnessedError(what, hint="send a checkpoint of the ledger first")

    def is_overdue(self, unit: str, bound: Bound, now_ms: int) -> bool:
        """Whether the unit is put off, or would be: it is granted nothing."""
        row = self._database.row("SELECT since_ms, put_off_ms FROM unwitnessed WHERE unit = :unit", unit=unit)
        return row is not None and (row["put_off_ms"] > 0 or now_ms - row["since_ms"] > bound.age_ms)

    def note_settled(self, unit: str, log_index: int, now_ms: int) -> None:
        """A hand-in at `log_index` was settled; where it is not covered, time runs from the first such on."""
        if log_index >= self._witnessed(unit):
            self._database.execute(
                "INSERT INTO unwitnessed (unit, since_ms) VALUES (:unit, :now) ON CONFLICT DO NOTHING",
                unit=unit,
                now=now_ms,
            )

    def put_off(self, unit: str, now_ms: int) -> bool:
        """Hand-ins of the unit wait for the witness from now on; False when they did already."""
        changed = self._database.execute(
            "INSERT INTO unwitnessed (unit, since_ms, put_off_ms) VALUES (:unit, :now, :now)"
            " ON CONFLICT (unit) DO UPDATE SET put_off_ms = excluded.put_off_ms WHERE unwitnessed.put_off_ms = 0",
            unit=unit,
            now=now_ms,
        )
        return changed == 1

    def witnessed(self, unit: str) -> bool:
        """A checkpoint was countersigned; whether hand-ins had waited for that."""
        row = self._database.row("DELETE FROM unwitnessed WHERE unit = :unit RETURNING put_off_ms", unit=unit)
        return row is not None and row["put_off_ms"] > 0

    def _witnessed(self, unit: str) -> int:
        row = self._database.row("SELECT size FROM ledgers WHERE unit = :unit", unit=unit)
        return 0 if row is None else int(row["size"])
