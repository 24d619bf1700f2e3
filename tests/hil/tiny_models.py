"""Small ONNX models for tests, made without the `onnx` package."""

from __future__ import annotations

from agent.onnx.check import Port
from hil.packages.onnx_model import make_model


def tensor(name: str, *shape: int | None, dtype: str = "float32") -> Port:
    return Port(name, dtype, shape)


def add_model(*shape: int | None, dtype: str = "float32") -> bytes:
    """The sum y of a and b."""
    inputs = (tensor("a", *shape, dtype=dtype), tensor("b", *shape, dtype=dtype))
    return make_model("Add", inputs, (tensor("y", *shape, dtype=dtype),))


def softmax_model(*shape: int | None) -> bytes:
    """The softmax y of x: floats that engines round differently."""
    return make_model("Softmax", (tensor("x", *shape),), (tensor("y", *shape),))
