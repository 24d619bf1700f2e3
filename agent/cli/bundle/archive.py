"""The archive: the same documents give the same bytes, whoever makes it and when; and it stays small."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from agent.errors import DrivewayError

MOST_BYTES = 8 * 1024 * 1024
"""Of all documents, before they are compressed: what fits a support ticket."""
FOLDER = "driveway-bundle"


def packed(documents: Mapping[str, bytes]) -> bytes:
    """The documents as a tar.gz, in the order of their names, without times, owners or names of this computer."""
    whole = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", 9, whole, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(documents):
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size, member.mode = len(documents[name]), 0o600
            archive.addfile(member, io.BytesIO(documents[name]))
    return whole.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read; raises DrivewayError, and leaves nothing half written."""
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists():
            raise DrivewayError(f"{path} is there already", hint="give another --out, or take it away first")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DrivewayError(f"cannot write {path}: {error.strerror}", hint="give --out in a folder you own") from error
