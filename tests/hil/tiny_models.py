"""Small ONNX models for tests, made without the `onnx` package."""

from __future__ import annotations

from hil.packages.onnx_model import TensorSpec, make_model
from kernels.npy_tensor import DTypeName


def tensor(name: str, *shape: int | None, dtype: DTypeName = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def add_model(*shape: int | None, dtype: DTypeName = "float32") -> bytes:
    """The sum y of a and b."""
    inputs = (tensor("a", *shape, dtype=dtype), tensor("b", *shape, dtype=dtype))
    return make_model("Add", inputs, (tensor("y", *shape, dtype=dtype),))


def softmax_model(*shape: int | None) -> bytes:
    """The softmax y of x: floats that engines round differently."""
    return make_model("Softmax", (tensor("x", *shape),), (tensor("y", *shape),))
