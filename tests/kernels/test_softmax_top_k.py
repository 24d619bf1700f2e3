"""The likeliest classes against a softmax in float64 and a stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import OperationError, operation
from kernels.operation import ResultOperation, TensorSpec
from kernels.softmax_top_k import SoftmaxTopK

FILES = {"labels.txt": b"cat\ndog\nbird\n", "odd.txt": b"\xff"}
rows = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 200)), elements=st.floats(-60, 60, width=32)
)


def answered(one: SoftmaxTopK, row: list[float]) -> object:
    output = np.array([row], dtype=np.float32)
    answer = one.answerer(FILES.__getitem__, TensorSpec("float32", output.shape[1:]))
    results = tuple(each[0] for each in one.reference(output))
    return answer(results)["classes"]


@given(rows, st.data())
def test_is_a_softmax_and_a_stable_sort(output: NDArray[np.float32], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(output.shape[1], 128)))
    best, probabilities = SoftmaxTopK(k=k, softmax=True).reference(output)
    assert (best.dtype.name, probabilities.dtype.name) == ("int32", "float32")
    exact = np.exp(output.astype(np.float64) - output.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    expected = np.argsort(-output, axis=1, kind="stable")[:, :k]
    assert (best == expected).all()
    np.testing.assert_allclose(
        probabilities.astype(np.float64), np.take_along_axis(exact, expected, axis=1), rtol=1e-5, atol=1e-30
    )


@given(rows)
def test_without_softmax_the_values_are_the_outputs(output: NDArray[np.float32]) -> None:
    best, values = SoftmaxTopK(k=1, softmax=False).reference(output)
    assert (values[:, 0] == output.max(axis=1)).all()
    assert (best[:, 0] == output.argmax(axis=1)).all()


def test_of_equal_classes_the_lowest_comes_first_and_zeros_are_equal() -> None:
    output = np.array([[0.0, 1, -0.0, 1, 0.0, 1]], dtype=np.float32)
    assert SoftmaxTopK(k=6, softmax=False).reference(output)[0].tolist() == [[1, 3, 5, 0, 2, 4]]


def test_half_precision_is_read_as_it_is() -> None:
    output = np.array([[0.1, 0.7, 0.2]], dtype=np.float16)
    best, values = SoftmaxTopK(k=2, softmax=False).reference(output)
    assert (best.tolist(), values.dtype.name) == ([[1, 2]], "float32")
    assert values.tolist() == [[float(np.float16(0.7)), float(np.float16(0.2))]]


def test_answers_name_classes_or_labels() -> None:
    plain = SoftmaxTopK(k=2, softmax=True)
    assert answered(plain, [0, 1, -1]) == [
        {"class": 1, "probability_permille": 665},
        {"class": 0, "probability_permille": 245},
    ]
    labelled = SoftmaxTopK(k=1, softmax=False, labels="labels.txt")
    assert answered(labelled, [0.1, 0.2, 1.7]) == [{"label": "bird", "probability_permille": 1000}]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_answer(value: float) -> None:
    for softmax in (True, False):
        with pytest.raises(OperationError, match="not a number"):
            answered(SoftmaxTopK(k=1, softmax=softmax), [0.0, value, 1.0])


def test_labels_must_fit() -> None:
    read = FILES.__getitem__
    with pytest.raises(OperationError, match="4 classes for a list of 3 labels"):
        SoftmaxTopK(k=1, softmax=True, labels="labels.txt").answerer(read, TensorSpec("float32", (4,)))
    with pytest.raises(OperationError, match=r"odd\.txt is not UTF-8 text"):
        SoftmaxTopK(k=1, softmax=True, labels="odd.txt").answerer(read, TensorSpec("float32", (4,)))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1, 1), (1, 1, 5)])
def test_a_row_may_have_axes_of_one(shape: tuple[int, ...]) -> None:
    one: ResultOperation = SoftmaxTopK(k=5, softmax=True)
    spec = TensorSpec("float16", shape)
    assert one.results(spec) == (TensorSpec("int32", (5,)), TensorSpec("float32", (5,)))
    assert one.reference(np.zeros((2, *shape), dtype=np.float16))[0].shape == (2, 5)
    assert [launch.kernel for launch in one.launches(3, spec)] == [
        "softmax_top_k_groups_float16",
        "softmax_top_k_float16",
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("int64", (9,)), "float32 or float16, not an output of int64"),
        (TensorSpec("float32", (3, 3)), "one row of classes"),
        (TensorSpec("float32", (2,)), "k = 3 for an output of 2 classes"),
        (TensorSpec("float32", ()), "one row of classes"),
        (TensorSpec("float32", (0,)), "cannot read an output of shape"),
        (TensorSpec("float32", (-4, -4)), "cannot read an output of shape"),
        (TensorSpec("float32", (2**20 + 1,)), "at most 1048576 classes"),
        (TensorSpec("float32", (2**40,)), "at most 2147483647 values"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(spec: TensorSpec, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        SoftmaxTopK(k=3, softmax=True).results(spec)


@given(st.integers(1, 256), st.integers(1, 2**20))
def test_scratch_holds_every_group(items: int, classes: int) -> None:
    one, spec = SoftmaxTopK(k=1, softmax=True), TensorSpec("float32", (classes,))
    look, select = one.launches(items, spec)
    groups = one.scratch_bytes(items, spec) // items // 12
    assert 0 <= groups * 256 - classes < 256
    assert 0 <= look.grid[0] * 8 - groups < 8
    assert (look.grid[1:], select.grid) == ((items, 1), (items, 1, 1))


@pytest.mark.parametrize("k", [0, 129, "5"])
def test_k_is_bounded(k: object) -> None:
    with pytest.raises(OperationError, match=r"`\$.k`"):
        operation("softmax_top_k", {"k": k, "softmax": True})
