"""May a native parser see this model at all? Decided in plain Python, on the bytes alone.

A model is a customer's, and what parses and compiles it is a large body of native code. So everything that such code
has no business with is refused first: weights in other files, operators of other domains and names that only a plugin
could have, functions, training, sparse and text tensors, tensors whose bytes are not what their sizes say, and sizes
that no computer has, also of tensors that the model would only make: by constant sizes (`Tile`, `Expand`,
`ConstantOfShape`, `Resize`, `Pad`, random tensors), by joining (`Concat`), and by any of these one after the other.

What cannot be seen here, sizes that a model computes for itself or a loop that never ends, is met by the worker's
memory limit and by the daemon's watchdog.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import PackageError
from agent.onnx.model import Budget, Declared, Graph, Model, Node, Tensor, product, read_model
from agent.onnx.operators import OPERATORS
from agent.onnx.precision import written_in
from agent.onnx.protobuf import ProtobufError

MAX_MODEL_BYTES = 2**31 - 1
"""What a protocol buffer can hold."""
MAX_ELEMENTS = 2**29
"""Of one tensor: two GiB of float32, more than a car's accelerator has to spare for one value."""
MAX_SIDE = 2**20
"""Of padding: more than any image or text has."""
MAX_NODES, MAX_TENSORS, MAX_NAMES, MAX_DEPTH = 50_000, 50_000, 1_000_000, 8
MAX_RANK = 8
"""What engines take."""
DOMAINS = frozenset({"", "ai.onnx"})
IR_VERSIONS = range(3, 14)
OPSETS = range(7, 27)

DTYPES = {
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
"""TensorProto.DataType of what may go in and come out."""
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16} | dict.fromkeys(
    (17, 18, 19, 20, 24), 8
)
_HALF_BYTES = frozenset({21, 22, 23})
"""4-bit types: two to a byte."""


@dataclass(frozen=True)
class Port:
    """An input or output of the model: its dtype's NumPy name, and its sizes; None: any."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ModelSummary:
    """What a model takes and gives, how large it is, and in which precision it is written (`PrecisionName`)."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    opset: int
    precision: str


def check_model(body: bytes, where: str) -> ModelSummary:
    """What the model is, or PackageError, which names `where` and what is wrong with it."""
    if len(body) > MAX_MODEL_BYTES:
        raise _refused(where, f"{len(body)} bytes, more than {MAX_MODEL_BYTES}")
    budget = Budget(nodes=MAX_NODES, tensors=MAX_TENSORS, names=MAX_NAMES, depth=MAX_DEPTH)
    try:
        model = read_model(memoryview(body), budget)
        _check_whole(model)
        _check_graph(model.graph, {}, {})
        weights = {tensor.name for tensor in model.graph.initializers}
        return ModelSummary(
            inputs=tuple(_port(one) for one in model.graph.inputs if one.name not in weights),
            outputs=tuple(_port(one) for one in model.graph.outputs),
            nodes=MAX_NODES - budget.nodes,
            opset=model.opsets.get("", model.opsets.get("ai.onnx", 0)),
            precision=written_in(model.graph),
        )
    except (ProtobufError, RefusedModelError) as error:
        raise _refused(where, str(error)) from error


class RefusedModelError(ValueError):
    """What a model may not have; the text says what, and where in it."""


def _refused(where: str, what: str) -> PackageError:
    return PackageError(
        f"{where} is not a model that may run: {what}", hint="export it as one file with standard operators"
    )


def _check_whole(model: Model) -> None:
    if model.ir_version not in IR_VERSIONS:
        raise RefusedModelError(f"ONNX format version {model.ir_version}")
    if model.functions or model.trainings:
        raise RefusedModelError("it has functions of its own or training; inline them before export")
    for domain, version in model.opsets.items():
        if domain not in DOMAINS:
            raise RefusedModelError(f"operators of the domain {domain!r}")
        if version not in OPSETS:
            raise RefusedModelError(f"operator set {version}")
    if not DOMAINS & model.opsets.keys():
        raise RefusedModelError("no operator set of the standard")
    if not model.graph.nodes or not model.graph.outputs:
        raise RefusedModelError("an empty graph")


@dataclass(frozen=True)
class _Growth:
    """By how much a value is larger than what the model is given, as far as the model's constants say."""

    sized: int = 1
    joined: int = 1
    """By joining values; a convolution or product after it has as many channels as its weights say, and ends this."""

    @property
    def whole(self) -> int:
        return self.sized * self.joined


_GIVEN = _Growth()


def _check_graph(graph: Graph, growth: dict[str, _Growth], constants: dict[str, Tensor]) -> None:
    """A graph and those within it, which know the constants of the graphs around them, and what those blew up."""
    if graph.sparse:
        raise RefusedModelError("sparse weights")
    growth, constants = dict(growth), constants | {tensor.name: tensor for tensor in graph.initializers}
    for tensor in graph.initializers:
        _check_tensor(tensor)
    for declared in (*graph.inputs, *graph.outputs, *graph.values):
        _check_declared(declared)
    for node in graph.nodes:
        _check_node(node)
        if node.op_type == "Constant" and node.outputs:
            constants.update(_constant(node))
        grown = _grown(node, [growth.get(name, _GIVEN) for name in node.inputs], constants)
        if grown.whole > MAX_ELEMENTS:
            raise RefusedModelError(f"{_named(node)} makes a tensor {grown.whole} times as large as what it is given")
        growth.update(dict.fromkeys(node.outputs, grown))
        for inner in node.graphs:
            _check_body(node, inner)
            _check_graph(inner, growth, constants)


