"""What the live view's lines are made of: what is known, pieces in a colour, figures, and bars against their limits.

Every text that came from elsewhere passes through `cells`, so it takes as many columns as it has characters and none of
them speaks to the terminal. Pure.
"""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from agent.cli.terminal import Screen, cut
from agent.cli.text import value
from agent.printable import printable

LABEL = 9
BAR_MOST, BAR_LEAST = 30, 8
COLOURS = {"open": "green", "hold": "yellow", "closed": "red"}
WIDE = {"W", "F"}


class Scene(NamedTuple):
    """What is known: the daemon's newest answers (None or empty: none yet), and what is in the way of newer ones."""

    now_s: float
    status: dict[str, Any] | None = None
    signals: Sequence[dict[str, Any]] = ()
    timeline: dict[str, Any] | None = None
    hours: float = 6.0
    slices_per_s: float | None = None
    trouble: str = ""
    heard_s: float = 0.0


class Part(NamedTuple):
    """A piece of a line in a colour ("": none)."""

    text: str
    colour: str = ""


Line = list[Part]


def cells(text: str) -> str:
    """The text, each character of which takes one column: what takes two or none is a question mark."""
    shown = printable(text)
    if shown.isascii():
        return shown
    return "".join(
        "?" if unicodedata.combining(one) or unicodedata.east_asian_width(one) in WIDE or _invisible(one) else one
        for one in shown
    )


def _invisible(one: str) -> bool:
    return unicodedata.category(one) in {"Mn", "Me", "Cf"}


def drawn(line: Line, on: Screen) -> str:
    """The line as it goes out: cut to the screen, in its characters, and painted."""
    left, done = on.columns, []
    for part in line:
        text = cells(part.text) if part.text.strip() else part.text
        width = len(text) if text.endswith(" ") else 0  # what it was padded to, also in fewer letters
        text = cut(on.show(text).ljust(width), left)
        left -= len(text)
        done.append(on.paint(text, part.colour) if part.colour else text)
    return "".join(done)


def against(
    on: Screen,
    label: str,
    found: float | None,
    unit: str,
    limit: dict[str, Any],
    *,
    low: float,
    high: float | None = None,
) -> Line:
    """A figure with its bar, and whether it is on the wrong side of its limits."""
    begin, stop, rising = limit["begin"], limit["stop"], limit["rising"]
    top = high if high is not None else stop + max(1.0, (stop - low) * 0.1)
    shown = bar(on, found, low, top, {begin: "|", stop: "!"})
    colour = ""
    if found is not None:
        over_stop, over_begin = (found >= stop, found >= begin) if rising else (found < stop, found < begin)
        colour = "red" if over_stop else "yellow" if over_begin else "green"
    said = f"|from {value(float(begin))}" if not rising else f"|below {value(float(begin))}"
    return figure(label, value(found, unit), shown, f"{said} !stop {value(float(stop))}", colour)


def figure(label: str, said: str, shown: str, held: str, colour: str = "") -> Line:
    """A line: its name, what it is, a bar ("": none) and what it is held to."""
    begin = [Part(f"{label:<{LABEL}}", "grey"), Part(f"{said:<9}", colour)]
    return [*begin, *([Part(f"[{shown}] ", colour)] if shown else []), Part(held)]


def bar(on: Screen, found: float | None, low: float, high: float, marks: dict[float, str]) -> str:
    """A bar from low to high with marks at the limits; "" where it does not fit."""
    width = min(BAR_MOST, on.columns - LABEL - 9 - 26)
    if width < BAR_LEAST or found is None or high <= low:
        return ""

    def place(at: float) -> int:
        return min(width, max(0, round((at - low) / (high - low) * width)))

    full = place(found)
    cell = ["█"] * full + ["·"] * (width - full)
    for at, mark in marks.items():
        cell[min(width - 1, place(at))] = mark
    return "".join(cell)


def clock(wall: float, form: str) -> str:
    """A moment (s since 1970) as a clock here shows it."""
    return dt.datetime.fromtimestamp(wall).astimezone().strftime(form)
