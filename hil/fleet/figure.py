"""The plots of a fleet run: what grows with the number of cars, and how a region comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from hil.fleet.report import FleetReport, Outage, Step
from hil.report.compose import drawing_rules
from hil.report.palette import Tone

WIDTH_IN = 11.0
ROW_IN = 2.3
COLUMNS = 3
LEGEND: dict[str, Any] = {"frameon": True, "framealpha": 0.85, "edgecolor": "none", "facecolor": Tone.PAPER.light}
LEAST_BAR = 10
"""An axis that ended lower would make a storm of a single car."""
TONES = (Tone.POWER, Tone.HEAT, Tone.CHARGE, Tone.PACK)
Value = Callable[[Step], float | None]
Panel = tuple[str, tuple[tuple[str, Value], ...]]

PANELS: tuple[Panel, ...] = (
    ("Latency of a grant, ms", (("p50", lambda s: s.grant_p50_ms), ("p99", lambda s: s.grant_p99_ms))),
    ("Latency of a verdict, ms", (("p50", lambda s: s.verdict_p50_ms), ("p99", lambda s: s.verdict_p99_ms))),
    ("Connects a second", (("whole ramp", lambda s: s.connects_per_s), ("best second", lambda s: s.connects_best_s))),
    ("Jobs and renewals a second", (("jobs", lambda s: s.jobs_per_s), ("renewals", lambda s: s.renewals_per_s))),
    (
        "Publishes a job, at the car",
        (("up", lambda s: s.publishes_up_per_job), ("down", lambda s: s.publishes_down_per_job)),
    ),
    ("Bytes a job, at the car", (("up", lambda s: s.bytes_up_per_job), ("down", lambda s: s.bytes_down_per_job))),
    (
        "CPU a job, ms",
        (
            ("dispatcher", lambda s: s.dispatcher_cpu_ms_per_job),
            ("car", lambda s: s.car_cpu_ms_per_job),
            ("broker", lambda s: s.broker_cpu_ms_per_job),
            ("database", lambda s: s.database_cpu_ms_per_job),
        ),
    ),
    (
        "Cores in use",
        (
            ("dispatcher", lambda s: s.dispatcher_cores),
            ("car", lambda s: s.car_cores),
            ("broker", lambda s: s.broker_cores),
            ("database", lambda s: s.database_cores),
        ),
    ),
    (
        "Memory, KB",
        (
            ("broker, a connection", lambda s: s.broker_bytes_per_connection / 1000),
            ("stand-in car", lambda s: s.car_bytes / 1000),
        ),
    ),
)


def write_figure(report: FleetReport, file: Path) -> None:
    """Draw the report into `file` (.svg or .png)."""
    kind = file.suffix.removeprefix(".")
    options: dict[str, Any] = {"metadata": {"Date": None, "Creator": None}} if kind == "svg" else {"dpi": 150}
    with drawing_rules():
        draw(report).savefig(file, format=kind, facecolor=Tone.PAPER.light, **options)


def draw(report: FleetReport) -> Figure:
    """The whole sheet. Use within `drawing_rules`."""
    rows = -(-len(PANELS) // COLUMNS) + len(report.outages)
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * rows + 0.6), layout="constrained")
    figure.suptitle(_title(report), fontsize=10)
    grid = figure.add_gridspec(rows, COLUMNS)
    for number, (title, lines) in enumerate(PANELS):
        _grows(figure.add_subplot(grid[number // COLUMNS, number % COLUMNS]), title, lines, report.steps)
    first = rows - len(report.outages)
    for number, outage in enumerate(report.outages):
        _comes_back(figure.add_subplot(grid[first + number, :]), outage)
    return figure


def _title(report: FleetReport) -> str:
    plan = report.plan
    return (
        f"{plan.cars:,} cars on one machine ({report.machine.cores} cores): {plan.broker}"
        f"{' with TLS' if plan.tls else ''}, {plan.dispatchers} x dispatcher on {plan.database},"
        f" leases {report.compression:g} times shorter than in a fleet"
    )


def _grows(axes: Axes, title: str, lines: Sequence[tuple[str, Value]], steps: Sequence[Step]) -> None:
    """One panel over the number of cars, which grows by factors; what it costs starts at nothing."""
    axes.set_title(title, fontsize=8.5, loc="left")
    cars = [step.cars for step in steps]
    for tone, (name, value) in zip(TONES, lines, strict=False):
        values = [value(step) for step in steps]
        if any(values):
            known = [float("nan") if one is None else one for one in values]
            axes.plot(cars, known, marker="o", markersize=3, linewidth=1.2, color=tone.light, label=name)
            axes.annotate(f" {known[-1]:.3g}", (cars[-1], known[-1]), color=tone.light, fontsize=7, va="center")
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.set_xticks(cars)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _place: f"{number:,.0f}"))
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**LEGEND)


def _comes_back(axes: Axes, outage: Outage) -> None:
    """Cars that come a second (with their links, or where those stood with their questions), and the share served."""
    kind = "with spread and ramp" if outage.paced else "without spread and ramp"
    when = [
        f"{name} {value:.0f} s" if value is not None else f"{name} never"
        for name, value in (("50 % served after", outage.served_p50_s), ("99 %", outage.served_p99_s))
    ]
    axes.set_title(
        f"{outage.what.capitalize()} killed, {outage.cars:,} cars, {kind}: {', '.join(when)}", fontsize=8.5, loc="left"
    )
    seconds = list(range(len(outage.connects)))
    cut_off = outage.what == "broker"
    bars, name = (outage.connects, "connects a second") if cut_off else (outage.served, "first answers a second")
    axes.axvspan(0, outage.restored_at_s, color=Tone.SHADE.light, linewidth=0)
    axes.text(outage.restored_at_s, 1.0, " up again", transform=axes.get_xaxis_transform(), va="top", fontsize=7.5)
    axes.bar(seconds, bars, width=1.0, align="edge", color=Tone.POWER.light, label=name)
    axes.set_ylim(bottom=0, top=1.1 * max(LEAST_BAR, *bars))
    axes.set_xlim(0, max(1, len(seconds)))
    axes.set_xlabel("seconds since the kill")
    share, served = [], 0
    for count in outage.served:
        served += count
        share.append(100 * served / max(1, outage.cars))
    right = axes.twinx()
    right.step(seconds, share, where="post", color=Tone.HEAT.light, linewidth=1.4, label="cars served, %")
    right.set_ylim(0, 105)
    right.grid(visible=False)
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="center right", **LEGEND)
