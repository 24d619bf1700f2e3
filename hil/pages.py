"""Pages with lines of text to find, with their truth, and a measure of how well a mask of text pixels finds them.

Pages are drawn, seeded and so always the same: several typefaces and inks on one paper, a little blurred and noisy, as
a camera sees them; a blank one is paper alone. PP-OCR's detector is trained on text boxes shrunk towards their middle
(Liao et al. 2020, "Real-time Scene Text Detection with Differentiable Binarization", section 3.5), so its mask is a
thin band inside each line. `mask_quality` grows a line's band back, as that paper and PP-OCR do, before it is compared
with what was drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from hil.images import drawn_text, png_of, typeface

UNCLIP_RATIO = 1.6
"""By which PP-OCR grows a box: distance = area * ratio / length of its edges."""
_MARGIN_PX, _GAP_PX = 14, 16


@dataclass(frozen=True)
class Box:
    """Pixels [left, right) x [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """In pixels."""
        return max(self.right - self.left, 0) * max(self.bottom - self.top, 0)

    def shared(self, other: Box) -> float:
        """Intersection over union, 0 to 1."""
        both = Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area
        return both / (self.area + other.area - both)


@dataclass(frozen=True)
class PageImage:
    """A page as a PNG, its size, and where its lines of text are."""

    png: bytes
    rows: int
    columns: int
    lines: tuple[Box, ...]


@dataclass(frozen=True)
class MaskQuality:
    """The intersection over union of the line that is found worst, and the share of the mask that lies in no line."""

    worst_overlap: float
    stray_share: float


def drawn_page(rows: int, columns: int, seed: int, *, blank: bool = False) -> PageImage:
    """A page of this size in pixels, filled with lines of text unless it is to be blank."""
    dice = random.Random(seed)
    noise = np.random.default_rng(seed)
    page = Image.new("RGB", (columns, rows), tuple(dice.randrange(225, 256) for _ in range(3)))
    lines = () if blank else tuple(_lines(page, dice))
    blurred = page.filter(ImageFilter.GaussianBlur(dice.uniform(0.0, 0.7)))
    grain = noise.normal(0.0, dice.uniform(1.0, 5.0), (rows, columns, 3))
    pixels = np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8)
    return PageImage(png_of(Image.fromarray(pixels)), rows, columns, lines)


def mask_quality(mask: NDArray[np.bool_], lines: Sequence[Box]) -> MaskQuality:
    """Compare a mask (rows x columns of the page) with where the lines are."""
    left = mask.copy()
    overlaps = []
    for line in lines:
        band = _band(left, line)
        overlaps.append(0.0 if band is None else _grown(band).shared(line))
        left[line.top : line.bottom, line.left : line.right] = False
    return MaskQuality(min(overlaps, default=1.0), float(left.sum() / max(mask.sum(), 1)))


def _lines(page: Image.Image, dice: random.Random) -> list[Box]:
    """Write lines from top to bottom; their boxes."""
    pen = ImageDraw.Draw(page)
    lines: list[Box] = []
    top = _MARGIN_PX
    while True:
        text, font = drawn_text(dice), typeface(dice, dice.randrange(16, 30))
        box = font.getbbox(text)
        width, height = round(box[2] - box[0]), round(box[3] - box[1])
        if top + height + _MARGIN_PX > page.height:
            return lines
        if width + 2 * _MARGIN_PX > page.width:
            continue
        left = dice.randrange(_MARGIN_PX, page.width - width - _MARGIN_PX + 1)
        pen.text((left - box[0], top - box[1]), text, font=font, fill=tuple(dice.randrange(0, 90) for _ in range(3)))
        lines.append(Box(left, top, left + width, top + height))
        top += height + _GAP_PX


def _band(mask: NDArray[np.bool_], line: Box) -> Box | None:
    """What of the mask lies in a line, as one box; None: nothing does."""
    inside = mask[line.top : line.bottom, line.left : line.right]
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if rows.size == 0:
        return None
    return Box(
        line.left + int(columns[0]),
        line.top + int(rows[0]),
        line.left + int(columns[-1]) + 1,
        line.top + int(rows[-1]) + 1,
    )


def _grown(band: Box) -> Box:
    """The box that the detector means by a band."""
    width, height = band.right - band.left, band.bottom - band.top
    by = round(band.area * UNCLIP_RATIO / (2 * (width + height)))
    return Box(band.left - by, band.top - by, band.right + by, band.bottom + by)
