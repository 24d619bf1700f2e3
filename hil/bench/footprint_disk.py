"""What reaches the disk, counted by the disk: a folder on a file system of its own, on a loop device.

What the kernel counts for a process (`write_bytes`) are pages that it makes dirty: without the file system's journal
and metadata, and not what came of pages that are written twice before a flush. A block device counts every sector that
it is given and every flush (Documentation/block/stat.rst), so a disk that nobody else has shows both to the byte,
without a tracer. Root only, and where loop devices are; elsewhere `why_not` says why, and `write_bytes` is all there
is.

The file system is ext4 as mke2fs makes it, mounted as a vehicle's usually is (relatime, a journal commit every 5 s).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from agent.errors import DrivewayError

SIZE_BYTES = 512 * 1024 * 1024
SECTOR_BYTES = 512
PROGRAMS = ("mkfs.ext4", "mount", "umount", "sync", "findmnt")
STAT_WRITES, STAT_WRITTEN_SECTORS, STAT_FLUSHES = 4, 6, 15
"""Places in /sys/block/*/stat."""


class DiskCounts(msgspec.Struct, frozen=True):
    """What a disk has been given: bytes, write requests, and flushes of its cache (one or more for every fsync)."""

    written_bytes: int
    writes: int
    flushes: int

    def since(self, before: DiskCounts) -> DiskCounts:
        """The difference, without the one empty flush that looking again took."""
        return DiskCounts(
            self.written_bytes - before.written_bytes,
            max(0, self.writes - before.writes - 1),
            max(0, self.flushes - before.flushes - 1),
        )


def why_not() -> str | None:
    """Why a disk cannot be had here; None: it can."""
    if os.getuid():
        return "only root may mount a disk"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    return None if Path("/dev/loop-control").exists() else "there are no loop devices"


class Disk:
    """A fresh file system mounted at `folder`, which is made; `with` mounts it, and unmounts it when nobody uses it.

    Raises DrivewayError where it cannot be made or mounted, and on leaving while a process still has a file on it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._image = folder.with_name(f"{folder.name}.ext4")
        self._stat = Path()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(SIZE_BYTES)
        # Nothing is left for the kernel to initialise later, which would be counted.
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        _run("mount", "-o", "loop", str(self._image), str(self.folder))
        try:
            device = Path(_run("findmnt", "--noheadings", "--output", "SOURCE", str(self.folder)).strip()).name
            self._stat = Path("/sys/block") / device / "stat"
            self.counts()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run("umount", str(self.folder))
        self._image.unlink()

    def counts(self) -> DiskCounts:
        """Until now, with everything that was on its way to the disk."""
        _run("sync", "--file-system", str(self.folder))
        try:
            return counts_of(self._stat.read_text("ascii"))
        except OSError as error:
            raise DrivewayError(f"the kernel does not tell what {self._stat.parent.name} is given: {error}") from error


def counts_of(stat: str) -> DiskCounts:
    """Those of a line of /sys/block/*/stat; raises DrivewayError for an older kernel's, which has no flushes (5.5)."""
    fields = stat.split()
    if len(fields) <= STAT_FLUSHES:
        raise DrivewayError("this kernel does not count a disk's flushes", hint="Linux 5.5 or later")
    return DiskCounts(
        int(fields[STAT_WRITTEN_SECTORS]) * SECTOR_BYTES, int(fields[STAT_WRITES]), int(fields[STAT_FLUSHES])
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DrivewayError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
