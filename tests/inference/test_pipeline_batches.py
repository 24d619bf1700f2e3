"""Which answer belongs to which item: never a matter of buckets, batches, slots or pace."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.errors import PackageError
from agent.package import Bucket, Golden, Limits, Manifest, OpCall, Package, PipelineSpec
from agent.worker import pipeline as pipeline_module
from agent.worker.executor import ExecutorError, LostError, ModelTensor
from agent.worker.pipeline import Pipeline, Step
from hil.packages.tensors import item_of
from kernels.operation import Array
from tests.inference.numpy_executor import NumpyExecutor
from tests.inference.test_images import encoded

SHA = "0" * 64
ONE = item_of([np.array(1, np.int64)])
LIMITS = Limits(max_item_bytes=100_000, max_items=1000, memory_mb=64)
HEIGHT = 8


def package(kind: str, pre: Sequence[OpCall], post: Sequence[OpCall], buckets: Sequence[Bucket]) -> Package:
    """A package that is only a manifest."""
    manifest = Manifest(
        v=1,
        name="made",
        version="1",
        input="image" if kind == "image" else "tensor",
        model="model.onnx",
        pipeline=PipelineSpec(pre=tuple(pre), engine="onnx", post=tuple(post)),
        buckets=tuple(buckets),
        golden=Golden(input="in", expected="out", tolerance_permille=0),
        limits=LIMITS,
        files={"model.onnx": SHA},
    )
    return Package(Path("made"), manifest, b"", None)


def images(*buckets: tuple[int, int]) -> Package:
    shapes = [Bucket(items=items, width=width) for items, width in buckets]
    pre = [OpCall(op="resize_normalize_pad", params={"height": HEIGHT})]
    return package("image", pre, [OpCall(op="tensor_values", params={"output": "y"})], shapes)


def numbers(*items: int) -> Package:
    pre = [OpCall(op="npy_tensor", params={"input": "x", "dtype": "int64", "shape": "", "stacked": True})]
    post = [OpCall(op="tensor_values", params={"output": "y"})]
    return package("tensor", pre, post, [Bucket(items=count) for count in items])


def ink(inputs: Sequence[Array]) -> dict[str, Array]:
    """The engine for images: the brightest value of each row, and the row's width."""
    (batch,) = inputs
    brightest = batch.reshape(len(batch), -1).max(axis=1)
    return {"y": np.stack([brightest, np.full(len(batch), batch.shape[3])], axis=1).astype(np.float32)}


def image_executor(slots: int = 2) -> NumpyExecutor:
    inputs = {"x": ModelTensor("float32", (None, 3, HEIGHT, None))}
    return NumpyExecutor(ink, inputs, {"y": ModelTensor("float32", (None, 2))}, slots=slots)


def number_executor(depth: int = 1) -> NumpyExecutor:
    def double(inputs: Sequence[Array]) -> dict[str, Array]:
        return {"y": inputs[0].astype(np.int64) * 2}

    one = ModelTensor("int64", (None,))
    return NumpyExecutor(double, {"x": one}, {"y": one}, depth=depth)


def grey(level: int, columns: int) -> bytes:
    return encoded(Image.new("L", (columns, HEIGHT), level))


def expected(item: tuple[int, int] | None, widths: list[int]) -> dict[str, object]:
    if item is None:
        return {"error": "not a readable PNG or JPEG image"}
    level, columns = item
    width = next((one for one in widths if one >= columns), widths[-1])
    value = np.float32(level) * np.float32(2 / 255) - np.float32(1)
    padded = value if width == columns or columns > width else max(value, np.float32(0))
    return {"outputs": {"y": [pytest.approx(float(padded), abs=1e-5), float(width)]}}


ITEMS = st.lists(st.none() | st.tuples(st.integers(0, 255), st.integers(8, 80)), max_size=40)
BUCKETS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([16, 32, 64])), min_size=1, max_size=6, unique=True)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    items=ITEMS,
    buckets=BUCKETS,
    slots=st.integers(1, 3),
    paces=st.lists(st.booleans(), min_size=1, max_size=8),
    calibrated=st.booleans(),
    hasty=st.booleans(),
)
def test_answers_belong_to_their_items(
    *,
    items: list[tuple[int, int] | None],
    buckets: list[tuple[int, int]],
    slots: int,
    paces: list[bool],
    calibrated: bool,
    hasty: bool,
) -> None:
    executor = image_executor(slots=slots)
    pipeline = Pipeline(images(*buckets), executor)
    if calibrated:
        list(pipeline.calibrate())
    turns = iter(range(10**9))
    with pytest.MonkeyPatch.context() as patch:
        if hasty:
            patch.setattr(pipeline_module, "_STEP_S", 0.0)
            patch.setattr(pipeline_module, "_WAITING_BYTES", 2000)
        steps = pipeline.steps(
            [b"junk" if item is None else grey(*item) for item in items], lambda: paces[next(turns) % len(paces)]
        )
        pairs = [pair for step in steps for pair in step.answers]
    widths = sorted({width for _, width in buckets})
    assert sorted(place for place, _ in pairs) == list(range(len(items)))
    for place, answer in pairs:
        assert answer.body == expected(items[place], widths)
    assert all(one.in_flight <= 2 for one in executor.submitted)
    assert pipeline.idle
    assert executor.drains == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(count=st.integers(0, 70), sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True))