def _grown(node: Node, given: list[_Growth], constants: dict[str, Tensor]) -> _Growth:
    """What a node makes of what it is given."""
    sized = max((one.sized for one in given), default=1) * _factor(node, constants)
    if node.op_type in _MIXING:
        return _Growth(sized)
    together = sum if node.op_type in _JOINING else max
    return _Growth(sized, together(one.joined for one in given or [_GIVEN]))


def _check_node(node: Node) -> None:
    if node.domain not in DOMAINS:
        raise RefusedModelError(f"{_named(node)} is of the domain {node.domain!r}")
    if node.op_type not in OPERATORS:
        raise RefusedModelError(f"{_named(node)} is not an operator of the standard")
    for tensor in node.tensors.values():
        _check_tensor(tensor)


def _check_body(node: Node, body: Graph) -> None:
    """A loop hands its body what it is given. Parsers count on that, and read beyond where it is not so."""
    if node.op_type in {"Loop", "Scan"} and len(body.inputs) != len(node.inputs):
        raise RefusedModelError(f"{_named(node)} has {len(node.inputs)} inputs, and its body {len(body.inputs)}")


def _check_tensor(tensor: Tensor) -> None:
    """Its bytes are what its sizes say, and it lies in this file."""
    what = f"the tensor {tensor.name[:80]!r}"
    if tensor.external:
        raise RefusedModelError(f"{what} lies in another file")
    if tensor.data_type not in _BITS and tensor.data_type not in _HALF_BYTES:
        raise RefusedModelError(f"{what} has the type {tensor.data_type}, which is not of plain numbers")
    if len(tensor.dims) > MAX_RANK or min(tensor.dims, default=0) < 0 or tensor.elements > MAX_ELEMENTS:
        raise RefusedModelError(f"{what} has the sizes {_sizes(tensor.dims)}")
    if tensor.raw_bytes is not None:
        if tensor.values or tensor.raw_bytes != _raw_bytes(tensor):
            raise RefusedModelError(f"{what} has {tensor.raw_bytes} bytes, not {_raw_bytes(tensor)}")
    elif tensor.data_type not in _HALF_BYTES and tensor.values != tensor.elements:
        raise RefusedModelError(f"{what} has {tensor.values} values, not {tensor.elements}")


def _raw_bytes(tensor: Tensor) -> int:
    if tensor.data_type in _HALF_BYTES:
        return (tensor.elements + 1) // 2
    return tensor.elements * _BITS[tensor.data_type] // 8


def _check_declared(declared: Declared) -> None:
    known = tuple(size for size in declared.dims or () if size is not None)
    if len(declared.dims or ()) > MAX_RANK or product(known) > MAX_ELEMENTS:
        raise RefusedModelError(f"{declared.name[:80]!r} has the sizes {_sizes(known)}")


def _constant(node: Node) -> Iterator[tuple[str, Tensor]]:
    """The value of a Constant node, under the name that it gives."""
    for tensor in node.tensors.values():
        yield node.outputs[0], tensor
    for values in (node.integers.get("value_ints"), node.integers.get("value_int")):
        if values is not None:
            yield node.outputs[0], Tensor("", 7, (len(values),), None, len(values), external=False, small=values)


_JOINING = frozenset({"Concat", "SequenceConstruct", "ConcatFromSequence"})
_MIXING = frozenset({"Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "Gemm", "MatMul", "MatMulInteger"})
_SIZED_BY_INPUT = {"Tile": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Which input says how large the output becomes; where it is constant it is believed."""
_SIZED_BY_SHAPE = frozenset({"RandomNormal", "RandomUniform"})
"""What has an attribute `shape`."""


def _factor(node: Node, constants: dict[str, Tensor]) -> int:
    """By how much a node blows up what it is given, as far as constants say so."""
    if node.op_type in _SIZED_BY_SHAPE:
        return _product_of(node, node.integers.get("shape"))
    if node.op_type == "Pad":
        return _padding(node, constants)
    place = _SIZED_BY_INPUT.get(node.op_type)
    sizes = constants.get(node.inputs[place]) if place is not None and place < len(node.inputs) else None
    return 1 if sizes is None else _product_of(node, sizes.small)


def _product_of(node: Node, sizes: tuple[int, ...] | None) -> int:
    if sizes is None or min(sizes, default=0) < 0:
        raise RefusedModelError(f"{_named(node)} has sizes that are no sizes")
    return max(product(sizes), 1)


def _padding(node: Node, constants: dict[str, Tensor]) -> int:
    """By how much padding blows up at least: each dimension was 1 or more before. Cropping counts for nothing."""
    given = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    pads = node.integers.get("pads") if given is None else given.small
    if pads is None:
        return 1
    half = len(pads) // 2
    return max(pads[place] + pads[place + half] for place in range(half)) if half and max(pads) > MAX_SIDE else 1


def _port(declared: Declared) -> Port:
    dtype = DTYPES.get(declared.data_type)
    if dtype is None:
        raise RefusedModelError(f"{declared.name[:80]!r} is not a tensor of plain numbers")
    if declared.dims is None:
        raise RefusedModelError(f"{declared.name[:80]!r} has no shape; export the model with its shapes")
    if not declared.name or not declared.name.isprintable():
        raise RefusedModelError(f"an input or output is called {declared.name[:80]!r}")
    return Port(declared.name, dtype, declared.dims)


def _named(node: Node) -> str:
    return f"{node.op_type[:80]} ({', '.join(node.outputs)[:80]})"


def _sizes(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sizes[:16])
