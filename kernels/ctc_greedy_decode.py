"""Read the best path out of a recogniser's class probabilities (connectionist temporal classification, CTC).

Graves et al. 2006, "best path decoding": the likeliest class of every step, runs of the same class merged to one,
blanks dropped. A blank between two equal classes keeps both, which is how "ll" is told from "l".

The accelerator finds the likeliest class of every step among tens of thousands: three megabytes of probabilities become
a few hundred bytes. Merging runs and naming characters is the host's.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.float_outputs import count_values, permille, read_lines
from kernels.operation import OUTPUT, Answerer, Array, Buffer, Int32, Json, Launch, OperationError, ReadFile, TensorSpec

BLANK = 0
THREADS = 256


class CtcGreedyDecode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: `characters` is the package's file with one character a line, in the order of the classes 1, 2, ….

    Class 0 is the blank. `output` names the model's output (steps x classes); empty: its only one.
    """

    characters: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    output: Annotated[str, msgspec.Meta(max_length=200)] = ""

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """For each step the best class (int32) and its probability (float32)."""
        count_values(output, "ctc_greedy_decode")
        if len(output.shape) != 2 or output.shape[1] < 2:
            raise OperationError(f"ctc_greedy_decode reads steps x classes, not an output of shape {output.shape}")
        steps = output.shape[:1]
        return TensorSpec("int32", steps), TensorSpec("float32", steps)

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """None."""
        del items, output
        return 0

    def reference(self, output: Array) -> tuple[Array, ...]:
        """Items x steps. Of equal classes the lowest wins; NaN is above everything."""
        return best_classes(output.astype(np.float32, copy=False))

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """One block a step."""
        steps, classes = output.shape
        launch = Launch(
            kernel=f"ctc_greedy_decode_{output.dtype}",
            grid=(steps, items, 1),
            block=(THREADS, 1, 1),
            arguments=(Buffer(OUTPUT), Buffer("result0"), Buffer("result1"), Int32(classes)),
        )
        return (launch,)

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`text`, and `confidence_permille`: the mean probability of the steps that were kept."""
        characters = read_lines(read(self.characters), self.characters)
        if output.shape[1] != len(characters) + 1:
            raise OperationError(f"an output of {output.shape[1]} classes for a list of {len(characters)} characters")

        def answer(results: tuple[Array, ...]) -> dict[str, Json]:
            decoded = best_path(results[0].astype(np.int64), results[1].astype(np.float32, copy=False))
            return {
                "text": "".join(characters[index - 1] for index in decoded.classes),
                "confidence_permille": permille(decoded.confidence),
            }

        return answer


class Decoded(msgspec.Struct, frozen=True):
    """The classes of the best path, and the mean probability (0 to 1) of the steps that were kept (0.0: none)."""

    classes: tuple[int, ...]
    confidence: float


def best_classes(probabilities: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest class (the lowest of equal ones; the first NaN, where there is one) and its probability.

    From … x classes; both answers are without the last axis.
    """
    best = probabilities.argmax(axis=-1)
    peaks = np.take_along_axis(probabilities, best[..., None], axis=-1)[..., 0]
    return best.astype(np.int32), np.ascontiguousarray(peaks)


def best_path(best: NDArray[np.int64], probability: NDArray[np.float32]) -> Decoded:
    """Runs merged and blanks dropped. A merged run counts with the probability of its first step.

    The mean is taken in float64. A probability that is no finite number makes the confidence NaN, and no class is read.
    """
    if not np.isfinite(probability).all():
        return Decoded(classes=(), confidence=float("nan"))
    kept = best != BLANK
    kept[1:] &= best[1:] != best[:-1]
    steps = np.flatnonzero(kept)
    if steps.size == 0:
        return Decoded(classes=(), confidence=0.0)
    return Decoded(classes=tuple(best[steps].tolist()), confidence=float(probability[steps].mean(dtype=np.float64)))
