"""Reads small sysfs files again and again, cheaply: each is opened once and read in place.

Opening costs several times what reading does, and looking for files costs more still. A kept descriptor of a file that
went away says ENODEV (a driver was unloaded) or has no link any more (a rig replaces its files by renaming): then it is
opened again by its name, and when the name is gone too the file is `lost` and its owner looks around anew.
"""

from __future__ import annotations

import os
from pathlib import Path

LONGEST = 64
"""Bytes; every value that is read here is shorter."""


class ValueFile:
    """One file with one value. Whatever goes wrong on reading it is None; nothing raises."""

    __slots__ = ("_descriptor", "_was_there", "lost", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = False
        """It was there, and its name leads nowhere any more."""
        self._descriptor = -1
        self._was_there = False

    def number(self) -> int | None:
        """The whole number in the file; None for a file that is gone, fails to read, or holds anything else."""
        try:
            return int(self._bytes())
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _bytes(self) -> bytes:
        if self._descriptor >= 0:
            try:
                if os.fstat(self._descriptor).st_nlink:
                    return os.pread(self._descriptor, LONGEST, 0)
            except OSError:
                self.close()
                raise
            self.close()
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.lost = self._was_there
            raise
        self._was_there = True
        return os.pread(self._descriptor, LONGEST, 0)


def text(path: Path) -> str | None:
    """What a file says, without the space around it; None when it cannot be read."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def number(path: Path) -> int | None:
    """The whole number in a file that is read once."""
    said = text(path)
    try:
        return None if said is None else int(said)
    except ValueError:
        return None
