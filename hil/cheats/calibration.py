"""How wide a band has to be: how far samples of honest engines are apart, and how near those of dishonest ones come.

Measured on lines that the play does not use (`SEED`), over every pair of the ways to run the model. Between the
furthest honest pair and the nearest dishonest lines there is a wide gap; the band lies in it, with room for honest
hardware that nobody here has: an honest car that is condemned is worse than a cheat that is found a job later.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hil.cheats.outputs import DISHONEST, HALVES, HONEST, Outputs, drift_ppm, outputs

LINES = 120
SEED = 7001
NEAREST_SHARE = 0.05
"""So many of the dishonest lines may come nearer: a slice has several."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """One precision on held-out lines, in millionths of the samples' size.

    `honest_ppm` is the furthest that two honest engines that may be compared by its band were apart on any line.
    `dishonest_ppm` is what 95 % of the lines of the nearest engine exceeded that may not claim it, and `nearest_ppm`
    the nearest of them; `band_ppm` is the package's.
    """

    precision: str
    pairs: int
    honest_ppm: int
    band_ppm: int
    dishonest: str
    nearest_ppm: int
    dishonest_ppm: int

    @property
    def room(self) -> tuple[float, float]:
        """How many times the honest fit into the band, and the band into the dishonest."""
        return self.band_ppm / max(1, self.honest_ppm), self.dishonest_ppm / max(1, self.band_ppm)


def calibrate(folder: Path, lines: int = LINES) -> list[Calibration]:
    """Both precisions, on the held-out lines; minutes the first time. Raises PackageError."""
    made = outputs(folder, lines, SEED)
    full = [name for name in HONEST if name != HALVES]
    return [
        _calibrated(made, "float32", full, [HALVES, *DISHONEST]),
        _calibrated(made, "float16", list(HONEST), [name for name in DISHONEST if name != "float16 weights"]),
    ]


def _calibrated(made: Outputs, precision: str, honest: list[str], others: list[str]) -> Calibration:
    pairs = list(itertools.combinations(honest, 2))
    nearest = {name: sorted(_drifts(made, ((name, one) for one in honest))) for name in others}
    worst = min(nearest, key=lambda name: _nearly_least(nearest[name]))
    return Calibration(
        precision=precision,
        pairs=len(pairs),
        honest_ppm=math.ceil(max(_drifts(made, pairs))),
        band_ppm=made.tolerance.bands_ppm[precision],
        dishonest=worst,
        nearest_ppm=math.floor(nearest[worst][0]),
        dishonest_ppm=math.floor(_nearly_least(nearest[worst])),
    )


def _nearly_least(ascending: list[float]) -> float:
    return ascending[math.floor(NEAREST_SHARE * len(ascending))]


def _drifts(made: Outputs, pairs: Iterable[tuple[str, str]]) -> list[float]:
    """Of every line of every pair."""
    return [
        drift_ppm(*lines)
        for one, other in pairs
        for lines in zip(made.variants[one], made.variants[other], strict=True)
    ]
