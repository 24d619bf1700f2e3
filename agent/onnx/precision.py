"""In which precision is a model written? Read off the types of its weights, and off its operators.

An engine runs a model as it is written, and nothing is lowered behind anybody's back; so what this says is what the
engine runs in, but for one liberty: an accelerator may multiply float32 in TF32 (`agent.package.run_in`). The narrowest
floating type counts: a model that holds half its weights in float16 is no float32 model. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.onnx.model import Graph

INTEGER, QUANTISED = "integer", "int8"
_QUANTISING = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_FLOATS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16", **dict.fromkeys(range(17, 21), "float8")}
"""TensorProto.DataType of what has a point."""
_NARROWEST_FIRST = ("float8", "float16", "bfloat16", "float32", "float64")


def written_in(graph: Graph) -> str:
    """The precision of a model's graph, and of those within it: one of `agent.package.PrecisionName`."""
    found = set(_precisions(graph))
    if QUANTISED in found:
        return QUANTISED
    return next((name for name in _NARROWEST_FIRST if name in found), INTEGER)


def _precisions(graph: Graph) -> Iterator[str]:
    types = [one.data_type for one in graph.initializers]
    types += [one.data_type for one in (*graph.inputs, *graph.outputs)]
    types += [one.data_type for node in graph.nodes for one in node.tensors.values()]
    yield from (_FLOATS[one] for one in types if one in _FLOATS)
    for node in graph.nodes:
        if node.op_type in _QUANTISING:
            yield QUANTISED
        for inner in node.graphs:
            yield from _precisions(inner)
