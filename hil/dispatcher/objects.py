"""Bulk data as files named by their SHA-256: inputs that cars fetch, and answers that they brought.

An object appears whole, by a rename, and never changes; so several dispatchers may share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

from hil.dispatcher.sealing import InputSealing

SMALL_KEPT = 256
SHA256 = re.compile(r"[0-9a-f]{64}")
ONLY_SEALED = ".sealed"


class Objects:
    """A folder of immutable objects. With `sealing`, inputs leave sealed to whom they are for, where that is wanted."""

    def __init__(self, folder: Path, sealing: InputSealing | None = None) -> None:
        self.folder, self.sealing = folder, sealing
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store `data`, whole or not at all; its name."""
        name = hashlib.sha256(data).hexdigest()
        temporary = self.folder / f"{name}.{os.getpid()}.{threading.get_ident()}.part"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.adopt(temporary, name)
        return name

    def adopt(self, file: Path, name: str) -> None:
        """Make a file that is on the same disk, durable, and known to have this digest, the object of this name."""
        file.replace(self.folder / name)
        sync_folder(self.folder)

    def link(self, file: Path, name: str) -> None:
        """The same, and the file stays where it is under its own name, too."""
        with contextlib.suppress(FileExistsError):  # brought before: the same digest, the same bytes
            (self.folder / name).hardlink_to(file)
            sync_folder(self.folder)

    def only_sealed(self, name: str) -> None:
        """From now on the object leaves in no other way: not even whoever knows its digest is given it."""
        (self.folder / f"{name}{ONLY_SEALED}").touch()
        sync_folder(self.folder)

    def is_only_sealed(self, name: str) -> bool:
        """Whether `only_sealed` was said of it."""
        return bool(SHA256.fullmatch(name)) and (self.folder / f"{name}{ONLY_SEALED}").exists()

    def small(self, name: str) -> bytes | None:
        """An object that a message carries; the newest few are kept in memory, since jobs often share an input."""
        with self._lock:
            if name in self._small:
                self._small.move_to_end(name)
                return self._small[name]
        body = self.read(name)
        if body is not None:
            with self._lock:
                self._small[name] = body
                while len(self._small) > SMALL_KEPT:
                    self._small.popitem(last=False)
        return body

    def read(self, name: str) -> bytes | None:
        """The object's bytes; None when there is none."""
        path = self.path(name)
        return None if path is None else path.read_bytes()

    def path(self, name: str) -> Path | None:
        """The file of object `name`; None when there is none, or when `name` is not the name of an object."""
        if not SHA256.fullmatch(name):
            return None
        path = self.folder / name
        return path if path.is_file() else None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
