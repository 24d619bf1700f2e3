"""What the disk keeps free: leases and the ledger come before everything that is only useful to have."""

from __future__ import annotations

import os
from pathlib import Path

RESERVE_BYTES = 256 * 1024 * 1024
"""So much of the disk stays free for what was earned."""


def has_room(folder: Path, more_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> bool:
    """Whether the disk of `folder` takes so many bytes without touching the reserve; raises OSError."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize - more_bytes >= reserve_bytes
