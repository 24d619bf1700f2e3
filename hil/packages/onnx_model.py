"""The little of writing ONNX that recipes need: a model of one operator, and another end to a model; and its notes.

An ONNX file is a protocol buffer (onnx.proto of https://github.com/onnx/onnx, whose field numbers never change). What a
model is, is read by `agent.onnx`; here fields are written, or copied untouched but for the one that changes. So a tiny
model is made, and a large one cut, without the `onnx` package and without loading an engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.onnx.check import DTYPES, Port
from agent.onnx.protobuf import BYTES, FIXED32, VARINT, ProtobufError, Value, fields, text

IR_VERSION = 9
OPSET = 17

_MODEL_IR, _MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 1, 2, 7, 8, 14
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_WEIGHT, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE = 1, 2, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
_NUMBERS = {name: number for number, name in DTYPES.items()}


def make_model(op_type: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """A model of one operator of ONNX without attributes, as bytes that are always the same."""
    node = [field(_NODE_INPUT, one.name) for one in inputs] + [field(_NODE_OUTPUT, one.name) for one in outputs]
    graph = [
        field(_GRAPH_NODE, b"".join((*node, field(_NODE_OPERATOR, op_type)))),
        field(_GRAPH_NAME, op_type),
        *(field(_GRAPH_INPUT, _described(one)) for one in inputs),
        *(field(_GRAPH_OUTPUT, _described(one)) for one in outputs),
    ]
    return b"".join(
        (
            field(_MODEL_IR, IR_VERSION),
            field(_MODEL_PRODUCER, "driveway"),
            field(_MODEL_GRAPH, b"".join(graph)),
            field(_MODEL_OPSET, field(2, OPSET)),
        )
    )


def make_stack(times: int, weight: NDArray[np.float32], source: Port, result: Port) -> bytes:
    """A model that multiplies by the same matrix so often: as much work as one likes, of few bytes."""
    names = [source.name, *(f"t{step}" for step in range(1, times)), result.name]
    nodes = [
        b"".join((field(_NODE_INPUT, left), field(_NODE_INPUT, "w"), field(_NODE_OUTPUT, right), _MATMUL))
        for left, right in itertools.pairwise(names)
    ]
    tensor = [*(field(1, size) for size in weight.shape), field(2, _NUMBERS["float32"]), field(8, "w")]
    graph = [
        *(field(_GRAPH_NODE, node) for node in nodes),
        field(_GRAPH_NAME, "stack"),
        field(_GRAPH_WEIGHT, b"".join((*tensor, field(9, weight.astype("<f4").tobytes())))),
        field(_GRAPH_INPUT, _described(source)),
        field(_GRAPH_OUTPUT, _described(result)),
    ]
    head = field(_MODEL_IR, IR_VERSION) + field(_MODEL_PRODUCER, "driveway")
    return head + field(_MODEL_GRAPH, b"".join(graph)) + field(_MODEL_OPSET, field(2, OPSET))


def metadata(model: bytes, where: str) -> dict[str, str]:
    """The notes that a model carries, by their names; `where` names it in errors. Raises PackageError."""
    try:
        entries = [_bytes(value) for number, _, value in fields(memoryview(model)) if number == _MODEL_METADATA]
        pairs = [{number: text(value) for number, _, value in fields(entry)} for entry in entries]
    except ProtobufError as error:
        raise PackageError(f"{where} is not an ONNX model: {error}", hint="give the .onnx file itself") from error
    return {pair.get(1, ""): pair.get(2, "") for pair in pairs}


def without_softmax(model: bytes, where: str) -> bytes:
    """The model, giving what goes into the Softmax that makes its only output; all else is the same, byte for byte.

    Raises PackageError when its only output does not come from a Softmax.
    """
    return _with_graph(model, _without_softmax, f"{where} does not end in one Softmax")


def with_logits(model: bytes, where: str, operator: Literal["Sigmoid", "Softmax"] = "Sigmoid") -> bytes:
    """The model, also giving what goes into the operator that makes its only output, as a second output.

    Raises PackageError when its only output does not come from that operator.
    """
    return _with_graph(model, partial(_with_logits, operator=operator), f"{where} does not end in one {operator}")


def _with_graph(model: bytes, changed: Callable[[memoryview], Iterator[bytes]], fault: str) -> bytes:
    """The model with another graph, and every other field as it was; `changed` raises ValueError where it cannot."""
    try:
        graphs = [_bytes(value) for number, _, value in fields(memoryview(model)) if number == _MODEL_GRAPH]
        (graph,) = [b"".join(changed(one)) for one in graphs]
        parts = [
            field(number, graph) if number == _MODEL_GRAPH else copied(number, kind, value)
            for number, kind, value in fields(memoryview(model))
        ]
    except ValueError as error:  # ProtobufError is one
        raise PackageError(fault, hint="give the model as its maker ships it") from error
    return b"".join(parts)


def _without_softmax(graph: memoryview) -> Iterator[bytes]:
    """The graph's fields; raises ValueError when there is not exactly one output, or no Softmax that makes it."""
    output = _only_output(graph)
    source, cut = _before(graph, _name(output), "Softmax")
    for number, kind, value in fields(graph):
        if number == _GRAPH_NODE and cut & set(_texts(_bytes(value), _NODE_OUTPUT)):
            continue
        if number == _GRAPH_VALUE and _name(_bytes(value)) in cut | {source}:
            continue  # what is described as an output is described once
        yield _renamed(output, source) if number == _GRAPH_OUTPUT else copied(number, kind, value)