def test_micro_batches_are_full_but_for_the_last(count: int, sizes: list[int]) -> None:
    executor = number_executor()
    pipeline = Pipeline(numbers(*sizes), executor)
    list(pipeline.calibrate())
    executor.submitted.clear()
    answers = pipeline.compute([item_of([np.array(number, np.int64)]) for number in range(count)])
    assert [answer.body for answer in answers] == [{"outputs": {"y": number * 2}} for number in range(count)]
    largest = max(sizes)
    taken = [(one.binding.bucket.items, one.items) for one in executor.submitted]
    rest = count % largest
    assert taken == [(largest, largest)] * (count // largest) + (
        [(min(size for size in sizes if size >= rest), rest)] if rest else []
    )
    for one in executor.submitted:
        assert not one.inputs[0][one.items :].any()


def test_at_full_pace_two_are_in_flight_and_below_it_one() -> None:
    for overlap, most in ((True, 2), (False, 1)):
        executor = number_executor()
        steps = Pipeline(numbers(1), executor).steps([ONE] * 6, itertools.repeat(overlap).__next__)
        for step in steps:
            assert overlap or not step.answers or not executor.flying
        assert max(one.in_flight for one in executor.submitted) == most


def test_a_pause_leaves_nothing_in_flight() -> None:
    executor = number_executor()
    paces = iter([True] * 4 + [False] * 100)
    pipeline = Pipeline(numbers(1), executor)
    idle = [pipeline.idle for _ in pipeline.steps([ONE] * 8, lambda: next(paces))]
    assert not all(idle)
    assert all(idle[-5:])


def test_giving_up_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "_STEP_S", 0.0)
    executor = number_executor()
    steps = Pipeline(numbers(1), executor).steps([ONE] * 8)
    while len(executor.flying) < 2:
        next(steps)
    steps.close()
    assert executor.drains == 1
    assert not executor.flying


@pytest.mark.parametrize(("error", "drains"), [(ExecutorError("sparks"), 1), (LostError("gone"), 0)])
def test_an_engine_that_fails_costs_the_slice_and_not_the_next(error: ExecutorError, drains: int) -> None:
    executor = number_executor()
    good = executor.engine
    pipeline = Pipeline(numbers(1), executor)
    list(pipeline.calibrate())

    def fail(inputs: Sequence[Array]) -> dict[str, Array]:
        if inputs[0].any():
            raise error
        return dict(good(inputs))

    executor.engine = fail
    items = [item_of([np.array(number, np.int64)]) for number in (0, 1, 0, 0, 0)]
    with pytest.raises(type(error), match=str(error)):
        pipeline.compute(items)
    assert pipeline.idle
    assert executor.drains == drains
    if drains:
        executor.engine = good
        assert len(pipeline.compute(items)) == 5


@pytest.mark.parametrize(
    ("per_item_s", "depth", "drain_ms", "chosen", "micro_batch_ms"),
    [
        (0.006, 1, 60, 3, 18.0),
        (0.006, 2, 60, 1, 12.0),
        (0.006, 1, 20, 1, 6.0),
        (0.001, 1, 1000, 16, 16.0),
        (0.300, 2, 60, 1, 600.0),
    ],
)
def test_micro_batches_are_as_large_as_a_drain_has_time_for(
    per_item_s: float, depth: int, drain_ms: int, chosen: int, micro_batch_ms: float
) -> None:
    executor = number_executor(depth=depth)
    executor.engine_s = lambda items: per_item_s * items
    pipeline = Pipeline(numbers(1, 2, 3, 4, 16), executor, drain_ms=drain_ms)
    list(pipeline.calibrate())
    assert pipeline.micro_batch_ms == pytest.approx(micro_batch_ms)
    executor.submitted.clear()
    pipeline.compute([ONE] * 16)
    assert max(one.items for one in executor.submitted) == chosen


def test_what_takes_far_too_long_is_not_timed_at_length() -> None:
    executor = number_executor()
    executor.engine_s = lambda items: 0.01 if items == 1 else 1.0
    list(Pipeline(numbers(1, 64), executor).calibrate())
    assert [one.binding.bucket.items for one in executor.submitted] == [1] * 4 + [64]


def test_busy_time_is_the_engines() -> None:
    executor = number_executor()
    executor.engine_s = lambda items: 0.25
    steps: list[Step] = list(Pipeline(numbers(2), executor).steps([ONE] * 5))
    assert sum(step.engine_s for step in steps) == 0.75


def test_a_failing_engine_refuses_the_package() -> None:
    executor = number_executor()

    def fail(_: Sequence[Array]) -> dict[str, Array]:
        raise ExecutorError("sparks")

    executor.engine = fail
    with pytest.raises(PackageError, match="bucket of 1: sparks"):
        list(Pipeline(numbers(1), executor).calibrate())
