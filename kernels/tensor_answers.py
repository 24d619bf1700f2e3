"""What of an engine's output goes into an item's answer: the values as JSON, or only their digest.

Both look at one item's output, little-endian and in C order, whatever the engine ran it together with.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Union

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_VALUES = 65_536
"""More would not fit into the frame of a slice; larger outputs answer with their digest."""

Value = Union[bool, int, float, str]  # noqa: UP007 - Python 3.10 evaluates this line
Nested = Union[Value, "list[Nested]"]


class TensorValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output whose values are the answer."""

    output: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class TensorDigest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output whose dtype, shape and digest are the answer."""

    output: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


def tensor_values(tensor: NDArray[np.generic]) -> Nested:
    """The values as nested lists, one level a dimension (a single value: itself).

    Each float is the shortest decimal that reads back as the same value of its dtype; what JSON has no number for is
    the text `NaN`, `Infinity` or `-Infinity`.
    """
    if tensor.dtype.kind == "f":
        plain = tensor if tensor.dtype.itemsize == 8 else _shortest(tensor)
        finite = bool(np.isfinite(tensor).all())
        values: Nested = plain.tolist()
        return values if finite else _named(values)
    exact: Nested = tensor.tolist()
    return exact


def tensor_digest(tensor: NDArray[np.generic]) -> dict[str, str | list[int]]:
    """The dtype's name, the shape, and SHA-256 (hex) of the values as little-endian bytes in C order."""
    return {
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "sha256": hashlib.sha256(little_endian(tensor).data).hexdigest(),
    }


def little_endian(tensor: NDArray[np.generic]) -> NDArray[np.generic]:
    """The tensor as it is digested: little-endian, C order."""
    return np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))


def _shortest(tensor: NDArray[np.generic]) -> NDArray[np.float64]:
    """Each value as the double with the shortest decimal that rounds back to it: 0.1, not 0.10000000149011612."""
    return tensor.astype("U32").astype(np.float64)


def _named(values: Nested) -> Nested:
    if isinstance(values, list):
        return [_named(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else ("Infinity" if values > 0 else "-Infinity")
    return values
