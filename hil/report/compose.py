"""All plots of a run on one sheet: the moments' labels on top, then every panel, on one time axis.

Margins and heights are fixed points, so that panels line up whatever their numbers look like. Global state of
matplotlib is not touched: style and warnings hold only within `drawing_rules`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from hil.record import Moment, RunRecord
from hil.report.layout import TEXT_PT, Label, axis_end_s, bands, in_order, place_labels, shorten
from hil.report.palette import Tone
from hil.report.panels import AXIS_PT, panels_of

_LEFT_PT, _RIGHT_PT = 44.0, 64.0
_WIDTH_PT = _LEFT_PT + AXIS_PT + _RIGHT_PT
_TOP_PT, _BETWEEN_PT, _BOTTOM_PT = 4.0, 26.0, 34.0
_LABEL_ROW_PT, _LABEL_ROWS = 11.0, 9
_LABEL_BASE_PT = 13.0
_LONGEST_LABEL = 44
LONG_S, MOST_TICKS = 7_200, 14
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "font.size": TEXT_PT,
    "legend.fontsize": TEXT_PT,
    "xtick.labelsize": TEXT_PT,
    "ytick.labelsize": TEXT_PT,
    "axes.edgecolor": Tone.MUTED.light,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": Tone.GRID.light,
    "grid.linewidth": 0.6,
    "hatch.color": Tone.MUTED.light,
    "hatch.linewidth": 0.5,
    "text.color": Tone.INK.light,
    "text.parse_math": False,  # a job may be called "$x$"
    "xtick.color": Tone.MUTED.light,
    "ytick.color": Tone.MUTED.light,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "driveway",
    "svg.id": "run",
}


@contextmanager
def drawing_rules() -> Iterator[None]:
    """Our style, and silence about glyphs, while a sheet is composed and saved."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A script the drawing font lacks is the reader's font's business; a PNG shows boxes there.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def compose(record: RunRecord) -> Figure:
    """Stack the panels from the top; the moments' labels take as many rows as they need. Use within `drawing_rules`."""
    labels = _labels(record)
    strip_pt = _LABEL_ROW_PT * max((label.row + 1 for label in labels if label), default=0)
    panels = panels_of(record)
    heights = [panel.height_pt(record) for panel in panels]
    total_pt = _TOP_PT + strip_pt + sum(heights) + _BETWEEN_PT * len(heights) + _BOTTOM_PT
    figure = Figure(figsize=(_WIDTH_PT / 72, total_pt / 72), dpi=72)
    top_pt = total_pt - _TOP_PT - strip_pt
    first: Axes | None = None
    for panel, height_pt in zip(panels, heights, strict=True):
        top_pt -= _BETWEEN_PT + height_pt
        box = (_LEFT_PT / _WIDTH_PT, top_pt / total_pt, AXIS_PT / _WIDTH_PT, height_pt / total_pt)
        axes = figure.add_axes(box, sharex=first)
        axes.set_xlim(0, axis_end_s(record))
        panel.draw(axes, record)
        _finish(axes, panel.title, record)
        axes.tick_params(labelbottom=panel is panels[-1])
        if first is None:
            first = axes
            _write_labels(axes, record, labels)
    _time_axis(axes, axis_end_s(record))
    return figure


def _time_axis(axes: Axes, end_s: float) -> None:
    """Seconds, or hours where the run lasted long."""
    unit = "seconds"
    if end_s > LONG_S:
        unit = "hours"
        step_h = next((step for step in (0.5, 1, 2, 3, 6, 12, 24) if end_s / 3600 / step <= MOST_TICKS), 24)
        axes.xaxis.set_major_locator(MultipleLocator(step_h * 3600))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at_s, _place: f"{at_s / 3600:g}"))
    axes.set_xlabel(f"{unit} since the run began", color=Tone.MUTED.light)


def _finish(axes: Axes, title: str, record: RunRecord) -> None:
    """What every panel has: its heading, a shade while the gate is closed and a line for each moment."""
    axes.set_title(title, loc="left", fontsize=TEXT_PT + 1, fontweight="bold", color=Tone.INK.light, pad=5)
    for band in bands(record.samples, lambda sample: sample.gate):
        if band.value == "closed":
            axes.axvspan(band.start_s, band.end_s, facecolor=Tone.SHADE.light, linewidth=0, zorder=0)
    for moment in record.moments:
        axes.axvline(moment.t_s, color=_tone(moment).light, dashes=_dashes(moment), linewidth=0.8, zorder=3)


def _labels(record: RunRecord) -> list[Label | None]:
    moments = in_order(record)
    scale = AXIS_PT / axis_end_s(record)
    return place_labels(
        [moment.t_s * scale for moment in moments],
        [(_text(number, moment), str(number)) for number, moment in enumerate(moments, 1)],
        AXIS_PT + _RIGHT_PT,
        _LABEL_ROWS,
    )


def _write_labels(axes: Axes, record: RunRecord, labels: list[Label | None]) -> None:
    """Above the first panel, each with the line that ties it to its moment; what found no room is in the table only."""
    for moment, label in zip(in_order(record), labels, strict=True):
        if label is None:
            continue
        height_pt = _LABEL_BASE_PT + label.row * _LABEL_ROW_PT
        at_top: dict[str, Any] = {
            "xy": (moment.t_s, 1),
            "xycoords": ("data", "axes fraction"),
            "textcoords": "offset points",
        }
        line = {"arrowstyle": "-", "color": _tone(moment).light, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xytext=(0, height_pt + _LABEL_ROW_PT / 2), arrowprops=line, zorder=1, **at_top)
        inset_pt, align = (
            (label.left - label.mark, "left") if label.left > label.mark else (label.right - label.mark, "right")
        )
        axes.annotate(
            label.text, xytext=(inset_pt, height_pt), va="bottom", ha=align, color=_tone(moment).light, **at_top
        )


def _text(number: int, moment: Moment) -> str:
    return shorten(f"{number} {moment.who}: {moment.what}", _LONGEST_LABEL)


def _tone(moment: Moment) -> Tone:
    return Tone.DRIVER if moment.who == "driver" else Tone.AGENT


def _dashes(moment: Moment) -> tuple[float, float]:
    """The driver's line is unbroken, everybody else's dotted."""
    return (1, 0) if moment.who == "driver" else (1.5, 1.5)
