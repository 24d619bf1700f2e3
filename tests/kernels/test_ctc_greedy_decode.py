from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import OperationError
from kernels.ctc_greedy_decode import CtcGreedyDecode, Decoded, best_classes, best_path
from kernels.operation import Answerer, ResultOperation, TensorSpec


def planted(path: list[int], probability: float = 0.75, classes: int = 5) -> NDArray[np.float32]:
    """Probabilities whose likeliest class at each step is the path's."""
    rows = np.full((len(path), classes), (1 - probability) / (classes - 1), dtype=np.float32)
    rows[np.arange(len(path)), path] = probability
    return rows


def decode(probabilities: NDArray[np.float32]) -> Decoded:
    best, peaks = best_classes(probabilities)
    return best_path(best.astype(np.int64), peaks)


@pytest.mark.parametrize(
    ("path", "classes"),
    [
        ([0, 0, 0], ()),
        ([1], (1,)),
        ([1, 1, 1], (1,)),
        ([1, 0, 1], (1, 1)),
        ([0, 2, 2, 0, 0, 3, 1, 1, 0], (2, 3, 1)),
        ([4, 3, 4], (4, 3, 4)),
        ([3, 3, 0, 3, 3], (3, 3)),
    ],
)
def test_planted_paths(path: list[int], classes: tuple[int, ...]) -> None:
    decoded = decode(planted(path))
    assert decoded.classes == classes
    assert decoded.confidence == (0.75 if classes else 0.0)


def test_confidence_is_the_mean_over_the_first_step_of_each_run() -> None:
    rows = planted([1, 1, 0, 2])
    rows[0, 1], rows[1, 1], rows[2, 0], rows[3, 2] = 0.5, 1.0, 1.0, 1.0
    assert decode(rows).confidence == 0.75


def test_of_equally_likely_classes_the_lowest_wins() -> None:
    assert decode(np.full((3, 4), 0.25, dtype=np.float32)).classes == ()


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 4)])
def test_a_nan_anywhere_is_not_passed_over(place: tuple[int, int]) -> None:
    rows = planted([0, 1, 0])
    rows[place] = np.nan
    decoded = decode(rows)
    assert decoded.classes == ()
    assert np.isnan(decoded.confidence)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_is_grouping_and_dropping_blanks(path: list[int]) -> None:
    expected = tuple(index for index, _ in itertools.groupby(path) if index != 0)
    assert decode(planted(path)).classes == expected


@given(st.lists(st.integers(1, 4), max_size=20))
def test_blanks_between_all_steps_keep_every_class(path: list[int]) -> None:
    spread = [0, *itertools.chain.from_iterable((index, 0) for index in path)]
    assert decode(planted(spread)).classes == tuple(path)


def answerer(characters: bytes, classes: int) -> Answerer:
    files = {"characters.txt": characters}
    operation = CtcGreedyDecode(characters="characters.txt")
    return operation.answerer(files.__getitem__, TensorSpec("float32", (7, classes)))


def results_of(rows: NDArray[np.float32]) -> tuple[NDArray[np.generic], ...]:
    return tuple(each[0] for each in CtcGreedyDecode(characters="characters.txt").reference(rows[None]))


def test_an_answer_has_text_and_confidence() -> None:
    answer = answerer("a\né\n漢\n".encode(), 4)
    assert answer(results_of(planted([1, 1, 0, 2, 3], classes=4))) == {"text": "aé漢", "confidence_permille": 750}
    assert answer(results_of(planted([0, 0], classes=4))) == {"text": "", "confidence_permille": 0}
    assert answer(results_of(planted([2], probability=1.25, classes=4)))["confidence_permille"] == 1000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_no_text(value: float) -> None:
    rows = planted([1, 0, 2])
    rows[1, 3] = value
    with pytest.raises(OperationError, match="not a number"):
        answerer(b"a\nb\nc\nd\n", 5)(results_of(rows))


@pytest.mark.parametrize(
    ("characters", "message"),
    [(b"a\nb\n", "5 classes for a list of 2 characters"), (b"\xff\n", "characters.txt is not UTF-8 text")],
)
def test_a_list_that_does_not_fit_is_refused(characters: bytes, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        answerer(characters, 5)


def test_results_are_a_class_and_its_probability_for_each_step() -> None:
    operation: ResultOperation = CtcGreedyDecode(characters="c")
    spec = TensorSpec("float16", (40, 18_710))
    assert operation.results(spec) == (TensorSpec("int32", (40,)), TensorSpec("float32", (40,)))
    (launch,) = operation.launches(8, spec)
    assert (launch.kernel, launch.grid, operation.scratch_bytes(8, spec)) == (
        "ctc_greedy_decode_float16",
        (40, 8, 1),
        0,
    )
    best, probability = operation.reference(np.ones((8, 3, 4), dtype=np.float16))
    assert (best.dtype.name, best.shape) == ("int32", (8, 3))
    assert (probability.dtype.name, probability.shape) == ("float32", (8, 3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("float64", (3, 4)), "not an output of float64"),
        (TensorSpec("float32", (4,)), "reads steps x classes"),
        (TensorSpec("float32", (3, 1)), "reads steps x classes"),
        (TensorSpec("float32", (0, 4)), "cannot read an output of shape"),
        (TensorSpec("float32", (2**31, 2**31)), "at most 2147483647 values"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(spec: TensorSpec, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        CtcGreedyDecode(characters="c").results(spec)
