"""`driveway-hil powercut`: two tables, of power cuts and of failing calls; fails unless the store as shipped held.

The weaker stores are there to show that the same check finds them out: one that holds fails the run, too.
"""

from __future__ import annotations

import argparse
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from agent import __version__
from hil.output import check_writable
from hil.powercut import recorder, states
from hil.powercut.io_faults import CALLS, FaultWish, Survey, survey
from hil.powercut.states import Outcome
from hil.powercut.work import Plant, Wish

FEW_PAGES = 15
"""In the log when a checkpoint is due, so that there are many checkpoints in a short run."""
COARSE = 4
FAILED_SYNCS = 4
"""Of a run with a sync that fails: so many of those after a log line, spread over the work; of a planted one, half."""
FAILURES = ((errno.EIO, 1), (errno.EIO, 4), (errno.ENOSPC, 1))
"""How a call fails, and how often in a row."""
WRITES = 5
"""Each fifth write fails, and every call of the other kinds."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is written with --json. `cuts` are of the store as shipped, `planted` of weaker ones, `faults` of calls."""

    versions: dict[str, str]
    seed: int
    cuts: tuple[Outcome, ...]
    planted: tuple[Outcome, ...]
    faults: tuple[Survey, ...]

    @property
    def held(self) -> bool:
        """Whether nothing was lost, and every weaker store was found out."""
        shipped = all(one.held for one in self.cuts) and all(one.held for one in self.faults)
        return shipped and not any(one.held for one in self.planted)


def powercut(options: argparse.Namespace) -> int:
    """Run and draw (`hil.powercut.arguments`); the process's exit code. Raises DrivewayError."""
    json_file: Path | None = options.json
    check_writable(json_file)
    recorder.build()
    figures = run(options.seed, options.transactions)
    _draw(Console(), figures)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
    return 0 if figures.held else 1


def run(seed: int, transactions: int) -> Figures:
    """All rows of both tables; raises DrivewayError when the work or the recorder fails."""
    wish = Wish(folder="", seed=seed, transactions=transactions)
    small = msgspec.structs.replace(wish, checkpoint_pages=FEW_PAGES)
    cuts = (
        states.outcome("as shipped", wish),
        states.outcome("as shipped, many checkpoints", small, every=2),
        _with_failing_syncs("as shipped, a sync fails", small, FAILED_SYNCS),
    )
    planted = (
        *(states.outcome(plant.value, _planted(wish, plant), every=COARSE) for plant in (Plant.NORMAL, Plant.OFF)),
        *(
            _with_failing_syncs(plant.value, _planted(wish, plant), FAILED_SYNCS // 2)
            for plant in (Plant.GOES_ON, Plant.READS_BACK)
        ),
    )
    versions = {"driveway": __version__, "sqlite": sqlite3.sqlite_version}
    return Figures(versions=versions, seed=seed, cuts=cuts, planted=planted, faults=tuple(_faults(small)))


def _planted(wish: Wish, plant: Plant) -> Wish:
    return msgspec.structs.replace(wish, plant=plant)


def _with_failing_syncs(name: str, wish: Wish, runs_wanted: int) -> Outcome:
    """A run for each of a few syncs after a log line: it fails, once."""
    after = states.syncs_after_a_log_line(states.recorded(msgspec.structs.replace(wish, plant=Plant.NONE)))
    chosen = after[:: max(1, len(after) // runs_wanted)][:runs_wanted]
    faults = (recorder.Fault("S", nth, errno.EIO) for nth in chosen)
    runs = [msgspec.structs.replace(wish, fault=fault) for fault in faults]
    return states.together(name, [states.outcome(name, one, samples=2, every=COARSE * 2) for one in runs])


def _faults(wish: Wish) -> Iterator[Survey]:
    for kind in CALLS:
        for error, times in FAILURES:
            every = WRITES if kind == "W" else 1
            yield survey(FaultWish(work=wish, kind=kind, error=error, times=times, every=every))


def _table(title: str, first: str, numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _draw(console: Console, figures: Figures) -> None:
    versions = figures.versions
    cuts = _table(
        f"Power cuts: the store of {versions['driveway']} on SQLite {versions['sqlite']}, seed {figures.seed}",
        "store",
        ("operations", "syncs", "states", "ok", "lost", "torn", "twice"),
    )
    for one in (*figures.cuts, *figures.planted):
        found = (one.operations, one.syncs, one.states, one.ok, one.lost, one.torn, one.twice)
        cuts.add_row(one.name, *(f"{number:,}" for number in found))
    console.print(cuts)
    calls = _table(
        "Calls that fail, at every place of the work",
        "call",
        ("runs", "refused", "ok", "lost", "torn", "twice", "stuck"),
    )
    for each in figures.faults:
        of_it = (each.faults, each.refused, each.ok, each.lost, each.torn, each.twice, each.stuck)
        how = f"{errno.errorcode[each.error]} {'once' if each.times == 1 else f'{each.times} times'}"
        calls.add_row(f"{each.call}, {how}", *(f"{number:,}" for number in of_it))
    console.print(calls)
    failures = [(cut.name, cut.failures) for cut in figures.cuts] + [(of.call, of.failures) for of in figures.faults]
    for name, shown in failures:
        for failure in shown:
            console.print(f"did not hold: {name}: {failure}", style="red")
    for weak in figures.planted:
        if weak.held:
            console.print(f"was not found out: {weak.name}", style="red")
