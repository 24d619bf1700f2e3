"""Fingerprints against a sort; and who agrees with whom."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import OperationError, operation
from kernels.operation import ResultOperation, TensorSpec
from kernels.tensor_fingerprint import Fingerprint, TensorFingerprint, fingerprints_agree

tensors = arrays.arrays(np.float32, st.integers(1, 300), elements=st.floats(-8, 8, width=16))


def fingerprint(tensor: NDArray[np.float32], k: int) -> Fingerprint:
    indices, values = TensorFingerprint(output="y", k=k).reference(tensor[None])
    return Fingerprint(tuple(indices[0].tolist()), tuple(values[0].tolist()))


@given(tensors, st.data())
def test_is_a_stable_sort_by_magnitude(tensor: NDArray[np.float32], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(tensor.size, 128)))
    expected = sorted(sorted(range(tensor.size), key=lambda index: (-abs(float(tensor[index])), index))[:k])
    found = fingerprint(tensor, k)
    assert found.indices == tuple(expected)
    assert found.values == tuple(tensor[expected].tolist())


def test_what_is_no_number_comes_first_and_is_no_answer() -> None:
    output = np.array([[1, np.inf, 3, np.nan, -np.inf]], dtype=np.float32)
    one = TensorFingerprint(output="y", k=3)
    results = tuple(each[0] for each in one.reference(output))
    assert results[0].tolist() == [1, 3, 4]
    answer = one.answerer(lambda name: name.encode(), TensorSpec("float32", (5,)))
    with pytest.raises(OperationError, match="not a number"):
        answer(results)


def test_an_answer_reads_back_exactly() -> None:
    output = np.array([[[0.1, -7.3], [1e-30, 3.25]]], dtype=np.float32)
    one = TensorFingerprint(output="y", k=2)
    answer = one.answerer(lambda name: name.encode(), TensorSpec("float32", (2, 2)))
    text = json.dumps(answer(tuple(each[0] for each in one.reference(output))))
    assert text == '{"fingerprint": {"indices": [1, 3], "values": [-7.3, 3.25]}}'


@given(tensors, st.integers(0, 200), st.data())
def test_honest_work_within_the_tolerance_always_agrees(
    tensor: NDArray[np.float32], tolerance_permille: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(tensor.size, 128)))
    # d counts from the largest magnitude of both; with 1/2 of it here, rounding the sum cannot take it over the bound.
    d = float(abs(tensor).max()) * tolerance_permille / 1000 / 2
    noise = data.draw(arrays.arrays(np.float32, tensor.shape, elements=st.floats(-1, 1, width=32)))
    other = (tensor + noise * np.float32(d)).astype(np.float32)
    assert fingerprints_agree(fingerprint(tensor, k), fingerprint(other, k), tolerance_permille)
    assert fingerprints_agree(fingerprint(other, k), fingerprint(tensor, k), tolerance_permille)


@pytest.mark.parametrize("seed", range(20))
def test_another_tensor_does_not_agree(seed: int) -> None:
    random = np.random.default_rng(seed)
    tensor, other = random.standard_normal((2, 20_000)).astype(np.float32)
    quantised = (tensor * 2).round() / 2
    for wrong in (other, tensor[::-1], -tensor, tensor * np.float32(1.1), quantised):
        assert not fingerprints_agree(fingerprint(tensor, 64), fingerprint(wrong, 64), tolerance_permille=20)


def test_strays_are_counted() -> None:
    mine = Fingerprint((1, 5, 9), (10.0, -8.0, 6.0))
    theirs = Fingerprint((1, 5, 9), (10.0, -7.0, 6.0))
    assert not fingerprints_agree(mine, theirs, 50)
    assert fingerprints_agree(mine, theirs, 50, strays=1)
    assert fingerprints_agree(mine, theirs, 100)


def test_a_place_near_the_cut_may_differ_and_one_far_above_may_not() -> None:
    mine = Fingerprint((1, 5, 9), (10.0, -8.0, 6.0))
    assert fingerprints_agree(mine, Fingerprint((1, 5, 7), (10.0, -8.0, 6.1)), 50)
    assert not fingerprints_agree(mine, Fingerprint((1, 5, 7), (10.0, -8.0, 7.9)), 50)
    assert not fingerprints_agree(mine, Fingerprint((1, 7, 9), (10.0, 6.1, 6.0)), 50)


@pytest.mark.parametrize(
    "theirs",
    [
        Fingerprint((), ()),
        Fingerprint((1, 5), (10.0, -8.0)),
        Fingerprint((1, 5, 9), (10.0, -8.0)),
        Fingerprint((1, 1, 1), (10.0, 10.0, 10.0)),
        Fingerprint((1, 5, 9), (10.0, float("nan"), 6.0)),
        Fingerprint((1, 5, 9), (float("inf"), -8.0, 6.0)),
    ],
)
def test_what_is_no_fingerprint_never_agrees(theirs: Fingerprint) -> None:
    mine = Fingerprint((1, 5, 9), (10.0, -8.0, 6.0))
    assert not fingerprints_agree(mine, theirs, 1000, strays=99)
    assert not fingerprints_agree(theirs, mine, 1000, strays=99)
    assert not fingerprints_agree(theirs, theirs, 1000, strays=99) or theirs == Fingerprint((1, 5), (10.0, -8.0))


@given(st.integers(1, 128), st.integers(1, 2**31 - 1), st.integers(1, 64))
def test_both_launches_read_about_equally_many_keys(k: int, count: int, items: int) -> None:
    one: ResultOperation = TensorFingerprint(output="y", k=min(k, count))
    spec = TensorSpec("float32", (count,))
    assert one.results(spec) == (TensorSpec("int32", (min(k, count),)), TensorSpec("float32", (min(k, count),)))
    look, select = one.launches(items, spec)
    groups = one.scratch_bytes(items, spec) // items // 8
    assert 0 <= look.grid[0] * 8 - groups < 8
    assert select.grid == (items, 1, 1)
    assert groups <= max(4 * (count * 128) ** 0.5, 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("int32", (99,)), "not an output of int32"),
        (TensorSpec("float32", (3, 3)), "k = 64 for an output of 9 values"),
        (TensorSpec("float32", (0, 3)), "cannot read an output of shape"),
        (TensorSpec("float16", (2**31,)), "at most 2147483647 values"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(spec: TensorSpec, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        TensorFingerprint(output="y").results(spec)


def test_the_output_must_be_named() -> None:
    with pytest.raises(OperationError, match=r"`\$.output`"):
        operation("tensor_fingerprint", {"output": ""})
