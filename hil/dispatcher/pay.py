"""Pay that is held back: earned when a hand-in is settled, the unit's own when enough of its later work was in order.

Without it a cheat that is found out has lost nothing. With it he loses what was held, so that a few checks already make
cheating cost more than it saves: share of jobs checked x what is held >= what cheating saves (Proof of Sampling,
arXiv 2405.00295, has the game).

A hand-in is cleared when a check found it right, or when it has aged without anybody disputing it. It is released when
it is cleared and so are `keep` others of the unit that came after it; so the newest `keep` are always at stake. When a
check finds the unit wrong, all that is held of it is forfeited. Nothing is released while a hand-in is disputed, or
while something stands against the unit's ledger. What was settled is in exactly one of the three: held, released or
forfeited; and what was released or forfeited stays so.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from hil.dispatcher.database import Database

KEEP = 100
"""Jobs at stake: with one in fifty checked, a cheat loses two jobs' pay for each that he invents."""
AGE_MS = 7 * 24 * 3_600_000


class HoldBack(msgspec.Struct, frozen=True, kw_only=True):
    """How many cleared hand-ins of a unit stay at stake, and when one that nobody looked at counts as cleared."""

    keep: int = KEEP
    age_ms: int = AGE_MS


class HeldPay(msgspec.Struct, frozen=True, kw_only=True):
    """A hand-in whose pay is held."""

    job: str
    epoch: int
    cleared: bool
    disputed: bool


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What became of all that was settled for a unit, in millionths of the currency."""

    unit: str
    currency: str
    held_micro: int
    released_micro: int
    forfeited_micro: int

    @property
    def settled_micro(self) -> int:
        """All of it."""
        return self.held_micro + self.released_micro + self.forfeited_micro


def releasable(held: Sequence[HeldPay], keep: int) -> list[HeldPay]:
    """Which of a unit's held hand-ins, oldest first, are its own now."""
    released, cleared_after = [], 0
    for one in reversed(held):
        if one.cleared and not one.disputed and cleared_after >= keep:
            released.append(one)
        cleared_after += one.cleared
    return released[::-1]


class Pay:
    """Part of the book; see there for threads and errors. Call inside a transaction."""

    def __init__(self, database: Database, terms: HoldBack) -> None:
        self._database, self._terms = database, terms

    def release(self, unit: str, now_ms: int) -> int:
        """Release what the unit has a right to; how many hand-ins that were."""
        stands = self._database.row("SELECT ledger_fault FROM units WHERE unit = :unit", unit=unit)
        if stands is None or stands["ledger_fault"]:
            return 0
        rows = self._database.rows(
            "SELECT job, epoch, checked, disputed, at_ms FROM handins"
            " WHERE unit = :unit AND pay = 'held' AND verdict = 'settled' ORDER BY at_ms, job, epoch",
            unit=unit,
        )
        aged_ms = now_ms - self._terms.age_ms
        held = [
            HeldPay(
                job=row["job"],
                epoch=row["epoch"],
                cleared=row["checked"] == "right" or (not row["disputed"] and row["at_ms"] <= aged_ms),
                disputed=bool(row["disputed"]),
            )
            for row in rows
        ]
        released = releasable(held, self._terms.keep)
        for one in released:
            self._database.execute(
                "UPDATE handins SET pay = 'released' WHERE job = :job AND epoch = :epoch AND pay = 'held'",
                job=one.job,
                epoch=one.epoch,
            )
        return len(released)

    def release_aged(self, now_ms: int) -> None:
        """Release what has aged, also of units that hand nothing in any more.

        What nobody decided for as long again (a copy was withdrawn, a referee did not come) is disputed no more.
        """
        self._database.execute(
            "UPDATE handins SET disputed = 0 WHERE disputed = 1 AND at_ms <= :before",
            before=now_ms - 2 * self._terms.age_ms,
        )
        rows = self._database.rows(
            "SELECT DISTINCT unit FROM handins WHERE pay = 'held' AND at_ms <= :before ORDER BY unit",
            before=now_ms - self._terms.age_ms,
        )
        for row in rows:
            self.release(row["unit"], now_ms)

    def forfeit(self, unit: str) -> None:
        """The unit was found to be wrong: what is held of it is lost."""
        self._database.execute("UPDATE handins SET pay = 'forfeited' WHERE unit = :unit AND pay = 'held'", unit=unit)


def accounts(database: Database) -> list[Account]:
    """What every unit has earned, by unit and currency."""
    rows = database.rows(
        "SELECT handins.unit, currency,"
        " CAST(coalesce(sum(CASE WHEN pay = 'held' THEN paid_micro END), 0) AS BIGINT) AS held_micro,"
        " CAST(coalesce(sum(CASE WHEN pay = 'released' THEN paid_micro END), 0) AS BIGINT) AS released_micro,"
        " CAST(coalesce(sum(CASE WHEN pay = 'forfeited' THEN paid_micro END), 0) AS BIGINT) AS forfeited_micro"
        " FROM handins JOIN jobs ON jobs.job = handins.job WHERE verdict = 'settled'"
        " GROUP BY handins.unit, currency ORDER BY handins.unit, currency"
    )
    return [Account(**dict(row)) for row in rows]
