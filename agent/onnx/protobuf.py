"""The wire format of protocol buffers, read without copying and without trusting a byte.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields, each a tag (number and wire type) and a
value: a varint, 4 or 8 little-endian bytes, or a length and so many bytes. Groups (wire types 3 and 4) have been out of
use since before ONNX and are refused. What a field means is the caller's business; a singular field that comes twice
is merged by real parsers, each in its own way, so callers refuse that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_CONTINUES = bytes(range(128, 256))
_PIECE_BYTES = 64 * 1024

Value = Union[int, memoryview]  # noqa: UP007 - Python 3.10 evaluates this line


class ProtobufError(ValueError):
    """Bytes that are not a message."""


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """(number, wire type, value) of each field in order: an int, or a view of the bytes. Raises ProtobufError."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise ProtobufError(f"a field with the number {number}")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ProtobufError(f"field {number} has the wire type {kind}")
        if length > end - at:
            raise ProtobufError(f"field {number} is cut off: {length} bytes wanted, {end - at} left")
        body = message[at : at + length]
        at += length
        yield number, kind, (body if kind == BYTES else int.from_bytes(body, "little"))


def varints(packed: memoryview) -> Iterator[int]:
    """The values of a packed repeated field."""
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def count_varints(packed: memoryview) -> int:
    """How many values a packed repeated field has, without decoding them: as many as bytes that end one.

    Piece by piece, since other threads wait while one is looked at.
    """
    pieces = (packed[at : at + _PIECE_BYTES] for at in range(0, len(packed), _PIECE_BYTES))
    return sum(len(bytes(piece).translate(None, _CONTINUES)) for piece in pieces)


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - 2**64 if value >= 2**63 else value


def text(value: Value) -> str:
    """A string field; raises ProtobufError when it is none or not UTF-8."""
    if isinstance(value, int):
        raise ProtobufError("a number where a text belongs")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProtobufError("a text that is not UTF-8") from error


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A varint of at most 64 bits, and where it ends."""
    value = 0
    for place, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value & (2**64 - 1), at + place + 1
    raise ProtobufError("a number that is cut off or longer than 64 bits")
