"""Text lines to read, with their truth: drawn ones, seeded and so always the same, and real ones cut from a scan.

Drawn lines look like what such a fleet is paid to read (addresses, receipts, part numbers, sentences), in several
typefaces, sizes and inks, a little blurred and noisy. The scan is the page in scikit-image's data: a photograph of
print with uneven light and no truth at hand. Only data files of matplotlib and scikit-image are used, never their code.
"""

from __future__ import annotations

import importlib.metadata
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
)
_STREETS = ("Harbour Street", "Mill Lane", "Rue de la Gare", "Lindenallee", "Ocean Avenue", "Via Roma", "Station Road")
_TOWNS = ("Bergen", "Ghent", "Leeds", "Utrecht", "Porto", "Graz", "Turku", "Oakland", "Nantes", "Bologna")
_GOODS = (
    "Espresso",
    "Wheel nut M14",
    "Brake fluid",
    "Rye bread",
    "Parking 2 h",
    "Oil filter",
    "Notebook A5",
    "Charging",
)
_SUBJECTS = ("The driver", "A courier", "The night train", "Every second tile", "Our technician", "The old bridge")
_VERBS = ("arrives before", "was repaired during", "waits until", "is closed after", "left shortly before")
_TIMES = ("noon", "the first snow", "seven in the morning", "the end of March", "the holiday", "sunset")

_MIN_INK_CONTRAST = 28
_MIN_INK_PIXELS = 4
_MIN_LINE_ROWS = 7


@dataclass(frozen=True)
class LineImage:
    """One line as a PNG, and what it says (None: nobody knows)."""

    png: bytes
    text: str | None


def drawn_lines(count: int, seed: int) -> list[LineImage]:
    """`count` drawn lines; the same seed gives the same lines."""
    dice = random.Random(seed)
    noise = np.random.default_rng(seed)
    return [_draw(drawn_text(dice), dice, noise) for _ in range(count)]


def scanned_lines() -> list[LineImage]:
    """The text lines of scikit-image's scanned page, top to bottom."""
    with Image.open(_data_file("scikit-image", "skimage/data/page.png")) as scan:
        page = np.asarray(scan.convert("L"))
    return [LineImage(png_of(Image.fromarray(page[top:bottom])), None) for top, bottom in _line_spans(page)]


def upside_down(line: LineImage) -> LineImage:
    """The same line turned by half a turn."""
    with Image.open(io.BytesIO(line.png)) as image:
        return LineImage(png_of(image.transpose(Image.Transpose.ROTATE_180)), line.text)


def edit_distance(left: str, right: str) -> int:
    """The fewest insertions, deletions and substitutions of characters that make one of the other (Levenshtein)."""
    row = list(range(len(right) + 1))
    for place, wanted in enumerate(left, 1):
        previous, row[0] = row[0], place
        for column, given in enumerate(right, 1):
            substituted = previous + (wanted != given)
            previous = row[column]
            row[column] = min(substituted, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def accuracy(truths: Sequence[str], answers: Sequence[str]) -> float:
    """1 - edit distance / characters of the truth, over all lines together (can be negative for nonsense)."""
    wrong = sum(edit_distance(truth, answer) for truth, answer in zip(truths, answers, strict=True))
    return 1 - wrong / sum(len(truth) for truth in truths)


def drawn_text(dice: random.Random) -> str:
    """One realistic line: an address, a receipt, a part number, a dated total or a sentence."""
    number = dice.randrange
    match number(5):
        case 0:
            return f"{number(1, 300)} {dice.choice(_STREETS)}, {number(1000, 99999)} {dice.choice(_TOWNS)}"
        case 1:
            return f"{number(1, 9)} x {dice.choice(_GOODS)} {number(1, 200)}.{number(100):02d} EUR"
        case 2:
            letters = "".join(dice.choices("ABCDEFGHKLMNPRSTUVWXYZ", k=2))
            return f"P/N {letters}-{number(10_000, 99_999)}-{number(10, 99)} Rev. {dice.choice('ABCDE')}"
        case 3:
            return f"Date: 20{number(20, 30)}-{number(1, 13):02d}-{number(1, 29):02d} Total {number(1, 999)}.50"
        case _:
            return f"{dice.choice(_SUBJECTS)} {dice.choice(_VERBS)} {dice.choice(_TIMES)}."


def typeface(dice: random.Random, size_px: int) -> ImageFont.FreeTypeFont:
    """One of the typefaces, in this size."""
    path = _data_file("matplotlib", f"matplotlib/mpl-data/fonts/ttf/{dice.choice(_FONTS)}")
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def _draw(text: str, dice: random.Random, noise: np.random.Generator) -> LineImage:
    """Ink on paper, through a slightly bad camera."""
    font = typeface(dice, dice.randrange(16, 44))
    left, top, right, bottom = font.getbbox(text)
    margin = dice.randrange(4, 10)
    size = (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin)
    paper = tuple(dice.randrange(215, 256) for _ in range(3))
    ink = tuple(dice.randrange(0, 90) for _ in range(3))
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
    blurred = image.filter(ImageFilter.GaussianBlur(dice.uniform(0.0, 1.0)))
    grain = noise.normal(0.0, dice.uniform(0.0, 12.0), (size[1], size[0], 3))
    pixels = np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8)
    return LineImage(png_of(Image.fromarray(pixels)), text)


def _line_spans(page: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Rows [top, bottom) of each text line, with a small margin.

    Horizontal projection profile: ink is what is clearly darker than the paper around it (the light is uneven);
    rows with ink in several places belong to a line, and a gap ends it.
    """
    paper = np.asarray(Image.fromarray(page).filter(ImageFilter.BoxBlur(12))).astype(np.int16)
    ink = (paper - page > _MIN_INK_CONTRAST).sum(axis=1) >= _MIN_INK_PIXELS
    start: int | None = None
    for row, inked in enumerate([*ink.tolist(), False]):
        if inked and start is None:
            start = row
        elif not inked and start is not None:
            if row - start >= _MIN_LINE_ROWS:
                yield max(start - 2, 0), min(row + 2, len(page))
            start = None


def png_of(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _data_file(distribution: str, name: str) -> Path:
    """A data file of an installed wheel, found without importing it; raises FileNotFoundError."""
    path = Path(str(importlib.metadata.distribution(distribution).locate_file(name)))
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not in the installed {distribution}")
    return path
