"""The accounts at the end of a run: what the cars were told against what the dispatcher's rows say. Pure.

Neither side is asked about the other: the cars' list is made of verdicts that they verified, the rows are read when all
is over. `lost` is a hand-in that one side calls settled and the other does not, or that nobody knows the end of;
`doubled` is one that was settled twice on either side, or for which money was promised twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from agent.core.model import Verdict
from hil.dispatcher.book import Book
from hil.fleet.report import Books
from hil.fleet.shells import Settled

PAYING = (Verdict.SETTLED, Verdict.DUPLICATE)


class SettledRow(msgspec.Struct, frozen=True):
    """A settled hand-in as the dispatcher has it."""

    job: str
    epoch: int
    paid_micro: int
    statement_sha256: str


def settled_rows(book: Book) -> list[SettledRow]:
    """Every settled hand-in of the book."""
    rows = book.database.rows("SELECT job, epoch, paid_micro, statement_sha256 FROM handins WHERE verdict = 'settled'")
    return [SettledRow(row["job"], row["epoch"], row["paid_micro"], row["statement_sha256"]) for row in rows]


def doubled_slices(book: Book) -> int:
    """Slices that two hand-ins were paid for; the tables allow none, which is no reason not to look."""
    rows = book.database.rows("SELECT job, slice FROM results GROUP BY job, slice HAVING count(*) > 1")
    return len(rows)


def balance(made: int, owed: int, told: Sequence[Settled], rows: Sequence[SettledRow], *, twice_paid: int) -> Books:
    """Compare the two sides. `made` counts hand-ins with a statement, `owed` those of them without a verdict."""
    paying = [one for one in told if one.verdict in PAYING]
    mine = {(one.job, one.epoch, one.statement_sha256): one.paid_micro for one in paying}
    theirs = {(row.job, row.epoch, row.statement_sha256): row.paid_micro for row in rows}
    differ = sum(mine[key] != theirs[key] for key in mine.keys() & theirs.keys())
    verdicts = Counter(one.verdict for one in told)
    return Books(
        made=made,
        settled=verdicts[Verdict.SETTLED],
        duplicate=verdicts[Verdict.DUPLICATE],
        stale=verdicts[Verdict.STALE],
        bad=verdicts[Verdict.BAD],
        owed=owed,
        paid_micro=sum(one.paid_micro for one in paying),
        book_settled=len(rows),
        book_paid_micro=sum(row.paid_micro for row in rows),
        lost=len(mine.keys() ^ theirs.keys()) + differ + abs(made - owed - len(told)),
        doubled=len(paying) - len(mine) + len(rows) - len(theirs) + twice_paid,
    )
