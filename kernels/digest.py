"""One digest over several files, so that sources can be told from other sources by 64 characters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

CUDA_SUFFIXES = (".cu", ".cuh")


def files_sha256(files: Mapping[str, bytes]) -> str:
    """SHA-256, hex. Each file in the order of its name: the name, NUL, its length in decimal, NUL, its bytes."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(files[name]), files[name]))
    return digest.hexdigest()


def read_files(folder: Path, suffixes: Iterable[str]) -> dict[str, bytes]:
    """The files of a folder whose names end so, in the order of their names; raises OSError."""
    paths = (path for path in folder.iterdir() if path.suffix in suffixes)
    return {path.name: path.read_bytes() for path in sorted(paths, key=lambda path: path.name)}
