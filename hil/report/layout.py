"""Where things go on the time axis, worked out without drawing: bands, gaps, lanes and labels that do not collide.

Pure functions over the record; lengths are points (1/72 inch) where they are not seconds.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hil.record import LeaseSpan, Moment, RunRecord, Sample

TEXT_PT = 7.5
"""The size of all text in the plots but their headings."""
_SHORTEST_AXIS_S = 1.0
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

    text: str
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


def in_order(record: RunRecord) -> list[Moment]:
    """The moments as they are numbered in the plots and in the table."""
    return sorted(record.moments, key=lambda moment: moment.t_s)


def bands(samples: Sequence[Sample], value: Callable[[Sample], str]) -> list[Band]:
    """Merge equal neighbours; a sample stands for the time until the next one, the last only ends its band."""
    merged: list[Band] = []
    for sample, following in itertools.pairwise(samples):
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
        ends_s[lane : lane + 1] = [leases[i].end_s]
        chosen[i] = lane
    return chosen


def width_pt(text: str) -> float:
    """About how wide a text is in any common sans-serif of `TEXT_PT`; a little too wide rather than too narrow."""
    return TEXT_PT * sum(_advance_em(character) for character in text)


def _advance_em(character: str) -> float:
    """By kind, after DejaVu Sans, the widest of the fonts we ask for."""
    if character in " fijlrt.,:;'|!/()-":
        return 0.4
    if unicodedata.east_asian_width(character) in "WF" or character in "mwMW@%…":
        return 1.05
    return 0.72 if character.isupper() else 0.64


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def place_labels(
    marks: Sequence[float], texts: Sequence[Sequence[str]], axis_pt: float, rows: int
) -> list[Label | None]:
    """Stack labels above an axis so that none covers another or the line that falls from another's mark.

    `marks` are ascending positions on an axis `axis_pt` long; each has its texts, the best first. A label stands right
    of its mark, or left where the axis ends too soon. Placing from right to left puts earlier labels higher, so their
    lines fall past the later ones; those that must stand left come last, above what they cover. Where no text fits in
    any row, the answer is None.
    """
    placed: list[Label | None] = [None] * len(marks)
    stands_left = [mark + _reach(choice[0]) > axis_pt for mark, choice in zip(marks, texts, strict=True)]
    for i in sorted(range(len(marks)), key=lambda i: (stands_left[i], -marks[i], -i)):
        others = [label for label in placed if label]
        candidates = (label for text in texts[i] for label in _candidates(marks[i], text, axis_pt, rows))
        placed[i] = next((label for label in candidates if not any(_collide(label, other) for other in others)), None)
    return placed


def _reach(text: str) -> float:
    return _LABEL_GAP_PT + width_pt(text)


def _candidates(mark: float, text: str, axis_pt: float, rows: int) -> Iterator[Label]:
    """Right of the mark from the lowest row up, then left of it."""
    reach = _reach(text)
    if mark + reach <= axis_pt:
        yield from (Label(text, row, mark, mark + _LABEL_GAP_PT, mark + reach) for row in range(rows))
    if mark >= reach:
        yield from (Label(text, row, mark, mark - reach, mark - _LABEL_GAP_PT) for row in range(rows))


def _collide(one: Label, other: Label) -> bool:
    same_row = (
        one.row == other.row and one.left < other.right + _LABEL_GAP_PT and other.left < one.right + _LABEL_GAP_PT
    )
    return same_row or _struck(one, other) or _struck(other, one)


def _struck(label: Label, other: Label) -> bool:
    """Whether the line that falls from the other label to its mark runs through this one."""
    within = label.left - _LINE_CLEARANCE_PT < other.mark < label.right + _LINE_CLEARANCE_PT
    return within and other.row >= label.row
