"""Where a tensor is largest, and what stands there: evidence that a verifier on other hardware can check.

Two engines never give the same bits, so a digest of a tensor proves nothing to anyone else. Its k values of largest
magnitude do: whoever runs the same model on the same input finds them at the same places, a little off, and whoever ran
another model, a smaller one, or nothing at all cannot guess them. It is the idea of TOPLOC (Ong et al. 2025, "TOPLOC: A
Locality Sensitive Hashing Scheme for Trustless Verifiable Inference"), with the values sent as they are. Only k pairs
leave the accelerator. The kernel and the reference agree exactly.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np

from kernels.float_outputs import NOT_A_NUMBER, count_values, largest, magnitude_ranks
from kernels.operation import (
    OUTPUT,
    SCRATCH,
    Answerer,
    Array,
    Buffer,
    Int32,
    Json,
    Launch,
    OperationError,
    ReadFile,
    TensorSpec,
)
from kernels.tensor_answers import tensor_values
from kernels.top_k import GROUP_THREADS, GROUPS_PER_BLOCK, MAX_K, SELECT_THREADS

MIN_GROUP_SHIFT = 8


class TensorFingerprint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output, and how many of its values."""

    output: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_K)] = 64

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """Flat indices (int32), ascending, and the values there (float32)."""
        count = count_values(output, "tensor_fingerprint")
        if self.k > count:
            raise OperationError(f"tensor_fingerprint with k = {self.k} for an output of {count} values")
        return TensorSpec("int32", (self.k,)), TensorSpec("float32", (self.k,))

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """A key for each group of values."""
        return items * 8 * self._groups(output)[0]

    def reference(self, output: Array) -> tuple[Array, ...]:
        """Items x k. Of equal magnitudes the lowest index is taken; NaN is above everything."""
        rows = output.reshape(len(output), -1).astype(np.float32, copy=False)
        places = np.sort(largest(magnitude_ranks(rows), self.k), axis=1)
        return places.astype(np.int32), np.take_along_axis(rows, places, axis=1)

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """A warp for each group of values, then a block for each item."""
        groups, shift = self._groups(output)
        size = Int32(math.prod(output.shape)), Int32(shift)
        look = Launch(
            kernel=f"tensor_fingerprint_groups_{output.dtype}",
            grid=(-(-groups // GROUPS_PER_BLOCK), items, 1),
            block=(GROUP_THREADS, 1, 1),
            arguments=(Buffer(OUTPUT), Buffer(SCRATCH), *size),
        )
        select = Launch(
            kernel=f"tensor_fingerprint_{output.dtype}",
            grid=(items, 1, 1),
            block=(SELECT_THREADS, 1, 1),
            arguments=(Buffer(OUTPUT), Buffer(SCRATCH), Buffer("result0"), Buffer("result1"), *size, Int32(self.k)),
        )
        return look, select

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`fingerprint`: `indices` and `values`, each the shortest decimal that reads back as the same float32."""
        del read, output

        def answer(results: tuple[Array, ...]) -> dict[str, Json]:
            indices, values = results
            if not np.isfinite(values).all():
                raise OperationError(NOT_A_NUMBER)
            return {"fingerprint": {"indices": tensor_values(indices), "values": tensor_values(values)}}

        return answer

    def _groups(self, output: TensorSpec) -> tuple[int, int]:
        """How many groups, and the binary logarithm of their size.

        The second launch reads as many keys as there are groups, and k groups of values: a group of about
        sqrt(count / k) values makes both about equally many.
        """
        count = math.prod(output.shape)
        shift = max(math.isqrt(count // self.k).bit_length(), MIN_GROUP_SHIFT)
        return -(-count >> shift), shift


class Fingerprint(msgspec.Struct, frozen=True):
    """A tensor's fingerprint as an answer holds it: flat indices, ascending, and the values there."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


def fingerprints_agree(mine: Fingerprint, theirs: Fingerprint, tolerance_permille: int, strays: int = 0) -> bool:
    """Whether two fingerprints can be of one computation, done on different hardware.

    Let d be `tolerance_permille` thousandths of the largest magnitude in either. If no value of one tensor differs by
    more than d from the other's, then
    (a) at an index that both name, the values differ by at most d, and
    (b) at an index that only one names, the magnitude is at most the other's smallest plus d: there the other tensor's
        magnitude is no larger than its k-th largest, and this one's is at most d larger.
    So honest work within the tolerance always agrees. `strays` indices may break (a) or (b), for hardware whose
    rounding seldom goes far. Another model names other places (in a tensor of n values an index is right by chance with
    probability k / n) with magnitudes well above the cut. A tensor whose values are all within d of each other proves
    nothing: choose an output that is not flat, and d well below its largest value.
    Fingerprints of different length, or with what is no number in them, never agree.
    """
    here = dict(zip(mine.indices, mine.values, strict=False))  # lengths are compared next
    there = dict(zip(theirs.indices, theirs.values, strict=False))
    sizes = {len(one) for one in (here, there, mine.indices, theirs.indices, mine.values, theirs.values)}
    if len(sizes) > 1 or not here:
        return False
    if not all(math.isfinite(value) for value in (*mine.values, *theirs.values)):
        return False
    scale = max(abs(value) for value in (*mine.values, *theirs.values))
    allowed = scale * tolerance_permille / 1000
    broken = sum(abs(value - there[index]) > allowed for index, value in here.items() if index in there)
    for one, other in ((here, there), (there, here)):
        cut = min(abs(value) for value in other.values()) + allowed
        broken += sum(abs(value) > cut for index, value in one.items() if index not in other)
    return broken <= strays
