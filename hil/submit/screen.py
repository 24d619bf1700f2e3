"""How a submission gets on, on standard error: a live bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_EVERY_S = 5.0


class Screen:
    """Use as a context manager. Standard output stays free for answers."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=5,
            transient=True,
        )
        self._live = self._console.is_terminal
        self._task = self._bar.add_task("", total=1, more="")
        self._plain_due_s = 0.0
        self._shown = ""

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bar.stop()

    def show(self, what: str, done: int, total: int, more: str = "") -> None:
        """So many of so many items are sent, or computed."""
        if self._live:
            self._bar.update(self._task, description=what, completed=done, total=total, more=more)
            return
        line = f"{what} {done} of {total}{'  ' if more else ''}{more}"
        now_s = time.monotonic()
        if line != self._shown and (now_s >= self._plain_due_s or done == total):
            self._plain_due_s, self._shown = now_s + PLAIN_EVERY_S, line
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def tell(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)
