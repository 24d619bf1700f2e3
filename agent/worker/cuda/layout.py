"""From a binding to a slot: which buffers there are, at which addresses, and which kernels are launched on them.

The engine's inputs are what the image operation fills, or else what is staged. Each of its outputs has a buffer, also
those that nobody reads: an engine has to be given addresses for all. What operations make of them goes into one result
buffer, so that one copy brings it back; where an operation has no kernels its output itself goes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.package import Bucket
from agent.worker.cuda.engine import EngineContext
from agent.worker.cuda.memory import Arena, StagedBuffer, aligned
from agent.worker.cuda.slot import SlotWork, Step
from agent.worker.cuda.staging import ImageStaging, TensorStaging, tensor_view
from agent.worker.executor import Binding, ExecutorError, ModelTensor
from kernels.operation import INPUT, OUTPUT, Launch, ResultOperation, Shape, TensorSpec


@dataclass(frozen=True)
class Reading:
    """An operation behind the engine for one bucket: what it reads, launches and leaves, without the batch."""

    name: str
    """The engine's output that it reads."""
    output: TensorSpec
    launches: tuple[Launch, ...]
    results: tuple[TensorSpec, ...]
    scratch_bytes: int


def engine_shapes(binding: Binding, inputs: Mapping[str, ModelTensor]) -> dict[str, Shape]:
    """The shapes of the engine's inputs, with the batch; raises ExecutorError when the binding has other tensors."""
    if set(binding.inputs) != set(inputs):
        raise ExecutorError(f"the engine has the inputs {list(inputs)}, not {list(binding.inputs)}")
    for name, spec in binding.inputs.items():
        if spec.dtype != inputs[name].dtype:
            raise ExecutorError(f"the engine's input {name!r} is {inputs[name].dtype}, not {spec.dtype}")
    if binding.image is not None and len(inputs) != 1:
        raise ExecutorError(f"images fill the engine's only input, and it has {len(inputs)}")
    leading = (binding.bucket.items,) if binding.stacked else ()
    return {name: (*leading, *spec.shape) for name, spec in binding.inputs.items()}


def readings(binding: Binding, outputs: Mapping[str, TensorSpec]) -> list[Reading]:
    """What each operation does with the engine's outputs (given with the batch).

    Raises ExecutorError for an output that is not there or has not one row an item, OperationError for one that an
    operation cannot read.
    """
    items = _items(binding)
    found = []
    for operation in binding.results:
        name = _output_name(operation, outputs)
        whole = outputs[name]
        if binding.stacked and whole.shape[:1] != (items,):
            raise ExecutorError(f"output {name!r} of the engine is {list(whole.shape)}: not one row an item of {items}")
        output = TensorSpec(whole.dtype, whole.shape[1:] if binding.stacked else whole.shape)
        results = operation.results(output)
        launches = operation.launches(items, output)
        if not launches and [one.nbytes for one in results] != [output.nbytes]:
            raise ExecutorError(f"an operation on output {name!r} has results but no kernels that make them")
        found.append(Reading(name, output, launches, results, operation.scratch_bytes(items, output)))
    return found


def slot_work(binding: Binding, reads: Sequence[Reading], engine: EngineContext, arena: Arena, what: str) -> SlotWork:
    """Allocate a slot's memory and lay out its work; raises ExecutorError or OperationError."""
    items = _items(binding)
    addresses: dict[str, int] = {}
    before: list[Step] = []
    staging: ImageStaging | TensorStaging
    if binding.image is not None:
        ((name, spec),) = binding.inputs.items()
        staging = ImageStaging(arena, what, items, spec)
        addresses[name] = arena.device(f"{what}, input", items * spec.nbytes).address
        before.append(Step(binding.image.launch(items, spec), {**staging.addresses, INPUT: addresses[name]}))
    else:
        staging = TensorStaging(arena, what, binding.inputs, items)
        addresses.update(staging.addresses)
    offsets, results_bytes = _result_offsets(reads, items)
    results = arena.staged(f"{what}, results", results_bytes)
    for read, places in zip(reads, offsets, strict=True):
        if not read.launches:
            addresses[read.name] = results.address + places[0]
    for name, spec in engine.outputs.items():
        if name not in addresses:
            addresses[name] = arena.device(f"{what}, output {name!r}", spec.nbytes).address
    return SlotWork(
        items=items,
        staging=staging,
        before=before,
        engine=engine,
        addresses=addresses,
        after=[
            step
            for read, places in zip(reads, offsets, strict=True)
            for step in _after(read, places, addresses, results)
        ],
        results=results,
        views=[_views(read, places, results, items) for read, places in zip(reads, offsets, strict=True)],
    )


def scratch_bytes(reads: Sequence[Reading], engine: EngineContext) -> int:
    """What a slot needs at once: the engine and the operations behind it run one after the other."""
    return max(engine.scratch_bytes, *(read.scratch_bytes for read in reads), 0)


def bucket_words(bucket: Bucket) -> str:
    """A bucket, for a person."""
    sides = ((bucket.height, "high"), (bucket.width, "wide"))
    return ", ".join([f"bucket of {bucket.items}", *(f"{size} {side}" for size, side in sides if size is not None)])


def _items(binding: Binding) -> int:
    return binding.bucket.items if binding.stacked else 1


def _output_name(operation: ResultOperation, outputs: Mapping[str, TensorSpec]) -> str:
    name = operation.output or (next(iter(outputs)) if len(outputs) == 1 else "")
    if name not in outputs:
        raise ExecutorError(f"the engine has the outputs {list(outputs)}, not {operation.output!r}")
    return name


def _result_offsets(reads: Sequence[Reading], items: int) -> tuple[list[list[int]], int]:
    """Where in the result buffer each operation's results lie, and its size; the same output is there but once."""
    end = 0
    plain: dict[str, list[int]] = {}
    offsets = []
    for read in reads:
        if not read.launches and read.name in plain:
            offsets.append(plain[read.name])
            continue
        places = []
        for spec in read.results:
            places.append(end)
            end = aligned(end + items * spec.nbytes)
        if not read.launches:
            plain[read.name] = places
        offsets.append(places)
    return offsets, end


def _after(read: Reading, places: Sequence[int], addresses: Mapping[str, int], results: StagedBuffer) -> list[Step]:
    names = {f"result{number}": results.address + place for number, place in enumerate(places)}
    return [Step(launch, {OUTPUT: addresses[read.name], **names}) for launch in read.launches]


def _views(
    read: Reading, places: Sequence[int], results: StagedBuffer, items: int
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.generic]], ...]:
    views = []
    for spec, place in zip(read.results, places, strict=True):
        view = tensor_view(results.host, place, spec, items)
        view.flags.writeable = False
        views.append(view)
    return tuple(views)
