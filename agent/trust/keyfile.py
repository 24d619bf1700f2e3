"""Files that hold a secret: readable by their owner only, and created whole or not at all.

A new one is written under another name, synced, and linked to its own, which never replaces a secret that another
process made in the meantime.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from agent.errors import TrustError

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_secret(path: Path, *, most_bytes: int = 65_536) -> bytes:
    """What the file holds. Open first and look at what was opened, so that the file checked is the file read.

    Raises TrustError when others may read it or when it is too long, FileNotFoundError when there is none.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & OTHERS:
            raise TrustError(
                f"others than its owner may read the key {path} (mode {mode:04o})", hint=f"chmod 600 {path}"
            )
        body = file.read(most_bytes + 1)
    if len(body) > most_bytes:
        raise TrustError(f"{path} is no key: it is larger than {most_bytes} bytes")
    return body


def create_secret(path: Path, body: bytes) -> None:
    """Create the file with this in it, unless it is there already; raises TrustError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise TrustError(f"cannot create the key {path}: {error.strerror}") from error
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return  # another process was first: its key is the key
    finally:
        temporary.unlink()
    _sync_folder(path)


def remove_secret(path: Path) -> None:
    """Remove the file, which is gone from the folder on the disk when this returns; raises TrustError.

    It is not written over: on flash that writes somewhere else.
    """
    try:
        path.unlink()
        _sync_folder(path)
    except OSError as error:
        raise TrustError(f"cannot remove the key {path}: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
