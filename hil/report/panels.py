"""One function per plot: each draws its part of a record on axes that share their time axis with the others.

A value nobody knew is a gap in its line, never zero. Colour is never the only channel: bands, bars and lines carry
their names, and what could be mistaken also differs by hatching or dashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hil.record import LeaseSpan, RunRecord, Sample
from hil.report.layout import Band, bands, gapped, lanes, lonely, shorten, width_pt
from hil.report.palette import Tone

AXIS_PT = 612.0
"""How long the time axis is drawn, which decides what text fits where."""
_LABEL_INSET_PT = 3.0
_LEAST_CHARGE_SPAN_PERCENT = 1.0


@dataclass(frozen=True)
class Fill:
    """How a band or bar of one kind looks."""

    fill: Tone
    text: Tone = Tone.INK
    hatch: str = ""


_GATES = {
    "open": Fill(Tone.OPEN),
    "hold": Fill(Tone.HOLD, hatch="///"),
    "closed": Fill(Tone.CLOSED, Tone.STRONG_TEXT),
}
_STATES = {
    "blocked": Fill(Tone.BLOCKED),
    "ready": Fill(Tone.READY),
    "running": Fill(Tone.RUNNING, Tone.STRONG_TEXT),
    "yielding": Fill(Tone.YIELDING, hatch="\\\\\\"),
    "paused": Fill(Tone.PAUSED, hatch="..."),
    "fault": Fill(Tone.FAULT, Tone.STRONG_TEXT),
}
_OTHER = Fill(Tone.OTHER)
_FINISHED = Fill(Tone.FINISHED, Tone.STRONG_TEXT)
_GIVEN_BACK = Fill(Tone.GIVEN_BACK, hatch="///")


@dataclass(frozen=True)
class Panel:
    """One plot: its heading, its height in points for a given record, and how to draw it."""

    title: str
    height_pt: Callable[[RunRecord], float]
    draw: Callable[[Axes, RunRecord], None]


def draw_timeline(axes: Axes, record: RunRecord) -> None:
    """Gate, agent's state and reason as rows of bands; what is nowhere wide enough for its name is in a key."""
    rows: tuple[tuple[str, Callable[[Sample], str], dict[str, Fill]], ...] = (
        ("gate", lambda sample: sample.gate, _GATES),
        ("agent", lambda sample: sample.state, _STATES),
        ("reason", lambda sample: sample.reason, {}),
    )
    key: dict[str, Fill] = {}
    for row, (_, value, fills) in enumerate(rows):
        found = [band for band in bands(record.samples, value) if band.value]
        named = {band.value for band in found if _bar(axes, row, band, (band.value,), fills.get(band.value, _OTHER))}
        key |= {band.value: fills[band.value] for band in found if band.value in fills and band.value not in named}
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.grid(visible=False)
    _key(axes, [_patch(value, fill) for value, fill in key.items()])


def draw_heat(axes: Axes, record: RunRecord) -> None:
    """Die temperature under its target and limit, in °C."""
    _line(axes, record.samples, [sample.die_c for sample in record.samples], Tone.HEAT)
    for level_c, dashes, align, word in (
        (record.die_limit_c, (6, 2), "bottom", "limit"),
        (record.die_target_c, (2, 2), "top", "target"),
    ):
        axes.axhline(level_c, color=Tone.INK.light, linewidth=0.9, dashes=dashes)
        _beside(axes, level_c, f" {word} {level_c:g} °C", align)
    axes.margins(y=0.12)


def draw_power(axes: Axes, record: RunRecord) -> None:
    """The computer's power under its cap, in watts from zero."""
    times_s = [sample.t_s for sample in record.samples]
    caps_w = [sample.power_cap_w for sample in record.samples]
    style: dict[str, Any] = {"color": Tone.INK.light, "linewidth": 0.9, "dashes": (4, 2)}
    axes.plot(times_s, caps_w, drawstyle="steps-post", **style)
    _line(axes, record.samples, [sample.power_w for sample in record.samples], Tone.POWER, drawstyle="steps-post")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    _key(axes, [Line2D([], [], label="power cap", **style), Line2D([], [], color=Tone.POWER.light, label="measured")])


