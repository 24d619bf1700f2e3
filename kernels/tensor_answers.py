"""What of an engine's output goes into an item's answer: the values as JSON, or only their digest.

Both look at one item's output, little-endian and in C order, whatever the engine ran it together with. Nothing is
computed on the accelerator: the output itself is what leaves it, and `outputs` in the answer has one entry for each.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.operation import Answerer, Array, Json, Launch, OperationError, ReadFile, TensorSpec

MAX_VALUES = 65_536
"""More would not fit into the frame of a slice; larger outputs answer with their digest."""


class _WholeOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device half of both: nothing is computed."""

    output: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """The output as it is."""
        return (output,)

    def scratch_bytes(self, items: int, output: TensorSpec) -> int:
        """None."""
        del items, output
        return 0

    def reference(self, output: Array) -> tuple[Array, ...]:
        """The output as it is."""
        return (np.ascontiguousarray(output),)

    def launches(self, items: int, output: TensorSpec) -> tuple[Launch, ...]:
        """None: the output is copied from where the engine puts it."""
        del items, output
        return ()


class TensorValues(_WholeOutput, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output whose values are the answer."""

    def results(self, output: TensorSpec) -> tuple[TensorSpec, ...]:
        """The output as it is, when an answer can hold it."""
        count = math.prod(output.shape)
        if count > MAX_VALUES:
            raise OperationError(f"output {self.output} has {count} values, more than {MAX_VALUES}")
        return (output,)

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`outputs`: the output's name with its values."""
        del read, output
        return lambda results: {"outputs": {self.output: tensor_values(results[0])}}


class TensorDigest(_WholeOutput, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's output whose dtype, shape and digest are the answer."""

    def answerer(self, read: ReadFile, output: TensorSpec) -> Answerer:
        """`outputs`: the output's name with dtype, shape and digest."""
        del read, output
        return lambda results: {"outputs": {self.output: tensor_digest(results[0])}}


def tensor_values(tensor: NDArray[np.generic]) -> Json:
    """The values as nested lists, one level a dimension (a single value: itself).

    Each float is the shortest decimal that reads back as the same value of its dtype; what JSON has no number for is
    the text `NaN`, `Infinity` or `-Infinity`.
    """
    if tensor.dtype.kind == "f":
        plain = tensor if tensor.dtype.itemsize == 8 else _shortest(tensor)
        finite = bool(np.isfinite(tensor).all())
        values: Json = plain.tolist()
        return values if finite else _named(values)
    exact: Json = tensor.tolist()
    return exact


def tensor_digest(tensor: NDArray[np.generic]) -> dict[str, Json]:
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


def _named(values: Json) -> Json:
    if isinstance(values, list):
        return [_named(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return "NaN" if math.isnan(values) else ("Infinity" if values > 0 else "-Infinity")
    return values
