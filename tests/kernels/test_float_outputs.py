"""The order of values that every kernel shares, against Python's own comparisons."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from kernels import OperationError
from kernels.float_outputs import largest, magnitude_ranks, permille, ranks, read_lines

ODD = np.array([0.0, -0.0, 1e-45, -1e-45, 1.5, -1.5, 3e38, -3e38, np.inf, -np.inf], dtype=np.float32)
floats = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32))


def test_ranks_order_as_numbers_do() -> None:
    rank = ranks(ODD)
    for a, b in itertools.product(range(len(ODD)), repeat=2):
        assert (rank[a] < rank[b]) == (ODD[a] < ODD[b])
        assert (rank[a] == rank[b]) == (ODD[a] == ODD[b])


def test_magnitudes_order_as_numbers_do() -> None:
    rank = magnitude_ranks(ODD)
    for a, b in itertools.product(range(len(ODD)), repeat=2):
        assert (rank[a] < rank[b]) == (abs(ODD[a]) < abs(ODD[b]))


def test_what_is_not_a_number_is_above_all_and_all_of_it_is_equal() -> None:
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], dtype=np.uint32)
    for rank in (ranks, magnitude_ranks):
        assert set(rank(bits.view(np.float32)).tolist()) == {0xFFFFFFFF}
        assert rank(np.array([np.inf], dtype=np.float32))[0] < 0xFFFFFFFF


@given(floats, st.data())
def test_the_largest_are_those_of_a_stable_sort(values: NDArray[np.float32], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.size))

    def place(index: int) -> tuple[bool, float, int]:
        value = float(values[index])
        return (not math.isnan(value), 0.0 if math.isnan(value) else -value, index)

    assert largest(ranks(values[None]), k)[0].tolist() == sorted(range(values.size), key=place)[:k]


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 0), (0.0004, 0), (0.0005, 1), (0.5, 500), (0.9995, 1000), (1.2, 1000), (-3, 0)]
)
def test_shares_in_thousandths(share: float, expected: int) -> None:
    assert permille(share) == expected


@pytest.mark.parametrize("share", [math.nan, math.inf, -math.inf])
def test_no_number_is_no_share(share: float) -> None:
    with pytest.raises(OperationError, match="not a number"):
        permille(share)


def test_lines_of_a_text_file() -> None:
    assert read_lines("a\n é \n\n".encode(), "x") == ["a", " é ", ""]
