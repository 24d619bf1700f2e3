"""Read one tensor from the .npy bytes of an item, trusting nothing in them.

The format is NumPy's own (NEP 1), version 1.0: six magic bytes, the version, the length of a header, the header as a
Python dictionary in plain text, and the values. Only the header that NumPy writes for the one dtype and shape that the
package names is taken: it is matched as text, never evaluated, and nothing is ever unpickled. An item may hold several
tensors one after the other, as several `numpy.save` into one file leave them.

On an accelerator this is a copy: the values lie in the item as the engine takes them.
"""

from __future__ import annotations

import re
import struct
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

DTypeName = Literal[
    "bool",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
Shape = Annotated[str, msgspec.Meta(pattern=r"^([1-9][0-9]{0,8}(,[1-9][0-9]{0,8}){0,7})?$")]
"""Sizes with commas between them, at most eight; empty: a single value."""

MAX_HEADER_BYTES = 1024
_MAGIC = b"\x93NUMPY\x01\x00"
_LENGTH = struct.Struct("<H")
_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-z][0-9]{1,2})', 'fortran_order': False, 'shape': \(([0-9, ]{0,100})\), \} *\n"
)


class NpyTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters: the model's input that the tensor goes to, and the dtype and shape it must have.

    `stacked`: items go to the engine along a new first axis; else each item is an engine run of its own.
    """

    input: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    dtype: DTypeName
    shape: Shape
    stacked: bool


class NpyError(ValueError):
    """Bytes that are not the tensor that was asked for; the text is the same on every computer."""


def sizes(shape: str) -> tuple[int, ...]:
    """A shape's sizes: `3,48,48` is (3, 48, 48), the empty text ()."""
    return tuple(int(size) for size in shape.split(",")) if shape else ()


def npy_tensor(item: bytes, offset: int, dtype: DTypeName, shape: tuple[int, ...]) -> tuple[NDArray[np.generic], int]:
    """The tensor of this dtype and shape that begins at `offset`, and where it ends.

    Little-endian and in C order, as an engine takes it; it is a read-only view of the item. Raises NpyError.
    """
    begin = offset + len(_MAGIC) + _LENGTH.size
    if item[offset : offset + len(_MAGIC)] != _MAGIC or len(item) < begin:
        raise NpyError("not a tensor in .npy format, version 1.0")
    (length,) = _LENGTH.unpack_from(item, offset + len(_MAGIC))
    header = _HEADER.fullmatch(item[begin : begin + length]) if length <= MAX_HEADER_BYTES else None
    if header is None:
        raise NpyError("a tensor whose .npy header is not the one that NumPy writes for values in C order")
    wanted = np.dtype(dtype)
    found_shape = tuple(int(size) for size in header[2].replace(b" ", b"").split(b",") if size)
    if header[1].decode("ascii") != wanted.str or found_shape != shape:
        raise NpyError(f"a tensor {header[1].decode('ascii')} {found_shape}, not {wanted.str} {shape}")
    count = 1
    for size in shape:
        count *= size
    end = begin + length + count * wanted.itemsize
    if len(item) < end:
        raise NpyError(f"a tensor of {len(item) - begin - length} bytes, not {count * wanted.itemsize}")
    values = np.frombuffer(item, dtype=wanted, count=count, offset=begin + length).reshape(shape)
    if wanted.kind == "b" and not _are_booleans(values):
        raise NpyError("a tensor of truth values with a byte that is neither 0 nor 1")
    return values, end


def _are_booleans(values: NDArray[np.generic]) -> bool:
    """Whether each byte is 0 or 1: an engine may count on it."""
    return bool((values.view(np.uint8) <= 1).all())
