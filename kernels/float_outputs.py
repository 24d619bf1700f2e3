"""What the operations behind the engine share: which outputs they read, and an order of values that leaves no ties.

As in common.cuh, values are compared as 64-bit keys: the value's rank in the upper half, and the complement of its
index in the lower. All keys of a row differ, so "the k largest" means the same whatever the order of looking.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.operation import OperationError, TensorSpec

FLOATS = ("float32", "float16")
"""The dtypes that kernels read; the name is the end of the kernel's."""
MAX_VALUES = 2**31 - 1
"""An item's output is indexed with an `int`."""
_GROUP = 64
_LOW = np.uint64(0xFFFF_FFFF)
NOT_A_NUMBER = "engine output that is not a number"
"""What is wrong with an item whose results hold NaN or infinity."""


def count_values(output: TensorSpec, operation: str) -> int:
    """How many values one item's output has; raises OperationError for an output that no kernel reads."""
    if output.dtype not in FLOATS:
        raise OperationError(f"{operation} reads float32 or float16, not an output of {output.dtype}")
    count = math.prod(output.shape)
    if count < 1 or min(output.shape, default=1) < 1:
        raise OperationError(f"{operation} cannot read an output of shape {output.shape}")
    if count > MAX_VALUES:
        raise OperationError(f"{operation} reads at most {MAX_VALUES} values of an item, not {count}")
    return count


def ranks(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Where each value stands among all floats, as uint32: -0 beside +0, what is not a number above everything."""
    signed = values.view(np.uint32)
    bits = np.where(signed == np.uint32(0x8000_0000), np.uint32(0), signed)
    negative = bits >> np.uint32(31) != 0
    order = np.where(negative, ~bits, bits | np.uint32(0x8000_0000))
    return np.where(np.isnan(values), np.uint32(0xFFFF_FFFF), order)


def magnitude_ranks(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The same for each value's magnitude."""
    magnitudes = (values.view(np.uint32) & np.uint32(0x7FFF_FFFF)) + np.uint32(1)
    return np.where(np.isnan(values), np.uint32(0xFFFF_FFFF), magnitudes)


def largest(order: NDArray[np.uint32], k: int) -> NDArray[np.int64]:
    """Indices of the `k` highest ranks of each row, the highest first; of equal ones the lowest index."""
    return np.stack([_largest(row, k) for row in order])


def _largest(row: NDArray[np.uint32], k: int) -> NDArray[np.int64]:
    """The same for one row.

    Cut into at least k groups, the k-th largest of the groups' own largest is a lower bound of the k largest of all:
    what is below it need not be sorted.
    """
    groups = row.size // _GROUP
    floor = np.uint32(0)
    if groups >= k:
        maxima = row[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        floor = np.partition(maxima, groups - k)[groups - k]
    places = np.flatnonzero(row >= floor)
    keys = (row[places].astype(np.uint64) << np.uint64(32)) | (_LOW - places.astype(np.uint64))
    best = np.partition(keys, keys.size - k)[keys.size - k :]
    best.sort()
    return (_LOW - (best[::-1] & _LOW)).astype(np.int64)


def read_lines(body: bytes, name: str) -> list[str]:
    """The lines of one of a package's text files; raises OperationError when it is not UTF-8."""
    try:
        return body.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise OperationError(f"{name} is not UTF-8 text") from error


def permille(share: float) -> int:
    """A share of 1 in thousandths, halves up, kept inside 0 to 1000; raises OperationError for what is no number."""
    if not math.isfinite(share):
        raise OperationError(NOT_A_NUMBER)
    return min(max(math.floor(share * 1000 + 0.5), 0), 1000)
