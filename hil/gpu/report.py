"""The report: one Markdown page with its tables, two drawings beside it, and the figures as JSON.

Written for somebody who was not there: the first table names the machine, every other one says what was measured, and
the last what was not. The same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from matplotlib.figure import Figure

from hil.gpu.figures import Figures
from hil.report.compose import drawing_rules
from hil.report.palette import Tone

REPORT, BANDWIDTH, VACATE, FIGURES = "report.md", "bandwidth.svg", "vacate.svg", "figures.json"
_AIM_OF_COPY, _AIM_RATIO = 0.85, 0.98
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def write_report(figures: Figures, folder: Path) -> Path:
    """Write everything into `folder`, which is made when missing; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    with drawing_rules():
        if figures.bandwidths:
            drawings.append((BANDWIDTH, draw_bandwidths(figures)))
        if figures.vacates:
            drawings.append((VACATE, draw_vacates(figures)))
        for name, drawing in drawings:
            drawing.savefig(folder / name, format="svg", metadata=_NO_METADATA, facecolor=Tone.PAPER.light)
    (folder / FIGURES).write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    (folder / REPORT).write_text(page(figures, [name for name, _ in drawings]), "utf-8")
    return folder / REPORT


def page(figures: Figures, drawings: Sequence[str]) -> str:
    """The page as Markdown."""
    facts = figures.facts
    parts = [
        f"# On {facts.device}",
        f"`driveway-hil gpu`, {figures.wall_s:.0f} s. " + _verdict(figures.faults),
        _table(("what", "which"), [(name.replace("_", " "), _text(value)) for name, value in _pairs(facts)]),
        "## Right",
        _table(
            ("what", "case", "values", "equal bit for bit", "largest error", "right", ""),
            [
                (
                    one.name,
                    one.case,
                    f"{one.values:,}",
                    f"{one.equal_permille / 10:.1f} %",
                    f"{one.largest_error:.3g}",
                    "yes" if one.right else "**no**",
                    one.detail,
                )
                for one in figures.checks
            ],
        ),
        f"## Kernels beside a copy (aim: {_AIM_OF_COPY:.0%} of the copy's rate)",
        _table(
            ("kernel", "case", "moves MB", "us", "GB/s", "copy GB/s", "of copy"),
            [
                (
                    one.kernel,
                    one.case,
                    f"{one.moved_mb:.1f}",
                    f"{one.kernel_us:.1f}",
                    f"{one.kernel_gb_s:.0f}",
                    f"{one.copy_gb_s:.0f}",
                    f"{one.of_copy:.2f}",
                )
                for one in figures.bandwidths
            ],
        ),
        f"## Pipeline beside the bare engine (aim: {_AIM_RATIO:.2f} for engines of 1 ms and more)",
        _table(
            ("package", "case", "engine ms", "bare /s", "pipeline /s", "ratio", "graph", "Python us", "trtexec /s"),
            [
                (
                    one.package,
                    one.case,
                    f"{one.engine_ms:.3f}",
                    f"{one.bare_per_s:.0f}",
                    f"{one.pipeline_per_s:.0f}",
                    f"{one.ratio:.3f}",
                    "yes" if one.graph else "no",
                    f"{one.python_us:.1f}",
                    "-" if one.trtexec_per_s is None else f"{one.trtexec_per_s:.0f}",
                )
                for one in figures.throughputs
            ],
        ),
        "## Giving it back",
        _table(
            (
                "how",
                "times",
                "micro-batch ms",
                "idle p50 ms",
                "p99 or max ms",
                "memory back p50 ms",
                "p99 or max ms",
                "MB",
                "left MB",
            ),
            [
                (
                    one.how,
                    str(one.times),
                    f"{one.micro_batch_ms:.1f}",
                    f"{one.idle_p50_ms:.1f}",
                    f"{one.idle_p99_ms:.1f} ({one.tail})",
                    f"{one.freed_p50_ms:.0f}",
                    f"{one.freed_p99_ms:.0f} ({one.tail})",
                    str(one.memory_mb),
                    str(one.left_mb),
                )
                for one in figures.vacates
            ],
        ),
        "## Starting, lasting, coming back",
        _table(
            ("what", "figure"),
            [
                *((f"start, {one.how}", f"{one.start_ms:.0f} ms") for one in figures.starts),
                *(
                    (
                        f"{one.slices:,} slices in one process, {one.per_s:.0f} a second",
                        f"device {one.device_grown_mb:+.1f} MB, host {one.host_grown_mb:+.1f} MB",
                    )
                    for one in figures.endurances
                ),
                *(
                    (
                        f"{one.how}: {one.reported}",
                        f"{'right again' if one.right_again else '**wrong**'} after {one.again_ms:.0f} ms",
                    )
                    for one in figures.recoveries
                ),
            ],
        ),
        *(f"![{Path(name).stem}]({name})" for name in drawings),
        "## Not run",
        _table(
            ("chapter", "why", "failed"),
            [(one.chapter, one.why, "yes" if one.failed else "no") for one in figures.omitted],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw_bandwidths(figures: Figures) -> Figure:
    """A bar for each kernel: its share of the copy's rate. Use within `drawing_rules`."""
    rows = figures.bandwidths
    figure = Figure(figsize=(7.2, 0.32 * len(rows) + 0.8), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.barh([f"{one.kernel}, {one.case}" for one in rows], [one.of_copy for one in rows], color=Tone.MUTED.light)
    axes.axvline(_AIM_OF_COPY, color=Tone.INK.light, linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("rate, as a share of a plain copy on the device (line: the aim)")
    return figure


def draw_vacates(figures: Figures) -> Figure:
    """For each way of giving back: idle and memory back, median and p99. Use within `drawing_rules`."""
    rows = figures.vacates
    figure = Figure(figsize=(7.2, 0.5 * len(rows) + 0.9), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    for row, one in enumerate(rows):
        axes.plot([one.idle_p50_ms, one.idle_p99_ms], [row, row], "o-", color=Tone.INK.light, markersize=4)
        axes.plot([one.freed_p50_ms, one.freed_p99_ms], [row + 0.2] * 2, "s-", color=Tone.MUTED.light, markersize=4)
    axes.set_yticks(range(len(rows)), [f"{one.how} ({one.tail})" for one in rows])
    axes.set_xscale("log")
    axes.set_xlabel("ms from the order, p50 to p99 or max: nothing computes (dots), memory is back (squares)")
    axes.invert_yaxis()
    return figure


def _verdict(faults: Sequence[str]) -> str:
    if not faults:
        return "Everything that was checked came out right."
    return "\n".join(["**Wrong:**", "", *(f"* {fault}" for fault in faults)])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, or that there is nothing."""
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    if not lines:
        return "Nothing."
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *lines])


def _pairs(facts: msgspec.Struct) -> Iterable[tuple[str, object]]:
    return ((name, getattr(facts, name)) for name in facts.__struct_fields__)


def _text(value: object) -> str:
    return "-" if value == "" else str(value)
