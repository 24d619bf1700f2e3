"""Can two answers to the same slice be of one computation? By value, since other hardware never gives the same bits.

What two engines may differ in is the package's to say, as it does for its golden vector: confidences and probabilities
by so many thousandths, floats and fingerprints by thousandths of the largest, a mask in thousandths of its pixels;
texts, classes and counts not at all (`agent.worker.results.answers_agree`). Rounding that tips a text the other way is
rare but real, so a share of the items may disagree altogether (`strays_permille`). Nobody is called wrong for what
honest rounding does once in a million slices; what is neither that nor within the share is UNKNOWN.

Samples of the engine's values (`kernels.tensor_samples`) are held to more: to the band of the precision that both claim
to have computed in, the wider where they claim different ones. So half precision sold as full is told from full, while
its texts are nearly always the same. Almost nothing strays there by rounding, so almost nothing may.

Both sides are bytes that somebody untrusted sent. Whatever is no JSON array of answers agrees with nothing. Pure.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from agent.errors import PackageError
from agent.package import MANIFEST, Manifest, open_package
from agent.trust.statement import Engine
from agent.worker.results import SAMPLES, answers_agree
from kernels.tensor_samples import samples_drift_ppm

STRAYS_PERMILLE = 20
"""Honest float16 reads about seven lines in a thousand otherwise than float32 (docs/attestation-checks.md)."""
BAND_STRAYS_PERMILLE = 1
"""Of honest float32 samples none was found beyond a tenth of the band: this is room for what nobody has seen."""
HONEST_ONCE_IN = 1_000_000
MANY_ITEMS = 4
"""One stray among so many is nothing to ask about."""
ERROR = "error"

Permille = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far two honest answers may be apart: in their values, and in the share of a slice's items beyond that.

    `bands_ppm` are the precisions that the package may be run in, each with its band; none: the package does not say.
    """

    values_permille: Permille = 0
    strays_permille: Permille = 0
    bands_ppm: dict[str, int] = {}

    @property
    def full_precision(self) -> str:
        """The strictest of the precisions, which is what is sold unless something else is said; "": unknown."""
        known = [(band, name) for name, band in self.bands_ppm.items() if band]
        return min(known, default=(0, ""))[1]

    def band_ppm(self, *claimed: str) -> int | None:
        """The band for two results that claim these precisions; None: their samples cannot be compared.

        Who claims none, or one that is not among them, is held to full precision.
        """
        full = self.bands_ppm.get(self.full_precision, 0)
        bands = [self.bands_ppm.get(one, full) for one in claimed]
        return max(bands) if all(bands) else None


def claimed_precision(engine: Engine) -> str:
    """In which precision a statement says that it computed; of one from before that was told, what such agents did."""
    if engine.precision is not None:
        return engine.precision
    return "tf32" if engine.executor.startswith("tensorrt") else ""


class Agreement(enum.Enum):
    """What a comparison says; UNKNOWN: these two cannot be compared, or too little to tell."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


def compare_slices(one: bytes, other: bytes, tolerance: Tolerance, claimed: tuple[str, str] = ("", "")) -> Agreement:
    """Whether two slices' answers, as JSON arrays, can be of one computation, done in the precisions that are claimed.

    The same either way round.
    """
    try:
        mine, theirs = (msgspec.json.decode(body, type=list[dict[str, Any]]) for body in (one, other))
        if len(mine) != len(theirs) or not mine:
            return Agreement.DIFFERENT
        pairs = list(zip(mine, theirs, strict=True))
        strays = sum(not _items_agree(*pair, tolerance.values_permille) for pair in pairs)
        beyond = sum(not _samples_agree(*pair, tolerance.band_ppm(*claimed)) for pair in pairs)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return Agreement.DIFFERENT
    found = {
        judge_strays(strays, len(mine), tolerance.strays_permille),
        judge_strays(beyond, len(mine), BAND_STRAYS_PERMILLE),
    }
    return next(one for one in (Agreement.DIFFERENT, Agreement.UNKNOWN, Agreement.SAME) if one in found)


def judge_strays(strays: int, items: int, strays_permille: int) -> Agreement:
    """What so many disagreeing items say, where honest engines have so many thousandths of them.

    Chernoff's bound: that a share a of n items or more strays, where each does with probability p < a, is at most
    exp(-n (a ln(a / p) + (1 - a) ln((1 - a) / (1 - p)))) likely.
    """
    if strays <= strays_permille * items / 1000:
        return Agreement.SAME
    if strays_permille == 0:
        return Agreement.DIFFERENT
    expected, share = strays_permille / 1000, strays / items
    exponent = share * math.log(share / expected)
    if share < 1:
        exponent += (1 - share) * math.log((1 - share) / (1 - expected))
    if items * exponent > math.log(HONEST_ONCE_IN):
        return Agreement.DIFFERENT
    return Agreement.SAME if strays == 1 and items >= MANY_ITEMS else Agreement.UNKNOWN


def _items_agree(mine: Mapping[str, Any], theirs: Mapping[str, Any], tolerance_permille: int) -> bool:
    """An item that has no answer has none on either side; in which words is the library's affair."""
    if ERROR in mine or ERROR in theirs:
        return ERROR in mine and ERROR in theirs
    if (SAMPLES in mine) != (SAMPLES in theirs):
        return False
    mine, theirs = ({name: one[name] for name in one if name != SAMPLES} for one in (mine, theirs))
    return answers_agree(mine, theirs, tolerance_permille) or answers_agree(theirs, mine, tolerance_permille)


def _samples_agree(mine: Mapping[str, Any], theirs: Mapping[str, Any], band_ppm: int | None) -> bool:
    """Whether an item's samples are within the band. Where one side has none, the answers differ anyway."""
    if band_ppm is None or SAMPLES not in mine or SAMPLES not in theirs:
        return True
    return samples_drift_ppm(mine[SAMPLES], theirs[SAMPLES]) <= band_ppm


def tolerance_of(manifest: Manifest) -> Tolerance:
    """What a package allows its golden vector, its precisions, and the share of strays that honest engines need."""
    return Tolerance(
        values_permille=manifest.golden.tolerance_permille,
        strays_permille=STRAYS_PERMILLE,
        bands_ppm=dict[str, int](manifest.precisions.items()),
    )


def tolerances_in(folder: Path) -> dict[str, Tolerance]:
    """By the packages' digests, what every package directly in `folder` allows; raises PackageError for a bad one."""
    try:
        paths = sorted(path for path in folder.iterdir() if (path / MANIFEST).is_file())
    except OSError as error:
        raise PackageError(f"cannot read the packages in {folder}: {error.strerror}") from error
    packages = [open_package(path) for path in paths]
    return {package.package_sha256: tolerance_of(package.manifest) for package in packages}
