"""A plan as an engine: loaded without code of its own, one context for each use, every shape and address fixed once.

A plan has one optimisation profile for each bucket, with a single shape in it (`builder`). Binding shapes means to find
their profile, to fix them in a context of its own, and to ask TensorRT what comes out and how much scratch memory it
takes; the executor brings that memory, as it brings the inputs' and outputs'. What remains for a run is one call.

TensorRT works in whatever CUDA context is current, which must be the same for all calls here. A plan that it does not
load is StalePlanError: another release or another device has made it, or it is damaged, and a new one can be built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.worker.executor import ExecutorError, ModelTensor, OutOfMemoryError, StalePlanError, UnavailableError
from agent.worker.tensorrt.flavour import DTYPES, Flavour
from kernels.operation import Shape, TensorSpec

_SCRATCH_ALIGNMENT_BYTES = 256
_DEFAULT_STREAM = 0


def wait_for_device() -> None:
    """Wait until the current CUDA context has nothing left to do."""
    from pycuda.driver import Context  # noqa: PLC0415 - needs the accelerator's driver

    Context.synchronize()


def open_engine(
    plan: bytes | memoryview, flavour: Flavour, synchronize: Callable[[], None] = wait_for_device
) -> TensorRTEngine:
    """The engine of a plan, in the current CUDA context.

    Raises StalePlanError when the plan is not for this library and device, UnavailableError when the library cannot use
    the accelerator or memory is short, and ExecutorError when the model's tensors are of kinds that we do not serve.
    """
    journal = flavour.journal
    journal.clear()
    runtime = flavour.made("Runtime")
    runtime.error_recorder = journal.recorder
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        words = journal.words("it does not say why")
        if journal.out_of_memory:
            raise OutOfMemoryError(f"{flavour.title} has not enough memory for the plan: {words}")
        if journal.accelerator_failed:
            raise accelerator_failure(flavour)
        raise StalePlanError(f"{flavour.title} does not load the plan: {words}")
    return TensorRTEngine(flavour, runtime, engine, synchronize)


class TensorRTEngine:
    """See `agent.worker.cuda.engine.DeviceEngine`."""

    def __init__(self, flavour: Flavour, runtime: Any, engine: Any, synchronize: Callable[[], None]) -> None:
        """Read the tensors of an engine that was loaded; raises ExecutorError for kinds that we do not serve."""
        self.name = flavour.name
        self._flavour = flavour
        self._runtime = runtime  # the engine is the runtime's: it has to go first
        self._engine = engine
        self._synchronize = synchronize
        self._bound: list[TensorRTContext] = []
        trt = flavour.trt
        tensors: tuple[dict[str, ModelTensor], dict[str, ModelTensor]] = ({}, {})
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise ExecutorError(f"the model takes the values of {name!r} as a shape; only tensors are served")
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shape = tuple(None if size < 0 else size for size in tuple(engine.get_tensor_shape(name)))
            tensors[0 if is_input else 1][name] = ModelTensor(_dtype(engine, name), shape)
        self.inputs: Mapping[str, ModelTensor] = tensors[0]
        self.outputs: Mapping[str, ModelTensor] = tensors[1]

    def bind(self, shapes: Mapping[str, Shape]) -> TensorRTContext:
        """A context for these input shapes; raises ExecutorError when the plan has no profile for them."""
        if self._engine is None:
            raise ExecutorError("the engine is closed")
        profile = self._profile(shapes)
        self._flavour.journal.clear()
        context = self._new_context()
        if context is None:
            raise self._failure("makes no execution context")
        context.error_recorder = self._flavour.journal.recorder
        if not context.set_optimization_profile_async(profile, _DEFAULT_STREAM):
            raise self._failure(f"does not take the profile {profile}")
        self._synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise self._failure(f"does not take the shape {tuple(shape)} of {name!r}")
        bound = TensorRTContext(self._flavour, context, tuple(shapes), self._outputs(context))
        self._bound.append(bound)
        return bound

    def close(self) -> None:
        """Free the contexts, then the engine, then the runtime. May be called twice."""
        for bound in self._bound:
            bound.close()
        self._bound.clear()
        self._engine = None
        self._runtime = None

    def _profile(self, shapes: Mapping[str, Shape]) -> int:
        """The profile whose only shapes are these."""
        engine = self._engine
        if shapes.keys() != self.inputs.keys():
            raise ExecutorError(f"the engine has the inputs {', '.join(self.inputs)}, not {', '.join(shapes)}")
        for name, shape in shapes.items():
            wanted = self.inputs[name].shape
            if len(shape) != len(wanted) or not all(
                one in {None, size} for one, size in zip(wanted, shape, strict=True)
            ):
                raise ExecutorError(f"the engine's input {name!r} is {wanted}, not {tuple(shape)}")
        dynamic = [name for name in shapes if None in self.inputs[name].shape]
        for profile in range(engine.num_optimization_profiles):
            ranges = ((engine.get_tensor_profile_shape(name, profile), tuple(shapes[name])) for name in dynamic)
            if all(tuple(tuple(one) for one in found) == (shape, shape, shape) for found, shape in ranges):
                return profile
        raise ExecutorError(f"the plan was not built for {_words(shapes)}")

    def _new_context(self) -> Any:
        """A context whose memory is ours to give.

        TensorRT-RTX compiles at run time, by default in the background: what is timed at the start would not be what
        runs later. Told to be eager it compiles on first use.
        """
        engine, trt = self._engine, self._flavour.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return engine.create_execution_context(strategy)
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(strategy)
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        return engine.create_execution_context(runtime_config)

    def _outputs(self, context: Any) -> dict[str, TensorSpec]:
        """What comes out for the shapes that were set."""
        try:
            unknown = context.infer_shapes()
        except RuntimeError as error:
            raise self._failure("cannot infer the outputs' shapes") from error
        if unknown:
            raise self._failure(f"cannot infer the outputs' shapes without {', '.join(unknown)}")
        outputs = {}
        for name, output in self.outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise ExecutorError(f"the shape of the output {name!r} depends on values, so it cannot be bound")
            outputs[name] = TensorSpec(output.dtype, shape)
        return outputs

    def _failure(self, what: str) -> ExecutorError:
        return failure(self._flavour, what)


class TensorRTContext:
    """See `agent.worker.cuda.engine.EngineContext`."""

    def __init__(
        self, flavour: Flavour, context: Any, inputs: tuple[str, ...], outputs: Mapping[str, TensorSpec]
    ) -> None:
        """Ask a context whose shapes are set for its scratch memory; raises ExecutorError."""
        self.outputs = outputs
        self._flavour = flavour
        self._context = context
        self._tensors = {*inputs, *outputs}
        self._attached = False
        self.scratch_bytes = int(context.update_device_memory_size_for_shapes())
        if flavour.journal.failed:  # 0 bytes are an answer as well as a failure
            raise failure(flavour, "cannot say how much memory it takes")

    def attach(self, addresses: Mapping[str, int], scratch: int) -> None:
        """Fix the addresses of all inputs and outputs, and of `scratch_bytes` of memory. Raises ExecutorError."""
        context = self._live()
        if addresses.keys() != self._tensors:
            raise ExecutorError(f"the engine needs addresses of {sorted(self._tensors)}, not of {sorted(addresses)}")
        if scratch % _SCRATCH_ALIGNMENT_BYTES or (self.scratch_bytes and not scratch):
            raise ExecutorError(f"scratch memory at {scratch:#x}, which is not on {_SCRATCH_ALIGNMENT_BYTES} bytes")
        self._flavour.journal.clear()
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise failure(self._flavour, f"does not take the address {address:#x} of {name!r}")
        if self.scratch_bytes:
            context.set_device_memory(scratch, self.scratch_bytes)
            if self._flavour.journal.failed:
                raise failure(self._flavour, "does not take the scratch memory")
        self._attached = True

    def enqueue(self, stream: int) -> None:
        """Put one run on a CUDA stream, not the default one; capturable. Raises ExecutorError."""
        context = self._live()
        if not self._attached:
            raise ExecutorError("the engine is to run without memory")
        if not context.execute_async_v3(stream):
            raise failure(self._flavour, "could not be run")

    def close(self) -> None:
        """Free the context. May be called twice."""
        self._context = None

    def _live(self) -> Any:
        if self._context is None:
            raise ExecutorError("the engine's context is closed")
        return self._context


def failure(flavour: Flavour, what: str) -> ExecutorError:
    """That the library would not, with its own words; they are told once. What lacks memory may get it later."""
    journal = flavour.journal
    kind: type[ExecutorError] = OutOfMemoryError if journal.out_of_memory else ExecutorError
    words = journal.words("it does not say why")
    journal.clear()
    return kind(f"{flavour.title} {what}: {words}")


def accelerator_failure(flavour: Flavour) -> UnavailableError:
    """That the accelerator failed the library, in its words."""
    return UnavailableError(
        f"{flavour.title} cannot use the accelerator: {flavour.journal.words('it does not say why')}",
        hint="check with `nvidia-smi` or `tegrastats` that the accelerator's driver works",
    )


def _dtype(engine: Any, name: str) -> str:
    """A tensor's dtype as NumPy names it."""
    kind = engine.get_tensor_dtype(name).name
    if kind not in DTYPES:
        raise ExecutorError(f"the model's tensor {name!r} is {kind}; export it as one of {', '.join(DTYPES.values())}")
    return DTYPES[kind]


def _words(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
