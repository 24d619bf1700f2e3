"""The versions of the agent on its vehicle, as far as the daemon looks at them itself: it judges, and changes nothing.

`good` leads to the version that has proven itself (`agent.update.versions`). Where there is none, no update program is
at work here, and what runs counts as proven.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from agent.trust.admission import SUMS

HOME = Path("/opt/driveway")


def is_on_trial(running: str, home: Path = HOME) -> bool:
    """Whether the version that runs may yet be taken back: another one is the one that has proven itself."""
    try:
        good = os.readlink(home / "good")  # noqa: PTH115 - a Path would be made of it
    except OSError:
        return False
    return good != running


def sums_sha256(version: str, home: Path = HOME) -> str:
    """The SHA-256 (hex) of the list of a version's files, which names all of it; "" where it cannot be read. Blocks."""
    try:
        with (home / version / SUMS).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
