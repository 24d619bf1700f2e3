"""Whether two answers are the same, who of several is wrong, and which jobs are checked: the pure parts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust.statement import Engine
from hil.dispatcher.replication import (
    RAREST_CHECK,
    AdaptiveReplication,
    ByClassOrValue,
    ClassRecord,
    SliceResult,
    drawn,
    judge_results,
    odd_ones,
)
from hil.dispatcher.tolerance import Agreement, Tolerance, claimed_precision, compare_slices, judge_strays

OCR = Tolerance(values_permille=20, strays_permille=20)
Line = tuple[str, int]


def body(*lines: Line) -> bytes:
    return json.dumps([{"text": text, "confidence_permille": confidence} for text, confidence in lines]).encode()


def said(answer: str, unit: str = "u", kind: str = "c", raw: str = "", *, reference: bool = False) -> SliceResult:
    return SliceResult(
        unit=unit,
        equivalence_class=kind,
        output_sha256=answer,
        raw_sha256=raw or answer,
        answers=lambda: body((answer, 990)),
        reference=reference,
    )


def by_text(one: SliceResult, other: SliceResult) -> Agreement:
    return Agreement.SAME if one.answers() == other.answers() else Agreement.DIFFERENT


def test_confidences_may_differ_and_texts_may_not() -> None:
    assert compare_slices(body(("a", 980), ("b", 7)), body(("a", 961), ("b", 27)), OCR) is Agreement.SAME
    exact = Tolerance(values_permille=20)
    assert compare_slices(body(("a", 980)), body(("a", 959)), exact) is Agreement.DIFFERENT
    assert compare_slices(body(("a", 980)), body(("b", 980)), exact) is Agreement.DIFFERENT


def test_an_item_without_an_answer_has_none_in_whichever_words() -> None:
    exact = Tolerance()
    assert compare_slices(b'[{"error": "cannot"}]', b'[{"error": "no image"}]', exact) is Agreement.SAME
    assert compare_slices(b'[{"error": "cannot"}]', body(("a", 1)), exact) is Agreement.DIFFERENT


def test_what_honest_rounding_may_do_condemns_nobody_and_what_it_never_does_does() -> None:
    assert judge_strays(1, 4, 20) is Agreement.SAME
    assert judge_strays(2, 4, 20) is Agreement.UNKNOWN
    assert judge_strays(4, 4, 20) is Agreement.DIFFERENT
    assert judge_strays(1, 1, 20) is Agreement.UNKNOWN, "one item alone tells nothing"
    assert judge_strays(2, 100, 20) is Agreement.SAME
    assert judge_strays(20, 100, 20) is Agreement.DIFFERENT
    assert judge_strays(1, 100, 0) is Agreement.DIFFERENT


BANDS = Tolerance(values_permille=20, strays_permille=20, bands_ppm={"float32": 200, "float16": 40_000, "int8": 0})


def sampled(drift_ppm: float, items: int = 4) -> bytes:
    """Answers with samples that are so far from those with no drift."""
    values = np.array([10.0, -10.0]) * (1 + drift_ppm / 1e6)
    samples = base64.b64encode(values.astype("<f4").tobytes()).decode()
    return json.dumps([{"text": "a", "confidence_permille": 990, "samples": samples}] * items).encode()


def test_samples_are_held_to_the_band_of_what_both_claim() -> None:
    def compared(drift_ppm: float, *claimed: str) -> Agreement:
        return compare_slices(sampled(0), sampled(drift_ppm), BANDS, (claimed[0], claimed[1]))

    assert compared(20, "float32", "float32") is Agreement.SAME
    assert compared(1_000, "float32", "float32") is Agreement.DIFFERENT, "half precision sold as full"
    assert compared(1_000, "float32", "float16") is compared(1_000, "float16", "float32") is Agreement.SAME
    assert compared(100_000, "float16", "float16") is Agreement.DIFFERENT
    assert compared(1_000, "", "") is compared(1_000, "", "float32") is Agreement.DIFFERENT, "untold is full"
    assert compared(1_000, "tf32", "float32") is Agreement.DIFFERENT, "nobody may claim what is not allowed"
    assert compared(100_000, "int8", "float32") is Agreement.SAME, "of int8 nobody knows the band"


def test_few_items_beyond_the_band_condemn_nobody() -> None:
    def compared(beyond: int) -> Agreement:
        items = [*json.loads(sampled(1_000, beyond)), *json.loads(sampled(0, 4 - beyond))]
        return compare_slices(sampled(0), json.dumps(items).encode(), BANDS, ("float32", "float32"))

    said = [compared(beyond) for beyond in range(5)]
    same, unknown, different = Agreement.SAME, Agreement.UNKNOWN, Agreement.DIFFERENT
    assert said == [same, same, unknown, different, different]


def test_who_leaves_the_samples_out_has_other_answers() -> None:
    without = body(*[("a", 990)] * 4)
    assert compare_slices(sampled(0), without, BANDS) is Agreement.DIFFERENT
    assert compare_slices(without, without, BANDS) is Agreement.SAME, "a package of before"
    nonsense = json.dumps([{"text": "a", "confidence_permille": 990, "samples": []}] * 4).encode()
    assert compare_slices(sampled(0), nonsense, BANDS, ("float32", "float32")) is Agreement.DIFFERENT


@pytest.mark.parametrize(
    ("executor", "told", "claimed"),
    [
        ("onnxruntime_cpu", None, ""),
        ("tensorrt", None, "tf32"),
        ("tensorrt_rtx", None, "tf32"),
        ("tensorrt", "float32", "float32"),
        ("onnxruntime_cpu", "float16", "float16"),
    ],
)
def test_what_is_not_told_is_what_such_agents_did(executor: str, told: str | None, claimed: str) -> None:
    batch = None if told is None else (1,)
    engine = Engine(
        executor=executor, version="1", plan_sha256="", kernels_sha256="0b" * 32, precision=told, batch=batch
    )
    assert claimed_precision(engine) == claimed


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_two_bytes_compare_the_same_either_way(one: bytes, other: bytes) -> None:
    assert compare_slices(one, other, OCR) is compare_slices(other, one, OCR)


@given(
    st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3), st.lists, max_leaves=5)
)
def test_whatever_stands_in_an_answer_it_is_compared(value: object) -> None:
    mine = json.dumps([{"fingerprint": value, "mask": value, "x_permille": value, "samples": value}]).encode()
    theirs = json.dumps([{"fingerprint": [value], "mask": {"rows": value}, "x_permille": 3}]).encode()
    assert compare_slices(mine, theirs, OCR) is not Agreement.SAME


def test_nesting_beyond_reason_agrees_with_nothing() -> None:
    deep = b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"
    assert compare_slices(deep, deep, OCR) is Agreement.DIFFERENT


def test_digests_decide_inside_a_class_only() -> None:
    rule, one = ByClassOrValue(), said("a", kind="x")
    assert rule.compare(one, said("b", kind="x"), None) is Agreement.DIFFERENT
    assert rule.compare(one, said("b", kind="y"), None) is Agreement.UNKNOWN
    assert rule.compare(one, said("b", kind=""), None) is Agreement.UNKNOWN
    assert rule.compare(one, said("a", kind="y"), None) is Agreement.SAME


@given(st.lists(st.sampled_from("rrrwxy"), min_size=2, max_size=5))
def test_nobody_is_outvoted_but_by_a_majority_that_agrees(answers: list[str]) -> None:
    judged = judge_results([said(one) for one in answers], by_text)
    most = max(set(answers), key=answers.count)
    if 2 * answers.count(most) > len(answers) and answers.count(most) > 1:
        assert judged.upheld == {place for place, one in enumerate(answers) if one == most}
        assert judged.outvoted == set(range(len(answers))) - judged.upheld
    else:
        assert not judged.settled
        assert not judged.outvoted


@given(st.lists(st.sampled_from("rwx"), max_size=4))
def test_the_operators_own_result_outvotes_any_number(answers: list[str]) -> None:
    judged = judge_results([*(said(one) for one in answers), said("r", reference=True)], by_text)
    assert judged.outvoted == {place for place, one in enumerate(answers) if one != "r"}


def test_who_stands_between_two_is_not_outvoted() -> None:
    def near(one: SliceResult, other: SliceResult) -> Agreement:
        apart = abs(int(one.output_sha256) - int(other.output_sha256))
        return Agreement.SAME if apart <= 1 else Agreement.DIFFERENT

    assert not judge_results([said("1"), said("2"), said("3")], near).outvoted
    judged = judge_results([said("1"), said("1"), said("1"), said("2"), said("3")], near)
    assert judged.outvoted == frozenset() or 3 not in judged.outvoted


def test_bits_are_odd_where_a_class_repeats_itself_and_nowhere_else() -> None:
    three = [said("a", raw="1"), said("a", raw="1"), said("a", raw="2")]
    everybody = frozenset({0, 1, 2})
    assert odd_ones(three, everybody, {"c": ClassRecord(100, 1)}).odd == {2}
    assert odd_ones(three, everybody, {"c": ClassRecord(100, 50)}).odd == frozenset()
    assert odd_ones(three, everybody, {}).odd == frozenset()
    assert odd_ones(three[1:], frozenset({0, 1}), {"c": ClassRecord(100, 1)}).unclear == "c", "a third is asked"


def checks_without_end(share: Callable[[int], float]) -> bool:
    return all(1.0 >= share(valid) >= 1 / RAREST_CHECK for valid in (*range(100), 10**4, 10**9))


def test_checks_never_end_and_a_rule_whose_checks_do_is_found() -> None:
    assert checks_without_end(AdaptiveReplication().share)
    assert not checks_without_end(lambda valid: 1.0 if valid < 10 else 1 / valid)
    assert not checks_without_end(lambda valid: 1.0 if valid < 10 else 0.0)


@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_a_draw_follows_from_secret_and_statement(sha256: str) -> None:
    assert 0 <= drawn("secret", sha256) < 1
    assert drawn("secret", sha256) == drawn("secret", sha256)
    assert drawn("secret", sha256) != drawn("another", sha256)


def test_draws_are_even() -> None:
    draws = [drawn("secret", f"{number:064x}") for number in range(2000)]
    assert 0.08 < sum(draw < 0.1 for draw in draws) / 2000 < 0.12
