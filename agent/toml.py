"""Reads TOML files, lays drop-ins over them, and says what is wrong with one that cannot be read.

Beside a configuration `agent.toml` there may be a folder `agent.toml.d`. Its files `*.toml` are laid over it in the
order of their names: a table adds to the table before it, everything else (a list, too) replaces what was there. So
what one tool measured or one garage decided stays in a file of its own. Nothing but the standard library.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """One file's table, as it was read."""

    path: Path
    text: str
    table: dict[str, Any]
    prefix: str = ""
    """What was put before the file's own keys: `policy.` for a file that is a policy's table and no more."""


def read_toml(path: Path, what: str, *, hint: str = "") -> dict[str, Any]:
    """The file's table; raises ConfigError, which calls the file `what` and has the `hint` where it cannot be read."""
    return read_layer(path, what, hint=hint).table


def read_layer(path: Path, what: str, *, hint: str = "") -> Layer:
    """The same with its text."""
    try:
        text = path.read_text("utf-8")
        return Layer(path, text, tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}", hint=hint) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_layers(path: Path, what: str, *, hint: str = "") -> list[Layer]:
    """The file and its drop-ins, in the order in which they count; raises ConfigError."""
    first = read_layer(path, what, hint=hint)
    return [first, *(read_layer(one, "drop-in") for one in drop_ins(path))]


def drop_ins(path: Path) -> list[Path]:
    """The files that are laid over `path`; raises ConfigError where there are some that may not be listed."""
    folder = path.with_name(f"{path.name}.d")
    try:
        names = sorted(one.name for one in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"cannot read the drop-ins in {folder}: {error.strerror}") from error
    return [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def merged(layers: Iterable[Layer]) -> dict[str, Any]:
    """One table: the last layer that says something counts."""
    table: dict[str, Any] = {}
    for layer in layers:
        table = _over(table, layer.table)
    return table


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    table = dict(below)
    for name, value in above.items():
        former = table.get(name)
        table[name] = _over(former, value) if isinstance(former, dict) and isinstance(value, dict) else value
    return table
