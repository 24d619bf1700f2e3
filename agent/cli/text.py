"""Plain text for people: tables whose columns line up, and colour only on a terminal that wants it.

What the daemon tells may have come from anywhere: nothing of it reaches a terminal but what can be printed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent.cli.terminal import screen
from agent.printable import printable


def paint(text: str, colour: str) -> str:
    """The text in a colour, where standard output is a terminal that takes it and NO_COLOR is not set."""
    return screen().paint(text, colour)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [list(heads), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shown(data: Any) -> Any:
    """The daemon's answer, with every text in it as it may be shown."""
    match data:
        case str():
            return printable(data)
        case list():
            return [shown(one) for one in data]
        case dict():
            return {printable(name): shown(one) for name, one in data.items()}
        case _:
            return data


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=2))


def value(found: Any, unit: str = "") -> str:
    """A signal's value for people."""
    if found is None:
        return "-"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, float):
        return f"{found:.1f}".removesuffix(".0") + (f" {unit}" if unit else "")
    return printable(f"{found} {unit}").rstrip()
