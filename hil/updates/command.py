"""`driveway-hil updates`: the table of updates, by kind of release; fails unless every row held.

The planted bugs (`hil.updates.plants`) are there to show that the same search finds them: one that is not found fails
the run, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agent import __version__
from hil.output import check_writable
from hil.powercut import recorder
from hil.updates.arguments import KINDS
from hil.updates.cuts import Outcome, outcome
from hil.updates.plants import PLANTS

HEADS = ("operations", "runs", "working after", "lost", "wrong")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is written with --json; `planted` by the names of the bugs."""

    version: str
    every: int
    kinds: tuple[Outcome, ...]
    planted: dict[str, Outcome]

    @property
    def held(self) -> bool:
        """Whether every kind ended as it ought to, and every bug was found."""
        return all(one.held for one in self.kinds) and not any(one.held for one in self.planted.values())


def updates(options: argparse.Namespace) -> int:
    """Run and draw (`hil.updates.arguments`); the process's exit code. Raises DrivewayError."""
    json_file: Path | None = options.json
    check_writable(json_file)
    recorder.build()
    kinds = tuple(options.kind or KINDS)
    figures = Figures(
        version=__version__,
        every=options.every,
        kinds=tuple(outcome(kind, every=options.every) for kind in kinds),
        planted={
            name: outcome(plant.shows_on, plant=name, first=True)
            for name, plant in PLANTS.items()
            if plant.shows_on in kinds
        },
    )
    _draw(Console(), figures)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    return 0 if figures.held else 1


def _draw(console: Console, figures: Figures) -> None:
    title = f"Updates by the program of {figures.version}, a cut every {figures.every} operations"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("release", no_wrap=True)
    table.add_column("ends", no_wrap=True)
    for head in HEADS:
        table.add_column(head, justify="right")
    for one in figures.kinds:
        numbers = (one.operations, one.cuts, one.working, one.lost, one.wrong)
        table.add_row(one.kind.replace("_", " "), one.ends.replace("_", " "), *(f"{number:,}" for number in numbers))
    console.print(table)
    results = sum(one.results for one in figures.kinds)
    console.print(f"{results:,} results were acknowledged by the daemons of all runs together.")
    for name, found in figures.planted.items():
        if found.held:
            console.print(f"was not found out: {name}", style="red")
        else:
            console.print(f"planted {name} on {found.kind}: {found.failures[0]}")
    for one in figures.kinds:
        for failure in one.failures:
            console.print(f"did not hold: {one.kind}: {failure}", style="red")
