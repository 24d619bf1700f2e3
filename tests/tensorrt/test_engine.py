"""Our engine over a simulated TensorRT: shapes, addresses, and each of the library's ways of saying no."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from agent.worker.cuda.engine import DeviceEngine, EngineContext
from agent.worker.executor import ExecutorError, ModelTensor, OutOfMemoryError, StalePlanError, UnavailableError
from agent.worker.tensorrt.engine import TensorRTEngine, open_engine
from agent.worker.tensorrt.subset import OPTIONAL, REQUIRED
from kernels.operation import TensorSpec
from tests.tensorrt.simulated import World, plan, simulated

SMALL = {"image": (1, 3, 48, 320), "mask": (4,)}
LARGE = {"image": (8, 3, 48, 640), "mask": (4,)}
ADDRESSES = {"image": 0x2000, "mask": 0x3000, "scores": 0x4000, "flags": 0x5000}
SCRATCH = 0x1000
STREAM = 77


@pytest.fixture
def world() -> World:
    return World()


def opened(world: World, body: bytes | None = None, name: str = "tensorrt") -> TensorRTEngine:
    return open_engine(plan() if body is None else body, simulated(world, name), world.synchronize)


def test_the_simulation_has_nothing_that_the_real_bindings_lack() -> None:
    """The table is held against real bindings, and the simulation against the table."""
    trt = simulated(World(), "tensorrt_rtx").trt
    for kind in ("Runtime", "ICudaEngine", "IExecutionContext"):
        listed = {*REQUIRED[kind], *OPTIONAL.get(kind, ())}
        shown = {name for name, _ in inspect.getmembers(getattr(trt, kind)) if not name.startswith("_")}
        assert shown - {"world", "trt"} - {"error_recorder"} <= listed


def test_it_is_what_the_cuda_executor_asks_for(world: World) -> None:
    engine: DeviceEngine = opened(world)
    context: EngineContext = engine.bind(SMALL)
    assert (engine.name, context.scratch_bytes) == ("tensorrt", 4096)


def test_tensors_are_told_by_name_with_free_sizes(world: World) -> None:
    engine = opened(world)
    assert engine.inputs == {
        "image": ModelTensor("float32", (None, 3, 48, None)),
        "mask": ModelTensor("bool", (4,)),
    }
    assert engine.outputs == {"scores": ModelTensor("float16", (None, 10)), "flags": ModelTensor("int64", (2,))}


def test_a_run_goes_to_the_stream_with_the_addresses_that_were_attached(world: World) -> None:
    engine = opened(world)
    context = engine.bind(LARGE)
    assert context.outputs == {"scores": TensorSpec("float16", (8, 10)), "flags": TensorSpec("int64", (2,))}
    context.attach(ADDRESSES, SCRATCH)
    context.enqueue(STREAM)
    context.enqueue(STREAM)
    assert world.ran == [(STREAM, ADDRESSES)] * 2
    assert world.synchronized == 1


def test_a_model_without_scratch_memory_needs_none(world: World) -> None:
    context = opened(world, plan(scratch_bytes=0)).bind(SMALL)
    assert context.scratch_bytes == 0
    context.attach(ADDRESSES, 0)
    context.enqueue(STREAM)
    assert len(world.ran) == 1


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"image": (4, 3, 48, 320), "mask": (4,)}, "was not built for image 4x3x48x320, mask 4"),
        ({"image": (1, 3, 48, 320)}, "has the inputs image, mask, not image"),
        ({"image": (1, 3, 32, 320), "mask": (4,)}, "input 'image' is (None, 3, 48, None), not (1, 3, 32, 320)"),
        ({"image": (3, 48, 320), "mask": (4,)}, "not (3, 48, 320)"),
        ({"image": (1, 3, 48, 320), "mask": (5,)}, "input 'mask' is (4,), not (5,)"),
    ],
)
def test_shapes_without_a_profile_are_refused(world: World, shapes: dict[str, Any], said: str) -> None:
    with pytest.raises(ExecutorError, match=r"engine|plan") as raised:
        opened(world).bind(shapes)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("create_execution_context", "makes no execution context"),
        ("set_optimization_profile_async", "does not take the profile 0"),
        ("set_input_shape", "does not take the shape (1, 3, 48, 320) of 'image'"),
        ("infer_shapes", "cannot infer the outputs' shapes without image"),
        ("update_device_memory_size_for_shapes", "cannot say how much memory it takes"),
        ("set_tensor_address", "does not take the address 0x2000 of 'image'"),
        ("set_device_memory", "does not take the scratch memory"),
        ("execute_async_v3", "could not be run"),
    ],
)
def test_every_no_of_the_library_becomes_an_error_with_its_words(world: World, method: str, said: str) -> None:
    engine = opened(world)
    world.broken = {method: "INVALID_ARGUMENT"}
    with pytest.raises(ExecutorError) as raised:
        run_once(engine)
    assert str(raised.value) == f"TensorRT 10.3.0 {said}: Error Code 3: {method} was told to fail"
    world.broken = {}
    run_once(engine)
    assert len(world.ran) == 1


def run_once(engine: TensorRTEngine) -> None:
    context = engine.bind(SMALL)
    context.attach(ADDRESSES, SCRATCH)
    context.enqueue(STREAM)


def test_inference_of_shapes_that_raises_is_an_error_too(world: World) -> None:
    engine = opened(world)
    world.broken = {"infer_shapes raises": ""}
    with pytest.raises(ExecutorError, match="cannot infer the outputs' shapes"):
        engine.bind(SMALL)


@pytest.mark.parametrize("body", [plan(version="10.7.0"), b"", b"\x00 damaged"])
def test_a_plan_that_is_not_for_here_is_stale(world: World, body: bytes) -> None:
    with pytest.raises(StalePlanError, match=r"TensorRT 10\.3\.0 does not load the plan: the (plan|magic)"):
        opened(world, body)


def test_a_lack_of_memory_does_not_make_a_plan_stale(world: World) -> None:
    world.broken = {"deserialize_cuda_engine": "FAILED_ALLOCATION"}
    with pytest.raises(OutOfMemoryError, match="has not enough memory for the plan"):
        opened(world)


@pytest.mark.parametrize(
    ("words", "code"),
    [("", "FAILED_ALLOCATION"), (":Cuda Runtime (out of memory)", "UNSPECIFIED_ERROR"),
     (":Cuda Driver (CUDA_ERROR_OUT_OF_MEMORY)", "UNSPECIFIED_ERROR")],
)  # fmt: skip
@pytest.mark.parametrize("call", ["create_execution_context", "set_optimization_profile_async"])
def test_a_context_without_memory_now_may_have_it_later(world: World, call: str, words: str, code: str) -> None:
    engine = opened(world)
    world.broken = {f"{call}{words}": code}
    with pytest.raises(OutOfMemoryError, match="it is tried again later"):
        engine.bind(SMALL)
    world.broken = {call: "UNSPECIFIED_ERROR"}
    with pytest.raises(ExecutorError) as raised:
        engine.bind(SMALL)
    assert type(raised.value) is ExecutorError


def test_a_failing_device_does_not_make_a_plan_stale(world: World) -> None:
    world.broken = {"deserialize_cuda_engine:Cuda Runtime (device lost)": "UNSPECIFIED_ERROR"}
    with pytest.raises(UnavailableError, match=r"cannot use the accelerator: .*device lost"):
        opened(world)


def test_a_library_without_a_driver_is_unavailable(world: World) -> None:
    world.broken = {"Runtime": ""}
    with pytest.raises(UnavailableError, match=r"TensorRT 10\.3\.0 cannot start: .*; check with"):
        opened(world)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"dtype": "BF16"}, "tensor 'flags' is BF16; export it as one of float32"),
        ({"location": "HOST"}, "takes the values of 'flags' as a shape"),
    ],
)
def test_tensors_that_cannot_be_served_are_refused(world: World, tensor: dict[str, Any], said: str) -> None:
    tensors = {
        "image": {"mode": "INPUT", "dtype": "FLOAT", "shape": [1]},
        "flags": {"mode": "OUTPUT", "dtype": "INT64", "shape": [2]} | tensor,
    }
    with pytest.raises(ExecutorError) as raised:
        opened(world, plan(tensors=tensors))
    assert said in str(raised.value)


def test_an_output_whose_shape_depends_on_values_is_refused(world: World) -> None:
    tensors = {
        "image": {"mode": "INPUT", "dtype": "FLOAT", "shape": [-1, 3]},
        "found": {"mode": "OUTPUT", "dtype": "FLOAT", "shape": [1, -1]},
    }
    engine = opened(world, plan(tensors=tensors, profiles=[{"image": [1, 3]}]))
    with pytest.raises(ExecutorError, match="the output 'found' depends on values"):
        engine.bind({"image": (1, 3)})


@pytest.mark.parametrize(
    ("addresses", "scratch", "said"),
    [
        ({"image": 0x2000}, SCRATCH, "needs addresses of"),
        (ADDRESSES | {"other": 1}, SCRATCH, "needs addresses of"),
        (ADDRESSES, SCRATCH + 8, "not on 256 bytes"),
        (ADDRESSES, 0, "scratch memory at 0x0"),
    ],
)
def test_memory_that_does_not_fit_is_refused(world: World, addresses: dict[str, int], scratch: int, said: str) -> None:
    context = opened(world).bind(SMALL)
    with pytest.raises(ExecutorError, match=said):
        context.attach(addresses, scratch)
    with pytest.raises(ExecutorError, match="without memory"):
        context.enqueue(STREAM)


def test_what_is_closed_does_nothing_more(world: World) -> None:
    engine = opened(world)
    context = engine.bind(SMALL)
    context.attach(ADDRESSES, SCRATCH)
    engine.close()
    engine.close()
    with pytest.raises(ExecutorError, match="closed"):
        context.enqueue(STREAM)
    with pytest.raises(ExecutorError, match="closed"):
        engine.bind(SMALL)
    assert world.ran == []


def test_tensorrt_rtx_compiles_before_anything_is_timed(world: World) -> None:
    run_once(opened(world, name="tensorrt_rtx"))
    (config,) = world.configs
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    assert config.strategy.name == "USER_MANAGED"
    assert len(world.ran) == 1
