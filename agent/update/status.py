"""What `driveway update status` shows: written for everybody to read, beside nothing that counts.

    {"v": 1, "phase": "trial", "candidate": "1.1.0", "current": "1.1.0", "good": "1.0.0", "reason": "",
     "past": [{"version": "1.0.0", "result": "committed", "reason": "installed", "at_wall_s": 1790000000}]}

`reason` is why it waits, or why it goes back. It lies in /run and is gone with the power; the journal is what counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from agent.errors import StoreError
from agent.update.model import Disk, Journal

FORMAT = 1


def encode(journal: Journal, disk: Disk, waits_for: str) -> bytes:
    """The document; `waits_for` is the daemon's word."""
    shown = {
        "v": FORMAT,
        "phase": journal.phase,
        "candidate": journal.candidate,
        "current": disk.current,
        "good": disk.good,
        "reason": journal.reason or waits_for,
        "past": [asdict(one) for one in journal.past],
    }
    return json.dumps(shown).encode() + b"\n"


def write(path: Path, content: bytes) -> None:
    """Whole or not at all, for whoever reads; not synced. Raises StoreError."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        part.write_bytes(content)
        part.chmod(0o644)
        os.rename(part, path)  # noqa: PTH104 - as the journal does it
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
