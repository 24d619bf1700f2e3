"""Where in a TOML file each value stands, for whoever has to find a mistake there.

The parser of the standard library does not tell lines. But every statement of TOML begins on a line of its own, and no
beginning of a statement that ends before its time is itself TOML (a list, a text or a table that is not closed). So a
statement is the fewest lines from here on that can be parsed by themselves, and no second grammar is needed. It costs
time where lists are long, and is used only when a mistake is told, or a person asks.
"""

from __future__ import annotations

import tomllib
from typing import Any

LONGEST = 200
"""Lines of one statement; what is longer has no place told."""


def lines_of(text: str) -> dict[str, int]:
    """The line, from 1, of each key of a file that is TOML: `policy.die_limit_c`, `vehicle.bus[1].channel`.

    A table's own line is that of its header, or of the first key that made it.
    """
    lines = text.split("\n")
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix, index = "", 0
    while index < len(lines):
        statement, length = _statement(lines, index)
        if statement:
            if lines[index].lstrip().startswith("["):
                prefix = _header(statement, counts)
                found.setdefault(prefix, index + 1)
            else:
                _note(statement, prefix, index + 1, found)
        index += length
    return found


def _statement(lines: list[str], first: int) -> tuple[dict[str, Any], int]:
    """What the statement that begins here says by itself, and how many lines it has."""
    for end in range(first + 1, min(first + LONGEST, len(lines)) + 1):
        try:
            return tomllib.loads("\n".join(lines[first:end])), end - first
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
    return {}, 1


def _header(statement: dict[str, Any], counts: dict[str, int]) -> str:
    """The path of `[a.b]` or `[[a.b]]`; tables of a list are counted, and what is below one means the newest."""
    path = ""
    table: Any = statement
    while table:
        rows = table
        ((name, table),) = rows.items()
        path = f"{path}.{name}" if path else name
        if isinstance(table, list):
            counts[path] = counts.get(path, -1) + 1
            return f"{path}[{counts[path]}]"
        if path in counts:
            path = f"{path}[{counts[path]}]"
    return path


def _note(value: Any, path: str, line: int, found: dict[str, int]) -> None:
    """Every key of a statement stands where it begins."""
    if path:
        found.setdefault(path, line)
    if isinstance(value, dict):
        for name, inner in value.items():
            _note(inner, f"{path}.{name}" if path else name, line, found)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if isinstance(inner, dict):
                _note(inner, f"{path}[{index}]", line, found)
