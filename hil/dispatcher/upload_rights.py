"""Which leases may bring answers, by the book: a token ends with its lease, its job, or a day after the grant.

A lease whose time has run out may bring them while nobody else was given the job, since it still settles; one that was
withdrawn, until its grace is over; one of a dead job not at all.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.core.model import JobKey
from hil.dispatcher.database import Database, Row

MOST_BYTES_OF_ONE = 64 * 1024 * 1024
"""Of one slice's answers; a job that needs more is cut into smaller slices."""
OPEN_FOR_MS = 24 * 3_600_000
"""From the grant, beyond the lease's own time: a car may come home with its answers the next day."""
ASKED_AT_ONCE = 256
OPEN = (
    "settled_epoch < epoch AND (state IN ('free', 'leased') AND granted_ms > :begun"
    " OR state IN ('leased', 'cancelled') AND expires_ms > :now)"
)


class UploadLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that may bring answers: at most one object a slice, each of so many answers as a slice has items."""

    unit: str
    key: JobKey
    slices: int
    items: int
    slice_items: int
    most_bytes: int = MOST_BYTES_OF_ONE
    """Of one object."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many answers a slice of the job may have: the last one may be a short one."""
        return tuple({min(self.slice_items, self.items), self.items % self.slice_items} - {0})


class UploadRights:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, token: str) -> UploadLease | None:
        """The lease whose token this is; None: there is none that may bring anything."""
        row = self._database.row(
            f"SELECT * FROM jobs WHERE upload_token = :token AND {OPEN}",  # noqa: S608 - a constant
            token=token,
            **self._times(),
        )
        return None if row is None else _lease(row)

    def still_open(self, leases: Iterable[tuple[str, JobKey]]) -> set[tuple[str, JobKey]]:
        """Those of the leases, each with its unit, that may still bring something."""
        asked = set(leases)
        jobs = sorted({key.job for _, key in asked})
        found: set[tuple[str, JobKey]] = set()
        for first in range(0, len(jobs), ASKED_AT_ONCE):
            rows = self._database.rows(
                f"SELECT job, epoch, holder FROM jobs"  # noqa: S608 - constants of ours
                f" WHERE {self._database.among('job', 'jobs')} AND {OPEN}",
                jobs=tuple(jobs[first : first + ASKED_AT_ONCE]),
                **self._times(),
            )
            found |= {(row["holder"], JobKey(row["job"], row["epoch"])) for row in rows}
        return asked & found

    def _times(self) -> dict[str, int]:
        now_ms = self._database.now_ms()
        return {"now": now_ms, "begun": now_ms - OPEN_FOR_MS}


def _lease(row: Row) -> UploadLease:
    return UploadLease(
        unit=row["holder"],
        key=JobKey(row["job"], row["epoch"]),
        slices=row["granted_slices"],
        items=row["items"],
        slice_items=row["slice_items"],
    )
