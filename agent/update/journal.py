"""The journal's file: written whole beside itself, synced, renamed over the old one, and the folder synced.

So there is always one journal, the old or the new. One that cannot be read (a disk that lies, another's hand) counts as
none: then `good` says what runs, which is always a way out, and what is lost is what was refused before.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.errors import StoreError
from agent.trust.version_floors import VERSION
from agent.update.model import Before, Journal, Past, Phase, Result

FORMAT = 1
MAX_BYTES = 256 * 1024
PART = ".part"


def encode(journal: Journal) -> bytes:
    """As it is written."""
    return json.dumps({"v": FORMAT, **asdict(journal)}, indent=1).encode() + b"\n"


def decode(content: bytes) -> Journal:
    """The journal in a file; raises DamagedError for what is none of this format."""
    try:
        data = json.loads(content)
        if data["v"] != FORMAT:
            raise DamagedError(f"the update's journal is of format {data['v']!r}, and this program writes {FORMAT}")
        return Journal(
            phase=Phase(data["phase"]),
            candidate=_name(data["candidate"]),
            before=_name(data["before"]),
            boot=_text(data["boot"]),
            boots=_count(data["boots"]),
            unwell=_count(data["unwell"]),
            reason=_text(data["reason"]),
            floor=_name(data["floor"]) or "0",
            was=Before(tuple(map(_text, data["was"]["failing"])), _text(data["was"]["lease"])),
            past=tuple(
                Past(_name(one["version"]), Result(one["result"]), _text(one["reason"]), _count(one["at_wall_s"]))
                for one in data["past"]
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"the update's journal is damaged: {error!r}", hint="it counts as none") from error


class DamagedError(StoreError):
    """What is there is no journal, or of a format that is not known."""


def read(path: Path) -> Journal:
    """What is there, or a new one where nothing is; raises DamagedError, and StoreError where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
    except FileNotFoundError:
        return Journal()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return decode(content)


def lay_aside(path: Path) -> None:
    """Keep what is no journal for people to look at; raises StoreError."""
    try:
        os.rename(path, path.with_name(path.name + ".damaged"))  # noqa: PTH104
    except OSError as error:
        raise StoreError(f"cannot rename {path}: {error.strerror}") from error


def write(path: Path, journal: Journal) -> None:
    """Durable when it returns; raises StoreError, and then the old one is there."""
    part = path.with_name(path.name + PART)
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            content = encode(journal)
            while content:
                content = content[os.write(file, content) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(part, path)  # noqa: PTH104 - beside the calls that sync it
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}", hint="free some space, or look at the disk"
        ) from error


def sync_folder(folder: Path) -> None:
    """Names that were made, removed or changed in a folder are durable when it returns; raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _name(value: Any) -> str:
    """A version, or nothing: it becomes a part of a path."""
    if not isinstance(value, str) or (value and not VERSION.fullmatch(value)):
        raise ValueError(f"{value!r} is no version")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
