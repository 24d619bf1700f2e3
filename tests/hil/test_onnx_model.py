"""Models made and cut byte by byte are what engines read, and everything that was not meant stays as it was."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.onnx.check import Port, check_model
from agent.onnx.protobuf import fields
from hil.packages.detector import MODEL_IN_WHEEL as DETECTOR
from hil.packages.ocr import MODEL_IN_WHEEL as RECOGNISER
from hil.packages.onnx_model import make_model, metadata, with_logits, without_softmax
from hil.packages.orientation import MODEL_IN_WHEEL as CLASSIFIER
from hil.packages.recipe import model_of_wheel
from tests.hil.tiny_models import add_model, softmax_model


def run(model: bytes, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return [np.asarray(one) for one in session.run(None, {"x": x})]


@pytest.mark.parametrize("dtype", ["float32", "int16", "int64"])
def test_a_made_model_is_read_by_the_guard_and_by_an_engine(dtype: str) -> None:
    model = add_model(None, 3, dtype=dtype)
    summary = check_model(model, "here")
    assert summary.inputs == (Port("a", dtype, (None, 3)), Port("b", dtype, (None, 3)))
    assert summary.outputs == (Port("y", dtype, (None, 3)),)
    assert [one.name for one in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()] == [
        "a",
        "b",
    ]
    assert model == add_model(None, 3, dtype=dtype)


def test_without_its_softmax_a_model_gives_what_the_softmax_was_given() -> None:
    whole = model_of_wheel(CLASSIFIER)
    x = np.random.default_rng(1).standard_normal((2, 3, 48, 192)).astype(np.float32)
    (probabilities,), (values,) = run(whole, x), run(without_softmax(whole, CLASSIFIER), x)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    assert np.allclose(powers / powers.sum(axis=1, keepdims=True), probabilities, atol=1e-6)
    assert not np.allclose(values.sum(axis=1), 1)


def test_with_logits_a_model_gives_both_sides_of_its_sigmoid() -> None:
    whole = model_of_wheel(DETECTOR)
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 96)).astype(np.float32)
    (alone,), (probabilities, logits) = run(whole, x), run(with_logits(whole, DETECTOR), x)
    assert np.array_equal(alone, probabilities)
    assert np.allclose(1 / (1 + np.exp(-logits.astype(np.float64))), probabilities, atol=1e-6)


def test_with_logits_a_model_gives_both_sides_of_its_softmax_and_reads_the_same() -> None:
    whole = model_of_wheel(RECOGNISER)
    x = np.random.default_rng(1).standard_normal((1, 3, 48, 64)).astype(np.float32)
    (alone,), (probabilities, logits) = run(whole, x), run(with_logits(whole, RECOGNISER, "Softmax"), x)
    assert np.array_equal(alone, probabilities)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    assert np.allclose(powers / powers.sum(axis=-1, keepdims=True), probabilities, atol=1e-6)


def test_only_the_graph_changes() -> None:
    whole = model_of_wheel(RECOGNISER)
    cut = without_softmax(whole, RECOGNISER)
    rest = [
        [
            (number, bytes(value) if isinstance(value, memoryview) else value)
            for number, _, value in fields(memoryview(one))
            if number != 7
        ]
        for one in (whole, cut)
    ]
    assert rest[0] == rest[1]
    assert metadata(cut, "cut") == metadata(whole, "whole")
    assert list(metadata(whole, "whole")) == ["character"]


@pytest.mark.parametrize("model", [add_model(2), b"", b"\x3a\x05abc", softmax_model(2)[:-5]])
def test_what_has_another_end_is_refused(model: bytes) -> None:
    with pytest.raises(PackageError, match="here does not end in one Softmax"):
        without_softmax(model, "here")
    with pytest.raises(PackageError, match="here does not end in one Sigmoid"):
        with_logits(softmax_model(2), "here")


def test_a_loop_of_identities_has_no_end() -> None:
    y = Port("y", "float32", (1,))
    with pytest.raises(PackageError, match="does not end in one Softmax"):
        without_softmax(make_model("Identity", [y], [y]), "here")
