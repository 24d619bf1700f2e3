"""Tickets: the digests of the signed grants that a statement may name, kept for as long as the lease can be handed in.

A lease sent again or renewed has another ticket each time, and requests are not signed, so anybody on the way can have
as many made as he likes. Of one lease the first few and the newest are kept: a car names the first that reached it. A
lease that has lost some says so, since its car must not be called a liar for naming one of those.
"""

from __future__ import annotations

from agent.core.model import JobKey
from hil.dispatcher.database import Database

FIRST_KEPT = 16
NEWEST_KEPT = 48
MOST_KEPT = FIRST_KEPT + NEWEST_KEPT


class Tickets:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, key: JobKey, sha256: str) -> None:
        """Note the digest of a signed payload that carries this grant."""
        row = self._database.row(
            "INSERT INTO tickets (job, epoch, sha256, number) VALUES (:job, :epoch, :sha256,"
            " (SELECT coalesce(max(number), 0) + 1 FROM tickets WHERE job = :job AND epoch = :epoch))"
            " ON CONFLICT DO NOTHING RETURNING number",
            job=key.job,
            epoch=key.epoch,
            sha256=sha256,
        )
        if row is not None and row["number"] > MOST_KEPT:
            self._database.execute(
                "DELETE FROM tickets WHERE job = :job AND epoch = :epoch AND number > :first AND number <= :old",
                job=key.job,
                epoch=key.epoch,
                first=FIRST_KEPT,
                old=row["number"] - NEWEST_KEPT,
            )

    def forget(self, key: JobKey) -> None:
        """The lease was judged, or superseded: no statement is held against its tickets, or older ones, any more."""
        self._database.execute("DELETE FROM tickets WHERE job = :job AND epoch <= :epoch", job=key.job, epoch=key.epoch)
