"""`driveway-hil bench NAME… --json FILE`: runs benchmarks, prints what came of them, and writes it down.

Figures mean nothing without the machine, so versions, cores and the time taken stand beside them.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from agent import __version__
from agent.errors import ConfigError
from hil.bench import BENCHMARKS

MOST_COLUMNS = 9
"""Of a table in a terminal of 80 characters."""
ALL_DIGITS_FROM = 1000
"""Larger figures are told to the unit, smaller ones to four digits."""


class Machine(msgspec.Struct, frozen=True):
    """Where figures were taken."""

    agent: str
    python: str
    system: str
    processor: str
    cores: int


def bench(names: list[str], json_file: Path | None, package: str | None = None) -> int:
    """Run the named benchmarks (`all`: every one) one after the other; 0 when all held what they promise, else 1.

    `package` restricts `pipeline` to one. A benchmark that promises something says in `held` whether that came true.

    The file holds the figures of one benchmark at its top level, of several under their names, always beside `machine`.
    """
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"cannot write {json_file}: there is no folder {json_file.parent}")
    chosen = list(BENCHMARKS) if "all" in names else list(dict.fromkeys(names))
    console, here = Console(), machine()
    console.print(
        f"driveway {here.agent}, python {here.python}, {here.cores} cores, {here.system}", style="dim", highlight=False
    )
    results: dict[str, dict[str, Any]] = {}
    for name in chosen:
        began_s = time.monotonic()
        run = importlib.import_module(f"hil.bench.{name}").run
        figures = msgspec.to_builtins(run() if package is None else run(package))
        results[name] = {"benchmark": name, **figures, "wall_s": figures.get("wall_s", _taken_s(began_s))}
        _print(console, name, results[name])
        if json_file is not None:
            _write(json_file, here, results)
    return 0 if all(figures.get("held", True) for figures in results.values()) else 1


def machine() -> Machine:
    """This machine and what runs on it."""
    return Machine(
        agent=__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return named[0] if named else platform.machine()


def _taken_s(began_s: float) -> float:
    return round(time.monotonic() - began_s, 1)


def _write(file: Path, here: Machine, results: dict[str, dict[str, Any]]) -> None:
    """After each benchmark, so that a long run that is broken off leaves what it had."""
    figures = next(iter(results.values())) if len(results) == 1 else {"benchmarks": results}
    file.write_bytes(msgspec.json.format(msgspec.json.encode({**figures, "machine": here})) + b"\n")


def _print(console: Console, name: str, figures: dict[str, Any]) -> None:
    console.print(f"{name}: {BENCHMARKS[name]}", style="italic", highlight=False)
    table = Table(show_header=False)
    for label, value in figures.items():
        if label != "benchmark" and not isinstance(value, dict):
            table.add_row(label, _text(value))
    console.print(table)
    for label, value in figures.items():
        if isinstance(value, dict) and value:
            console.print(_nested(label, value))


def _nested(label: str, figures: dict[str, Any]) -> Table:
    """A table of what is nested: a row each, with a column for every figure that the rows have.

    The other way round where there are more figures than a terminal has room for, and fewer rows than that. A column is
    as narrow as the longest word above it.
    """
    rows = {name: row if isinstance(row, dict) else {label: row} for name, row in figures.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if len(columns) > MOST_COLUMNS:
        rows, columns = {name: {row: rows[row].get(name, "") for row in rows} for name in columns}, list(rows)
    table = Table(label, *(column.replace("_", " ").replace(" ", "\n") for column in columns))
    for name, row in rows.items():
        table.add_row(name, *(_text(row.get(column, "")) for column in columns))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= ALL_DIGITS_FROM else f"{value:.4g}"
    return str(value)
