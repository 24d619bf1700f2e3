"""Bilinear resizing in float32, as resize.cuh does it: the same operations in the same order, so the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Array

Numbers = Sequence[float]

COLUMNS_PER_BLOCK = 128
ROWS_PER_THREAD = 8
CHANNELS = 3


def grid(items: int, height: int, width: int) -> tuple[int, int, int]:
    """Blocks that write `items` rows of height x width, as the kernels of resize.cuh share out the work."""
    return (-(-width // COLUMNS_PER_BLOCK), -(-height // ROWS_PER_THREAD), items)


def resize_into(target: Array, image: NDArray[np.uint8], factors: Numbers, offsets: Numbers) -> None:
    """Write an image (any size x 3 uint8), resized and normalised, to `target` (3 x rows x columns, any float dtype).

    Plane c is of the image's channel c. Half-pixel centres and clamped edges, all in float32, nothing rounded to bytes.
    For output index o of n_out from n_in inputs:
    s = clamp((o + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1), low = floor(s), high = min(low + 1, n_in - 1),
    value = a[low] + (a[high] - a[low]) * (s - low); along the columns first, then along the rows.
    Each value v in 0..255 then becomes v * factors[c] - offsets[c].
    """
    _, rows, columns = target.shape
    top, bottom, down = _taps(image.shape[0], rows)
    left, right, across = _taps(image.shape[1], columns)
    for plane, pixels, factor, offset in zip(target, image.transpose(2, 0, 1), factors, offsets, strict=True):
        whole = np.ascontiguousarray(pixels)  # one plane at a time stays in the processor's cache
        lines = _blend(whole[:, left].astype(np.float32), whole[:, right].astype(np.float32), across)
        values = _blend(lines[top], lines[bottom], down[:, None])
        values *= np.float32(factor)
        values -= np.float32(offset)
        plane[...] = values


def _blend(first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum first + (second - first) * weight, each step rounded to float32; `second` is overwritten with it."""
    second -= first
    second *= weight
    second += first
    return second


def _taps(inputs: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each output index: the two input indices and the weight of the second."""
    scale = np.float32(inputs) / np.float32(outputs)
    centre = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    source = np.clip(centre, np.float32(0), np.float32(inputs - 1))
    low = np.floor(source).astype(np.intp)
    high = np.minimum(low + 1, inputs - 1)
    return low, high, source - low.astype(np.float32)
