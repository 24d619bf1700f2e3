"""A disk that can be filled up and freed: a small tmpfs for each agent's state, or a limit on how far its files grow.

Mounting needs root. The mounts are made in a mount namespace of the run's own, so the machine sees none of them and
they end with the run; what an agent wrote is copied out before (`keep`). Without root a full disk is made with
RLIMIT_FSIZE instead, set from outside on the running agent: SQLite then hears EFBIG ("disk I/O error") where a full
disk says ENOSPC ("database or disk is full").

A tmpfs keeps what a crashed process wrote, as a disk does; what a power cut loses is for the virtual machine to show.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000
MNT_DETACH = 2
SIZE_BYTES = 48 * 1024**2
FILLER = "filler"
CHUNK = bytes(64 * 1024)
_LIBC = ctypes.CDLL(None, use_errno=True)


def own_namespace() -> bool:
    """Give this process mounts of its own; call it before there is another thread. False where that is not allowed."""
    if _LIBC.unshare(CLONE_NEWNS) != 0:
        return False
    return bool(_LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0)


class SmallDisk:
    """The folder of one agent's state. `mounted`: a tmpfs is there; else the limit does it."""

    def __init__(self, folder: Path, *, mounting: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        options = f"size={SIZE_BYTES},mode=0700".encode()
        self.mounted = mounting and _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0

    @contextlib.contextmanager
    def full(self, pid: int | None) -> Iterator[None]:
        """Nothing more can be written for as long as this lasts, by the process `pid` or one that comes after it."""
        if self.mounted:
            filler = self.folder / FILLER
            try:
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(CHUNK):
                        pass
                yield
            finally:
                filler.unlink(missing_ok=True)
        else:
            _limit(pid, 0)
            try:
                yield
            finally:
                _limit(pid, resource.RLIM_INFINITY)

    def keep(self) -> None:
        """Copy what is in the tmpfs to where everybody sees it, and let go of the tmpfs."""
        if not self.mounted:
            return
        copy = self.folder.with_name(f"{self.folder.name}.kept")
        shutil.copytree(self.folder, copy, ignore=shutil.ignore_patterns(FILLER))
        _LIBC.umount2(os.fsencode(self.folder), MNT_DETACH)
        self.folder.rmdir()
        copy.replace(self.folder)
        self.mounted = False


def _limit(pid: int | None, size: int) -> None:
    """How large a file the process may write; one that has ended needs no limit."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
