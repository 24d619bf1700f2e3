"""Fit one text line into the fixed height and bucket width of a PP-OCR model, as floats around zero.

This is the input the PP-OCR recognisers and the text-line classifier were trained on: height 48, aspect kept,
blue-green-red planes, values in [-1, 1], zeros to the right. A recogniser has buckets of several widths, the classifier
one of 48 x 192. Where PP-OCR rounds the resized pixels back to bytes, this keeps them as floats; the CUDA kernel rounds
in the same places, so both agree bit for bit.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.operation import IMAGES, INPUT, PIXELS, Array, Buffer, Float32, Int32, Launch, OperationError, TensorSpec
from kernels.resizing import CHANNELS, COLUMNS_PER_BLOCK, grid, resize_into

FACTOR = float(np.float32(2 / 255))
OFFSET = 1.0


class ResizeNormalizePad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the height in pixels that the model takes. The bucket has the width, and may repeat the height."""

    height: Annotated[int, msgspec.Meta(ge=8, le=512)] = 48

    def spec(self, height: int | None, width: int | None) -> TensorSpec:
        """3 x height x width float32."""
        if width is None:
            raise OperationError("resize_normalize_pad needs a bucket with a width")
        if height not in {None, self.height}:
            raise OperationError(f"resize_normalize_pad of height {self.height} in a bucket of height {height}")
        return TensorSpec("float32", (CHANNELS, self.height, width))

    def fits(self, rows: int, columns: int, spec: TensorSpec) -> bool:
        """Whether the line need not be squeezed."""
        return resized_width(rows, columns, self.height) <= spec.shape[2]

    def reference(self, image: NDArray[np.uint8], row: Array) -> None:
        """Write the whole row: the line at the left, zeros behind it."""
        row[...] = resize_normalize_pad(image, self.height, row.shape[2])

    def launch(self, items: int, spec: TensorSpec) -> Launch:
        """One thread makes one column of eight rows."""
        _, height, width = spec.shape
        return Launch(
            kernel="resize_normalize_pad",
            grid=grid(items, height, width),
            block=(COLUMNS_PER_BLOCK, 1, 1),
            arguments=(
                Buffer(PIXELS),
                Buffer(IMAGES),
                Buffer(INPUT),
                Int32(height),
                Int32(width),
                Float32(FACTOR),
                Float32(OFFSET),
            ),
        )


def resized_width(rows: int, columns: int, height: int) -> int:
    """Columns of a `rows` x `columns` image scaled to `height` with its aspect kept, rounded up (at least 1)."""
    return -(-height * columns // rows)


def resize_normalize_pad(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """An RGB line image as the model's input.

    `image` is H x W x 3 uint8, red first. The answer is 3 x `height` x `width` float32, blue first:
    columns [0, n) hold the image, n = min(resized_width, width) (a longer line is squeezed); the rest is 0.
    Bilinear as `kernels.resizing.resize_into`; each value v in 0..255 becomes v * (2 / 255) - 1.
    """
    rows, columns = image.shape[:2]
    fitted = min(resized_width(rows, columns, height), width)
    padded = np.zeros((CHANNELS, height, width), dtype=np.float32)
    resize_into(padded[::-1, :, :fitted], image, (FACTOR,) * CHANNELS, (OFFSET,) * CHANNELS)
    return padded
