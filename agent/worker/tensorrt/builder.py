"""From a model's ONNX bytes to a plan: one optimisation profile for each bucket, each with a single shape in it.

The precision is the model's own (a strongly typed network): what a customer ships in float16 runs in float16, and
nothing is lowered behind their back. Products of float32 go through TF32, as the library does by default, where the
package allows it (`agent.package.run_in`), and statements say so.
The plan is for this device and this release of the library only, and has no code in it beside TensorRT's. There are no
streams beside the executor's, so that scratch memory stays small and the work can be captured as a graph.

Only bytes that `agent.onnx.check.check_model` has passed come near the native parser: it is called here, first. Parsing
is still the customer's bytes in native code, which is why all of this happens in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.onnx.check import check_model
from agent.worker.executor import ExecutorError, UnavailableError
from agent.worker.tensorrt.engine import accelerator_failure, failure
from agent.worker.tensorrt.flavour import Flavour, compute_capability
from agent.worker.tensorrt.journal import printable
from agent.worker.tensorrt.progress import Attend, Progress, monitor
from kernels.operation import Shape

OPTIMIZATION_LEVEL = 3
"""Of 0 to 5: TensorRT's own default. The highest takes ten times as long for a few per cent, and parking is short."""
_MAX_PARSER_ERRORS = 4

Shapes = Mapping[str, Shape]
"""The shape of each input, with the batch."""


@dataclass(frozen=True)
class BuildOrder:
    """What to build: the model, the shapes of each bucket, and what may be spent on it."""

    model: bytes
    where: str
    """The model's name in errors."""
    buckets: Sequence[Shapes]
    scratch_bytes: int
    """The most scratch memory that a run may take."""
    threads: int
    tf32: bool = True
    """Whether products of float32 may be taken in TF32."""
    timing: bytes = b""
    """The timing cache of earlier builds on this device; what does not belong here is not used."""
    compute_capability: str | None = None
    """`8.6`: build for this device, which need not be here (TensorRT-RTX only); None: for the one that is."""


@dataclass(frozen=True)
class Plan:
    """A plan, and the timing cache as it is now (empty where the flavour has none)."""

    body: memoryview
    timing: bytes


def build_plan(order: BuildOrder, flavour: Flavour, attend: Attend) -> Plan:
    """Build a plan; between any two steps `attend` is told where it is, and whatever it raises ends the build.

    Raises that, PackageError for a model that may not be parsed, ExecutorError with the library's words when it cannot
    be built, and UnavailableError when the library or the accelerator does not work here.
    """
    check_model(order.model, order.where)
    try:
        return _built(order, flavour, attend)
    except UnicodeDecodeError as error:  # the library hands the model's names over as they are
        raise ExecutorError(f"{order.where} has names that are not UTF-8") from error


def _built(order: BuildOrder, flavour: Flavour, attend: Attend) -> Plan:
    """Do what `build_plan` says with a model that may be parsed."""
    flavour.journal.clear()
    attend("Reading the model", 0)
    builder = flavour.made("Builder")
    builder.max_threads = order.threads
    network = builder.create_network(flavour.network_flags())
    if network is None:
        raise failure(flavour, "makes no network")
    parser = _parsed(order, flavour, network)
    # Not before: TensorRT-RTX 1.6 and 1.7 crash as they free a network that was parsed while it had a recorder.
    builder.error_recorder = flavour.journal.recorder
    config = builder.create_builder_config()
    if config is None:
        raise failure(flavour, "makes no builder configuration")
    buckets = _profiles(order, flavour, builder, network, config)
    _untie(network, buckets)
    cache = _configure(order, flavour, config)
    progress = Progress(attend)
    watcher = monitor(flavour.trt, progress)  # the configuration does not keep it
    config.progress_monitor = watcher
    memory = builder.build_serialized_network(network, config)
    del parser  # the network may use its memory until here
    if progress.error is not None:
        raise progress.error
    if memory is None:
        journal = flavour.journal
        accelerator = journal.accelerator_failed and not journal.out_of_memory
        raise accelerator_failure(flavour) if accelerator else failure(flavour, f"cannot build {order.where}")
    return Plan(memoryview(memory).cast("B"), _serialized(flavour, cache))


def _parsed(order: BuildOrder, flavour: Flavour, network: Any) -> Any:
    """Fill the network from the model; the parser has to live as long as the network."""
    parser = flavour.trt.OnnxParser(network, flavour.journal.logger)
    if not parser.parse(order.model) or parser.num_errors:
        errors = [_parser_words(parser.get_error(place)) for place in range(parser.num_errors)]
        words = "; ".join(dict.fromkeys(errors[:_MAX_PARSER_ERRORS])) or flavour.journal.words("it does not say why")
        raise ExecutorError(f"{flavour.title} cannot read {order.where}: {words}")
    return parser


