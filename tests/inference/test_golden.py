"""When an answer counts as the golden one: equal, but for what rounds differently from engine to engine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import PackageError
from agent.package import Golden, Limits, Manifest, OpCall, Package, PipelineSpec
from agent.worker.answers import Answer
from agent.worker.results import check_golden

TOLERANCE = 10


class Shelved(Package):
    """A package whose golden answers are given."""

    expected: list[dict[str, Any]]

    def read(self, name: str) -> bytes:
        assert name == "out"
        return json.dumps(self.expected).encode()


def agrees(answer: dict[str, Any], wanted: dict[str, Any], precision: str = "float32") -> bool:
    call = (OpCall(op="tensor_values"),)
    manifest = Manifest(
        v=1,
        name="made",
        version="1",
        input="tensor",
        model="model.onnx",
        pipeline=PipelineSpec(pre=call, engine="onnx", post=call),
        buckets=(),
        golden=Golden(input="in", expected="out", tolerance_permille=TOLERANCE),
        limits=Limits(max_item_bytes=1000, max_items=10, memory_mb=64),
        precisions={"float32": 100, "tf32": 5_000, "float16": 0},
        files={},
    )
    package = Shelved(Path("made"), manifest, b"", None)
    object.__setattr__(package, "expected", [wanted])
    try:
        check_golden(package, [Answer(answer, b"")], precision)
    except PackageError:
        return False
    return True


def mask(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    rows, columns = pixels.shape
    bits = base64.b64encode(np.packbits(pixels, axis=1).tobytes()).decode()
    return {"mask": {"rows": rows, "columns": columns, "bits": bits}}


def test_what_is_not_rounded_has_to_be_equal() -> None:
    equal: tuple[dict[str, Any], ...] = (
        {"text": "a"},
        {"error": "no"},
        {"outputs": {"y": [1, 2]}},
        {"outputs": {"y": "NaN"}},
        {"n": None},
    )
    assert all(agrees(one, one) for one in equal)
    different: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"text": "a"}, {"text": "b"}),
        ({"text": "a"}, {"text": "a", "more": 1}),
        ({"text": "1"}, {"text": 1}),
        ({"n": True}, {"n": 1}),
        ({"outputs": {"y": [1, 2]}}, {"outputs": {"y": [1, 3]}}),
        ({"outputs": {"y": [1, 2]}}, {"outputs": {"y": [1.0, 2.0]}}),
        ({"outputs": {"y": 1}}, {"outputs": {"y": 1.0}}),
        ({"outputs": {"y": [1.0]}}, {"outputs": {"y": 1.0}}),
    ]
    for one, other in different:
        assert not agrees(one, other)
        assert not agrees(other, one)


@pytest.mark.parametrize(("drift", "same"), [(0, True), (10, True), (-10, True), (11, False), (-11, False)])
def test_thousandths_may_drift_wherever_they_stand(drift: int, same: bool) -> None:
    assert agrees({"confidence_permille": 500 + drift}, {"confidence_permille": 500}) == same
    found = [{"label": "a", "probability_permille": 500 + drift}, {"label": "b", "probability_permille": 3}]
    wanted = [{"label": "a", "probability_permille": 500}, {"label": "b", "probability_permille": 3}]
    assert agrees({"classes": found}, {"classes": wanted}) == same
    assert not agrees({"classes": found[::-1]}, {"classes": wanted})
    assert not agrees({"classes": found[:1]}, {"classes": wanted})
    assert agrees({"scores_permille": [500 + drift, 3]}, {"scores_permille": [500, 3]}) == same
    assert not agrees({"confidence_permille": 500.0}, {"confidence_permille": 500})


def test_floats_may_drift_by_thousandths_of_the_largest() -> None:
    wanted = {"outputs": {"y": [[100.0, -1.0], [0.0, 2.0]]}}
    assert agrees({"outputs": {"y": [[100.9, -1.9], [0.9, 2.0]]}}, wanted)
    assert not agrees({"outputs": {"y": [[101.1, -1.0], [0.0, 2.0]]}}, wanted)
    assert not agrees({"outputs": {"y": [[100.0, -1.0, 0.0, 2.0]]}}, wanted)
    assert not agrees({"outputs": {"y": [[100.0, -1.0], [0.0, "NaN"]]}}, wanted)


def test_an_output_may_have_any_name() -> None:
    for name in ("mask", "fingerprint", "n_permille", "samples"):
        assert agrees({"outputs": {name: [100.0]}}, {"outputs": {name: [100.5]}})
        assert not agrees({"outputs": {name: [100.0]}}, {"outputs": {name: [102.0]}})


def test_masks_may_differ_in_thousandths_of_their_pixels() -> None:
    wanted = np.zeros((20, 25), np.uint8)
    for different, same in ((0, True), (5, True), (6, False)):
        found = wanted.copy()
        found.flat[:different] = 1
        assert agrees(mask(found), mask(wanted)) == same
    assert not agrees(mask(wanted.T), mask(wanted))
    assert not agrees({"mask": {"rows": 20, "columns": 25, "bits": "*"}}, mask(wanted))
    assert not agrees({"mask": {"rows": 20, "columns": 25, "bits": ""}}, mask(wanted))
    assert not agrees({"mask": 1}, mask(wanted))


def test_fingerprints_agree_as_their_operation_says() -> None:
    wanted = {"fingerprint": {"indices": [3, 8], "values": [100.0, -90.0]}}
    assert agrees({"fingerprint": {"indices": [3, 8], "values": [100.5, -90.5]}}, wanted)
    assert not agrees({"fingerprint": {"indices": [3, 8], "values": [100.0, -92.0]}}, wanted)
    assert not agrees({"fingerprint": {"indices": [4, 9], "values": [100.0, -90.0]}}, wanted)
    assert not agrees({"fingerprint": {"indices": [3], "values": [100.0]}}, wanted)
    assert not agrees({"fingerprint": {"indices": [3, 8], "values": "many"}}, wanted)


def samples(*values: float) -> dict[str, Any]:
    return {"samples": base64.b64encode(np.array(values, "<f4").tobytes()).decode()}


def test_samples_keep_to_the_band_of_the_precision_that_the_engine_has() -> None:
    """So an engine that computes in a lower precision than it says is refused before it has any work."""
    wanted = samples(10, -10)
    assert agrees(samples(10.0005, -10.0005), wanted)
    assert not agrees(samples(10.005, -10.005), wanted), "500 ppm for float32's 100"
    assert agrees(samples(10.005, -10.005), wanted, "tf32")
    assert not agrees(samples(10.06, -10.06), wanted, "tf32")
    assert agrees(samples(10.06, -10.06), wanted, "float16"), "no band is known: the tolerance, as for all else"
    assert not agrees(samples(10.2, -10.2), wanted, "float16")
    assert not agrees({"samples": 7}, wanted)
