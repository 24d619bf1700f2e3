"""Samples: the same places everywhere, values that read back, and how far two of them are apart."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import OperationError, operation
from kernels.operation import TensorSpec
from kernels.tensor_samples import MAX_SAMPLES, TensorSamples, sample_places, samples_drift_ppm


def samples(*values: float) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode("ascii")


def answered(one: TensorSamples, output: NDArray[np.float32]) -> object:
    results = tuple(each[0] for each in one.reference(output))
    return one.answerer(lambda name: name.encode(), TensorSpec("float32", output.shape[1:]))(results)["samples"]


def test_places_are_those_of_splitmix64() -> None:
    """The first outputs of its reference implementation for the seed 0."""
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert sample_places(3, 2**31 - 1) == [word % (2**31 - 1) for word in first]


@given(st.integers(1, MAX_SAMPLES), st.integers(1, 2**31 - 1))
def test_places_lie_in_the_tensor_and_more_of_them_begin_with_fewer(k: int, count: int) -> None:
    places = sample_places(k, count)
    assert all(0 <= place < count for place in places)
    assert sample_places(MAX_SAMPLES, count)[:k] == places


def test_an_answer_holds_the_values_of_its_own_item() -> None:
    output = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    one = TensorSamples(output="y", k=4)
    assert one.reference(output)[0].flags.c_contiguous
    said = base64.b64decode(str(answered(one, output[1:])))
    assert np.frombuffer(said, "<f4").tolist() == [35.0 + place for place in sample_places(4, 35)]
    assert len(str(answered(TensorSamples(output="y"), output))) == 32, "bytes on the wire"


def test_what_is_no_number_is_no_answer() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(OperationError, match="not a number"):
            answered(TensorSamples(output="y"), np.full((1, 9), bad, dtype=np.float32))


def test_drift_is_in_millionths_of_the_samples_own_size() -> None:
    assert samples_drift_ppm(samples(3, 4), samples(3, 4)) == samples_drift_ppm(samples(0, 0), samples(0, 0)) == 0
    assert samples_drift_ppm(samples(1000, -1000), samples(1001, -1001)) == pytest.approx(1000, rel=1e-3)
    assert samples_drift_ppm(samples(5, 6), samples(-5, -6)) == pytest.approx(2e6)


@given(*[st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8)] * 2)
def test_drift_is_the_same_either_way_round(one: list[float], other: list[float]) -> None:
    there, back = (samples_drift_ppm(samples(*left), samples(*right)) for left, right in ((one, other), (other, one)))
    assert there == back
    assert there >= 0
    assert (there == math.inf) >= (len(one) != len(other))


@pytest.mark.parametrize(
    "bad", [None, 7, [1.0], {}, "", "AAA", "AA==", "x" * 10_000, "ä", samples(float("nan")), samples(float("inf"), 1)]
)
def test_what_is_no_sample_is_infinitely_far(bad: object) -> None:
    assert samples_drift_ppm(bad, samples(1)) == samples_drift_ppm(samples(1), bad) == math.inf
    assert samples_drift_ppm(bad, bad) == math.inf


@given(st.binary(max_size=24), st.binary(max_size=24))
def test_any_bytes_are_compared(one: bytes, other: bytes) -> None:
    assert samples_drift_ppm(*(base64.b64encode(each).decode() for each in (one, other))) >= 0


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OperationError, match="not an output of int32"):
        TensorSamples(output="y").results(TensorSpec("int32", (99,)))
    with pytest.raises(OperationError, match=r"`\$.k`"):
        operation("tensor_samples", {"output": "y", "k": 65})
