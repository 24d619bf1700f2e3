"""What cars have brought, until a hand-in that names it is accepted: apart by unit and lease, bounded, and collected.

    uploads/{unit}/{job}.{epoch}/{sha256}.{length}.part      what has come of an object of so many bytes
                                 {sha256}.{answers}.{failed}.whole
                                                             all of it: its digest is right, and so many answers are in
                                                             it (0: it is no list of as many as a slice has items), so
                                                             many of them errors

All in the objects' folder, so that several dispatchers may share it. An object is looked at once, when the last of it
comes; what a hand-in names is then known by its file's name, and costs the book nothing. Accepted answers become
objects by a second name for the same file.

A lease has one object a slice and a bounded number of bytes. Where there is no room for all, whoever has most gives
way. What nobody may hand in any more goes in time, and everything does after a day.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from agent.core.model import JobKey
from hil.dispatcher.objects import SHA256, Objects
from hil.dispatcher.upload_rights import UploadLease

MOST_PARTS = 4
"""Of one lease, begun and not whole: the oldest gives way to a fifth."""
LEASE_BYTES = 256 * 1024 * 1024
MOST_FILES = 4096
MOST_BYTES = 4 * 1024**3
EXPIRES_S = 24 * 3600.0
CLOSED_EXPIRES_S = 3600.0
"""After its lease may bring nothing any more: a hand-in of what is here may be on its way."""
PART, WHOLE = ".part", ".whole"
LEASE_FOLDER = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,18})")

StillOpen = Callable[[Iterable[tuple[str, JobKey]]], set[tuple[str, JobKey]]]
"""Which of these leases may still bring something. Raises TimeoutError, DrivewayError."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A whole one, of the digest that was asked for; `answers` is 0 for what no slice of the job may have given.

    `failed`: so many of the answers are errors.
    """

    bytes: int
    answers: int
    failed: int


class QuotaError(Exception):
    """The lease has brought as much as it may."""


class Staging:
    """Use from any thread and process: the files are the only state."""

    def __init__(self, objects: Objects, now_s: Callable[[], float] = time.time) -> None:
        self._objects, self._now_s = objects, now_s
        self._folder = objects.folder / "uploads"
        self._folder.mkdir(parents=True, exist_ok=True)

    def folder(self, unit: str, key: JobKey) -> Path:
        """Where a lease's files are; there may be none."""
        return self._folder / unit / f"{key.job}.{key.epoch}"

    def find(self, unit: str, key: JobKey, sha256: str) -> Upload | None:
        """What the lease has brought under this digest, None when it is not here, or not all of it."""
        path = self._whole(unit, key, sha256)
        if path is None:
            return None
        try:
            _, answers, failed, _ = path.name.split(".")
            return Upload(bytes=path.stat().st_size, answers=int(answers), failed=int(failed))
        except FileNotFoundError:
            return None

    def arrived_bytes(self, unit: str, key: JobKey) -> int:
        """How much the lease has brought, whole or not."""
        folder = self.folder(unit, key)
        return sum(_size(path) for path in folder.iterdir()) if folder.is_dir() else 0

    def keep(self, unit: str, key: JobKey, names: Iterable[str]) -> None:
        """Make objects of what was brought under these digests; raises OSError."""
        for sha256 in dict.fromkeys(names):
            path = self._whole(unit, key, sha256)
            if path is None:
                raise FileNotFoundError(sha256)
            self._objects.link(path, sha256)

    def _whole(self, unit: str, key: JobKey, sha256: str) -> Path | None:
        if not SHA256.fullmatch(sha256):
            return None
        return next(self.folder(unit, key).glob(f"{sha256}.*{WHOLE}"), None)

    def make_room(self, lease: UploadLease, length: int) -> Path:
        """Where the lease may begin another object of so many bytes; raises QuotaError, OSError."""
        folder = self.folder(lease.unit, lease.key)
        folder.mkdir(parents=True, exist_ok=True)
        for path in _by_age(folder.glob(f"*{PART}"))[: -(MOST_PARTS - 1)]:
            path.unlink(missing_ok=True)
        there = [_size(path) for path in folder.iterdir()]
        whole = len(list(folder.glob(f"*{WHOLE}")))
        if whole >= lease.slices:
            raise QuotaError(f"the lease has {lease.slices} slices, and has brought as many objects")
        if sum(there) + length > LEASE_BYTES:
            raise QuotaError(f"a lease brings at most {LEASE_BYTES} bytes")
        self._give_way(length)
        return folder

    def _give_way(self, length: int) -> None:
        """Where all is full, drop the oldest of whoever has most, until there is room. By what is really there."""
        files: dict[str, list[tuple[float, int, Path]]] = defaultdict(list)
        for path in self._folder.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                seen = path.stat()
                files[path.parent.parent.name].append((-seen.st_mtime, seen.st_size, path))
        for own in files.values():
            own.sort(key=lambda one: one[0])  # the oldest at the end
        count = sum(len(own) for own in files.values())
        size = sum(one[1] for own in files.values() for one in own)
        while files and (count >= MOST_FILES or size + length > MOST_BYTES):
            by = len if count >= MOST_FILES else _bytes
            largest = max(files, key=lambda unit: by(files[unit]))
            _, freed, path = files[largest].pop()
            path.unlink(missing_ok=True)
            count, size = count - 1, size - freed
            if not files[largest]:
                del files[largest]

    def sweep(self, still_open: StillOpen) -> None:
        """Drop what is too old, or will not be handed in any more. Raises OSError, and what `still_open` raises."""
        found: dict[tuple[str, JobKey], float] = {}
        for folder in self._folder.glob("*/*"):
            name = LEASE_FOLDER.fullmatch(folder.name)
            with contextlib.suppress(FileNotFoundError):
                if name is not None:
                    newest_s = max([folder.stat().st_mtime, *(path.stat().st_mtime for path in folder.iterdir())])
                    found[folder.parent.name, JobKey(name[1], int(name[2]))] = self._now_s() - newest_s
        aged = {lease for lease, age_s in found.items() if age_s > CLOSED_EXPIRES_S}
        kept = still_open(aged) if aged else set()
        for unit, key in aged:
            if (unit, key) not in kept or found[unit, key] > EXPIRES_S:
                shutil.rmtree(self.folder(unit, key), ignore_errors=True)
                with contextlib.suppress(OSError):  # others of the unit's are in it
                    (self._folder / unit).rmdir()


def answers_in(body: bytes, lengths: Iterable[int]) -> int:
    """How many entries the JSON array has, if that is one of `lengths`; else 0.

    Decoded as an array of just so many, so that one of millions fills no memory.
    """
    for length in lengths:
        kind = tuple[(msgspec.Raw,) * length]  # type: ignore[misc,valid-type] # a type that is made here
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            msgspec.json.decode(body, type=kind)
            return length
    return 0


def _by_age(paths: Iterable[Path]) -> list[Path]:
    """The oldest first."""
    aged = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            aged.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(aged)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _bytes(files: list[tuple[float, int, Path]]) -> int:
    return sum(size for _, size, _ in files)