def _parser_words(complaint: Any) -> str:
    """An error of the ONNX parser: at which node, and what."""
    node = printable(f"{complaint.node_operator()} {complaint.node_name()}")
    what = printable(complaint.desc())
    return f"{node}: {what}" if node else what


def _profiles(order: BuildOrder, flavour: Flavour, builder: Any, network: Any, config: Any) -> list[Shapes]:
    """One profile for each bucket; the buckets without those that are the same again."""
    tensors = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    for name, tensor in tensors.items():
        if tensor.is_shape_tensor:
            raise ExecutorError(f"{order.where} takes the values of {name!r} as a shape; only tensors are served")
    buckets: list[Shapes] = []
    for bucket in order.buckets:
        if bucket not in buckets:
            buckets.append(bucket)
    for shapes in buckets:
        _check_shapes(order.where, tensors, shapes)
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            _set_shape(profile, name, shape, flavour)
        if config.add_optimization_profile(profile) < 0:
            raise failure(flavour, f"does not take the shapes {shapes}")
    return buckets


def _set_shape(profile: Any, name: str, shape: Shape, flavour: Flavour) -> None:
    """Fix an input's shape. The bindings raise where the library would return False; which error, differs."""
    try:
        profile.set_shape(name, shape, shape, shape)
    except (RuntimeError, TypeError, ValueError) as error:
        raise failure(flavour, f"does not take {shape} for the input {name!r} ({printable(str(error))})") from error


def _check_shapes(where: str, tensors: Mapping[str, Any], shapes: Shapes) -> None:
    """A bucket gives every input a shape that it can have."""
    if shapes.keys() != tensors.keys():
        raise ExecutorError(f"{where} has the inputs {', '.join(tensors)}, and a bucket gives {', '.join(shapes)}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        wanted = tuple(tensor.shape)
        fits = len(wanted) == len(shape) and all(one in {-1, size} for one, size in zip(wanted, shape, strict=True))
        if not fits:
            raise ExecutorError(f"{where}: the input {name!r} is {wanted} (-1: any), and a bucket gives {shape}")


def _untie(network: Any, buckets: Sequence[Shapes]) -> None:
    """Give sizes that differ names that differ.

    Exporters name every free size, sometimes all of them alike; TensorRT takes sizes of one name for equal and refuses
    buckets in which they are not. A name stays where it is first used: the model's outputs may refer to it.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        for axis in range(len(tuple(tensor.shape))):
            name = tensor.get_dimension_name(axis)
            found = tuple(shapes[tensor.name][axis] for shapes in buckets)
            if name and sizes.setdefault(name, found) != found:
                tensor.set_dimension_name(axis, f"{name}:{place}:{axis}")


def _configure(order: BuildOrder, flavour: Flavour, config: Any) -> Any:
    """Everything but the shapes; the timing cache in use, or None."""
    trt = flavour.trt
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.scratch_bytes)
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    config.max_aux_streams = 0
    if not order.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX may else allocate while it runs: neither counted nor cleared, and no work can then be captured.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt, "ComputeCapability"):
        _choose_device(order, flavour, config)
    elif order.compute_capability is not None:
        raise UnavailableError(
            f"{flavour.title} builds for the device that is here, not for any {order.compute_capability}",
            hint="build on the device itself",
        )
    return _timing_cache(order.timing, flavour, config) if flavour.has_timing_cache else None


def _choose_device(order: BuildOrder, flavour: Flavour, config: Any) -> None:
    """TensorRT-RTX has to be told which devices a plan is for: the one that is here, or one by its capability."""
    wanted = order.compute_capability
    kind = flavour.trt.ComputeCapability.CURRENT if wanted is None else compute_capability(flavour, wanted)
    config.num_compute_capabilities = 1
    if kind is None or not config.set_compute_capability(kind, 0):
        words = flavour.journal.words("it is not served")
        raise UnavailableError(
            f"{flavour.title} does not build for {wanted or 'this device'}: {words}",
            hint='use the executor "tensorrt" on this device',
        )


def _timing_cache(timing: bytes, flavour: Flavour, config: Any) -> Any:
    """The timing cache for this build: the one that was kept, or a new one where that is not for this device."""
    for serialized in (timing, b""):
        cache = config.create_timing_cache(serialized)
        if cache is not None and config.set_timing_cache(cache, False):
            flavour.journal.clear()
            return cache
    raise failure(flavour, "makes no timing cache")


def _serialized(flavour: Flavour, cache: Any) -> bytes:
    """What is to be kept of a timing cache; nothing where there is none."""
    if cache is None:
        return b""
    memory = cache.serialize()
    if memory is None:
        raise failure(flavour, "does not give its timing cache")
    return bytes(memory)
