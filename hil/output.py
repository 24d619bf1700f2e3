"""Files that a command writes at its end: looked at before it begins, since what comes in between may take hours."""

from __future__ import annotations

import os
from pathlib import Path

from agent.errors import ConfigError


def check_writable(*files: Path | None) -> None:
    """Raises ConfigError, with what is wrong, unless each of the files that are named can be written."""
    named = [file for file in files if file is not None]
    for file in named:
        if file.is_dir():
            raise ConfigError(f"cannot write {file}: it is a folder", hint="name a file in it")
        if not file.parent.is_dir():
            raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ConfigError(f"cannot write {file}: it is not yours to write")
    if len({file.absolute() for file in named}) < len(named):
        raise ConfigError("two kinds of results cannot go to one file", hint="name two files")
