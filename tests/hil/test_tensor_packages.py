"""Customers' models as packages, in this process and in the real worker; and the package that does nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.errors import PackageError
from agent.inference.runner import PackageRunner
from agent.package import Bucket, Manifest, OpCall, Package, open_package
from agent.wire import SliceDone, decode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil.packages.nothing import build_nothing_package, nothing_item
from hil.packages.onnx_model import make_model
from hil.packages.tensors import build_tensor_package, inputs_of, item_of
from tests.hil.tiny_models import add_model, softmax_model, tensor
from tests.inference.desk import rewrite_manifest


def written(folder: Path, model: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model)
    return path


def run(package: Package, items: list[bytes]) -> list[dict[str, Any]]:
    engine = OnnxRuntimeCpu(package.read("model.onnx"), threads=1, memory_mb=512)
    try:
        return [answer.body for answer in Pipeline(package, engine).compute(items)]
    finally:
        engine.close()


async def in_a_worker(package: Package, items: list[bytes]) -> SliceDone:
    runner = PackageRunner(package.path, threads=1)
    try:
        await runner.open()
        runner.give(items)
        return await runner.compute()
    finally:
        await runner.close()


def test_nothing_goes_all_the_way(tmp_path: Path) -> None:
    package = build_nothing_package(tmp_path / "nothing")
    done = asyncio.run(in_a_worker(package, [nothing_item(5), b"junk", nothing_item(-(2**40))]))
    assert json.loads(done.output) == [
        {"outputs": {"y": 5}},
        {"error": "input x: not a tensor in .npy format, version 1.0"},
        {"outputs": {"y": -(2**40)}},
    ]
    assert (done.items, done.failed_items, done.raw_dtype, done.raw_shape) == (3, 1, "int64", ())
    pieces = [b"int64[]\n" + (5).to_bytes(8, "little"), b"none[]\n"]
    pieces.append(b"int64[]\n" + (-(2**40)).to_bytes(8, "little", signed=True))
    assert done.raw_sha256 == hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in pieces)).hexdigest()


def test_building_twice_gives_the_same_package(tmp_path: Path) -> None:
    first, second = (build_nothing_package(tmp_path / name) for name in ("one", "two"))
    assert first.manifest_bytes == second.manifest_bytes
    assert len(first.read("model.onnx")) < 100


def test_a_model_with_two_inputs(tmp_path: Path) -> None:
    package = build_tensor_package(written(tmp_path, add_model(None, 3), "my model.onnx"), tmp_path / "package")
    assert package.manifest.name == "my-model"
    assert [(one.input, one.dtype, one.shape, one.stacked) for one in inputs_of(package)] == [
        ("a", "float32", "3", True),
        ("b", "float32", "3", True),
    ]
    item = item_of([np.array([1, 2, 3], np.float32), np.array([0.5, 0, -3], np.float32)])
    assert run(package, [item] * 5) == [{"outputs": {"y": [1.5, 2.0, 0.0]}}] * 5


def test_items_that_are_not_stacked_go_one_by_one(tmp_path: Path) -> None:
    package = build_tensor_package(written(tmp_path, add_model(2, 2)), tmp_path / "package")
    assert package.manifest.buckets == (Bucket(items=1),)
    ones = np.ones((2, 2), np.float32)
    assert run(package, [item_of([ones, ones])] * 2) == [{"outputs": {"y": [[2.0, 2.0], [2.0, 2.0]]}}] * 2


def test_open_sizes_have_to_be_fixed(tmp_path: Path) -> None:
    model = written(tmp_path, softmax_model(None, None))
    with pytest.raises(PackageError, match=r"the size of input 'x' is open: x float32\[\?,\?\]; .*--shape x=128"):
        build_tensor_package(model, tmp_path / "one")
    package = build_tensor_package(model, tmp_path / "two", sizes={"x": (4,)})
    (answer,) = run(package, [item_of([np.zeros(4, np.float32)])])
    assert [package.manifest.pipeline.post[0].op, answer["outputs"]["y"]["shape"]] == ["tensor_digest", [4]]
    with pytest.raises(PackageError, match="has no input 'z'"):
        build_tensor_package(model, tmp_path / "three", sizes={"x": (4,), "z": (1,)})


def test_many_values_answer_with_their_digest(tmp_path: Path) -> None:
    package = build_tensor_package(written(tmp_path, softmax_model(None, 20_000)), tmp_path / "package")
    (answer,) = run(package, [item_of([np.zeros(20_000, np.float32)])])
    expected = hashlib.sha256(np.full(20_000, np.float32(1) / np.float32(20_000)).tobytes()).hexdigest()
    assert answer["outputs"]["y"] == {"dtype": "float32", "shape": [20_000], "sha256": expected}


def test_the_golden_vector_is_the_customers_where_there_is_one(tmp_path: Path) -> None:
    model = written(tmp_path, softmax_model(None, 2))
    mine = item_of([np.array([0, 0], np.float32)])
    package = build_tensor_package(model, tmp_path / "package", golden=[mine])
    assert decode_input(package.read(package.manifest.golden.input)) == [mine]
    assert json.loads(package.read(package.manifest.golden.expected)) == [{"outputs": {"y": [0.5, 0.5]}}]
    with pytest.raises(PackageError, match="golden item 0 is no good: input x"):
        build_tensor_package(model, tmp_path / "other", golden=[b"junk"])


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.501, 0.499], ""), ([0.51, 0.49], "golden vector: item 0 gave"), ([0.5], "golden vector: item 0 gave")],
)
def test_the_worker_takes_other_rounding_and_nothing_else(tmp_path: Path, values: list[float], message: str) -> None:
    mine = item_of([np.array([0, 0], np.float32)])
    package = build_tensor_package(written(tmp_path, softmax_model(None, 2)), tmp_path / "package", golden=[mine])
    (package.path / package.manifest.golden.expected).write_text(json.dumps([{"outputs": {"y": values}}]))
    changed = rewrite_manifest(package.path)
    if not message:
        assert asyncio.run(in_a_worker(changed, [mine])).failed_items == 0
        return
    with pytest.raises(PackageError, match=message):
        asyncio.run(in_a_worker(changed, [mine]))


def test_what_is_no_item_is_an_answer(tmp_path: Path) -> None:
    package = build_tensor_package(written(tmp_path, softmax_model(None, 2)), tmp_path / "package")
    good = item_of([np.zeros(2, np.float32)])
    answers = run(package, [good + b"more", good[:-1], item_of([np.zeros(2)]), b"\0" * 1000, good])
    assert [answer.get("error", "") for answer in answers] == [
        "4 bytes more than its tensors",
        "input x: a tensor of 7 bytes, not 8",
        "input x: a tensor <f8 (2,), not <f4 (2,)",
        "the item has 1000 bytes, more than 264",
        "",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"not a model", "is not a model that may run"),
        (b"", "is not a model that may run: no graph"),
        (make_model("Foo", (tensor("x", 2),), (tensor("y", 2),)), "Foo .* is not an operator of the standard"),
        (make_model("Conv", (tensor("x", 2),), (tensor("y", 2),)), "does not run: ONNX Runtime does not take"),
        (make_model("Add", (tensor("x", 2), tensor("x", 2)), (tensor("y", 2),)), "the model"),
        (make_model("Constant", (), (tensor("y", 2),)), "has no input"),
        (add_model(5_000_000), "more than 16777216"),
        (softmax_model(*([1] * 9)), "'x' has the sizes 1 x 1"),
        (make_model("Softmax", (tensor("x" * 201, 2),), (tensor("y", 2),)), "cannot be an item's"),
    ],
)
def test_a_model_that_cannot_be_a_package(tmp_path: Path, model: bytes, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        build_tensor_package(written(tmp_path, model), tmp_path / "package")


def bent(package: Package, **change: Any) -> Manifest:
    return msgspec.structs.replace(package.manifest, **change)


@pytest.mark.parametrize(
    ("stage", "calls", "message"),
    [
        ("pre", (OpCall(op="resize_normalize_pad"),), "does not lead from tensors to inputs"),
        ("post", (OpCall(op="tensor_values", params={"output": "y"}),) * 2, "two operations answer 'y'"),
        ("post", (OpCall(op="tensor_values", params={}),), "missing required field `output`"),
        ("post", (OpCall(op="tensor_values", params={"output": "z"}),), "reads the output 'z', and the model has y"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_refused(
    tmp_path: Path, stage: str, calls: tuple[OpCall, ...], message: str
) -> None:
    package = build_tensor_package(written(tmp_path, softmax_model(None, 2)), tmp_path / "package")
    pipeline = msgspec.structs.replace(package.manifest.pipeline, **{stage: calls})
    changed = Package(package.path, bent(package, pipeline=pipeline), b"", None)
    engine = OnnxRuntimeCpu(package.read("model.onnx"), threads=1, memory_mb=512)
    with pytest.raises(PackageError, match=message):
        list(Pipeline(changed, engine).calibrate())


def test_a_package_is_opened_as_strictly_as_any(tmp_path: Path) -> None:
    package = build_nothing_package(tmp_path / "nothing")
    (package.path / "model.onnx").write_bytes(add_model(2))
    with pytest.raises(PackageError, match="does not have the listed SHA-256"):
        open_package(package.path)
