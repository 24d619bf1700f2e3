"""ONNX models written byte by byte, right ones and wrong ones."""

from __future__ import annotations

FLOAT, INT64, STRING = 1, 7, 8
SINGLE = [1]


def varint(value: int) -> bytes:
    """A base-128 varint; negative values as their 64-bit complement."""
    value %= 2**64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """An integer field."""
    return varint(field << 3) + varint(value)


def block(field: int, body: bytes | str) -> bytes:
    """A field of bytes, a text or a message."""
    raw = body.encode() if isinstance(body, str) else body
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def tensor(name: str, dims: list[int], data_type: int = FLOAT, *, raw: bytes | None = None, more: bytes = b"") -> bytes:
    """A TensorProto; without `raw` its bytes are zeros, as many as it should have."""
    size = 8 if data_type == INT64 else 4
    count = 1
    for dim in dims:
        count *= dim
    body = bytes(size * count) if raw is None else raw
    return b"".join(number(1, dim) for dim in dims) + number(2, data_type) + block(8, name) + block(9, body) + more


def integers(name: str, *values: int) -> bytes:
    """A TensorProto of int64 values in one dimension."""
    raw = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return tensor(name, [len(values)], INT64, raw=raw)


def value(name: str, dims: list[int | str], data_type: int = FLOAT) -> bytes:
    """A ValueInfoProto of a tensor; a text is a size that is free."""
    shape = b"".join(block(1, block(2, dim) if isinstance(dim, str) else number(1, dim)) for dim in dims)
    return block(1, name) + block(2, block(1, number(1, data_type) + block(2, shape)))


def node(op_type: str, inputs: list[str], outputs: list[str], *, domain: str = "", attributes: bytes = b"") -> bytes:
    """A NodeProto; `attributes` are whole fields."""
    names = b"".join(block(1, one) for one in inputs) + b"".join(block(2, one) for one in outputs)
    return names + block(4, op_type) + (block(7, domain) if domain else b"") + attributes


def graph(*nodes: bytes, weights: tuple[bytes, ...] = (), more: bytes = b"") -> bytes:
    """A GraphProto from `x` to `y`, both N x 4 float32."""
    return (
        b"".join(block(1, one) for one in nodes)
        + block(2, "g")
        + b"".join(block(5, one) for one in weights)
        + block(11, value("x", ["N", 4]))
        + block(12, value("y", ["N", 4]))
        + more
    )


def model(inner: bytes, *, opset: bytes | None = None, ir_version: int = 9, more: bytes = b"") -> bytes:
    """A ModelProto."""
    return number(1, ir_version) + block(8, opset if opset is not None else number(2, 17)) + block(7, inner) + more


GOOD = model(graph(node("Add", ["x", "w"], ["y"]), weights=(tensor("w", [1, 4]),)))
"""y = x + w."""
