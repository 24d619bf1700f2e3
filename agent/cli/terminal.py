"""What the terminal at the other end can show: how wide it is, whether in colour, and which characters it knows.

Nothing is taken for granted: a serial line has no size (then 80x24), `TERM=dumb` and a pipe take no escape sequence,
and `LANG=C` or a Latin-1 terminal does not know every character. What it cannot show is written in letters that every
terminal has (`plain`), never as an error.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
from typing import NamedTuple, TextIO

DEFAULT_COLUMNS, DEFAULT_ROWS = 80, 24
LEAST_COLUMNS, MOST_COLUMNS = 20, 10_000
COLOURS = {"bold": 1, "red": 31, "green": 32, "yellow": 33, "grey": 90}

LETTERS = {
    "\N{DEGREE SIGN}": "",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MIDDLE DOT}": ".",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MICRO SIGN}": "u",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{FULL BLOCK}": "#",
    "\N{MEDIUM SHADE}": "=",
    "\N{LIGHT SHADE}": ".",
    "\N{NO-BREAK SPACE}": " ",
    "\N{EURO SIGN}": "EUR",
    **dict(zip("äöüßÄÖÜ", ("ae", "oe", "ue", "ss", "Ae", "Oe", "Ue"), strict=True)),
}
"""What stands for a character that the terminal does not know; `?` for any other."""
FALLBACK = "driveway"
"""The name of the codec error handler that writes `LETTERS`."""


class Screen(NamedTuple):
    """What can be shown. `unicode`: characters beyond ASCII; `ansi`: it is a terminal that takes escape sequences."""

    columns: int = DEFAULT_COLUMNS
    rows: int = DEFAULT_ROWS
    colour: bool = False
    unicode: bool = False
    ansi: bool = False

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour, where there are any."""
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.colour and text else text

    def show(self, text: str) -> str:
        """The text in characters that it knows."""
        return text if self.unicode else plain(text)


def screen(stream: TextIO | None = None) -> Screen:
    """The screen behind a stream (standard output). COLUMNS and LINES win over what the terminal says.

    A pipe or a file has no width: a fact stays on its line, as whoever searches it there expects.
    """
    stream = sys.stdout if stream is None else stream
    fallback = DEFAULT_COLUMNS if stream.isatty() else MOST_COLUMNS
    size = shutil.get_terminal_size((fallback, DEFAULT_ROWS))
    ansi = stream.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}
    return Screen(
        columns=min(MOST_COLUMNS, max(LEAST_COLUMNS, size.columns)),
        rows=max(2, size.lines),
        colour=ansi and not os.environ.get("NO_COLOR"),
        unicode=knows(stream, "█°…"),
        ansi=ansi,
    )


def knows(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def plain(text: str) -> str:
    """The text in ASCII."""
    if text.isascii():
        return text
    return "".join(one if one.isascii() else LETTERS.get(one, "?") for one in text)


def forgive(stream: TextIO) -> None:
    """From now on a character that the stream's encoding lacks is written in letters, and raises nothing."""
    codecs.register_error(FALLBACK, _letters)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=FALLBACK)


def _letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def fit(text: str, columns: int) -> str:
    """The text cut to so many columns, and padded to them."""
    return cut(text, columns).ljust(columns)


def cut(text: str, columns: int) -> str:
    """The text, no longer than that; three dots say that there was more, where they fit."""
    if len(text) <= columns:
        return text
    return text[: columns - 3] + "..." if columns > len("...") * 2 else text[: max(0, columns)]


def wrap(text: str, columns: int, indent: str = "") -> list[str]:
    """The text in lines of at most so many columns, broken at spaces, each after the first behind `indent`."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        room = columns - len(line) - (1 if line.strip() else 0)
        if line.strip() and len(word) > room:
            lines.append(line)
            line = indent
        line = f"{line} {word}" if line.strip() else line + word
        while len(line) > columns:
            lines.append(line[:columns])
            line = indent + line[columns:]
    return [*lines, line] if line.strip() else lines


def span(seconds: float) -> str:
    """A duration as people say it: `4 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02} s" if rest else f"{minutes} min"
    if whole < 48 * 3600:
        hours, rest = divmod(whole, 3600)
        return f"{hours} h {rest // 60:02} min" if rest >= 60 else f"{hours} h"
    days, rest = divmod(whole, 86_400)
    return f"{days} d {rest // 3600} h" if rest >= 3600 else f"{days} d"
