"""Where things go on the time axis, worked out without drawing: bands, gaps, lanes and labels that do not collide.

Pure functions over the record; lengths are points (1/72 inch) where they are not seconds.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hil.record import LeaseSpan, RunRecord, Sample

_SHORTEST_AXIS_S = 1.0
_NARROW_EM, _WIDE_EM = 0.6, 1.05
_LABEL_GAP_PT = 3.0
_LINE_CLEARANCE_PT = 2.0


@dataclass(frozen=True)
class Band:
    """A value that stayed the same for a while, in seconds."""

    start_s: float
    end_s: float
    value: str


@dataclass(frozen=True)
class Label:
    """A label beside its mark: the row it stands in (0 is the lowest) and where it starts and ends, in points."""

    row: int
    mark: float
    left: float
    right: float


def axis_end_s(record: RunRecord) -> float:
    """The time axis runs from 0 to here: the last thing that happened, at least one second."""
    times = [sample.t_s for sample in record.samples]
    times += [moment.t_s for moment in record.moments]
    times += [lease.end_s for lease in record.leases]
    return max([_SHORTEST_AXIS_S, *times])


def bands(samples: Sequence[Sample], value: Callable[[Sample], str]) -> list[Band]:
    """Merge equal neighbours; a sample stands for the time until the next one, the last only ends its band."""
    merged: list[Band] = []
    for sample, following in zip(samples, samples[1:], strict=False):
        word = value(sample)
        start_s = merged.pop().start_s if merged and merged[-1].value == word else sample.t_s
        merged.append(Band(start_s, following.t_s, word))
    return merged


def gapped(values: Sequence[float | None]) -> list[float]:
    """None becomes NaN, where a plotted line is interrupted."""
    return [math.nan if value is None else value for value in values]


def lonely(values: Sequence[float | None]) -> list[int]:
    """Indices of values with no neighbour on either side: a line would not show them, so they need a dot."""
    known = [False, *(value is not None for value in values), False]
    return [i for i in range(len(values)) if known[i + 1] and not known[i] and not known[i + 2]]


def lanes(leases: Sequence[LeaseSpan]) -> list[int]:
    """The lowest lane for each lease in which it overlaps no earlier one, in order of their start."""
    ends_s: list[float] = []
    chosen = [0] * len(leases)
    for i in sorted(range(len(leases)), key=lambda i: leases[i].start_s):
        lane = next((k for k, end_s in enumerate(ends_s) if end_s <= leases[i].start_s), len(ends_s))
        ends_s[lane:lane + 1] = [leases[i].end_s]
        chosen[i] = lane
    return chosen


def width_pt(text: str, size_pt: float) -> float:
    """About how wide a text is in any common sans-serif; a little too wide rather than too narrow."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size_pt * (_NARROW_EM * (len(text) - wide) + _WIDE_EM * wide)


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def place_labels(marks: Sequence[float], widths: Sequence[float], axis_pt: float, rows: int) -> list[Label | None]:
    """Stack labels above an axis so that none covers another or the line that falls from another's mark.

    `marks` are positions on an axis `axis_pt` long, ascending. Placing from right to left puts earlier labels higher,
    so lines fall past later labels. A label that fits in none of the rows is None: its mark stays, its text does not.
    """
    placed: list[Label | None] = [None] * len(marks)
    for i in reversed(range(len(marks))):
        others = [label for label in placed if label]
        left = marks[i] + _LABEL_GAP_PT
        if left + widths[i] > axis_pt:
            left = max(0.0, marks[i] - _LABEL_GAP_PT - widths[i])
        candidates = (Label(row, marks[i], left, left + widths[i]) for row in range(rows))
        placed[i] = next((label for label in candidates if not any(_collide(label, other) for other in others)), None)
    return placed


def _collide(one: Label, other: Label) -> bool:
    same_row = one.row == other.row and one.left < other.right + _LABEL_GAP_PT and other.left < one.right + _LABEL_GAP_PT
    return same_row or _struck(one, other) or _struck(other, one)


def _struck(label: Label, other: Label) -> bool:
    """Does the line from the other's mark, which falls from its row, run through this label?"""
    within = label.left - _LINE_CLEARANCE_PT < other.mark < label.right + _LINE_CLEARANCE_PT
    return within and other.row >= label.row
