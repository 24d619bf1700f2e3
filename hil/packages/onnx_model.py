"""The little of the ONNX format that a package recipe needs: what goes in, what comes out, and how to make a model.

An ONNX file is a protocol buffer (onnx.proto of https://github.com/onnx/onnx, whose field numbers never change). Only
the messages and fields that are used here are described; protobuf keeps and skips the rest. So a model is looked at
without loading an engine, and a tiny one is made without the `onnx` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from agent.errors import PackageError
from kernels.npy_tensor import DTypeName

MAX_MODEL_BYTES = 2**31 - 1
"""What a protocol buffer can hold."""
IR_VERSION = 9
OPSET = 17

_ELEMENT_TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""TensorProto.DataType, as far as a tensor of it is plain numbers."""
_EXTERNAL = 1
"""TensorProto.DataLocation: the values lie in another file."""
_OWN_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}

_INT, _STRING, _MESSAGE = 3, 9, 11
"""FieldDescriptorProto.Type: TYPE_INT64, TYPE_STRING, TYPE_MESSAGE."""
_ONE, _MANY = 1, 3
_MESSAGES: dict[str, tuple[tuple[str, int, int, int, str], ...]] = {
    "Opset": (("domain", 1, _STRING, _ONE, ""), ("version", 2, _INT, _ONE, "")),
    "Model": (
        ("ir_version", 1, _INT, _ONE, ""),
        ("producer_name", 2, _STRING, _ONE, ""),
        ("graph", 7, _MESSAGE, _ONE, "Graph"),
        ("opset_import", 8, _MESSAGE, _MANY, "Opset"),
    ),
    "Graph": (
        ("node", 1, _MESSAGE, _MANY, "Node"),
        ("name", 2, _STRING, _ONE, ""),
        ("initializer", 5, _MESSAGE, _MANY, "Tensor"),
        ("input", 11, _MESSAGE, _MANY, "Value"),
        ("output", 12, _MESSAGE, _MANY, "Value"),
    ),
    "Node": (
        ("input", 1, _STRING, _MANY, ""),
        ("output", 2, _STRING, _MANY, ""),
        ("op_type", 4, _STRING, _ONE, ""),
        ("domain", 7, _STRING, _ONE, ""),
    ),
    "Tensor": (("name", 8, _STRING, _ONE, ""), ("data_location", 14, _INT, _ONE, "")),
    "Value": (("name", 1, _STRING, _ONE, ""), ("type", 2, _MESSAGE, _ONE, "Type")),
    "Type": (("tensor_type", 1, _MESSAGE, _ONE, "TensorType"),),
    "TensorType": (("elem_type", 1, _INT, _ONE, ""), ("shape", 2, _MESSAGE, _ONE, "TensorShape")),
    "TensorShape": (("dim", 1, _MESSAGE, _MANY, "Dim"),),
    "Dim": (("dim_value", 1, _INT, _ONE, ""), ("dim_param", 2, _STRING, _ONE, "")),
}
"""Message: fields as name, number, type, label, type of message."""


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model; a size is None where the model leaves it open."""

    name: str
    dtype: DTypeName
    shape: tuple[int | None, ...]


class ModelSpec(msgspec.Struct, frozen=True):
    """What goes into a model and what comes out, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_model_spec(model: bytes, where: str | Path) -> ModelSpec:
    """The inputs and outputs of an ONNX model; `where` names it in errors.

    Raises PackageError for what is no model of plain tensors, brings its own operators, or keeps values elsewhere.
    """
    if len(model) > MAX_MODEL_BYTES:
        raise PackageError(f"{where} has {len(model)} bytes, more than an ONNX file can have")
    parsed = _message("Model")()
    try:
        parsed.ParseFromString(model)
    except message.DecodeError as error:
        raise PackageError(f"{where} is not an ONNX model", hint="give the .onnx file itself") from error
    graph = parsed.graph
    if not graph.output:
        raise PackageError(f"{where} is not an ONNX model: it has no output", hint="give the .onnx file itself")
    foreign = {node.domain for node in graph.node} - _OWN_DOMAINS
    if foreign:
        raise PackageError(
            f"{where} uses operators of {min(foreign)!r}", hint="only ONNX's own operators run on a car: export it anew"
        )
    if any(tensor.data_location == _EXTERNAL for tensor in graph.initializer):
        raise PackageError(f"{where} keeps values in another file", hint="save it with everything in one file")
    known = {tensor.name for tensor in graph.initializer}
    return ModelSpec(
        inputs=tuple(_spec(value, where) for value in graph.input if value.name not in known),
        outputs=tuple(_spec(value, where) for value in graph.output),
    )


def make_model(op_type: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bytes:
    """A model of one operator of ONNX without attributes, as bytes that are always the same."""
    model = _message("Model")(ir_version=IR_VERSION, producer_name="driveway")
    model.opset_import.add(version=OPSET)
    model.graph.name = op_type
    model.graph.node.add(op_type=op_type, input=[one.name for one in inputs], output=[one.name for one in outputs])
    for values, specs in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for spec in specs:
            _describe(values.add(name=spec.name), spec)
    return bytes(model.SerializeToString(deterministic=True))


def _describe(value: Any, spec: TensorSpec) -> None:
    tensor = value.type.tensor_type
    tensor.elem_type = next(number for number, name in _ELEMENT_TYPES.items() if name == spec.dtype)
    tensor.shape.SetInParent()
    for place, size in enumerate(spec.shape):
        if size is None:
            tensor.shape.dim.add(dim_param=f"d{place}")
        else:
            tensor.shape.dim.add(dim_value=size)


def _spec(value: Any, where: str | Path) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = _ELEMENT_TYPES.get(tensor.elem_type)
    if dtype not in get_args(DTypeName) or not value.type.HasField("tensor_type"):
        raise PackageError(f"{where}: {value.name!r} is not a tensor of plain numbers", hint="cast it inside the model")
    if not tensor.HasField("shape"):
        raise PackageError(f"{where}: {value.name!r} has no shape", hint="export the model with its shapes")
    sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    return msgspec.convert({"name": value.name, "dtype": dtype, "shape": sizes}, TensorSpec)


def _message(name: str) -> Any:
    """The class of one of the messages above."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"onnx.{name}"))


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="onnx.proto", package="onnx", syntax="proto2")
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            described.field.add(
                name=field, number=number, type=kind, label=label, type_name=f".onnx.{of}" if of else None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _pool()
