"""Job inputs as files named by their SHA-256: what a grant points to and a car fetches."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

SHA256 = re.compile(r"[0-9a-f]{64}")


class Objects:
    """A folder of immutable objects."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store `data`, whole or not at all; its name."""
        name = hashlib.sha256(data).hexdigest()
        temporary = self._folder / f"{name}.{os.getpid()}.part"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / name)
        return name

    def path(self, name: str) -> Path | None:
        """The file of object `name`; None when there is none, or when `name` is not the name of an object."""
        if not SHA256.fullmatch(name):
            return None
        path = self._folder / name
        return path if path.is_file() else None
