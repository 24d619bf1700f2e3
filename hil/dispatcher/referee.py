"""The operator computes what cars dispute: a worker of his own, on a CPU, with the package from his own shelf.

Its answers need no majority (`hil.dispatcher.copies`), so no number of colluding cars can outvote an honest one, and no
car is paid for deciding. It computes whole jobs, with the same worker, sandbox and wire as a car. What it cannot
compute (a package that it has not, an input that is gone) stays disputed until it ages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from agent.errors import DrivewayError, PackageError
from agent.inference.runner import PackageRunner
from agent.wire import decode_input
from hil.dispatcher.book import Book

log = structlog.get_logger("dispatcher")


class Disputed(msgspec.Struct, frozen=True, kw_only=True):
    """A job to be computed once more."""

    job: str
    package_sha256: str
    input_sha256: str
    items: int
    slice_items: int


def disputed(book: Book) -> list[Disputed]:
    """What waits for a decision, oldest first."""
    rows = (book.leases.row(job) for job in book.copies.disputes())
    return [
        Disputed(
            job=row["job"],
            package_sha256=row["package_sha256"],
            input_sha256=row["input_sha256"],
            items=row["items"],
            slice_items=row["slice_items"],
        )
        for row in rows
        if row is not None
    ]


class Referee:
    """`packages` are folders by digest, `read_object` gives an input. Use on one event loop, a job at a time."""

    def __init__(
        self, packages: Mapping[str, Path], read_object: Callable[[str], bytes | None], *, threads: int = 1
    ) -> None:
        self._packages, self._read_object, self._threads = packages, read_object, threads

    async def answers(self, job: Disputed) -> dict[int, bytes]:
        """What is right for each slice; raises PackageError or WorkerError where that cannot be computed."""
        folder, body = self._packages.get(job.package_sha256), self._read_object(job.input_sha256)
        if folder is None or body is None:
            what = "package" if folder is None else "input"
            raise PackageError(f"the {what} of job {job.job} is not here", hint="give the referee what cars were given")
        runner = PackageRunner(folder, self._threads)
        try:
            await runner.open()
            runner.give(decode_input(body))
            return {
                index: (await runner.compute(first, min(first + job.slice_items, job.items))).output
                for index, first in enumerate(range(0, job.items, job.slice_items))
            }
        finally:
            await runner.close()

    async def decide(self, jobs: list[Disputed], know: Callable[[str, Mapping[int, bytes]], object]) -> int:
        """Compute these and tell the book (`Book.know`); how many that were. One that fails is logged and left."""
        decided = 0
        for job in jobs:
            try:
                know(job.job, await self.answers(job))
                decided += 1
            except DrivewayError as error:
                log.warning("dispute_not_decided", job=job.job, reason=str(error))
        return decided
