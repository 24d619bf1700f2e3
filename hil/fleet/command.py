"""`driveway-hil fleet`: runs the plan, prints what it found, writes it down and draws it."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import msgspec
from rich.console import Console
from rich.table import Table

from agent.errors import ConfigError
from hil.fleet.figure import write_figure
from hil.fleet.plan import FleetPlan, check
from hil.fleet.report import FleetReport, Outage, Step
from hil.fleet.run import run

Cell = Callable[[Step], float | None]
COLUMNS: tuple[tuple[str, str, Cell], ...] = (
    ("connects/s", ".0f", lambda step: step.connects_per_s),
    ("jobs/s", ".1f", lambda step: step.jobs_per_s),
    ("grant p50 ms", ".0f", lambda step: step.grant_p50_ms),
    ("p99", ".0f", lambda step: step.grant_p99_ms),
    ("verdict p50 ms", ".0f", lambda step: step.verdict_p50_ms),
    ("p99", ".0f", lambda step: step.verdict_p99_ms),
    ("renewals/s", ".1f", lambda step: step.renewals_per_s),
    ("publishes/job", ".2f", lambda step: _sum(step.publishes_up_per_job, step.publishes_down_per_job)),
    ("bytes/job", ".0f", lambda step: _sum(step.bytes_up_per_job, step.bytes_down_per_job)),
    ("dispatcher ms/job", ".2f", lambda step: step.dispatcher_cpu_ms_per_job),
    ("database", ".2f", lambda step: step.database_cpu_ms_per_job),
    ("broker", ".2f", lambda step: step.broker_cpu_ms_per_job),
    ("car", ".2f", lambda step: step.car_cpu_ms_per_job),
    ("broker KB/conn.", ".1f", lambda step: step.broker_bytes_per_connection / 1000),
    ("KB/car", ".0f", lambda step: step.car_bytes / 1000),
)


def fleet(plan: FleetPlan, *, json_file: Path | None, figure_file: Path | None, folder: Path | None) -> int:
    """Run the plan; 0 when its accounts hold, else 1. Raises DrivewayError for what cannot be run."""
    _check_outputs(json_file, figure_file, folder)
    check(plan)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    console = Console()
    with ExitStack() as closing:
        if folder is None:
            folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="driveway-fleet-")))
        else:
            folder.mkdir(parents=True, exist_ok=True)
        report = run(plan, folder, lambda text: console.print(text, style="dim", highlight=False))
    show(console, report)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if figure_file is not None:
        write_figure(report, figure_file)
    return 0 if report.held else 1


def _leave(number: int, _frame: object) -> NoReturn:
    """A closed terminal or a cancelled job ends the fleet's processes too."""
    sys.exit(128 + number)


def _check_outputs(json_file: Path | None, figure_file: Path | None, folder: Path | None) -> None:
    """What cannot be written is said before minutes are spent on it."""
    for file in (json_file, figure_file):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"cannot write {file}: there is no folder {file.parent}")
    if figure_file is not None and figure_file.suffix not in {".svg", ".png"}:
        raise ConfigError(f"cannot write {figure_file}: a picture is .svg or .png")
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"the folder {folder} is not empty", hint="give another")


def show(console: Console, report: FleetReport) -> None:
    """Print the figures as tables."""
    plan, machine = report.plan, report.machine
    title = (
        f"{plan.broker}{' with TLS' if plan.tls else ''}, {plan.dispatchers} x dispatcher on {plan.database},"
        f" leases {report.compression:g} times shorter; {machine.cores} cores {machine.processor}"
    )
    console.print(_steps(title, report.steps))
    if report.outages:
        console.print(_outages(report.outages))
    books = report.books
    console.print(
        f"hand-ins made {books.made:,}, settled {books.settled:,}, said again {books.duplicate:,}, stale"
        f" {books.stale:,}, bad {books.bad:,}, owed {books.owed:,}; lost {books.lost:,}, doubled {books.doubled:,}",
        style="green" if report.held else "red",
        highlight=False,
    )


def _steps(title: str, steps: list[Step]) -> Table:
    """A row a figure and a column a size: sizes are few, figures are many."""
    table = Table("cars", *(f"{step.cars:,}" for step in steps), title=title, title_justify="left")
    for name, form, cell in COLUMNS:
        table.add_row(name, *(_text(cell(step), form) for step in steps))
    return table


def _outages(outages: list[Outage]) -> Table:
    table = Table("killed", "", "back 50 %", "99 %", "served 50 %", "99 %", "connects/s at most", "asked again")
    for one in outages:
        times = (one.back_p50_s, one.back_p99_s, one.served_p50_s, one.served_p99_s)
        table.add_row(
            one.what,
            "paced" if one.paced else "bare",
            *(_text(value, ".1f") + " s" for value in times),
            f"{one.connects_best_s:,}",
            f"{one.asked_again:,}",
        )
    return table


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
