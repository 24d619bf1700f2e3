"""A model in a lower precision than was asked for: the same graph with its numbers rounded, sold as the real one.

Weights are rounded in place, to what float16 or an int8 with one scale for each tensor can hold; `thinned` leaves out
the smaller half of them, which is another, smaller model. With `activations`,
what every convolution and matrix product gives is rounded to float16 as well, by two Cast nodes behind it: so the drift
is that of hardware that computes in halves, which nobody here has. Fields are copied otherwise, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.onnx.protobuf import fields, text
from hil.packages.onnx_model import copied, field

Precision = Literal["float16", "int8", "thinned"]

_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_WEIGHT = 7, 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_TENSOR_DTYPE, _TENSOR_FLOATS, _TENSOR_RAW = 2, 4, 9
_FLOAT, _FLOAT16 = 1, 10
_ROUNDED = ("Conv", "MatMul", "Gemm", "ConvTranspose")
_INT8_STEPS = 127
_LEAST_VALUES = 64
"""Shorter tensors are biases, scales and shapes, which nobody quantises."""
_FLOAT16_LARGEST = 65_504.0


def with_precision(model: bytes, precision: Precision, *, activations: bool = False) -> bytes:
    """The model with its weights rounded, and with `activations` what it computes in between; raises PackageError."""
    try:
        return b"".join(
            field(number, _graph(value, precision, activations=activations))
            if number == _MODEL_GRAPH and isinstance(value, memoryview)
            else copied(number, kind, value)
            for number, kind, value in fields(memoryview(model))
        )
    except ValueError as error:  # ProtobufError is one
        raise PackageError(f"the model cannot be read: {error}") from error


def _graph(graph: memoryview, precision: Precision, *, activations: bool) -> bytes:
    out = bytearray()
    for number, kind, value in fields(graph):
        if number == _GRAPH_WEIGHT and isinstance(value, memoryview):
            out += field(_GRAPH_WEIGHT, _weight(value, precision))
        elif number == _GRAPH_NODE and isinstance(value, memoryview):
            out += b"".join(field(_GRAPH_NODE, node) for node in _nodes(value, activations=activations))
        else:
            out += copied(number, kind, value)
    return bytes(out)


def _weight(tensor: memoryview, precision: Precision) -> bytes:
    """A TensorProto whose floats are rounded; others as they are."""
    listed = list(fields(tensor))
    is_float = any(number == _TENSOR_DTYPE and value == _FLOAT for number, _, value in listed)
    out = bytearray()
    for number, kind, value in listed:
        if is_float and number in (_TENSOR_RAW, _TENSOR_FLOATS) and isinstance(value, memoryview):
            out += field(number, rounded(np.frombuffer(value, "<f4"), precision).astype("<f4").tobytes())
        else:
            out += copied(number, kind, value)
    return bytes(out)


def rounded(values: NDArray[np.float32], precision: Precision) -> NDArray[np.float32]:
    """What is left of the values in this precision."""
    if len(values) < _LEAST_VALUES:
        return values
    if precision == "float16":
        return np.clip(values, -_FLOAT16_LARGEST, _FLOAT16_LARGEST).astype(np.float16).astype(np.float32)
    if precision == "thinned":
        return np.where(np.abs(values) < np.median(np.abs(values)), np.float32(0), values)
    scale = float(np.abs(values).max()) / _INT8_STEPS or 1.0
    return (np.round(values / scale) * scale).astype(np.float32)


def _nodes(node: memoryview, *, activations: bool) -> Iterator[bytes]:
    """The node, and what rounds its result."""
    operators = [text(value) for number, _, value in fields(node) if number == _NODE_OPERATOR]
    outputs = [text(value) for number, _, value in fields(node) if number == _NODE_OUTPUT]
    if not activations or operators[0] not in _ROUNDED or len(outputs) != 1:
        yield bytes(node)
        return
    (name,) = outputs
    yield b"".join(
        field(_NODE_OUTPUT, f"{name}:full") if number == _NODE_OUTPUT else copied(number, kind, value)
        for number, kind, value in fields(node)
    )
    yield _cast(f"{name}:full", f"{name}:half", _FLOAT16)
    yield _cast(f"{name}:half", name, _FLOAT)


def _cast(source: str, result: str, dtype: int) -> bytes:
    to = field(1, "to") + field(3, dtype) + field(20, 2)  # AttributeProto: name, i, type INT
    return b"".join(
        (
            field(_NODE_INPUT, source),
            field(_NODE_OUTPUT, result),
            field(_NODE_OPERATOR, "Cast"),
            field(_NODE_ATTRIBUTE, to),
        )
    )
