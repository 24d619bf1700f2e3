from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hil.images import accuracy, drawn_lines, edit_distance, scanned_lines

words = st.text("abc", max_size=7)


def test_the_same_seed_draws_the_same_lines() -> None:
    assert drawn_lines(6, seed=1) == drawn_lines(6, seed=1)
    assert drawn_lines(6, seed=1) != drawn_lines(6, seed=2)
    assert drawn_lines(3, seed=1) == drawn_lines(6, seed=1)[:3]


def test_drawn_lines_are_lines_of_several_kinds() -> None:
    lines = drawn_lines(60, seed=0)
    assert len({line.text for line in lines}) > 50
    assert all(line.text and line.text == " ".join(line.text.split()) for line in lines)
    heights = set()
    for line in lines:
        with Image.open(io.BytesIO(line.png)) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert image.width > image.height
            heights.add(image.height)
    assert max(heights) > 1.5 * min(heights)


def test_the_scan_falls_into_its_lines() -> None:
    lines = scanned_lines()
    assert len(lines) == 7
    for line in lines:
        assert line.text is None
        with Image.open(io.BytesIO(line.png)) as image:
            assert image.width == 384
            assert 14 <= image.height <= 30


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "b", 1), ("ab", "ba", 2)],
)
def test_edit_distances_by_hand(left: str, right: str, distance: int) -> None:
    assert edit_distance(left, right) == distance


@given(words, words, words)
def test_edit_distance_is_a_metric(one: str, two: str, three: str) -> None:
    assert edit_distance(one, two) == edit_distance(two, one)
    assert (edit_distance(one, two) == 0) == (one == two)
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)
    assert abs(len(one) - len(two)) <= edit_distance(one, two) <= max(len(one), len(two))


def test_accuracy_counts_characters_over_all_lines() -> None:
    assert accuracy(["abcd", "ef"], ["abcd", "ef"]) == 1
    assert accuracy(["abcd", "efgh"], ["abxd", "efgh"]) == 1 - 1 / 8
    assert accuracy(["ab"], ["xyzxyz"]) == -2
    with pytest.raises(ValueError, match="zip"):
        accuracy(["a"], [])
