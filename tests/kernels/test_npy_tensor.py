"""The reader of untrusted .npy bytes against NumPy's own writer, and against everything else."""

from __future__ import annotations

import io
import pickle
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels.npy_tensor import DTypeName, NpyError, npy_tensor, sizes

DTYPES = get_args(DTypeName)


def saved(array: NDArray[Any]) -> bytes:
    body = io.BytesIO()
    np.save(body, array, allow_pickle=False)
    return body.getvalue()


@given(st.sampled_from(DTYPES).flatmap(lambda name: arrays.arrays(name, arrays.array_shapes(min_dims=0, max_dims=4))))
def test_reads_what_numpy_writes(array: NDArray[Any]) -> None:
    body = saved(array)
    if array.ndim > 1 and not array.flags.c_contiguous:
        return
    read, end = npy_tensor(body, 0, array.dtype.name, array.shape)  # type: ignore[arg-type]
    assert (read.dtype, read.shape, end) == (array.dtype, array.shape, len(body))
    assert read.tobytes() == array.tobytes()


def test_several_lie_one_after_the_other() -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, dtype=np.int64)
    body = saved(first) + saved(second)
    read, offset = npy_tensor(body, 0, "float32", (2, 3))
    assert (read == first).all()
    read, end = npy_tensor(body, offset, "int64", ())
    assert (read.item(), end) == (7, len(body))


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (b"", "not a tensor in .npy format"),
        (b"\x93NUMPY\x01\x00", "not a tensor in .npy format"),
        (b"junk" * 100, "not a tensor in .npy format"),
        (b"\x93NUMPY\x02\x00" + saved(VALUES)[8:], "not a tensor in .npy format, version 1.0"),
        (saved(VALUES.astype(">f4")), "a tensor >f4"),
        (saved(VALUES.astype(np.float64)), "a tensor <f8"),
        (saved(np.asfortranarray(VALUES)), "is not the one that NumPy writes for values in C order"),
        (saved(VALUES.T.copy()), r"a tensor <f4 \(3, 2\), not <f4 \(2, 3\)"),
        (saved(VALUES)[:-1], "a tensor of 23 bytes, not 24"),
        (saved(VALUES)[:60], "is not the one that NumPy writes"),
        (saved(VALUES).replace(b"'<f4'", b"'|O8'"), "is not the one that NumPy writes"),
        (saved(VALUES).replace(b"(2, 3)", b"(2,-3)"), "is not the one that NumPy writes"),
        (saved(VALUES).replace(b"'<f4'", b"exit()"), "is not the one that NumPy writes"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 70_000, "is not the one that NumPy writes"),
        (pickle.dumps(VALUES), "not a tensor in .npy format"),
    ],
)
def test_what_is_not_the_tensor_is_refused(item: bytes, message: str) -> None:
    with pytest.raises(NpyError, match=message):
        npy_tensor(item, 0, "float32", (2, 3))


def test_a_truth_value_is_zero_or_one() -> None:
    body = saved(np.array([True, False]))
    assert npy_tensor(body, 0, "bool", (2,))[0].tolist() == [True, False]
    with pytest.raises(NpyError, match="neither 0 nor 1"):
        npy_tensor(body[:-1] + b"\x02", 0, "bool", (2,))


@given(st.binary(max_size=400), st.binary(max_size=100), st.integers(0, 200))
def test_any_bytes_are_a_tensor_or_an_error(head: bytes, tail: bytes, cut: int) -> None:
    for item in (head, saved(VALUES)[:cut] + tail, saved(VALUES)[:10] + head):
        try:
            read, end = npy_tensor(item, 0, "float32", (2, 3))
        except NpyError:
            continue
        assert read.shape == (2, 3)
        assert end <= len(item)


def test_shapes_in_words() -> None:
    assert (sizes(""), sizes("5"), sizes("3,224,224")) == ((), (5,), (3, 224, 224))
