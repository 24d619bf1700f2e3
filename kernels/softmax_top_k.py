"""The likeliest few of a classifier's classes, with their probabilities.

The softmax is taken against the largest value, so it does not overflow, and only k classes leave the accelerator.
Classes agree exactly between the reference and the kernel; probabilities within 4e-6 of their size (both take float32
exponentials, which differ by 2 units in the last place, and the kernel sums up in float32, in a fixed tree).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from kernels.float_outputs import count_values, largest, permille, ranks, read_lines
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
from kernels.top_k import GROUP_THREADS, GROUPS_PER_BLOCK, MAX_K, SELECT_THREADS

MAX_CLASSES = 2**20
GROUP = 256
"""Values that one warp holds in its registers."""


class SoftmaxTopK(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: how many classes, and whether the model's output still needs the softmax.

    `labels` is the package's file with one label a line, in the order of the classes; without it classes are numbers.
    `output` names the model's output (one row of classes); empty: its only one.
    """

    k: Annotated[int, msgspec.Meta(ge=1, le=MAX_K)]
    softmax: bool
    labels: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    output: Annotated[str, msgspec.Meta(max_length=200)] = ""

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """The k best classes (int32) and their probabilities (float32), the likeliest first."""
        classes = count_values(output, "softmax_top_k")
        if not output.shape or max(output.shape) != classes:
            raise OperationError(f"softmax_top_k reads one row of classes, not an output of shape {output.shape}")
        if classes > MAX_CLASSES:
            raise OperationError(f"softmax_top_k reads at most {MAX_CLASSES} classes, not {classes}")
        if self.k > classes:
            raise OperationError(f"softmax_top_k with k = {self.k} for an output of {classes} classes")
        return TensorSpec("int32", (self.k,)), TensorSpec("float32", (self.k,))

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """A key and a sum for each group of values."""
        return items * _groups(output) * (8 + 4)

    def reference(self, output: Array) -> tuple[Array, ...]:
        """Items x k. Of equal classes the lowest comes first; NaN is above everything."""
        rows = output.reshape(len(output), -1).astype(np.float32, copy=False)
        best = largest(ranks(rows), self.k)
        values = np.take_along_axis(rows, best, axis=1)
        if self.softmax:
            with np.errstate(invalid="ignore"):  # infinity less infinity: not a number, as on the accelerator
                sums = np.exp(rows - values[:, :1]).sum(axis=1, dtype=np.float64)
                values = (np.exp(values - values[:, :1]) / sums[:, None]).astype(np.float32)
        return best.astype(np.int32), np.ascontiguousarray(values)

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """A warp for each group of values, then a block for each item."""
        classes = max(output.shape)
        row = Int32(classes), Int32(items)
        look = Launch(
            kernel=f"softmax_top_k_groups_{output.dtype}",
            grid=(-(-_groups(output) // GROUPS_PER_BLOCK), items, 1),
            block=(GROUP_THREADS, 1, 1),
            arguments=(Buffer(OUTPUT), Buffer(SCRATCH), *row),
        )
        select = Launch(
            kernel=f"softmax_top_k_{output.dtype}",
            grid=(items, 1, 1),
            block=(SELECT_THREADS, 1, 1),
            arguments=(
                *(Buffer(OUTPUT), Buffer(SCRATCH), Buffer("result0"), Buffer("result1")),
                *(*row, Int32(self.k), Int32(int(self.softmax))),
            ),
        )
        return look, select

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`classes`: a list of `class` (or `label`) and `probability_permille`, the likeliest first."""
        labels = None if self.labels is None else read_lines(read(self.labels), self.labels)
        classes = max(output.shape)
        if labels is not None and len(labels) != classes:
            raise OperationError(f"an output of {classes} classes for a list of {len(labels)} labels")

        def answer(results: tuple[Array, ...]) -> dict[str, Json]:
            found: list[Json] = []
            for index, probability in zip(results[0].tolist(), results[1].tolist(), strict=True):
                name: dict[str, Json] = {"class": index} if labels is None else {"label": labels[index]}
                found.append({**name, "probability_permille": permille(probability)})
            return {"classes": found}

        return answer


def _groups(output: TensorSpec) -> int:
    return -(-max(output.shape) // GROUP)
