"""What the demonstration shows while it runs: a live line on a terminal, a line a change where there is none."""

from __future__ import annotations

from typing import Any, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

GATE_STYLE = {"open": "green", "hold": "yellow", "closed": "red"}
BAR_CELLS = 24
PLAIN_EVERY_S = 2.0


class Screen(Protocol):
    """Where progress goes."""

    def tell(self, at_s: float, who: str, what: str) -> None:
        """Say that something happened."""
        ...

    def show(self, at_s: float, status: dict[str, Any], images: int, total: int) -> None:
        """Show how things stand."""
        ...


class Terminal:
    """What happened scrolls by; how things stand is kept live below it. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=5, transient=True)
        self._plain_due_s = 0.0
        self._last_gate = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, at_s: float, who: str, what: str) -> None:
        """One line that stays."""
        self._console.print(
            Text.assemble((f"{at_s:5.1f} s  ", "dim"), (f"{who:<11}", "bold"), what), soft_wrap=True, highlight=False
        )

    def show(self, at_s: float, status: dict[str, Any], images: int, total: int) -> None:
        """The live line; without a terminal, now and then and whenever the gate changes."""
        line = progress_line(at_s, status, images, total)
        if self._console.is_terminal:
            self._live.update(line)
        elif at_s >= self._plain_due_s or status["gate"] != self._last_gate:
            self._plain_due_s, self._last_gate = at_s + PLAIN_EVERY_S, status["gate"]
            self._console.print(line, soft_wrap=True, highlight=False)


def progress_line(at_s: float, status: dict[str, Any], images: int, total: int) -> Text:
    """State, gate, computer, lease and images in one line."""
    computer, lease = status["computer"] or {}, status["lease"]
    done = round(BAR_CELLS * images / max(1, total))
    parts: list[str | tuple[str, str]] = [
        (f"{at_s:5.1f} s  ", "dim"),
        (f"{status['state']:<9}", "bold"),
        "gate ",
        (f"{status['gate']:<7}", GATE_STYLE[status["gate"]]),
        f"{_reading(computer.get('die_c'), '°C')} {_reading(computer.get('power_w'), 'W')}  ",
        ("█" * done, "green"),
        ("░" * (BAR_CELLS - done), "dim"),
        f" {images}/{total} images",
    ]
    if lease is not None:
        parts.append(f"  {lease['job']} slice {lease['slices_done']}/{lease['slices_wanted']}")
    elif status["reasons"]:
        parts.append((f"  {status['reasons'][0]['text']}", "dim"))
    return Text.assemble(*parts)


def _reading(value: float | None, unit: str) -> str:
    return f"  -- {unit}" if value is None else f"{value:4.0f} {unit}"
