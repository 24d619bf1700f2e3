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

from kernels import OperationError
from kernels.operation import ResultOperation, TensorSpec
from kernels.tensor_answers import MAX_VALUES, TensorDigest, TensorValues, tensor_digest, tensor_values

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


@pytest.mark.parametrize("operation", [TensorValues(output="y"), TensorDigest(output="y")])
def test_the_output_itself_is_the_result(operation: ResultOperation) -> None:
    spec = TensorSpec("int64", (2, 3))
    output = np.arange(24).reshape(4, 2, 3)[::2]
    (result,) = operation.reference(output)
    assert (result == output).all()
    assert result.flags.c_contiguous
    assert (operation.results(spec), operation.launches(9, spec), operation.scratch_bytes(9, spec)) == ((spec,), (), 0)


def test_each_answers_under_the_name_of_its_output() -> None:
    spec, output = TensorSpec("float32", (2,)), np.array([0.5, np.nan], dtype=np.float32)
    files: dict[str, bytes] = {}
    read = files.__getitem__
    assert TensorValues(output="y").answerer(read, spec)((output,)) == {"outputs": {"y": [0.5, "NaN"]}}
    assert TensorDigest(output="z").answerer(read, spec)((output,)) == {"outputs": {"z": tensor_digest(output)}}


def test_more_values_than_an_answer_holds_are_refused() -> None:
    fits, not_ = TensorSpec("float32", (MAX_VALUES,)), TensorSpec("float32", (MAX_VALUES + 1,))
    assert TensorValues(output="y").results(fits) == (fits,)
    assert TensorDigest(output="y").results(not_) == (not_,)
    with pytest.raises(OperationError, match="output y has 65537 values, more than 65536"):
        TensorValues(output="y").results(not_)
