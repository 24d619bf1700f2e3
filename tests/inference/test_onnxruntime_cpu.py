"""The ONNX Runtime executor by itself: shapes, slots, draining, wiping, and engines that fail."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from agent.package import Bucket
from agent.worker.executor import Binding, Executor, ExecutorError, ModelTensor
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.onnxruntime_slots import CpuSlot
from kernels import operation
from kernels.operation import ResultOperation, TensorSpec
from tests.onnx.writing import GOOD, block, integers, model, node, tensor, value

SLOW_STEPS = 4000


def graph(*nodes: bytes, inputs: Sequence[bytes], outputs: Sequence[bytes], weights: Sequence[bytes] = ()) -> bytes:
    """A model with these inputs and outputs."""
    parts = [(1, nodes), (5, weights), (11, inputs), (12, outputs)]
    return model(block(2, "g") + b"".join(block(field, one) for field, some in parts for one in some))


def slow_model() -> bytes:
    """Thousands of products of matrices: seconds of work, in operators of less than a millisecond."""
    names = ["x", *(f"t{step}" for step in range(SLOW_STEPS - 1)), "y"]
    nodes = [node("MatMul", [left, "x"], [right]) for left, right in itertools.pairwise(names)]
    face: list[int | str] = [256, 256]
    return graph(*nodes, inputs=[value("x", face)], outputs=[value("y", face)])


def values(output: str = "") -> ResultOperation:
    made: ResultOperation = operation("tensor_values", {"output": output})  # type: ignore[assignment]  # its kind is known
    return made


@pytest.fixture
def opened() -> Iterator[list[OnnxRuntimeCpu]]:
    """Executors that a test opens; they are closed afterwards."""
    engines: list[OnnxRuntimeCpu] = []
    yield engines
    for one in engines:
        one.close()
        one.close()


def bound(engine: OnnxRuntimeCpu, items: int, *shape: int, output: str = "y", stacked: bool = True) -> Binding:
    inputs = {name: TensorSpec(one.dtype, shape) for name, one in engine.inputs.items()}
    return Binding(Bucket(items=items), None, inputs, [values(output)], stacked)


def test_it_is_an_executor_and_knows_its_model(opened: list[OnnxRuntimeCpu]) -> None:
    opened.append(OnnxRuntimeCpu(GOOD, threads=1, memory_mb=64))
    engine: Executor = opened[0]
    assert (engine.name, engine.depth) == ("onnxruntime_cpu", 1)
    assert engine.device
    assert dict(engine.inputs) == {"x": ModelTensor("float32", (None, 4))}
    assert dict(engine.outputs) == {"y": ModelTensor("float32", (None, 4))}
    assert engine.bind(bound(opened[0], 3, 4)).outputs == [TensorSpec("float32", (4,))]


def test_slots_do_not_share_memory_and_unstaged_rows_are_zeros(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(model_of_copy(), threads=1, memory_mb=64)
    opened.append(engine)
    first, second = engine.bind(bound(engine, 3, 4)).slots
    rows = np.arange(12, dtype=np.float32).reshape(3, 4) + 1
    for row in range(3):
        first.stage_tensors(row, [rows[row]])
        second.stage_tensors(row, [-rows[row]])
    first.submit(3)
    second.submit(3)
    assert second.wait() > 0
    assert first.wait() > 0
    assert first.poll()
    for row in range(3):
        ((mine,),) = first.results(row)
        ((other,),) = second.results(row)
        assert np.array_equal(mine, rows[row])
        assert np.array_equal(other, -rows[row])
    first.stage_tensors(0, [rows[2]])
    first.submit(1)
    first.wait()
    assert np.array_equal(first.results(0)[0][0], rows[2])
    assert not first._inputs[0][1:].any()
    assert not first._outputs["y"][1:].any()


def model_of_copy() -> bytes:
    face: list[int | str] = ["N", 4]
    return graph(node("Identity", ["x"], ["y"]), inputs=[value("x", face)], outputs=[value("y", face)])


def test_a_drain_drops_what_has_not_begun_and_ends_what_runs(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(slow_model(), threads=1, memory_mb=256)
    opened.append(engine)
    first, second = slots_without_a_first_run(engine)
    begun = threading.Event()
    engine._thread.submit(begun.set)
    begun.wait()
    first.submit(1)
    second.submit(1)
    assert not first.poll()
    engine.drain()
    assert first.poll()
    assert second.poll()
    with pytest.raises(ExecutorError):
        first.wait()
    with pytest.raises(ExecutorError, match="dropped before it began"):
        second.wait()


def slots_without_a_first_run(engine: OnnxRuntimeCpu) -> Sequence[CpuSlot]:
    """The slots of a bucket whose first run, which would take seconds, is left out."""
    from agent.worker import onnxruntime_slots  # noqa: PLC0415 - to be patched for a moment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime_slots, "_first_run", lambda *_: {"y": np.zeros((256, 256), np.float32)})
        return engine.bind(bound(engine, 1, 256, 256, stacked=False)).slots


def test_after_a_drain_it_goes_on(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(GOOD, threads=1, memory_mb=64)
    opened.append(engine)
    (slot, _) = engine.bind(bound(engine, 1, 4)).slots
    engine.drain()
    slot.stage_tensors(0, [np.ones(4, np.float32)])
    slot.submit(1)
    assert slot.wait() > 0
    with pytest.raises(ExecutorError, match="nothing was submitted"):
        slot.wait()


def test_wiping_leaves_nothing_of_an_item(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(model_of_copy(), threads=1, memory_mb=64)
    opened.append(engine)
    bucket = engine.bind(bound(engine, 2, 4))
    for slot in bucket.slots:
        slot.stage_tensors(1, [np.full(4, 7, np.float32)])
        slot.submit(2)
        slot.wait()
    raw = [result for slot in bucket.slots for (result,) in slot.results(1)]
    assert all(one.any() for one in raw)
    engine.wipe()
    memory = [one for slot in bucket.slots for one in (*slot._inputs, *slot._outputs.values())]
    assert not any(one.any() for one in [*memory, *raw])


def test_outputs_that_depend_on_values_fail_their_run(opened: list[OnnxRuntimeCpu]) -> None:
    body = graph(node("NonZero", ["x"], ["y"]), inputs=[value("x", [4])], outputs=[value("y", [1, "n"], 7)])
    engine = OnnxRuntimeCpu(body, threads=1, memory_mb=64)
    opened.append(engine)
    (slot, _) = engine.bind(bound(engine, 1, 4, stacked=False)).slots
    slot.stage_tensors(0, [np.ones(4, np.float32)])
    slot.submit(1)
    with pytest.raises(ExecutorError, match="ONNX Runtime failed"):
        slot.wait()


def test_an_output_without_a_row_an_item_is_refused(opened: list[OnnxRuntimeCpu]) -> None:
    axes = integers("axes", 0)
    body = graph(
        node("ReduceSum", ["x", "axes"], ["y"]),
        inputs=[value("x", ["N", 4])],
        outputs=[value("y", [1, 4])],
        weights=[axes],
    )
    engine = OnnxRuntimeCpu(body, threads=1, memory_mb=64)
    opened.append(engine)
    with pytest.raises(ExecutorError, match=r"output 'y' of the model is \[1, 4\]: not one row an item of 3"):
        engine.bind(bound(engine, 3, 4))


def test_shapes_that_the_model_does_not_take_are_refused(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(GOOD, threads=1, memory_mb=64)
    opened.append(engine)
    with pytest.raises(ExecutorError, match="ONNX Runtime failed"):
        engine.bind(bound(engine, 1, 5))
    with pytest.raises(ExecutorError, match="not 'z'"):
        engine.bind(bound(engine, 1, 4, output="z"))


def test_a_model_of_other_things_than_numbers_is_refused() -> None:
    body = graph(node("Identity", ["x"], ["y"]), inputs=[value("x", [1], 8)], outputs=[value("y", [1], 8)])
    with pytest.raises(ExecutorError, match=r"'x' of the model is tensor\(string\), not a tensor of numbers"):
        OnnxRuntimeCpu(body, threads=1, memory_mb=64)


def test_a_model_that_is_none_is_refused() -> None:
    with pytest.raises(ExecutorError, match="does not take the model"):
        OnnxRuntimeCpu(b"not a model", threads=1, memory_mb=256)


def test_the_engines_threads_are_told_not_to_spin(opened: list[OnnxRuntimeCpu]) -> None:
    engine = OnnxRuntimeCpu(GOOD, threads=2, memory_mb=64)
    opened.append(engine)
    assert engine._session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_weights_do_not_count_as_inputs(opened: list[OnnxRuntimeCpu]) -> None:
    body = graph(
        node("Add", ["x", "w"], ["y"]),
        inputs=[value("x", ["N", 4])],
        outputs=[value("y", ["N", 4])],
        weights=[tensor("w", [1, 4])],
    )
    opened.append(OnnxRuntimeCpu(body, threads=1, memory_mb=64))
    assert list(opened[0].inputs) == ["x"]
