from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.ctc_greedy_decode import ctc_greedy_decode


def planted(path: list[int], probability: float = 0.75, classes: int = 5) -> NDArray[np.float32]:
    """Probabilities whose likeliest class at each step is the path's."""
    rows = np.full((len(path), classes), (1 - probability) / (classes - 1), dtype=np.float32)
    rows[np.arange(len(path)), path] = probability
    return rows


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
    decoded = ctc_greedy_decode(planted(path))
    assert decoded.classes == classes
    assert decoded.confidence == (0.75 if classes else 0.0)


def test_confidence_is_the_mean_over_the_first_step_of_each_run() -> None:
    rows = planted([1, 1, 0, 2])
    rows[0, 1], rows[1, 1], rows[2, 0], rows[3, 2] = 0.5, 1.0, 1.0, 1.0
    assert ctc_greedy_decode(rows).confidence == 0.75


def test_of_equally_likely_classes_the_lowest_wins() -> None:
    assert ctc_greedy_decode(np.full((3, 4), 0.25, dtype=np.float32)).classes == ()


@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 4)])
def test_a_nan_anywhere_is_not_passed_over(place: tuple[int, int]) -> None:
    rows = planted([0, 1, 0])
    rows[place] = np.nan
    decoded = ctc_greedy_decode(rows)
    assert decoded.classes == ()
    assert np.isnan(decoded.confidence)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_is_grouping_and_dropping_blanks(path: list[int]) -> None:
    expected = tuple(index for index, _ in itertools.groupby(path) if index != 0)
    assert ctc_greedy_decode(planted(path)).classes == expected


@given(st.lists(st.integers(1, 4), max_size=20))
def test_blanks_between_all_steps_keep_every_class(path: list[int]) -> None:
    spread = [0, *itertools.chain.from_iterable((index, 0) for index in path)]
    assert ctc_greedy_decode(planted(spread)).classes == tuple(path)
