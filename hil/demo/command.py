"""`driveway-hil demo`: tells the story, prints the table, writes the report, and judges."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec
from rich.console import Console
from rich.table import Table

from agent.errors import ConfigError
from hil.demo.screen import Terminal
from hil.demo.story import quiet_logs, tell_story
from hil.record import RunRecord
from hil.report import write_figure, write_report
from hil.rig import Rig


def demo(folder: Path, json_file: Path | None, figure_file: Path | None, *, keep: bool) -> int:
    """Run the demonstration in `folder`; 0 when every limit held."""
    _check_outputs(json_file, figure_file)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    quiet_logs()
    console = Console()
    with Rig(folder) as rig:
        with Terminal(console) as screen:
            record = tell_story(rig, screen)
        _print_table(console, record)
        write_report(record, folder / "report.html")
        if figure_file is not None:
            write_figure(record, figure_file)
        if json_file is not None:
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(record.outcome)) + b"\n")
        _print_next(console, folder, keep=keep)
        if keep:
            console.print("\nThe car, the fleet and the daemon are still running; Ctrl-C ends them.")
            while True:
                rig.alive()
                time.sleep(1.0)
    return 0 if all(limit.held for limit in record.limits) else 1


def _leave(number: int, _frame: object) -> NoReturn:
    """A closed terminal or a cancelled job ends the rig's processes too."""
    sys.exit(128 + number)


def _check_outputs(json_file: Path | None, figure_file: Path | None) -> None:
    """What cannot be written is said before half a minute is spent on it."""
    for file in (json_file, figure_file):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
    if figure_file is not None and figure_file.suffix not in {".svg", ".png"}:
        raise ConfigError(f"cannot write {figure_file}: a picture is .svg or .png")


def _print_table(console: Console, record: RunRecord) -> None:
    outcome = record.outcome
    figures = Table(title=record.title, title_justify="left", show_header=False)
    for name, value in (
        ("images read", f"{outcome.images}"),
        ("characters right", f"{outcome.accuracy:.2%}"),
        ("slices done / lost to the driver", f"{outcome.slices_done} / {outcome.slices_lost}"),
        ("vacate, door opened to worker gone", f"{outcome.vacate_ms:.0f} ms"),
        ("attestations verified independently", f"{outcome.attestations_verified} of {outcome.attestations}"),
        ("energy measured (simulated sensor)", f"{outcome.energy_wh:.4f} Wh"),
        ("paid", f"{outcome.gross:.6f} {outcome.currency}"),
        ("energy cost", f"{outcome.energy_cost:.6f} {outcome.currency}"),
        ("net", f"{outcome.net:.6f} {outcome.currency}"),
    ):
        figures.add_row(name, value)
    console.print(figures)
    for limit in record.limits:
        if not limit.held:
            console.print(f"[red]not held[/red]  {limit.name}: {limit.value}, must be {limit.limit}", highlight=False)


def _print_next(console: Console, folder: Path, *, keep: bool) -> None:
    """Where to look next."""
    config, kept = folder / "agent.toml", folder / "attestations"
    keys = f"--key {kept}/unit.pub"
    lines = [
        f"report        {folder / 'report.html'}",
        f"attestations  .venv/bin/driveway verify {keys} {kept}/*.result.json",
        f"proofs        .venv/bin/driveway verify {keys} --witness {kept}/dispatcher.pub {kept}/*.proof.json",
    ]
    if keep:
        lines += [f"{verb:<14}.venv/bin/driveway {verb} --config {config}" for verb in ("why", "ledger", "earnings")]
    else:
        lines.append(
            "why, ledger   make demo ARGS=--keep, then .venv/bin/driveway why | ledger --config " + str(config)
        )
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