def draw_charge(axes: Axes, record: RunRecord) -> None:
    """The traction battery's charge in %; the axis spans at least one point, so that noise stays small."""
    charges = [sample.charge_percent for sample in record.samples]
    _line(axes, record.samples, charges, Tone.CHARGE)
    known = [charge for charge in charges if charge is not None]
    if known:
        middle = (min(known) + max(known)) / 2
        half = max(max(known) - min(known), _LEAST_CHARGE_SPAN_PERCENT) * 0.6
        axes.set_ylim(middle - half, middle + half)


def draw_pack_power(axes: Axes, record: RunRecord) -> None:
    """Power into the traction battery in kW: above zero it charges (the sign of VSS `TractionBattery.CurrentPower`)."""
    powers_w = [sample.pack_power_w for sample in record.samples]
    axes.axhline(0, color=Tone.MUTED.light, linewidth=0.8)
    powers_kw = [None if power_w is None else power_w / 1000 for power_w in powers_w]
    _line(axes, record.samples, powers_kw, Tone.PACK, drawstyle="steps-post")
    axes.margins(y=0.15)


def draw_price(axes: Axes, record: RunRecord) -> None:
    """What a kWh costs at the plug, in units of the currency."""
    prices = [sample.price_micro_per_kwh for sample in record.samples]
    axes.plot(
        [sample.t_s for sample in record.samples],
        [float("nan") if price is None else price / 1e6 for price in prices],
        color=Tone.COUNT.light,
        linewidth=1.2,
        drawstyle="steps-post",
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.margins(y=0.2)


def draw_leases(axes: Axes, record: RunRecord) -> None:
    """Leases as bars, numbered as in the table: plain when finished, hatched when given back, with the reason."""
    chosen = lanes(record.leases)
    for number, (lane, lease) in enumerate(zip(chosen, record.leases, strict=True), 1):
        fill = _FINISHED if lease.outcome == "finished" else _GIVEN_BACK
        held = Band(lease.start_s, lease.end_s, lease.outcome)
        _bar(axes, lane, held, _lease_names(number, lease), fill)
    axes.set_ylim(max(chosen, default=0) + 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(visible=False)
    if not record.leases:
        _nothing(axes, "no leases")
    _key(axes, [_patch("finished", _FINISHED), _patch("given back", _GIVEN_BACK)])


def draw_slices(axes: Axes, record: RunRecord) -> None:
    """Slices made durable so far."""
    _count(axes, record, [sample.slices_kept for sample in record.samples])


def draw_images(axes: Axes, record: RunRecord) -> None:
    """Images whose results the dispatcher settled so far."""
    _count(axes, record, [sample.images_settled for sample in record.samples])


def _lease_height_pt(record: RunRecord) -> float:
    return 19.0 * (max(lanes(record.leases), default=0) + 1)


PRICES = Panel("Price of a kWh", lambda _: 48, draw_price)
COUNTED = Panel("Images settled", lambda _: 44, draw_images)
PANELS = (
    Panel("", lambda _: 56, draw_timeline),
    Panel("Die temperature, °C", lambda _: 82, draw_heat),
    Panel("Computer's power, W", lambda _: 82, draw_power),
    Panel("Traction battery's charge, %", lambda _: 48, draw_charge),
    Panel("Power into the traction battery, kW", lambda _: 48, draw_pack_power),
    PRICES,
    Panel("Leases", _lease_height_pt, draw_leases),
    Panel("Slices kept", lambda _: 44, draw_slices),
    COUNTED,
)


def panels_of(record: RunRecord) -> tuple[Panel, ...]:
    """The panels that say something of this run: a price that never changes is no plot."""
    changes = len({sample.price_micro_per_kwh for sample in record.samples}) > 1
    panels = (panel for panel in PANELS if changes or panel is not PRICES)
    return tuple(replace(panel, title=record.counted) if panel is COUNTED else panel for panel in panels)


def _line(
    axes: Axes, samples: Sequence[Sample], values: Sequence[float | None], tone: Tone, drawstyle: str = "default"
) -> None:
    """A line with gaps where the value is None, and dots for values that stand alone between gaps."""
    times_s = [sample.t_s for sample in samples]
    known = gapped(values)
    alone = lonely(values)
    axes.plot(times_s, known, color=tone.light, linewidth=1.5, drawstyle=drawstyle)
    axes.plot(
        [times_s[i] for i in alone],
        [known[i] for i in alone],
        color=tone.light,
        linestyle="none",
        marker="o",
        markersize=2.5,
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    if all(value is None for value in values):
        _nothing(axes, "no readings")


def _count(axes: Axes, record: RunRecord, counts: Sequence[int]) -> None:
    """A staircase from zero, filled, with its last value beside it."""
    times_s = [sample.t_s for sample in record.samples]
    axes.fill_between(times_s, counts, step="post", color=Tone.COUNT.light, alpha=0.15, linewidth=0)
    axes.plot(times_s, counts, color=Tone.COUNT.light, linewidth=1.5, drawstyle="steps-post")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.set_ylim(0, max([1, *counts]) * 1.15)
    if counts:
        _beside(axes, counts[-1], f" {counts[-1]:,}", "center")
    else:
        _nothing(axes, "no samples")


def _bar(axes: Axes, row: int, band: Band, texts: Iterable[str], fill: Fill) -> bool:
    """A bar with the first of `texts` that it is wide enough for, at its left end; False when none is."""
    axes.barh(
        row,
        band.end_s - band.start_s,
        left=band.start_s,
        height=0.84,
        facecolor=fill.fill.light,
        hatch=fill.hatch,
        edgecolor=Tone.MUTED.light if fill.hatch else fill.fill.light,
        linewidth=0,
        zorder=2,
    )
    room_pt = (band.end_s - band.start_s) / axes.get_xlim()[1] * AXIS_PT - 2 * _LABEL_INSET_PT
    if room_pt > 0:  # neighbours of one colour stay apart
        axes.plot([band.start_s] * 2, [row - 0.42, row + 0.42], color=Tone.PAPER.light, linewidth=0.8, zorder=2)
    text = next((text for text in texts if width_pt(text) <= room_pt), "")
    if text:
        axes.annotate(
            text,
            (band.start_s, row),
            (_LABEL_INSET_PT, 0),
            textcoords="offset points",
            va="center",
            color=fill.text.light,
            zorder=4,
            bbox={"facecolor": fill.fill.light, "linewidth": 0, "pad": 0.8},
        )
    return bool(text)


def _lease_names(number: int, lease: LeaseSpan) -> tuple[str, ...]:
    """What may stand in a lease's bar, the fullest first."""
    outcome = f"{shorten(lease.outcome, 16)} {lease.slices_done}/{lease.slices_wanted}"
    job = f"{shorten(lease.job, 20)}/{lease.epoch}"
    return f"{number}  {job} · {outcome}", f"{number}  {outcome}", f"{number}"


def _beside(axes: Axes, level: float, text: str, align: str) -> None:
    """Text in the right margin at a level of the y axis."""
    axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), va=align, color=Tone.INK.light)


def _nothing(axes: Axes, text: str) -> None:
    behind = {"facecolor": Tone.PAPER.light, "linewidth": 0}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=Tone.MUTED.light, bbox=behind)
    axes.set_yticks([])


def _patch(text: str, fill: Fill) -> Patch:
    return Patch(facecolor=fill.fill.light, hatch=fill.hatch, edgecolor=Tone.MUTED.light, linewidth=0.5, label=text)


def _key(axes: Axes, handles: list[Any]) -> None:
    """What colours or dashes mean, right of the plot's title."""
    if handles:
        axes.legend(
            handles=handles,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(handles),
            facecolor=Tone.PAPER.light,
            framealpha=1,
            edgecolor="none",
            borderaxespad=0.15,
            borderpad=0,
            handlelength=1.6,
            handleheight=0.8,
            columnspacing=1.2,
            labelcolor=Tone.MUTED.light,
        )
