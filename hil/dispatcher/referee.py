"""The operator's own computer: a worker on a CPU that runs whole jobs, with the packages on the operator's own shelf.

What it says needs no majority (`hil.dispatcher.copies`), so no number of colluding cars can outvote an honest one, and
no car is paid for deciding. It is the same worker, sandbox and wire as in a car, a new process for every job.

This module computes and nothing else. What is to be computed, by which replica, and what becomes of it is in
`hil.dispatcher.referee_tasks`; who asks for it, `hil.dispatcher.refereeing`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.errors import PackageError
from agent.inference.runner import PackageRunner
from agent.package import MANIFEST
from agent.wire import WireError, decode_input


class UnfitJobError(PackageError):
    """The package or the input of a job is not here, or it is no input: about this job, and nothing of the worker."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What to compute: so many items, in slices as cars cut them."""

    job: str
    package_sha256: str
    items: int
    slice_items: int


class Referee:
    """`packages` are folders by digest. Use on one event loop, a job at a time: opening a package blocks it."""

    def __init__(self, packages: Mapping[str, Path], *, threads: int = 1) -> None:
        self._packages, self._threads = packages, threads

    @property
    def packages(self) -> tuple[str, ...]:
        """The digests of what is on the shelf."""
        return tuple(self._packages)

    async def answers(self, work: Work, body: bytes | None) -> dict[int, bytes]:
        """What is right for each slice, a JSON array; `body` is the job's input, None where it is gone.

        Raises UnfitJobError, and PackageError or WorkerError where the worker cannot do it.
        """
        folder = self._packages.get(work.package_sha256)
        if folder is None or body is None:
            what = f"the {'package' if folder is None else 'input'} of job {work.job} is not here"
            raise UnfitJobError(what, hint="give the referee what cars were given")
        items = _items(work, body)
        runner = PackageRunner(folder, self._threads)
        try:
            await runner.open()
            runner.give(items)
            return {
                index: (await runner.compute(first, min(first + work.slice_items, work.items))).output
                for index, first in enumerate(range(0, work.items, work.slice_items))
            }
        finally:
            await runner.close()


def _items(work: Work, body: bytes) -> list[bytes]:
    try:
        items = decode_input(body)
    except WireError as error:
        raise UnfitJobError(f"the input of job {work.job} cannot be read: {error.what}") from error
    if len(items) != work.items:
        raise UnfitJobError(f"the input of job {work.job} has {len(items)} items, not {work.items}")
    return items


def packages_in(folder: Path) -> dict[str, Path]:
    """The packages directly in `folder`, by digest; raises PackageError where it cannot be read.

    They are checked when they are opened.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if (path / MANIFEST).is_file())
        return {hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest(): path for path in paths}
    except OSError as error:
        raise PackageError(f"cannot read the packages in {folder}: {error.strerror}") from error
