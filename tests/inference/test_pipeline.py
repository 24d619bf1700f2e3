"""The pipeline in this process, with the real model: buckets, company, failures, digests and golden answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from agent.errors import PackageError
from agent.package import Bucket, Package, open_package
from agent.worker.answers import Answer
from agent.worker.executor import Binding, ModelTensor
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.onnxruntime_slots import CpuBucket, CpuSlot
from agent.worker.pipeline import Pipeline
from agent.worker.results import canonical, check_golden, golden_items, slice_done
from hil.images import accuracy, drawn_lines
from kernels.operation import Array, OperationError
from tests.inference.desk import rewrite_manifest
from tests.inference.numpy_executor import NumpyExecutor
from tests.inference.test_images import encoded


@pytest.fixture(scope="module")
def engine(ocr_package: Package) -> Iterator[OnnxRuntimeCpu]:
    opened = OnnxRuntimeCpu(ocr_package.read("model.onnx"), threads=1, memory_mb=1024)
    yield opened
    opened.close()


class Watched:
    """The real engine, with a record of what each slot was given and gave."""

    def __init__(self, engine: OnnxRuntimeCpu) -> None:
        self.engine = engine
        self.name, self.device, self.depth, self.notes = engine.name, engine.device, engine.depth, engine.notes
        self.kernels_sha256, self.inputs, self.outputs = engine.kernels_sha256, engine.inputs, engine.outputs
        self.batches: list[Array] = []
        self.raw: list[list[tuple[Array, ...]]] = []

    def bind(self, binding: Binding) -> CpuBucket:
        bucket = self.engine.bind(binding)
        for slot in bucket.slots:
            slot.submit = partial(self._submit, slot, slot.submit)  # type: ignore[method-assign]  # to look on
            slot.results = partial(self._results, slot.results)  # type: ignore[method-assign]  # as above
        return bucket

    def _submit(self, slot: CpuSlot, submit: Callable[[int], None], items: int) -> None:
        submit(items)
        self.batches.append(slot._inputs[0].copy())

    def _results(self, results: Callable[[int], list[tuple[Array, ...]]], row: int) -> list[tuple[Array, ...]]:
        given = results(row)
        self.raw.append([tuple(one.copy() for one in result) for result in given])
        return given

    def drain(self) -> None:
        self.engine.drain()

    def wipe(self) -> None:
        self.engine.wipe()

    def close(self) -> None:
        """The engine stays open for other tests."""


def answers(pipeline: Pipeline, items: list[bytes]) -> list[Answer]:
    return pipeline.compute(items)


def with_buckets(package: Package, *buckets: tuple[int, int]) -> Package:
    shapes = tuple(Bucket(items=items, width=width) for items, width in buckets)
    manifest = msgspec.structs.replace(package.manifest, buckets=shapes)
    return Package(package.path, manifest, package.manifest_bytes, None)


def black(rows: int, columns: int) -> bytes:
    return encoded(Image.new("L", (columns, rows)))


def test_reads_what_was_drawn(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    lines = drawn_lines(15, seed=11)
    read = answers(Pipeline(ocr_package, engine), [line.png for line in lines])
    assert accuracy([line.text or "" for line in lines], [str(answer.body["text"]) for answer in read]) >= 0.95
    assert all(answer.body["confidence_permille"] in range(500, 1001) for answer in read)


def test_items_go_to_the_smallest_bucket_that_holds_them(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    watched = Watched(engine)
    pipeline = Pipeline(with_buckets(ocr_package, (1, 320), (1, 160), (1, 640)), watched)
    answers(pipeline, [black(48, 160), black(48, 161), black(24, 40), black(96, 640), black(48, 641), black(48, 9000)])
    assert [batch.shape for batch in watched.batches] == [(1, 3, 48, width) for width in (160, 320, 160, 320, 640, 640)]


def test_a_short_batch_is_filled_with_zeros(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    watched = Watched(engine)
    pipeline = Pipeline(with_buckets(ocr_package, (3, 160)), watched)
    assert len(answers(pipeline, [black(48, 160)] * 4)) == 4
    assert [batch.shape[0] for batch in watched.batches] == [3, 3]
    assert watched.batches[1][0].any()
    assert not watched.batches[1][1:].any()


def test_company_changes_an_answer_by_rounding_at_most(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    items = [line.png for line in drawn_lines(3, seed=3)]
    alone = answers(Pipeline(with_buckets(ocr_package, (1, 960)), engine), items)
    together = answers(Pipeline(with_buckets(ocr_package, (3, 960)), engine), items)
    turned = answers(Pipeline(with_buckets(ocr_package, (3, 960)), engine), items[::-1])[::-1]
    for one, other, third in zip(alone, together, turned, strict=True):
        assert one.body["text"] == other.body["text"] == third.body["text"]
        for company in (other, third):
            assert abs(int(one.body["confidence_permille"]) - int(company.body["confidence_permille"])) <= 1


def test_what_is_no_image_is_an_answer(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    good = drawn_lines(1, seed=4)[0].png
    too_long = good + b"\0" * ocr_package.manifest.limits.max_item_bytes
    read = answers(Pipeline(ocr_package, engine), [b"junk", good, too_long])
    assert [answer.failed for answer in read] == [True, False, True]
    assert read[0].body == {"error": "not a readable PNG or JPEG image"}
    assert read[2].body == {"error": f"the item has {len(too_long)} bytes, more than {2 * 1024**2}"}
    done = slice_done(5, read, 12)
    assert (done.index, done.items, done.failed_items, done.compute_ms) == (5, 3, 2, 12)


def test_digests_are_what_the_wire_says(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    watched = Watched(engine)
    items = [black(48, 160), b"junk", black(48, 320)]
    done = slice_done(0, answers(Pipeline(with_buckets(ocr_package, (1, 160), (1, 320)), watched), items), 1)
    first, second = (classes for ((classes, _), _) in watched.raw)
    pieces = [b"", b"none[]\n", b""]
    for place, ((classes, probabilities), (samples,)) in zip((0, 2), watched.raw, strict=True):
        steps = len(classes)
        pieces[place] = b"int32[%d]\n" % steps + classes.astype("<i4").tobytes()
        pieces[place] += b"float32[%d]\n" % steps + probabilities.astype("<f4").tobytes()
        pieces[place] += b"float32[6]\n" + samples.astype("<f4").tobytes()
    assert (len(first), len(second)) == (20, 40)
    assert done.raw_sha256 == hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()
    assert (done.raw_dtype, done.raw_shape) == ("mixed", ())
    assert done.output_sha256 == hashlib.sha256(done.output).hexdigest()
    assert json.dumps(json.loads(done.output), separators=(",", ":"), sort_keys=True).encode() == done.output


def test_a_slice_of_failures_has_no_raw_shape(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    done = slice_done(0, answers(Pipeline(ocr_package, engine), [b"junk"]), 0)
    assert (done.raw_dtype, done.raw_shape, done.failed_items) == ("none", (), 1)


def test_output_is_ascii_whatever_was_read() -> None:
    assert canonical([Answer({"text": "é¥", "confidence_permille": 1}, b"")]) == (
        rb'[{"confidence_permille":1,"text":"\u00e9\u00a5"}]'
    )


def test_a_character_list_that_does_not_fit_the_model_is_refused(ocr_copy: Path, engine: OnnxRuntimeCpu) -> None:
    (ocr_copy / "characters.txt").write_text("a\nb\n")
    pipeline = Pipeline(rewrite_manifest(ocr_copy), engine)
    with pytest.raises(PackageError, match=r"pipeline.post ctc_greedy_decode \(0\) cannot read .*18710.* 2 characters"):
        list(pipeline.calibrate())


def test_an_engine_that_gives_no_numbers_fails_the_slice(ocr_package: Package) -> None:
    def broken(inputs: Sequence[Array]) -> dict[str, Array]:
        return dict.fromkeys(outputs, np.full((len(inputs[0]), 4, 18710), np.nan, dtype=np.float32))

    inputs = {"x": ModelTensor("float32", (None, 3, 48, None))}
    read = [str(call.params["output"]) for call in ocr_package.manifest.pipeline.post]
    outputs = dict.fromkeys(read, ModelTensor("float32", (None, None, 18710)))
    executor = NumpyExecutor(broken, inputs, outputs)
    pipeline = Pipeline(ocr_package, executor)
    list(pipeline.calibrate())
    with pytest.raises(OperationError, match="not a number"):
        pipeline.compute([black(48, 48)])


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ('[{"text":"x","confidence_permille":990}]', "5 answers, expected 1"),
        ("[]", "at least one"),
        ("[1]", "is not a list of answers"),
        ("nonsense", "is not a list of answers"),
    ],
)
def test_golden_answers_of_the_wrong_form_are_refused(
    ocr_copy: Path, engine: OnnxRuntimeCpu, expected: str, message: str
) -> None:
    package = open_package(ocr_copy)
    given = answers(Pipeline(package, engine), golden_items(package))
    check_golden(package, given)
    (ocr_copy / "golden/expected.json").write_text(expected)
    with pytest.raises(PackageError, match=message):
        check_golden(rewrite_manifest(ocr_copy), given)


@pytest.mark.parametrize(("drift", "accepted"), [(20, True), (-20, True), (21, False), (-21, False)])
def test_golden_confidence_may_drift_by_the_tolerance(ocr_copy: Path, drift: int, accepted: bool) -> None:
    package = open_package(ocr_copy)
    expected = json.loads(package.read("golden/expected.json"))
    drifted = [body | {"confidence_permille": body["confidence_permille"] + drift} for body in expected]
    given = [Answer(body, b"") for body in drifted]
    if accepted:
        check_golden(package, given)
    else:
        with pytest.raises(PackageError, match="golden vector: item 0 gave"):
            check_golden(package, given)
