"""In which precision a model is written, as its bytes say."""

from __future__ import annotations

import pytest

from agent.onnx.check import check_model
from hil.packages.onnx_model import make_model
from tests.hil.tiny_models import tensor as port
from tests.onnx.writing import GOOD, block, graph, model, node, number, tensor

FLOAT16, DOUBLE, BFLOAT16 = 10, 11, 16


def half(name: str, data_type: int = FLOAT16) -> bytes:
    return tensor(name, [1, 4], data_type, raw=bytes(8))


def precision(body: bytes) -> str:
    return check_model(body, "here").precision


def test_the_narrowest_weights_count() -> None:
    assert precision(GOOD) == "float32"
    add = node("Add", ["x", "w"], ["y"])
    assert precision(model(graph(add, weights=(tensor("w", [1, 4]), half("h"))))) == "float16"
    assert precision(model(graph(add, weights=(half("h", BFLOAT16),)))) == "bfloat16"
    assert precision(model(graph(add, weights=(tensor("w", [1], DOUBLE, raw=bytes(8)),)))) == "float32", "as its input"


def test_a_constant_in_a_node_is_a_weight_too() -> None:
    constant = node("Constant", [], ["w"], attributes=block(5, block(1, "value") + number(20, 4) + block(5, half(""))))
    assert precision(model(graph(constant, node("Identity", ["x"], ["y"])))) == "float16"


@pytest.mark.parametrize("operator", ["QuantizeLinear", "MatMulInteger", "DynamicQuantizeLinear"])
def test_what_quantises_is_int8(operator: str) -> None:
    body = graph(node(operator, ["x", "s"], ["q"]), node("Identity", ["x"], ["y"]), weights=(tensor("s", [1]),))
    assert precision(model(body)) == "int8"


def test_counting_has_no_precision() -> None:

    sizes = port("x", 4, dtype="int64"), port("y", 4, dtype="int64")
    assert precision(make_model("Identity", sizes[:1], sizes[1:])) == "integer"
