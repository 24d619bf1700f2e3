"""Fit an image into a fixed frame with its aspect kept, normalised, as a detector's or classifier's input.

The image is scaled so that one side fills the frame, put in the middle or at the top left, and what it does not cover
gets one colour. Then each channel is normalised and the planes are written one after the other (NCHW). The CUDA kernel
rounds in the same places as this reference: both agree bit for bit.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.operation import IMAGES, INPUT, PIXELS, Array, Buffer, Float32, Int32, Launch, OperationError, TensorSpec
from kernels.resizing import CHANNELS, COLUMNS_PER_BLOCK, grid, resize_into

_NUMBER = r"-?[0-9]{1,6}(\.[0-9]{1,12})?"
Numbers = Annotated[str, msgspec.Meta(pattern=rf"\A{_NUMBER}(,{_NUMBER},{_NUMBER})?\Z")]
"""One decimal number for all channels, or three with commas between them, in the order of the model's channels."""
Colour = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}(,[0-9]{1,3},[0-9]{1,3})?\Z")]
"""One level from 0 to 255, or red, green and blue with commas between them."""

MAX_SIDE = 16_384
LARGEST_FLOAT16 = 65_504.0
SMALLEST_STD = 1e-6


class LetterboxNormalize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: where the image goes, what surrounds it, the model's channels, and (v * scale - mean) / std.

    `enlarge`: an image smaller than the frame is scaled up; else it keeps its size.
    """

    scale: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 1 / 255
    mean: Numbers = "0"
    std: Numbers = "1"
    fill: Colour = "0"
    channels: Literal["rgb", "bgr"] = "rgb"
    align: Literal["centre", "top_left"] = "centre"
    enlarge: bool = True
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        """What the types cannot say; msgspec adds where the value stands."""
        if min(_three(self.std)) < SMALLEST_STD:
            raise ValueError(f"`std` is to be at least {SMALLEST_STD}, not {self.std}")
        if max(_three(self.fill)) > 255:
            raise ValueError(f"`fill` is to be at most 255, not {self.fill}")
        if not all(math.isfinite(one) for one in self.factors + self.offsets):
            raise ValueError("`scale`, `mean` and `std` give values that are no float32")

    @property
    def factors(self) -> tuple[float, ...]:
        """What a pixel is multiplied with, by the model's channel: float32(scale / std)."""
        return tuple(float(np.float32(self.scale / std)) for std in _three(self.std))

    @property
    def offsets(self) -> tuple[float, ...]:
        """What is then taken away, by the model's channel: float32(mean / std)."""
        return tuple(
            float(np.float32(mean / std)) for mean, std in zip(_three(self.mean), _three(self.std), strict=True)
        )

    @property
    def surround(self) -> NDArray[np.float32]:
        """The normalised fill colour, by the model's channel."""
        colour = np.array(_three(self.fill), dtype=np.float32)
        ordered = colour[::-1] if self.channels == "bgr" else colour
        return ordered * np.array(self.factors, dtype=np.float32) - np.array(self.offsets, dtype=np.float32)

    def spec(self, height: int | None, width: int | None) -> TensorSpec:
        """3 x height x width."""
        if height is None or width is None:
            raise OperationError("letterbox_normalize needs a bucket with a height and a width")
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise OperationError(
                f"letterbox_normalize makes frames of 1 to {MAX_SIDE} pixels a side, not {height} x {width}"
            )
        farthest = max(abs(255 * f) + abs(o) for f, o in zip(self.factors, self.offsets, strict=True))
        if self.dtype == "float16" and farthest > LARGEST_FLOAT16:
            raise OperationError(f"letterbox_normalize gives values up to {farthest:.0f}, more than a float16 holds")
        return TensorSpec(self.dtype, (CHANNELS, height, width))

    def fits(self, rows: int, columns: int, spec: TensorSpec) -> bool:
        """Whether the image need not be made smaller."""
        return rows <= spec.shape[1] and columns <= spec.shape[2]

    def reference(self, image: NDArray[np.uint8], row: Array) -> None:
        """Write the whole row: the image and what surrounds it."""
        top, left, rows, columns = placement(
            image.shape[0],
            image.shape[1],
            row.shape[1],
            row.shape[2],
            centred=self.align == "centre",
            enlarge=self.enlarge,
        )
        row[...] = self.surround.astype(row.dtype)[:, None, None]
        covered = row[:, top : top + rows, left : left + columns]
        if self.channels == "bgr":
            resize_into(covered[::-1], image, self.factors[::-1], self.offsets[::-1])
        else:
            resize_into(covered, image, self.factors, self.offsets)

    def launch(self, items: int, spec: TensorSpec) -> Launch:
        """One thread makes one column of eight rows."""
        _, height, width = spec.shape
        flags = (self.align == "centre", self.enlarge, self.channels == "bgr")
        colours = (*self.factors, *self.offsets, *(float(one) for one in self.surround))
        return Launch(
            kernel=f"letterbox_normalize_{self.dtype}",
            grid=grid(items, height, width),
            block=(COLUMNS_PER_BLOCK, 1, 1),
            arguments=(
                *(Buffer(PIXELS), Buffer(IMAGES), Buffer(INPUT)),
                *(Int32(height), Int32(width)),
                *(Int32(int(flag)) for flag in flags),
                *(Float32(colour) for colour in colours),
            ),
        )


def placement(
    rows: int, columns: int, height: int, width: int, *, centred: bool, enlarge: bool
) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a `rows` x `columns` image in a `height` x `width` frame.

    The side that fills the frame first decides; the other's length is rounded, halves up, and at least 1. In the
    middle, an odd pixel over goes to the bottom or right.
    """
    if not enlarge and rows <= height and columns <= width:
        fitted_rows, fitted_columns = rows, columns
    elif width * rows >= height * columns:
        fitted_rows, fitted_columns = height, max((2 * columns * height + rows) // (2 * rows), 1)
    else:
        fitted_rows, fitted_columns = max((2 * rows * width + columns) // (2 * columns), 1), width
    if not centred:
        return 0, 0, fitted_rows, fitted_columns
    return (height - fitted_rows) // 2, (width - fitted_columns) // 2, fitted_rows, fitted_columns


def _three(text: str) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in text.split(","))
    return numbers * CHANNELS if len(numbers) == 1 else numbers
