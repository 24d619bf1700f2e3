"""Values as JSON that read back exactly, and digests that anybody can compute."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels.tensor_answers import tensor_digest, tensor_values

FLOATS = ("float16", "float32", "float64")


@given(st.sampled_from(FLOATS).flatmap(lambda name: arrays.arrays(name, arrays.array_shapes(min_dims=0, max_dims=3))))
def test_floats_read_back_exactly(array: NDArray[Any]) -> None:
    text = json.dumps(tensor_values(array), allow_nan=False)
    read = np.array(json.loads(text), dtype=object).astype(array.dtype)
    assert np.array_equal(read, array, equal_nan=True)
    assert (np.signbit(read) == np.signbit(array))[~np.isnan(array)].all()


@given(arrays.arrays(st.sampled_from(["int64", "uint64", "int8", "bool"]), arrays.array_shapes(min_dims=0, max_dims=3)))
def test_whole_numbers_are_exact(array: NDArray[Any]) -> None:
    assert json.loads(json.dumps(tensor_values(array))) == array.tolist()


def test_floats_are_as_short_as_they_can_be() -> None:
    assert json.dumps(tensor_values(np.array([0.1, 2, 1e-30], dtype=np.float32))) == "[0.1, 2.0, 1e-30]"


def test_what_json_has_no_number_for_has_a_name() -> None:
    odd = np.array([[np.nan, 1.5], [np.inf, -np.inf]], dtype=np.float32)
    assert tensor_values(odd) == [["NaN", 1.5], ["Infinity", "-Infinity"]]
    assert tensor_values(np.array(np.nan)) == "NaN"


@pytest.mark.parametrize("turn", [lambda array: array, lambda array: array.astype(">f4"), np.asfortranarray])
def test_a_digest_is_of_little_endian_values_in_c_order(turn: Any) -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    expected = hashlib.sha256(array.tobytes()).hexdigest()
    assert tensor_digest(turn(array)) == {"dtype": "float32", "shape": [2, 3], "sha256": expected}
