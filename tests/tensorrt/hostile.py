"""Models that plain Python cannot tell from good ones, and that a native parser or builder has to cope with."""

from __future__ import annotations

from tests.onnx.writing import GOOD, block, graph, integers, model, node, number, tensor, value

BOOL, FLOAT16, INT32, DOUBLE = 9, 10, 6, 11


def _attribute(name: str, *fields: bytes) -> bytes:
    return block(5, block(1, name) + b"".join(fields))


def _ints(name: str, *values: int) -> bytes:
    return _attribute(name, b"".join(number(8, one) for one in values))


def _chain(count: int, op_type: str = "Relu") -> bytes:
    names = ["x", *(f"t{place}" for place in range(1, count)), "y"]
    return graph(*(node(op_type, [names[place]], [names[place + 1]]) for place in range(count)))


def _grown(times: int) -> list[bytes]:
    """Nodes that square a size, which the model computes of its input's, again and again: `big` has 4**(2**times)."""
    nodes = [node("Shape", ["x"], ["s0"]), node("Gather", ["s0", "one"], ["n0"])]
    nodes += [node("Mul", [f"n{place}", f"n{place}"], [f"n{place + 1}"]) for place in range(times)]
    return [*nodes, node("Reshape", [f"n{times}", "flat"], ["big"])]


def _loop(count: int, *, rounds_input: bool = True) -> bytes:
    """A loop of so many rounds, each of which adds. Its body takes the round's number, or lacks that input."""
    body = (
        block(1, node("Identity", ["going"], ["goes_on"]))
        + block(1, node("Add", ["sum", "sum"], ["summed"]))
        + block(2, "body")
        + (block(11, value("round", [], 7)) if rounds_input else b"")
        + block(11, value("going", [], BOOL))
        + block(11, value("sum", ["N", 4]))
        + block(12, value("goes_on", [], BOOL))
        + block(12, value("summed", ["N", 4]))
    )
    loop = node("Loop", ["rounds", "yes", "x"], ["y"], attributes=_attribute("body", block(6, body), number(20, 5)))
    rounds = tensor("rounds", [], 7, raw=count.to_bytes(8, "little"))
    return graph(loop, weights=(rounds, tensor("yes", [], BOOL, raw=b"\x01")))


MODELS: dict[str, bytes] = {
    "a cycle": model(graph(node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"]), node("Add", ["x", "b"], ["y"]))),
    "an input that nobody makes": model(graph(node("Add", ["x", "nowhere"], ["y"]))),
    "an output that nobody makes": model(graph(node("Relu", ["x"], ["z"]))),
    "two nodes of one output": model(graph(node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"]))),
    "shapes that do not fit": model(graph(node("MatMul", ["x", "w"], ["y"]), weights=(tensor("w", [7, 3]),))),
    "no inputs to a node": model(graph(node("Add", [], ["y"]))),
    "too many inputs": model(graph(node("Relu", ["x"] * 500, ["y"]))),
    "an empty weight": model(graph(node("Add", ["x", "w"], ["y"]), weights=(tensor("w", [0, 4]),))),
    "a weight of doubles": model(
        graph(node("Add", ["x", "w"], ["y"]), weights=(tensor("w", [1, 4], DOUBLE, raw=bytes(32)),))
    ),
    "a convolution with absurd strides": model(
        graph(
            node("Unsqueeze", ["x", "axes"], ["u"]),
            node("Conv", ["u", "w"], ["y"], attributes=_ints("strides", 2**31) + _ints("pads", 2**31, 2**31)),
            weights=(tensor("w", [1, 1, 3]), integers("axes", 1)),
        )
    ),
    "a negative group": model(
        graph(
            node("Unsqueeze", ["x", "axes"], ["u"]),
            node("Conv", ["u", "w"], ["y"], attributes=_attribute("group", number(3, -1))),
            weights=(tensor("w", [1, 1, 3]), integers("axes", 1)),
        )
    ),
    "a division by zero in a shape": model(
        graph(
            node("Shape", ["x"], ["s"]),
            node("Div", ["s", "zero"], ["d"]),
            node("Reshape", ["x", "d"], ["y"]),
            weights=(integers("zero", 0),),
        )
    ),
    "a size that the model computes": model(
        graph(
            *_grown(5),
            node("ConstantOfShape", ["big"], ["c"]),
            node("ReduceSum", ["c"], ["r"]),
            node("Add", ["x", "r"], ["y"]),
            weights=(integers("one", 1), integers("flat", 1)),
        )
    ),
    "a range that the model computes": model(
        graph(
            *_grown(5),
            node("Squeeze", ["big"], ["n"]),
            node("Range", ["start", "n", "step"], ["c"]),
            node("Cast", ["c"], ["f"], attributes=_attribute("to", number(3, 1))),
            node("ReduceSum", ["f"], ["r"]),
            node("Add", ["x", "r"], ["y"]),
            weights=(
                integers("one", 1),
                integers("flat", 1),
                tensor("start", [], 7),
                tensor("step", [], 7, raw=(1).to_bytes(8, "little")),
            ),
        )
    ),
    "a loop that never ends": model(_loop(2**62)),
    "a long chain": model(_chain(1000)),
    "a reference to the outside": model(graph(node("If", ["x"], ["y"]))),
    "an attribute of the wrong kind": model(
        graph(node("Softmax", ["x"], ["y"], attributes=_attribute("axis", block(4, "one"))))
    ),
    "an axis beyond the rank": model(
        graph(node("Softmax", ["x"], ["y"], attributes=_attribute("axis", number(3, 99))))
    ),
    "a permutation of nothing": model(graph(node("Transpose", ["x"], ["y"], attributes=_ints("perm", 5, 5)))),
    "an operator of no engine": model(graph(node("Det", ["x"], ["y"]))),
    "texts that are no UTF-8": model(graph(node("Relu", ["x"], ["y"], attributes=block(3, b"\xff\xfe\x1b[2J")))),
    "texts that are no UTF-8 in an error": model(
        graph(node("Det", ["x"], ["y"], attributes=block(3, b"\xff\xfe\x1b[2J")))
    ),
    "a size whose name is no UTF-8": GOOD.replace(b"N", b"\x85"),
    "a NaN for a size": model(
        graph(
            node("Resize", ["x", "", "w"], ["y"]),
            weights=(tensor("w", [2], raw=b"\x00\x00\xc0\x7f" * 2),),
        )
    ),
}

PARSER_DIES_OF = model(_loop(1, rounds_input=False))
"""A body that takes fewer inputs than its loop gives: TensorRT-RTX 1.6 and 1.7 read beyond the end of a list."""
