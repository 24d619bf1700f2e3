"""Can two answers to the same slice be of one computation? By value, since other hardware never gives the same bits.

What two engines may differ in is the package's to say, as it does for its golden vector: confidences and probabilities
by so many thousandths, floats and fingerprints by thousandths of the largest, a mask in thousandths of its pixels;
texts, classes and counts not at all (`agent.worker.results.answers_agree`). Rounding that tips a text the other way is
rare but real, so a share of the items may disagree altogether (`strays_permille`). Nobody is called wrong for what
honest rounding does once in a million slices; what is neither that nor within the share is UNKNOWN.

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
from agent.worker.results import answers_agree

STRAYS_PERMILLE = 20
"""Honest float16 reads about seven lines in a thousand otherwise than float32 (docs/attestation-checks.md)."""
HONEST_ONCE_IN = 1_000_000
MANY_ITEMS = 4
"""One stray among so many is nothing to ask about."""
ERROR = "error"

Permille = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far two honest answers may be apart: in their values, and in the share of a slice's items beyond that."""

    values_permille: Permille = 0
    strays_permille: Permille = 0


class Agreement(enum.Enum):
    """What a comparison says; UNKNOWN: these two cannot be compared, or too little to tell."""

    SAME = "same"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


def compare_slices(one: bytes, other: bytes, tolerance: Tolerance) -> Agreement:
    """Whether two slices' answers, as JSON arrays, can be of one computation. The same either way round."""
    try:
        mine, theirs = (msgspec.json.decode(body, type=list[dict[str, Any]]) for body in (one, other))
        if len(mine) != len(theirs) or not mine:
            return Agreement.DIFFERENT
        pairs = zip(mine, theirs, strict=True)
        strays = sum(not _items_agree(*pair, tolerance.values_permille) for pair in pairs)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return Agreement.DIFFERENT
    return judge_strays(strays, len(mine), tolerance.strays_permille)


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
    return answers_agree(mine, theirs, tolerance_permille) or answers_agree(theirs, mine, tolerance_permille)


def tolerance_of(manifest: Manifest) -> Tolerance:
    """What a package allows its golden vector, and the share of strays that honest engines need."""
    return Tolerance(values_permille=manifest.golden.tolerance_permille, strays_permille=STRAYS_PERMILLE)


def tolerances_in(folder: Path) -> dict[str, Tolerance]:
    """By the packages' digests, what every package directly in `folder` allows; raises PackageError for a bad one."""
    try:
        paths = sorted(path for path in folder.iterdir() if (path / MANIFEST).is_file())
    except OSError as error:
        raise PackageError(f"cannot read the packages in {folder}: {error.strerror}") from error
    packages = [open_package(path) for path in paths]
    return {package.package_sha256: tolerance_of(package.manifest) for package in packages}
