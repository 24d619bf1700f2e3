"""Where things go on the report's time axis."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from hil.record import LeaseSpan
from hil.report.layout import Band, Label, bands, gapped, lanes, lonely, place_labels, shorten, width_pt
from hil.report.palette import Tone, themed
from tests.hil.sample_run import sample

AXIS_PT = 600.0
known = st.one_of(st.none(), st.floats(0, 100))


def leases(spans: list[tuple[float, float]]) -> list[LeaseSpan]:
    return [
        LeaseSpan(
            job="j",
            epoch=1,
            start_s=start_s,
            end_s=start_s + length_s,
            outcome="finished",
            slices_done=1,
            slices_wanted=1,
            energy_wh=0,
            net=0,
        )
        for start_s, length_s in spans
    ]


def test_equal_neighbours_are_one_band() -> None:
    samples = [sample(t_s, gate=gate) for t_s, gate in ((0, "a"), (1, "a"), (2, "b"), (4, "a"), (5, "a"))]
    assert bands(samples, lambda one: one.gate) == [Band(0, 2, "a"), Band(2, 4, "b"), Band(4, 5, "a")]
    assert bands(samples[:1], lambda one: one.gate) == []


@given(st.lists(st.sampled_from("abc"), max_size=30))
def test_bands_tile_the_time_sampled(gates: list[str]) -> None:
    found = bands([sample(float(i), gate=gate) for i, gate in enumerate(gates)], lambda one: one.gate)
    assert sum(band.end_s - band.start_s for band in found) == max(0, len(gates) - 1)
    for band, following in pairwise(found):
        assert band.end_s == following.start_s
        assert band.value != following.value


@given(st.lists(known))
def test_a_gap_is_nan_and_never_zero(values: list[float | None]) -> None:
    for value, drawn in zip(values, gapped(values), strict=True):
        assert math.isnan(drawn) if value is None else drawn == value
    for i in lonely(values):
        assert values[i] is not None
        assert values[i - 1 : i] in ([], [None])
        assert values[i + 1 : i + 2] in ([], [None])


def test_lonely_values_are_found_at_the_ends_too() -> None:
    assert lonely([1.0, None, 2.0, 3.0, None, 4.0]) == [0, 5]
    assert lonely([1.0]) == [0]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 20)), max_size=12))
def test_leases_in_one_lane_do_not_overlap(spans: list[tuple[float, float]]) -> None:
    given_leases = leases(spans)
    placed = list(zip(lanes(given_leases), given_leases, strict=True))
    for (lane, one), (other_lane, other) in combinations(placed, 2):
        assert lane != other_lane or one.end_s <= other.start_s or other.end_s <= one.start_s


def strikes(label: Label, mark: float, row: int) -> bool:
    """The line to `mark` from `row` passes through the label."""
    return label.left < mark < label.right and row >= label.row


@given(st.lists(st.tuples(st.floats(0, AXIS_PT), st.text("abcM ", min_size=1, max_size=44)), max_size=14))
def test_labels_cover_neither_each_other_nor_each_others_lines(wanted: list[tuple[float, str]]) -> None:
    wanted.sort()
    placed = place_labels([mark for mark, _ in wanted], [(text, "1") for _, text in wanted], AXIS_PT, rows=6)
    labels = [label for label in placed if label]
    for one, other in combinations(labels, 2):
        assert one.row != other.row or one.right < other.left or other.right < one.left
        assert not strikes(one, other.mark, other.row)
        assert not strikes(other, one.mark, one.row)
    for label, (mark, text) in zip(placed, wanted, strict=True):
        if label:
            assert label.mark == mark
            assert label.text in {text, "1"}
            assert 0 <= label.left <= label.right <= AXIS_PT
            assert not label.left < mark < label.right


def test_a_few_moments_keep_their_whole_text() -> None:
    marks = [0.0, 110.0, 295.0, 296.0, 302.0, 590.0]
    placed = place_labels(marks, [("driver: opens a door", "1")] * 6, AXIS_PT, rows=6)
    assert [label and label.text for label in placed] == ["driver: opens a door"] * 6
    last = placed[-1]
    assert last is not None
    assert last.right < last.mark, "no room on the right"


def test_a_crowd_falls_back_to_numbers_then_to_nothing() -> None:
    marks = [300 + i / 10 for i in range(9)]
    placed = place_labels(marks, [("a long label that says a lot", "1")] * 9, AXIS_PT, rows=4)
    assert None in placed
    assert place_labels([300.0], [("x" * 400, "1")], AXIS_PT, rows=1) == [
        Label("1", 0, 300.0, 303.0, 303.0 + width_pt("1"))
    ]


def test_shortened_text_is_one_line() -> None:
    assert shorten("a\n b", 10) == "a b"
    assert shorten("abcdefgh", 5) == "abcd…"


def test_the_page_finds_every_colour_of_the_drawing() -> None:
    assert len({tone.light for tone in Tone}) == len(Tone)
    assert themed("fill: #1d2630; stroke: #123456") == "fill: var(--ink); stroke: #123456"
