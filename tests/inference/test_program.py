"""Pipelines as data: what fits a model becomes bindings, what does not is refused with the operation and the tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PackageError
from agent.package import Bucket, Golden, Limits, Manifest, OpCall, Package, PipelineSpec
from agent.worker.executor import ModelTensor
from agent.worker.program import Answering, compile_program
from kernels import OPS
from kernels.operation import Array, Json, OperationError, TensorSpec

RESIZE = OpCall(op="resize_normalize_pad", params={"height": 48})
VALUES = OpCall(op="tensor_values", params={"output": "y"})
DIGEST = OpCall(op="tensor_digest", params={"output": "y"})
LINES = ModelTensor("float32", (None, 3, 48, None))
LOGITS = ModelTensor("float32", (None, 10))
WIDE = Bucket(items=1, width=320)


def npy(name: str, shape: str = "4", *, dtype: str = "float32", stacked: bool = True) -> OpCall:
    return OpCall(op="npy_tensor", params={"input": name, "dtype": dtype, "shape": shape, "stacked": stacked})


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
        limits=Limits(max_item_bytes=1000, max_items=10, memory_mb=64),
        files={"model.onnx": "0" * 64},
    )
    return Package(Path("made"), manifest, b"", None)


def test_images_go_to_lanes_by_size_and_batches_within_them() -> None:
    buckets = [Bucket(items=items, width=width) for items, width in ((8, 320), (1, 640), (1, 160), (1, 320), (2, 320))]
    program = compile_program(package("image", [RESIZE], [VALUES], buckets), {"x": LINES}, {"y": LOGITS})
    assert [lane.row for lane in program.lanes] == [TensorSpec("float32", (3, 48, width)) for width in (160, 320, 640)]
    assert [[one.bucket.items for one in lane.bindings] for lane in program.lanes] == [[1], [1, 2, 8], [1]]
    assert [program.lane(48, columns) for columns in (1, 160, 161, 320, 641, 10_000)] == [0, 0, 1, 1, 2, 2]
    for lane in program.lanes:
        for one in lane.bindings:
            assert one.inputs == {"x": lane.row}
            assert one.stacked
            assert one.image is program.image


def test_tensors_keep_the_order_of_the_item() -> None:
    made = package("tensor", [npy("b"), npy("a", "2,2", dtype="int64")], [VALUES], [Bucket(items=3)])
    inputs = {"a": ModelTensor("int64", (None, 2, 2)), "b": ModelTensor("float32", (3, 4))}
    program = compile_program(made, inputs, {"y": LOGITS, "z": LOGITS})
    (lane,) = program.lanes
    expected = [("b", TensorSpec("float32", (4,))), ("a", TensorSpec("int64", (2, 2)))]
    assert list(lane.bindings[0].inputs.items()) == expected
    assert program.image is None


def test_items_that_are_not_stacked_have_no_batch() -> None:
    made = package("tensor", [npy("x", "4", stacked=False)], [VALUES], [Bucket(items=1)])
    program = compile_program(made, {"x": ModelTensor("float32", (4,))}, {"y": LOGITS})
    assert not program.lanes[0].bindings[0].stacked


@pytest.mark.parametrize(
    ("pre", "post", "buckets", "message"),
    [
        ([OpCall(op="sharpen")], [VALUES], [WIDE], r"pipeline\.pre: no operation is called 'sharpen'"),
        ([OpCall(op="resize_normalize_pad", params={"depth": 1})], [VALUES], [WIDE], "unknown field `depth`"),
        ([VALUES], [VALUES], [WIDE], r"pipeline\.pre tensor_values does not lead from images to one input"),
        ([RESIZE, RESIZE], [VALUES], [WIDE], "does not lead from images to one input"),
        ([npy("x")], [VALUES], [WIDE], "pipeline.pre npy_tensor does not lead from images"),
        ([RESIZE], [RESIZE], [WIDE], r"pipeline\.post resize_normalize_pad does not lead from outputs to answers"),
        ([RESIZE], [npy("x")], [WIDE], "does not lead from outputs to answers"),
        ([RESIZE], [OpCall(op="tensor_values", params={})], [WIDE], "missing required field `output`"),
        (
            [RESIZE],
            [VALUES, OpCall(op="tensor_digest", params={"output": "z"})],
            [WIDE],
            r"pipeline\.post tensor_digest \(1\) reads the output 'z', and the model has y",
        ),
        ([RESIZE], [VALUES], [Bucket(items=1)], "bucket of 1: resize_normalize_pad needs a bucket with a width"),
        ([RESIZE], [VALUES], [Bucket(items=1, width=320, height=40)], "bucket of 1, 40 high, 320 wide: .*height 48"),
        ([RESIZE], [VALUES], [WIDE, WIDE], "twice a bucket of 1, 320 wide"),
        ([RESIZE], [VALUES], [WIDE, Bucket(items=1, width=320, height=48)], "twice a bucket of 1"),
        (
            [OpCall(op="resize_normalize_pad", params={"height": 32})],
            [VALUES],
            [WIDE],
            r"the model's input 'x' is float32\[\?,3,48,\?\], and the pipeline fills float32\[1,3,32,320\]",
        ),
    ],
)
def test_image_pipelines_that_do_not_fit(
    pre: list[OpCall], post: list[OpCall], buckets: list[Bucket], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        compile_program(package("image", pre, post, buckets), {"x": LINES}, {"y": LOGITS})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"x": ModelTensor("float16", (None, 3, 48, None))},
            r"is float16\[\?,3,48,\?\], and the pipeline fills float32",
        ),
        ({"x": ModelTensor("float32", (2, 3, 48, None))}, r"is float32\[2,3,48,\?\]"),
        ({"x": ModelTensor("float32", (0, 3, 48, 320))}, r"is float32\[0,3,48,320\]"),
        ({"x": ModelTensor("float32", (None, None, None))}, r"is float32\[\?,\?,\?\]"),
        ({"x": LINES, "y": LINES}, "images fill the model's only input, and it has 2: x, y"),
        ({}, "only input, and it has 0: none"),
    ],
)
def test_models_that_do_not_take_what_the_pipeline_fills(inputs: Mapping[str, ModelTensor], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        compile_program(package("image", [RESIZE], [VALUES], [WIDE]), inputs, {"y": LOGITS})


@pytest.mark.parametrize(
    ("pre", "buckets", "message"),
    [
        ([RESIZE], [Bucket(items=1)], "does not lead from tensors to inputs"),
        ([npy("a")], [Bucket(items=1)], "fills a, and the model has the inputs a, b"),
        ([npy("a"), npy("a")], [Bucket(items=1)], "fills a, a, and the model has the inputs a, b"),
        ([npy("a"), npy("b"), npy("c")], [Bucket(items=1)], "fills a, b, c"),
        ([npy("a"), npy("b", stacked=False)], [Bucket(items=1)], "either all inputs are stacked or none is"),
        ([npy("a", stacked=False), npy("b", stacked=False)], [Bucket(items=2)], "go to the engine one by one"),
        ([npy("a"), npy("b")], [WIDE], "bucket of 1, 320 wide: tensors have a size of their own"),
        ([npy("a"), npy("b")], [Bucket(items=2), Bucket(items=2)], "twice a bucket of 2"),
        ([npy("a"), npy("b", "5")], [Bucket(items=2)], r"input 'b' is float32\[\?,4\], and .* fills float32\[2,5\]"),
        ([npy("a", dtype="int64"), npy("b")], [Bucket(items=2)], r"input 'a' is float32\[\?,4\], and .* int64\[2,4\]"),
    ],
)
def test_tensor_pipelines_that_do_not_fit(pre: list[OpCall], buckets: list[Bucket], message: str) -> None:
    inputs = {"a": ModelTensor("float32", (None, 4)), "b": ModelTensor("float32", (None, 4))}
    with pytest.raises(PackageError, match=message):
        compile_program(package("tensor", pre, [VALUES], buckets), inputs, {"y": LOGITS})


def test_an_operation_that_names_no_output_needs_there_to_be_one() -> None:
    made = package("image", [RESIZE], [OpCall(op="softmax_top_k", params={"k": 2, "softmax": True})], [WIDE])
    compile_program(made, {"x": LINES}, {"y": LOGITS})
    with pytest.raises(PackageError, match=r"softmax_top_k \(0\) names no output, and the model has 2: y, z"):
        compile_program(made, {"x": LINES}, {"y": LOGITS, "z": LOGITS})


def answering(post: Sequence[OpCall], outputs: Sequence[TensorSpec]) -> Answering:
    made = package("image", [RESIZE], post, [WIDE])
    names = {str(one.params["output"]): LOGITS for one in post}
    return Answering(compile_program(made, {"x": LINES}, names), made, outputs)


def test_parts_become_one_answer() -> None:
    third = OpCall(op="tensor_fingerprint", params={"output": "z", "k": 2})
    made = answering(
        [VALUES, OpCall(op="tensor_digest", params={"output": "z"}), third], [TensorSpec("float32", (3,))] * 3
    )
    values = np.array([1, -5, 2], np.float32)
    body = made([(values,), (values,), (np.array([1, 2], np.int32), np.array([-5, 2], np.float32))])
    assert body.keys() == {"outputs", "fingerprint"}
    assert body["outputs"].keys() == {"y", "z"}
    assert body["outputs"]["y"] == [1.0, -5.0, 2.0]
    again = made([(values,), (values,), (np.array([0, 1], np.int32), np.array([1, -5], np.float32))])
    assert body["fingerprint"] != again["fingerprint"]


def test_two_operations_with_the_same_answer_are_refused() -> None:
    spec = TensorSpec("float32", (3,))
    with pytest.raises(PackageError, match=r"pipeline\.post: two operations answer 'y'"):
        answering([VALUES, DIGEST], [spec, spec])
    top = OpCall(op="softmax_top_k", params={"k": 2, "softmax": True, "output": "y"})
    with pytest.raises(PackageError, match="two operations answer 'classes'"):
        answering([top, top], [spec, spec])


def test_an_output_that_an_operation_cannot_read_is_refused() -> None:
    top = OpCall(op="softmax_top_k", params={"k": 5, "softmax": True, "output": "y"})
    with pytest.raises(PackageError, match=r"softmax_top_k \(0\) cannot read the output float32\[3\]"):
        answering([top], [TensorSpec("float32", (3,))])
    with pytest.raises(PackageError, match=r"cannot read the output int64\[9\]"):
        answering([top], [TensorSpec("int64", (9,))])


def test_results_that_are_no_answer_are_told() -> None:
    made = answering(
        [OpCall(op="softmax_top_k", params={"k": 1, "softmax": True, "output": "y"})], [TensorSpec("float32", (3,))]
    )
    with pytest.raises(OperationError):
        made([(np.array([0], np.int32), np.array([np.nan], np.float32))])


PARAMETER = st.one_of(
    st.booleans(),
    st.integers(-3, 400),
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.just("y"),
)
CALLS = st.builds(
    OpCall,
    op=st.sampled_from([*OPS, "sharpen"]),
    params=st.dictionaries(
        st.sampled_from(
            ["height", "output", "k", "softmax", "input", "shape", "dtype", "stacked", "threshold", "labels", "x"]
        ),
        PARAMETER,
        max_size=4,
    ),
)
TENSORS = st.dictionaries(
    st.sampled_from(["x", "y", "z"]),
    st.builds(
        ModelTensor,
        st.sampled_from(["float32", "float16", "int64", "bool"]),
        st.lists(st.none() | st.integers(0, 48), max_size=5).map(tuple),
    ),
    max_size=3,
)
BUCKETS = st.builds(
    Bucket, items=st.integers(1, 256), width=st.none() | st.integers(8, 400), height=st.none() | st.integers(8, 400)
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["image", "tensor"]),
    pre=st.lists(CALLS, min_size=1, max_size=3),
    post=st.lists(CALLS, min_size=1, max_size=3),
    buckets=st.lists(BUCKETS, min_size=1, max_size=3),
    faces=st.tuples(TENSORS, TENSORS),
)
def test_whatever_a_manifest_says_it_fits_or_is_refused(
    *,
    kind: str,
    pre: list[OpCall],
    post: list[OpCall],
    buckets: list[Bucket],
    faces: tuple[dict[str, ModelTensor], dict[str, ModelTensor]],
) -> None:
    made = package(kind, pre, post, buckets)
    assert msgspec.json.decode(msgspec.json.encode(made.manifest), type=Manifest)
    try:
        program = compile_program(made, *faces)
    except PackageError:
        return
    for lane in program.lanes:
        for binding in lane.bindings:
            assert binding.inputs.keys() == faces[0].keys()
    outputs = [TensorSpec("float32", (3,))] * len(program.results)
    try:
        body: dict[str, Json] = Answering(program, made, outputs)(
            [tuple(zeros(spec) for spec in one.results(outputs[0])) for one in program.results]
        )
    except PackageError:
        return
    assert body


def zeros(spec: TensorSpec) -> Array:
    return np.zeros(spec.shape, spec.dtype)
