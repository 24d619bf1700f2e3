"""Read the best path out of a recogniser's class probabilities (connectionist temporal classification, CTC).

Graves et al. 2006, "best path decoding": the likeliest class of every step, runs of the same class merged to one,
blanks dropped. A blank between two equal classes keeps both, which is how "ll" is told from "l".
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray


class CtcGreedyDecode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: `characters` is the package's file with one character a line, in the order of the classes 1, 2, ….

    Class 0 is the blank.
    """

    characters: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Decoded(msgspec.Struct, frozen=True):
    """The classes of the best path, and the mean probability (0 to 1) of the steps that were kept (0.0: none)."""

    classes: tuple[int, ...]
    confidence: float


BLANK = 0


def ctc_greedy_decode(probabilities: NDArray[np.float32]) -> Decoded:
    """The best path of T steps x C classes float32.

    Of equally likely classes the lowest wins. A merged run counts with the probability of its first step.
    The mean is taken in float64. A NaN anywhere makes the confidence NaN, and no class is read.
    """
    best = probabilities.argmax(axis=1)
    peaks = probabilities[np.arange(len(best)), best]
    if np.isnan(peaks).any():  # argmax stops at the first NaN of a step
        return Decoded(classes=(), confidence=float("nan"))
    kept = best != BLANK
    kept[1:] &= best[1:] != best[:-1]
    steps = np.flatnonzero(kept)
    if steps.size == 0:
        return Decoded(classes=(), confidence=0.0)
    return Decoded(classes=tuple(best[steps].tolist()), confidence=float(peaks[steps].mean(dtype=np.float64)))
