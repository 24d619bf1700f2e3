"""What people are shown of the store: leases, vacates, and the ledger's leaves. It reads, and changes nothing.

Part of `agent.store.Store`, and like it of the store's thread alone.
"""

from __future__ import annotations

import sqlite3

import msgspec

from agent.core.model import Grant, JobKey
from agent.errors import LedgerDamagedError
from agent.rows import LeaseRow, LedgerRow, LogRow, VacateStats


class StoreReader:
    """Looks at the database that the store has opened."""

    _db: sqlite3.Connection

    def leases(self, limit: int, since_wall_ms: int = 0, until_wall_ms: int = 2**62) -> list[LeaseRow]:
        """The newest leases that were opened in this time (the end not in it), newest first."""
        rows = self._db.execute(
            "SELECT job, epoch, ticket, state, opened_wall_ms, kind, why, slices_done, energy_micro_wh, verdict, "
            "reason, paid_micro, cost_micro FROM leases WHERE opened_wall_ms >= ? AND opened_wall_ms < ? "
            "ORDER BY rowid DESC LIMIT ?",
            (since_wall_ms, until_wall_ms, limit),
        ).fetchall()
        return [self._lease_row(row) for row in rows]

    def log_of(self, name: str, since_wall_ms: int, limit: int) -> list[LogRow]:
        """The newest log events of a name since a moment, and the last before it; oldest first."""
        query = "SELECT at_wall_ms, name, fields FROM log WHERE name = ? ORDER BY rowid DESC LIMIT ?"
        found = list[LogRow]()
        for row in self._db.execute(query, (name, limit)):
            found.append(LogRow(*row))
            if found[-1].at_wall_ms < since_wall_ms:
                break
        return found[::-1]

    def vacate_times_ms(self) -> list[int]:
        """How long each of the newest vacates took, from the sign on the bus to the worker's end."""
        return [int(row[0]) for row in self._db.execute("SELECT gone_ms FROM vacates")]

    def vacate_stats(self) -> VacateStats:
        """How many there were, and percentiles over the newest of them (nearest rank)."""
        times = [row[0] for row in self._db.execute("SELECT gone_ms FROM vacates ORDER BY gone_ms")]
        if not times:
            return VacateStats(0, None, None, None)
        count = self._one("SELECT max(rowid) FROM vacates")
        return VacateStats(count, times[(len(times) - 1) // 2], times[-(-99 * len(times) // 100) - 1], times[-1])

    def ledger(self, limit: int) -> list[LedgerRow]:
        """The newest leaves, oldest first."""
        query = "SELECT idx, kind, job, epoch, leaf FROM ledger ORDER BY idx DESC LIMIT ?"
        rows = self._db.execute(query, (limit,))
        return [_ledger_row(row) for row in rows][::-1]

    def leaf(self, index: int) -> LedgerRow | None:
        """The leaf at an index."""
        row = self._db.execute("SELECT idx, kind, job, epoch, leaf FROM ledger WHERE idx = ?", (index,)).fetchone()
        return None if row is None else _ledger_row(row)

    def leaf_of(self, kind: str, key: JobKey, *, before: int = 2**62) -> LedgerRow | None:
        """The last leaf of a kind about a lease (of a session: `JobKey("", number)`) that comes before an index."""
        row = self._db.execute(
            "SELECT idx, kind, job, epoch, leaf FROM ledger WHERE idx < ? AND kind = ? AND job = ? AND epoch = ?"
            " ORDER BY idx DESC LIMIT 1",
            (before, kind, key.job, key.epoch),
        ).fetchone()
        return None if row is None else _ledger_row(row)

    def newest_session(self) -> int | None:
        """The number of the last session whose certificate is in the ledger."""
        row = self._db.execute("SELECT epoch FROM ledger WHERE kind = 'session' ORDER BY idx DESC LIMIT 1").fetchone()
        return None if row is None else int(row[0])

    def _lease_row(
        self, row: tuple[str, int, bytes | None, str, int, str, str, int | None, int, str, str, int, int]
    ) -> LeaseRow:
        job, epoch, ticket, state, opened, kind, why, done, energy, verdict, reason, paid, cost = row
        grant = None if ticket is None else msgspec.json.decode(ticket, type=Grant)  # an old lease's is not kept
        if done is None:
            done = self._one("SELECT count(*) FROM slices WHERE job = ? AND epoch = ?", job, epoch)
        return LeaseRow(
            job=job,
            epoch=epoch,
            state=state,
            customer=grant.customer if grant else "",
            package=grant.package if grant else "",
            items=grant.items if grant else 0,
            slices_done=done,
            slices_wanted=len(grant.slices) if grant else done,
            opened_wall_ms=opened,
            kind=kind,
            why=why,
            energy_micro_wh=energy,
            cost_micro=cost,
            verdict=verdict,
            reason=reason,
            paid_micro=paid,
            currency=grant.currency if grant else "",
        )

    def _one(self, query: str, *values: str | int) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


def _ledger_row(row: tuple[int, str, str, int, bytes | None]) -> LedgerRow:
    """A leaf as it was written; raises LedgerDamagedError for what nobody here wrote."""
    if not isinstance(row[4], bytes | None):  # SQLite keeps any type in any column
        raise LedgerDamagedError(f"the body of leaf {row[0]} is not what was written")
    return LedgerRow(*row)