def _with_logits(graph: memoryview, operator: str) -> Iterator[bytes]:
    output = _only_output(graph)
    source, _ = _before(graph, _name(output), operator)
    for number, kind, value in fields(graph):
        if number != _GRAPH_VALUE or _name(_bytes(value)) != source:
            yield copied(number, kind, value)
    yield _renamed(output, source)


def _only_output(graph: memoryview) -> memoryview:
    (output,) = [_bytes(value) for number, _, value in fields(graph) if number == _GRAPH_OUTPUT]
    return output


def _renamed(output: memoryview, name: str) -> bytes:
    """An output of the same type under another name."""
    described = [
        field(1, name) if number == 1 else copied(number, kind, value) for number, kind, value in fields(output)
    ]
    return field(_GRAPH_OUTPUT, b"".join(described))


def _before(graph: memoryview, output: str, wanted: str) -> tuple[str, set[str]]:
    """What goes into the node of this operator behind an output, and what it and the Identity nodes after it make."""
    makers = {
        name: (_texts(node, _NODE_OPERATOR), _texts(node, _NODE_INPUT))
        for node in (_bytes(value) for number, _, value in fields(graph) if number == _GRAPH_NODE)
        for name in _texts(node, _NODE_OUTPUT)
    }
    made: set[str] = set()
    while output in makers and output not in made:
        made.add(output)
        (operator,), (source, *_) = makers[output]
        if operator == wanted:
            return source, made
        if operator != "Identity":
            break
        output = source
    raise ProtobufError(f"no {wanted} at its end")


def _name(described: memoryview) -> str:
    (name,) = _texts(described, 1)
    return name


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [text(value) for number, _, value in fields(message) if number == wanted]


def _described(port: Port) -> bytes:
    """A ValueInfoProto; a size that is None becomes one that is free."""
    sizes = [
        field(1, field(2, f"d{place}") if size is None else field(1, size)) for place, size in enumerate(port.shape)
    ]
    tensor = field(1, _NUMBERS[port.dtype]) + field(2, b"".join(sizes))
    return field(1, port.name) + field(2, field(1, tensor))


def field(number: int, value: int | str | bytes) -> bytes:
    """A field: an integer, or the bytes of a text or a message."""
    if isinstance(value, int):
        return _varint(number << 3 | VARINT) + _varint(value)
    body = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | BYTES) + _varint(len(body)) + body


def copied(number: int, kind: int, value: Value) -> bytes:
    """A field as it was read."""
    if isinstance(value, memoryview):
        return field(number, bytes(value))
    if kind == VARINT:
        return field(number, value)
    return _varint(number << 3 | kind) + value.to_bytes(4 if kind == FIXED32 else 8, "little")


def _varint(value: int) -> bytes:
    """A base-128 varint of an unsigned number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ProtobufError("a number where a message belongs")
    return value


_MATMUL = field(_NODE_OPERATOR, "MatMul")
