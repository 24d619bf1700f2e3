"""As much of an ONNX model as is needed to judge it: the messages of onnx.proto, without the values of the weights.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, which never change. Everything is
read within `Budget`: how many nodes, tensors and names there may be in all, and how deep graphs may lie within graphs.
A singular field that comes twice is refused, since parsers differ in what they make of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.onnx.protobuf import (
    FIXED32,
    FIXED64,
    VARINT,
    ProtobufError,
    Value,
    count_varints,
    fields,
    signed,
    text,
    varints,
)

MAX_SMALL_VALUES = 64
"""The values of integer tensors of at most so many are kept: shapes, repeats and sizes are among them."""
MAX_SIZES = 64
"""Of one tensor; what engines take is far less."""


@dataclass(frozen=True)
class Tensor:
    """A constant: its type and sizes, how many bytes or values came with it, and the values where they are few."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    raw_bytes: int | None
    values: int
    external: bool
    small: tuple[int, ...] | None

    @property
    def elements(self) -> int:
        """How many values the sizes stand for."""
        return product(self.dims)


@dataclass(frozen=True)
class Declared:
    """An input, an output or a value in between: tensor element type (0: no tensor) and sizes (None: any)."""

    name: str
    data_type: int
    dims: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Node:
    """One node, with what its attributes hold: graphs and tensors, and integers by name."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    graphs: tuple[Graph, ...]
    integers: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """A graph; `sparse` initializers are counted and not looked into."""

    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    values: tuple[Declared, ...]
    sparse: int


@dataclass(frozen=True)
class Model:
    """The whole: the graph, what it is written in, and how many things it has that no inference needs."""

    ir_version: int
    opsets: Mapping[str, int]
    graph: Graph
    functions: int
    trainings: int


@dataclass
class Budget:
    """What may still be read. One for a whole model."""

    nodes: int
    tensors: int
    names: int
    depth: int

    def take(self, what: str, count: int = 1) -> None:
        """Count something; raises ProtobufError when there is too much of it."""
        left = getattr(self, what) - count
        setattr(self, what, left)
        if left < 0:
            raise ProtobufError(f"too many {what}")


def read_model(body: memoryview, budget: Budget) -> Model:
    """The model; raises ProtobufError for what is no ONNX model or exceeds the budget."""
    ir_version, functions, trainings = 0, 0, 0
    graph: Graph | None = None
    opsets: dict[str, int] = {}
    for number, value in _once(body, frozenset({1, 7})):
        if number == 1:
            ir_version = _int(value)
        elif number == 7:
            graph = _graph(_view(value), budget)
        elif number == 8:
            domain, version = _opset(_view(value))
            if domain in opsets:
                raise ProtobufError(f"operator set {domain!r} comes twice")
            opsets[domain] = version
        elif number == 20:
            trainings += 1
        elif number == 25:
            functions += 1
    if graph is None:
        raise ProtobufError("no graph")
    return Model(ir_version, opsets, graph, functions, trainings)


def product(sizes: tuple[int, ...]) -> int:
    """The number of elements; 1 for no sizes."""
    count = 1
    for size in sizes:
        count *= size
    return count


def _once(message: memoryview, singular: frozenset[int]) -> Iterator[tuple[int, Value]]:
    """The fields of a message; raises ProtobufError when one of `singular` comes twice."""
    seen: set[int] = set()
    for number, _, value in fields(message):
        if number in singular:
            if number in seen:
                raise ProtobufError(f"field {number} comes twice")
            seen.add(number)
        yield number, value


def _opset(message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, value in _once(message, frozenset({1, 2})):
        if number == 1:
            domain = text(value)
        elif number == 2:
            version = _int(value)
    return domain, version


def _graph(message: memoryview, budget: Budget) -> Graph:
    budget.take("depth")
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    declared: dict[int, list[Declared]] = {11: [], 12: [], 13: []}
    sparse = 0
    for number, value in _once(message, frozenset()):
        if number == 1:
            nodes.append(_node(_view(value), budget))
        elif number == 5:
            tensors.append(_tensor(_view(value), budget))
        elif number in declared:
            budget.take("names")
            declared[number].append(_declared(_view(value)))
        elif number == 15:
            sparse += 1
    budget.depth += 1
    inputs, outputs, values = (tuple(declared[number]) for number in (11, 12, 13))
    return Graph(tuple(nodes), tuple(tensors), inputs, outputs, values, sparse)


def _node(message: memoryview, budget: Budget) -> Node:
    budget.take("nodes")
    op_type, domain = "", ""
    names: dict[int, list[str]] = {1: [], 2: []}
    tensors: dict[str, Tensor] = {}
    integers: dict[str, tuple[int, ...]] = {}
    graphs: list[Graph] = []
    for number, value in _once(message, frozenset({4, 7})):
        if number in names:
            budget.take("names")
            names[number].append(text(value))
        elif number == 4:
            op_type = text(value)
        elif number == 7:
            domain = text(value)
        elif number == 5:
            _attribute(_view(value), budget, tensors, integers, graphs)
    return Node(op_type, domain, tuple(names[1]), tuple(names[2]), tensors, tuple(graphs), integers)


def _attribute(
    message: memoryview,
    budget: Budget,
    tensors: dict[str, Tensor],
    integers: dict[str, tuple[int, ...]],
    graphs: list[Graph],
) -> None:
    """One attribute of a node, sorted into what it holds."""
    budget.take("names")
    name, held = "", []
    numbers: list[int] = []
    for number, _, value in fields(message):
        if number == 1:
            name = text(value)
        elif number in (5, 10):
            held.append(_tensor(_view(value), budget))
        elif number in (6, 11):
            graphs.append(_graph(_view(value), budget))
        elif number in (3, 8):
            numbers += [signed(value)] if isinstance(value, int) else [signed(one) for one in _few(value, budget)]
        elif number in (22, 23):
            raise ProtobufError("an attribute with a sparse tensor")
    for place, tensor in enumerate(held):
        tensors[name if not place else f"{name}/{place}"] = tensor
    if numbers:
        integers[name] = tuple(numbers)


def _few(value: Value, budget: Budget) -> Iterator[int]:
    packed = _view(value)
    budget.take("names", count_varints(packed))
    return varints(packed)


_COUNTED = {4: FIXED32, 5: VARINT, 7: VARINT, 10: FIXED64, 11: VARINT}
"""The fields of typed values, and how each value is encoded."""
_INTEGERS = {6: 4, 7: 8}
"""Bytes of the types that sizes come in: int32, int64."""


def _tensor(message: memoryview, budget: Budget) -> Tensor:
    budget.take("tensors")
    scalars = {2: 0, 14: 0}
    name, external, values = "", False, 0
    raw: memoryview | None = None
    dims: list[int] = []
    small: list[int] = []
    for number, kind, value in fields(message):
        if number == 1:
            dims += _integers(value, MAX_SIZES - len(dims))
        elif number in scalars:
            scalars[number] = _int(value)
        elif number == 8:
            name = text(value)
        elif number == 9 and raw is None:
            raw = _view(value)
        elif number in (3, 9):
            raise ProtobufError("a tensor in pieces")
        elif number in (6, 13):
            external, values = external or number == 13, values + (number == 6)
        elif number in _COUNTED:
            values += _count(_COUNTED[number], kind, value)
            small += _integers(value, MAX_SMALL_VALUES) if number in (5, 7) and values <= MAX_SMALL_VALUES else []
    width = _INTEGERS.get(scalars[2])
    if raw is not None and width and len(raw) <= width * MAX_SMALL_VALUES:
        small = [int.from_bytes(raw[at : at + width], "little", signed=True) for at in range(0, len(raw), width)]
    return Tensor(
        name=name,
        data_type=scalars[2],
        dims=tuple(dims),
        raw_bytes=None if raw is None else len(raw),
        values=values,
        external=external or scalars[14] != 0,
        small=tuple(small) if width and len(small) == product(tuple(dims)) else None,
    )


def _integers(value: Value, at_most: int) -> list[int]:
    """A repeated integer field, packed or one by one."""
    found = [signed(one) for one in ([value] if isinstance(value, int) else varints(value[: 10 * (at_most + 1)]))]
    if len(found) > at_most:
        raise ProtobufError(f"more than {at_most} integers")
    return found


def _count(encoding: int, kind: int, value: Value) -> int:
    """How many values a field of typed values brings, packed or not."""
    if isinstance(value, int):
        if kind != encoding:
            raise ProtobufError("a tensor's value in the wrong encoding")
        return 1
    if encoding == VARINT:
        return count_varints(value)
    return len(value) // (4 if encoding == FIXED32 else 8)


def _declared(message: memoryview) -> Declared:
    name, kind = "", None
    for number, value in _once(message, frozenset({1, 2})):
        if number == 1:
            name = text(value)
        elif number == 2:
            kind = _view(value)
    tensor = None
    for number, value in _once(kind if kind is not None else memoryview(b""), frozenset({1})):
        if number == 1:
            tensor = _view(value)
    if tensor is None:
        return Declared(name, 0, None)
    data_type, dims = 0, None
    for number, value in _once(tensor, frozenset({1, 2})):
        if number == 1:
            data_type = _int(value)
        elif number == 2:
            dims = tuple(_dimension(_view(dim)) for place, dim in _once(_view(value), frozenset()) if place == 1)
    return Declared(name, data_type, dims)


def _dimension(message: memoryview) -> int | None:
    size = None
    for number, value in _once(message, frozenset({1, 2})):
        if number == 1:
            size = signed(_int(value))
    return size if size is None or size > 0 else None


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise ProtobufError("bytes where a number belongs")
    return value


def _view(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ProtobufError("a number where a message belongs")
    return value
