"""Hostile models are refused by name of what is wrong, real ones pass, and no bytes at all do anything else."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import PackageError
from agent.onnx import protobuf
from agent.onnx.check import MAX_DEPTH, MAX_ELEMENTS, Port, check_model
from tests.onnx.writing import GOOD, INT64, STRING, block, graph, integers, model, node, number, tensor, value

MODELS = sorted(
    Path(str(importlib.metadata.distribution("rapidocr").locate_file("rapidocr/models"))).glob("*.onnx"),
)


def nested(depth: int) -> bytes:
    """A graph with `depth` graphs within it."""
    inner = graph(node("Relu", ["x"], ["y"]))
    for _ in range(depth):
        inner = graph(node("If", ["x"], ["y"], attributes=block(5, block(1, "then_branch") + block(6, inner))))
    return inner


def tiles(count: int, times: int) -> bytes:
    """`count` Tile nodes one behind the other, each making `times` as much."""
    names = ["x", *(f"t{place}" for place in range(1, count)), "y"]
    nodes = [node("Tile", [names[place], "r"], [names[place + 1]]) for place in range(count)]
    return graph(*nodes, weights=(integers("r", 1, times),))


ADD = node("Add", ["x", "w"], ["y"])
HOSTILE = {
    "external data": (model(graph(ADD, weights=(tensor("w", [1, 4], more=block(13, b"")),))), "in another file"),
    "external location": (model(graph(ADD, weights=(tensor("w", [1, 4], more=number(14, 1)),))), "in another file"),
    "external data in an attribute": (
        model(
            graph(
                node(
                    "Constant",
                    [],
                    ["y"],
                    attributes=block(5, block(1, "value") + block(5, tensor("", [1], more=number(14, 1)))),
                )
            )
        ),
        "in another file",
    ),
    "a plugin's name": (model(graph(node("EfficientNMS_TRT", ["x"], ["y"]))), "EfficientNMS_TRT"),
    "a foreign domain": (model(graph(node("FusedConv", ["x"], ["y"], domain="com.microsoft"))), "com.microsoft"),
    "a foreign operator set": (model(graph(ADD), more=block(8, block(1, "trt") + number(2, 1))), "'trt'"),
    "a function": (model(graph(ADD), more=block(25, b"")), "functions of its own"),
    "training": (model(graph(ADD), more=block(20, b"")), "training"),
    "a huge weight": (model(graph(ADD, weights=(tensor("w", [10**9, 1], raw=b""),))), "1000000000 x 1"),
    "a huge product": (model(graph(ADD, weights=(tensor("w", [2**40, 2**40], raw=b""),))), "sizes"),
    "a negative size": (model(graph(ADD, weights=(tensor("w", [-1], raw=b""),))), "sizes -1"),
    "a huge input": (model(graph(ADD, more=block(13, value("z", [10**5, 10**5])))), "100000 x 100000"),
    "fewer bytes than sizes": (model(graph(ADD, weights=(tensor("w", [1, 4], raw=b"1234"),))), "4 bytes, not 16"),
    "no bytes at all": (model(graph(ADD, weights=(number(1, 4) + number(2, 1) + block(8, "w"),))), "0 values, not 4"),
    "texts": (model(graph(ADD, weights=(tensor("w", [1], STRING, raw=b""),))), "type 8"),
    "weights in pieces": (model(graph(ADD, weights=(tensor("w", [1, 4], more=block(9, b"")),))), "in pieces"),
    "sparse weights": (model(graph(ADD, more=block(15, b""))), "sparse"),
    "a bomb of one Tile": (model(tiles(1, 10**9)), "1000000000 times"),
    "a bomb of many Tiles": (model(tiles(10, 1000)), "times as large"),
    "a bomb in a branch": (
        model(
            graph(
                node("If", ["x"], ["y"], attributes=block(5, block(1, "then_branch") + block(6, tiles(9, 20)))),
                weights=(integers("r", 1, 1000),),
            )
        ),
        "times as large",
    ),
    "a bomb by its shape": (
        model(graph(node("ConstantOfShape", ["s"], ["y"]), weights=(integers("s", 10**5, 10**5),))),
        "times as large",
    ),
    "a bomb of joining": (
        model(
            graph(
                *(node("Concat", [f"c{place}"] * 2, [f"c{place + 1}"]) for place in range(34)),
                node("Relu", ["c34"], ["y"]),
                more=block(11, value("c0", [1])),
            )
        ),
        "times as large",
    ),
    "a bomb by chance": (
        model(
            graph(
                node(
                    "RandomUniform",
                    [],
                    ["y"],
                    attributes=block(5, block(1, "shape") + number(8, 10**5) + number(8, 10**5)),
                )
            )
        ),
        "times as large",
    ),
    "a bomb of padding": (
        model(graph(node("Pad", ["x", "p"], ["y"]), weights=(integers("p", 0, 0, 0, 2**40),))),
        "times as large",
    ),
    "a bomb of resizing": (
        model(graph(node("Resize", ["x", "", "", "s"], ["y"]), weights=(integers("s", 10**5, 10**5),))),
        "times as large",
    ),
    "negative repeats": (model(graph(node("Tile", ["x", "r"], ["y"]), weights=(integers("r", -1, -1),))), "no sizes"),
    "a loop whose body takes less": (
        model(
            graph(
                node("Loop", ["m", "c", "x", "x"], ["y"], attributes=block(5, block(1, "body") + block(6, graph(ADD))))
            )
        ),
        "4 inputs, and its body 1",
    ),
    "a scan whose body takes nothing": (
        model(
            graph(
                node(
                    "Scan",
                    ["x"],
                    ["y"],
                    attributes=block(5, block(1, "body") + block(6, block(1, ADD) + block(12, value("y", [1])))),
                )
            )
        ),
        "1 inputs, and its body 0",
    ),
    "too deep": (model(nested(MAX_DEPTH)), "too many depth"),
    "two graphs": (model(graph(ADD), more=block(7, graph(ADD))), "comes twice"),
    "two operators in one": (model(graph(ADD + block(4, "Evil"))), "comes twice"),
    "no graph": (number(1, 9), "no graph"),
    "an empty graph": (model(graph()), "empty graph"),
    "the far future": (model(graph(ADD), ir_version=99), "version 99"),
    "an old operator set": (model(graph(ADD), opset=number(2, 1)), "operator set 1"),
    "not a model": (b"\x89PNG\r\n\x1a\n", "is not a model"),
    "cut off": (GOOD[:-3], "cut off"),
    "a group": (GOOD + b"\xfb\x01\xfc\x01", "wire type 3"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_models_are_refused(what: str) -> None:
    body, words = HOSTILE[what]
    with pytest.raises(PackageError, match=re.escape(words)):
        check_model(body, "model.onnx")


def test_a_good_model_passes_here_and_in_an_engine() -> None:
    """What is written byte by byte here is what engines read."""
    summary = check_model(GOOD, "model.onnx")
    assert (summary.inputs, summary.nodes, summary.opset) == ((Port("x", "float32", (None, 4)),), 1, 17)
    session = ort.InferenceSession(GOOD, providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(np.asarray(session.run(None, {"x": x})[0]), x)


def test_as_deep_and_as_large_as_allowed_passes() -> None:
    check_model(model(nested(MAX_DEPTH - 1)), "model.onnx")
    check_model(model(tiles(1, MAX_ELEMENTS)), "model.onnx")
    check_model(model(graph(ADD, weights=(tensor("w", [1, 4]), tensor("e", [0, 4])))), "model.onnx")


def test_a_dense_network_passes() -> None:
    """Each layer joins all before it, sixty times over, and each convolution makes a few channels of all of that."""
    layers = [
        layer
        for place in range(60)
        for layer in (
            node("Conv", [f"c{place}", "w"], [f"v{place}"]),
            node("Concat", [f"c{place}", f"v{place}"], [f"c{place + 1}"]),
        )
    ]
    first, last = block(11, value("c0", [1])), node("Relu", ["c60"], ["y"])
    check_model(model(graph(*layers, last, weights=(tensor("w", [1, 1, 1, 1]),), more=first)), "model.onnx")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_real_models_pass(path: Path) -> None:
    body = path.read_bytes()
    summary = check_model(body, path.name)
    session = ort.InferenceSession(body, providers=["CPUExecutionProvider"])
    assert [port.name for port in summary.inputs] == [one.name for one in session.get_inputs()]
    assert [port.name for port in summary.outputs] == [one.name for one in session.get_outputs()]
    shapes = [tuple(size if isinstance(size, int) else None for size in one.shape) for one in session.get_inputs()]
    assert [port.shape for port in summary.inputs] == shapes


@given(st.binary(max_size=300))
@example(b"")
def test_no_bytes_do_anything_but_be_refused(body: bytes) -> None:
    with pytest.raises(PackageError):
        check_model(body, "model.onnx")


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.integers(0, 40))
def test_a_changed_model_passes_or_is_refused(at: int, byte: int, cut: int) -> None:
    body = bytearray(GOOD)
    body[at] = byte
    del body[at + 1 : at + 1 + cut]
    with contextlib.suppress(PackageError):
        check_model(bytes(body), "model.onnx")


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_varint_is_read_back(number_: int) -> None:
    message = memoryview(number(5, number_))
    [(field, kind, found)] = protobuf.fields(message)
    assert isinstance(found, int)
    assert (field, kind, protobuf.signed(found)) == (5, protobuf.VARINT, number_)
    assert protobuf.count_varints(memoryview(bytes(message)[1:])) == 1


def test_typed_values_are_counted_packed_or_not() -> None:
    packed = number(1, 3) + number(2, INT64) + block(8, "w") + block(7, b"\x01\x02\x03")
    single = number(1, 3) + number(2, INT64) + block(8, "w") + number(7, 1) + number(7, 2) + number(7, 3)
    for weights in (packed, single):
        check_model(model(graph(ADD, weights=(weights,))), "model.onnx")
    with pytest.raises(PackageError, match="2 values, not 3"):
        check_model(model(graph(ADD, weights=(packed.replace(b"\x03\x01\x02\x03", b"\x02\x01\x02"),))), "model.onnx")
