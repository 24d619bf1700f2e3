"""Fit one text line into the fixed height and bucket width of a recogniser, as floats around zero.

This is the input the PP-OCR recognisers were trained on: height 48, aspect kept, blue-green-red planes, values in
[-1, 1], zeros to the right. Where PP-OCR rounds the resized pixels back to bytes, this keeps them as floats, so that
a CUDA kernel with the same arithmetic agrees within a few float32 ulps (it may fuse multiply and add).
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray


class ResizeNormalizePad(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the height in pixels that the model takes."""

    height: Annotated[int, msgspec.Meta(ge=8, le=512)] = 48


def resized_width(rows: int, columns: int, height: int) -> int:
    """Columns of a `rows` x `columns` image scaled to `height` with its aspect kept, rounded up (at least 1)."""
    return -(-height * columns // rows)


def resize_normalize_pad(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """An RGB line image as the model's input.

    `image` is H x W x 3 uint8, red first. The answer is 3 x `height` x `width` float32, blue first:
    columns [0, n) hold the image, n = min(resized_width, width) (a longer line is squeezed); the rest is 0.

    Bilinear with half-pixel centres and clamped edges, all in float32. For output index o of n_out from n_in inputs:
    s = clamp((o + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1), low = floor(s), high = min(low + 1, n_in - 1),
    value = a[low] + (a[high] - a[low]) * (s - low); along the columns first, then along the rows.
    Each value v in 0..255 becomes v * (2 / 255) - 1. Nothing is rounded.
    """
    rows, columns = image.shape[:2]
    fitted = min(resized_width(rows, columns, height), width)
    top, bottom, down = _taps(rows, height)
    left, right, across = _taps(columns, fitted)
    pixels = image.astype(np.float32)
    lines = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * across[None, :, None]
    resized = lines[top] + (lines[bottom] - lines[top]) * down[:, None, None]
    padded = np.zeros((3, height, width), dtype=np.float32)
    padded[:, :, :fitted] = (resized * np.float32(2 / 255) - np.float32(1)).transpose(2, 0, 1)[::-1]
    return padded


def _taps(inputs: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each output index: the two input indices and the weight of the second."""
    scale = np.float32(inputs / outputs)
    centre = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    source = np.clip(centre, np.float32(0), np.float32(inputs - 1))
    low = np.floor(source).astype(np.intp)
    high = np.minimum(low + 1, inputs - 1)
    return low, high, source - low.astype(np.float32)
