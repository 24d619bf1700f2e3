"""How jobs that were put up together are getting on, and their answers: what an operator asks of the book.

A submission is nothing but a name that its jobs share: `{submission}-{number}`, the numbers counting from 0. Whoever
put them up knows how many there are, so every question names the jobs it is about, a page of them at a time, and is
answered out of the primary key however many jobs the book has.
"""

from __future__ import annotations

import msgspec

from hil.dispatcher.database import Database

PAGE_JOBS = 256


class JobProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One job; `state` is `free`, `leased`, `done`, `dead` or `cancelled`. Items count once their slice is settled."""

    job: str
    state: str
    package_sha256: str
    input_sha256: str
    items: int
    slice_items: int
    slices_done: int
    items_done: int
    items_failed: int
    paid_micro: int
    currency: str


class SliceResult(msgspec.Struct, frozen=True, kw_only=True):
    """One settled slice: items [slice * slice_items, …) of its job, and the digest of their answers."""

    slice: int
    items: int
    failed_items: int
    output_sha256: str


def job_name(submission: str, number: int) -> str:
    """The name of a submission's job."""
    return f"{submission}-{number}"


class Submissions:
    """Part of the book; see there for threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def progress(self, jobs: tuple[str, ...]) -> list[JobProgress]:
        """Those of the named jobs that there are, in the order given."""
        query = f"""
            SELECT jobs.job, state, package_sha256, input_sha256, jobs.items, slice_items, currency,
                   count(slice) AS slices_done, coalesce(sum(results.items), 0) AS items_done,
                   coalesce(sum(failed_items), 0) AS items_failed, coalesce(sum(paid_micro), 0) AS paid_micro
            FROM jobs LEFT JOIN results ON results.job = jobs.job
            WHERE {self._database.among("jobs.job", "jobs")} GROUP BY jobs.job
            """  # noqa: S608 - a phrase of the database's own
        found = {
            row["job"]: JobProgress(
                job=row["job"],
                state=row["state"],
                package_sha256=row["package_sha256"],
                input_sha256=row["input_sha256"],
                items=row["items"],
                slice_items=row["slice_items"],
                currency=row["currency"],
                slices_done=row["slices_done"],
                items_done=int(row["items_done"]),  # PostgreSQL sums integers up to a decimal
                items_failed=int(row["items_failed"]),
                paid_micro=int(row["paid_micro"]),
            )
            for row in self._database.rows(query, jobs=jobs)
        }
        return [found[job] for job in jobs if job in found]

    def slices(self, job: str) -> list[SliceResult]:
        """The job's settled slices, in order."""
        rows = self._database.rows(
            "SELECT slice, items, failed_items, output_sha256 FROM results WHERE job = :job ORDER BY slice", job=job
        )
        return [
            SliceResult(
                slice=row["slice"],
                items=row["items"],
                failed_items=row["failed_items"],
                output_sha256=row["output_sha256"],
            )
            for row in rows
        ]

    def answers(self, job: str, index: int) -> bytes | str | None:
        """A slice's answers as the package writes them, or the name of the object that they are; None: not settled."""
        row = self._database.row(
            "SELECT body, output_sha256 FROM results WHERE job = :job AND slice = :slice", job=job, slice=index
        )
        if row is None:
            return None
        return str(row["output_sha256"]) if row["body"] is None else bytes(row["body"])

    def why_dead(self, job: str) -> str:
        """What the last lease that came to nothing said, without who said it; "" when none did."""
        row = self._database.row(
            "SELECT why, detail, units.unit, keyid FROM attempts JOIN units ON units.unit = attempts.unit"
            " WHERE job = :job ORDER BY epoch DESC LIMIT 1",
            job=job,
        )
        if row is None:
            return ""
        detail = str(row["detail"]).replace(row["keyid"], "its key").replace(row["unit"], "the unit")
        return f"{row['why']}: {detail}".removesuffix(": ")

    def cars_with(self, package_sha256: str) -> int:
        """How many units have said that they hold this package."""
        row = self._database.row(
            "SELECT count(*) AS cars FROM units WHERE packages LIKE :like", like=f'%"{package_sha256}"%'
        )
        return 0 if row is None else int(row["cars"])
