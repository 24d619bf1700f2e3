"""How far long work has come, on standard error: a bar that changes on a terminal, plain lines elsewhere.

Nothing but carriage return and "erase to the end of the line" is used, so it works over a serial line; a terminal that
says it is dumb gets plain lines, as a file or a pipe does: at each quarter, of work that takes longer than a moment.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable

from agent import wire
from agent.cli.text import value
from agent.printable import printable

REDRAWN_S = 0.1
QUARTERS = 4
LEAST_BAR, MOST_BAR = 5, 40
LEFT_AFTER_S = 2.0
"""How long work has to last before it is guessed how long it takes still."""
PLAIN_AFTER_S = 2.0
"""How long before a file is told of it at all."""


class Progress:
    """Of the build of an engine, and of counted work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.built = False
        self._clock = clock
        self._told = ""
        self._open_line = False
        self._work, self._began_s, self._drawn_s = "", 0.0, 0.0
        self._lively = sys.stderr.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}

    def show(self, building: wire.Building) -> None:
        """The engine is being built."""
        self.built = True
        phase = printable(building.phase)
        if self._lively:
            share = value(building.done_permille / 10, "%")
            self._line(f"building the engine: {phase} {share}")
        else:
            self._tell(f"building the engine: {phase}")

    def count(self, work: str, done: int, total: int, what: str) -> None:
        """So many of `what` are done of the work, which begins with none done."""
        now_s = self._clock()
        if work != self._work:
            self.end()
            self._work, self._began_s, self._drawn_s = work, now_s, 0.0
        if not self._lively:
            quarter = done * QUARTERS // max(total, 1)
            if now_s - self._began_s >= PLAIN_AFTER_S:
                self._tell(f"{work}: {quarter * 100 // QUARTERS} % of {total} {what}")
        elif done == total or now_s - self._drawn_s >= REDRAWN_S:
            self._drawn_s = now_s
            self._line(bar(work, done, total, what, took_s=now_s - self._began_s, columns=_columns()))

    def end(self) -> None:
        """The line is over."""
        if self._open_line:
            print(file=sys.stderr)
            self._open_line = False

    def _line(self, text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        self._open_line = True

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            print(text, file=sys.stderr, flush=True)


def bar(work: str, done: int, total: int, what: str, *, took_s: float, columns: int) -> str:
    """One line that fits `columns`: `inference [####....] 12/40 inputs, 3.1/s, 9 s left`; a bar only where it fits."""
    said = f"{done}/{total} {what}"
    if took_s > 0 and done:
        rate = done / took_s
        said += f", {rate:.1f}/s" if rate >= 1 else f", {took_s / done:.1f} s each"
        if took_s >= LEFT_AFTER_S and done < total:
            said += f", {_short((total - done) / rate)} left"
    room = min(MOST_BAR, columns - len(work) - len(said) - 5)
    if room < LEAST_BAR:
        return f"{work} {said}"[: max(columns - 1, 0)]
    full = room * done // max(total, 1)
    return f"{work} [{'#' * full}{'.' * (room - full)}] {said}"


def _short(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _columns() -> int:
    return shutil.get_terminal_size((80, 24)).columns
