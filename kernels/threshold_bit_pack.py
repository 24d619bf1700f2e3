"""Which pixels of a detector's probability map are above a threshold, one bit each.

A map of 640 x 640 float32 is 1.6 MB; its bits are 51 kB, and the reader needs no more to find the regions. What is not
a number would quietly be "below", so the rows that hold one are reported beside the bits.
"""

from __future__ import annotations

import base64
from typing import Annotated

import msgspec
import numpy as np

from kernels.float_outputs import MAX_VALUES, NOT_A_NUMBER, count_values
from kernels.operation import (
    OUTPUT,
    Answerer,
    Array,
    Buffer,
    Float32,
    Int32,
    Json,
    Launch,
    OperationError,
    ReadFile,
    TensorSpec,
)

ROWS_PER_BLOCK = 8
THREADS = 256
VOTES = 4
MAX_COLUMNS = MAX_VALUES + 1 - 32 * VOTES
"""A warp steps past the end of a row, by all the pixels of a step at most, and its `int` has to hold that."""
MAX_ROWS = MAX_VALUES + 1 - ROWS_PER_BLOCK
"""So does a block, by its rows."""


class ThresholdBitPack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the probability above which a pixel counts (compared in float32).

    `output` names the model's output (rows x columns, or 1 x rows x columns); empty: its only one.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)]
    output: Annotated[str, msgspec.Meta(max_length=200)] = ""

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """Rows x ceil(columns / 8) uint8, the first pixel in the highest bit; and rows uint8, 1: one is no number."""
        count_values(output, "threshold_bit_pack")
        rows, columns = _size(output)
        if rows > MAX_ROWS or columns > MAX_COLUMNS:
            size = f"{MAX_ROWS} rows and {MAX_COLUMNS} columns"
            raise OperationError(f"threshold_bit_pack reads at most {size}, not {rows} x {columns}")
        return TensorSpec("uint8", (rows, -(-columns // 8))), TensorSpec("uint8", (rows,))

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """None."""
        del items, output
        return 0

    def reference(self, output: Array) -> tuple[Array, ...]:
        """Items x …; bits behind the last column are 0."""
        maps = output.reshape(len(output), *output.shape[-2:]).astype(np.float32, copy=False)
        bits = np.packbits(maps > np.float32(self.threshold), axis=2)
        return bits, np.asarray(np.isnan(maps).any(axis=2), dtype=np.uint8)

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """A warp for each row."""
        rows, columns = _size(output)
        launch = Launch(
            kernel=f"threshold_bit_pack_{output.dtype}",
            grid=(-(-rows // ROWS_PER_BLOCK), items, 1),
            block=(THREADS, 1, 1),
            arguments=(
                *(Buffer(OUTPUT), Buffer("result0"), Buffer("result1")),
                *(Int32(rows), Int32(columns), Float32(float(np.float32(self.threshold)))),
            ),
        )
        return (launch,)

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`mask`: rows, columns, and the bits in base64 (RFC 4648), row after row."""
        del read
        rows, columns = _size(output)

        def answer(results: tuple[Array, ...]) -> dict[str, Json]:
            bits, not_numbers = results
            if not_numbers.any():
                raise OperationError(NOT_A_NUMBER)
            return {
                "mask": {"rows": rows, "columns": columns, "bits": base64.b64encode(bits.tobytes()).decode("ascii")}
            }

        return answer


def _size(output: TensorSpec) -> tuple[int, int]:
    match output.shape:
        case (rows, columns) | (1, rows, columns):
            return rows, columns
        case _:
            raise OperationError(f"threshold_bit_pack reads rows x columns, not an output of shape {output.shape}")
