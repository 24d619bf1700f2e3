"""The pipeline in this process, with the real model: buckets, company, failures and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from agent.errors import PackageError
from agent.package import Bucket, Manifest, OpCall, Package, open_package
from agent.worker.answers import Answer
from agent.worker.executor import Executor, ExecutorError
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from agent.worker.results import canonical, check_golden, golden_items, slice_done
from hil.images import accuracy, drawn_lines
from tests.inference.desk import rewrite_manifest
from tests.inference.test_images import encoded


@pytest.fixture(scope="module")
def engine(ocr_package: Package) -> OnnxRuntimeCpu:
    return OnnxRuntimeCpu(ocr_package.read("model.onnx"), threads=1, memory_mb=1024)


class Watched:
    """The real engine, with a record of what it was given and gave."""

    name = "watched"
    device = "test"

    def __init__(self, engine: Executor) -> None:
        self.engine = engine
        self.batches: list[NDArray[np.float32]] = []
        self.outputs: list[NDArray[np.float32]] = []

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(batch)
        self.outputs.append(self.engine.run(batch))
        return self.outputs[-1]


def answers(pipeline: Pipeline, items: list[bytes]) -> list[Answer]:
    given = dict(pair for step in pipeline.steps(items) for pair in step)
    assert sorted(given) == list(range(len(items)))
    return [given[place] for place in range(len(items))]


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
    first, second = (output[0] for output in watched.outputs)
    pieces = (b"float32[20,18710]\n" + first.tobytes(), b"none[]\n", b"float32[40,18710]\n" + second.tobytes())
    assert done.raw_sha256 == hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()
    assert (done.raw_dtype, done.raw_shape) == ("float32", (-1, 18710))
    assert done.output_sha256 == hashlib.sha256(done.output).hexdigest()
    assert json.dumps(json.loads(done.output), separators=(",", ":"), sort_keys=True).encode() == done.output


def test_a_slice_of_failures_has_no_raw_shape(ocr_package: Package, engine: OnnxRuntimeCpu) -> None:
    done = slice_done(0, answers(Pipeline(ocr_package, engine), [b"junk"]), 0)
    assert (done.raw_dtype, done.raw_shape, done.failed_items) == ("none", (), 1)


def test_output_is_ascii_whatever_was_read() -> None:
    assert canonical([Answer({"text": "é¥", "confidence_permille": 1}, b"")]) == (
        rb'[{"confidence_permille":1,"text":"\u00e9\u00a5"}]'
    )


def test_calibration_keeps_micro_batches_short(ocr_package: Package) -> None:
    class Slow:
        """An engine that takes 6 ms for an item, by its own account."""

        name = device = "slow"

        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            now_s[0] += 0.006 * len(batch)
            return np.zeros((len(batch), 4, 18710), dtype=np.float32)

    now_s = [0.0]
    pipeline = Pipeline(with_buckets(ocr_package, (1, 160), (2, 160), (3, 160), (4, 160), (8, 320)), Slow())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.worker.pipeline.time.perf_counter", lambda: now_s[0])
        latencies_ms = list(pipeline.calibrate())
    assert latencies_ms == pytest.approx([18.0, 48.0])
    assert pipeline._batch_items == {160: 3, 320: 8}


def changed(**fields: object) -> Callable[[Manifest], Manifest]:
    return lambda manifest: msgspec.structs.replace(manifest, **fields)


@pytest.mark.parametrize(
    ("stage", "calls", "message"),
    [
        ("pre", [OpCall(op="sharpen")], "pipeline.pre: no operation is called 'sharpen'"),
        ("pre", [OpCall(op="resize_normalize_pad", params={"depth": 1})], "unknown field `depth`"),
        ("pre", [OpCall(op="ctc_greedy_decode", params={"characters": "c"})], "does not lead from images to text"),
        ("post", [OpCall(op="ctc_greedy_decode", params={"characters": "other.txt"})], "other.txt is used but not"),
        ("post", [OpCall(op="ctc_greedy_decode", params={"characters": "model.onnx"})], "is not UTF-8 text"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(
    ocr_package: Package, engine: OnnxRuntimeCpu, stage: str, calls: list[OpCall], message: str
) -> None:
    pipeline = msgspec.structs.replace(ocr_package.manifest.pipeline, **{stage: tuple(calls)})
    manifest = msgspec.structs.replace(ocr_package.manifest, pipeline=pipeline)
    with pytest.raises(PackageError, match=message):
        Pipeline(Package(ocr_package.path, manifest, b"", None), engine)


def test_a_character_list_that_does_not_fit_the_model_is_refused(ocr_copy: Path, engine: OnnxRuntimeCpu) -> None:
    (ocr_copy / "characters.txt").write_text("a\nb\n")
    pipeline = Pipeline(rewrite_manifest(ocr_copy), engine)
    with pytest.raises(PackageError, match=r"engine output \(20, 18710\) for a list of 2 characters"):
        list(pipeline.calibrate())


def test_an_engine_that_gives_no_numbers_fails(ocr_package: Package) -> None:
    class Broken:
        name = device = "broken"

        def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.full((len(batch), 4, 18710), np.nan, dtype=np.float32)

    pipeline = Pipeline(ocr_package, Broken())
    with pytest.raises(ExecutorError, match="not a number"):
        list(pipeline.steps([black(48, 48)]))


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ExecutorError, match="does not take the model"):
        OnnxRuntimeCpu(b"not a model", threads=1, memory_mb=256)


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
