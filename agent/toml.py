"""Reads a TOML file, and says what is wrong with one that cannot be read. Nothing but the standard library."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from agent.errors import ConfigError


def read_toml(path: Path, what: str, *, hint: str = "") -> dict[str, Any]:
    """The file's table; raises ConfigError, which calls the file `what` and has the `hint` where it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}", hint=hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
