"""What a package's pipeline means on one model: operations with their parameters, every shape fixed, all of it checked.

A manifest names operations in plain text. Here they become typed ones, are held against the model's inputs and outputs,
and give one `Binding` for each bucket. What does not fit together is a PackageError that names the operation and the
tensor, what was found and what was expected, before anything is computed.

A package of images has one image operation, which fills the model's only input. A package of tensors has one
`npy_tensor` for each of the model's inputs, in the order in which an item holds them. Behind the engine stands any
number of result operations, whose parts are merged into one answer; no two may give the same part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from agent.errors import PackageError
from agent.package import Bucket, OpCall, Package
from agent.worker.executor import Binding, ModelTensor
from kernels import operation
from kernels.npy_tensor import NpyTensor, sizes
from kernels.operation import Answerer, Array, ImageOperation, Json, OperationError, ResultOperation, TensorSpec

Tensors = Mapping[str, ModelTensor]


@dataclass(frozen=True)
class Lane:
    """Buckets that differ in their number of items alone, smallest first, and the row that an item fills."""

    row: TensorSpec
    bindings: tuple[Binding, ...]


@dataclass(frozen=True)
class Program:
    """A package's pipeline on one model. `image` or `tensors` says how an item is read; lanes are smallest first."""

    where: str
    image: ImageOperation | None
    tensors: tuple[NpyTensor, ...]
    results: tuple[ResultOperation, ...]
    lanes: tuple[Lane, ...]

    def lane(self, rows: int, columns: int) -> int:
        """The number of the lane for an image of this size: the smallest that it fits, else the largest."""
        assert self.image is not None
        image = self.image
        fitting = (number for number, lane in enumerate(self.lanes) if image.fits(rows, columns, lane.row))
        return next(fitting, len(self.lanes) - 1)


class Answering:
    """How the results of one item of one bucket become its answer."""

    def __init__(self, program: Program, package: Package, outputs: Sequence[TensorSpec]) -> None:
        """Read what the operations need of the package; raises PackageError when they cannot read these outputs."""
        self._answerers: list[Answerer] = []
        specs: list[tuple[TensorSpec, ...]] = []
        for place, (one, output) in enumerate(zip(program.results, outputs, strict=True)):
            where = f"{program.where}: pipeline.post {_named(package, place)}"
            try:
                specs.append(one.results(output))
                self._answerers.append(one.answerer(package.read, output))
            except OperationError as error:
                raise PackageError(
                    f"{where} cannot read the output {_words(output.dtype, output.shape)}: {error}"
                ) from error
        try:
            self([tuple(np.zeros(one.shape, one.dtype) for one in some) for some in specs])
        except OperationError as error:
            raise PackageError(f"{program.where}: pipeline.post: {error}") from error
        self.raw = [one for some in specs for one in some]
        """What an item's raw results look like, one after the other."""

    def __call__(self, results: Sequence[tuple[Array, ...]]) -> dict[str, Any]:
        """The answer; raises OperationError for results that are none."""
        body: dict[str, Any] = {}
        for answerer, result in zip(self._answerers, results, strict=True):
            _merge(body, answerer(result))
        return body


def compile_program(package: Package, inputs: Tensors, outputs: Tensors) -> Program:
    """The package's pipeline for a model with these inputs and outputs; raises PackageError."""
    manifest = package.manifest
    where = f"package {package.path}"
    before = _operations(manifest.pipeline.pre, f"{where}: pipeline.pre")
    behind = _operations(manifest.pipeline.post, f"{where}: pipeline.post")
    results = tuple(one for one in behind if _makes_results(one))
    if len(results) != len(behind):
        raise PackageError(
            f"{where}: pipeline.post {_chain(manifest.pipeline.post)} does not lead from outputs to answers"
        )
    image, tensors = None, tuple(one for one in before if isinstance(one, NpyTensor))
    if manifest.input == "image":
        (image,) = before if len(before) == 1 else (None,)
        if not _takes_images(image):
            raise PackageError(
                f"{where}: pipeline.pre {_chain(manifest.pipeline.pre)} does not lead from images to one input"
            )
    elif len(tensors) != len(before):
        raise PackageError(
            f"{where}: pipeline.pre {_chain(manifest.pipeline.pre)} does not lead from tensors to inputs"
        )
    for place, one in enumerate(results):
        _check_output(one, outputs, f"{where}: pipeline.post {_named(package, place)}")
    program = Program(where, image, tensors, results, ())
    bindings = [_binding(program, bucket, inputs) for bucket in manifest.buckets]
    return Program(where, image, tensors, results, _lanes(bindings, where))


def _binding(program: Program, bucket: Bucket, inputs: Tensors) -> Binding:
    """One bucket with its shapes, held against the model's inputs."""
    where = f"{program.where}: {bucket_words(bucket)}"
    stacked = True
    if program.image is not None:
        if len(inputs) != 1:
            raise PackageError(
                f"{where}: images fill the model's only input, and it has {len(inputs)}: {_names(inputs)}"
            )
        try:
            specs = {next(iter(inputs)): program.image.spec(bucket.height, bucket.width)}
        except OperationError as error:
            raise PackageError(f"{where}: {error}") from error
    else:
        specs = _tensor_specs(program, inputs)
        stacked = all(one.stacked for one in program.tensors)
        if not stacked and any(one.stacked for one in program.tensors):
            raise PackageError(f"{program.where}: either all inputs are stacked or none is")
        if bucket.width is not None or bucket.height is not None:
            raise PackageError(f"{where}: tensors have a size of their own, so a bucket only says how many")
        if not stacked and bucket.items != 1:
            raise PackageError(f"{where}: items that are not stacked go to the engine one by one")
    for name, spec in specs.items():
        shape = (bucket.items, *spec.shape) if stacked else spec.shape
        wanted = inputs[name]
        if wanted.dtype != spec.dtype or not _fits(shape, wanted.shape):
            raise PackageError(
                f"{where}: the model's input {name!r} is {_words(wanted.dtype, wanted.shape)}, "
                f"and the pipeline fills {_words(spec.dtype, shape)}"
            )
    return Binding(bucket=bucket, image=program.image, inputs=specs, results=program.results, stacked=stacked)


def _tensor_specs(program: Program, inputs: Tensors) -> dict[str, TensorSpec]:
    """What an item brings for each of the model's inputs, in the item's order."""
    specs = {one.input: TensorSpec(one.dtype, sizes(one.shape)) for one in program.tensors}
    if len(specs) != len(program.tensors) or specs.keys() != inputs.keys():
        given = ", ".join(one.input for one in program.tensors)
        raise PackageError(
            f"{program.where}: pipeline.pre fills {given}, and the model has the inputs {_names(inputs)}"
        )
    return specs


def _check_output(one: ResultOperation, outputs: Tensors, where: str) -> None:
    """What an operation reads is there."""
    if not one.output and len(outputs) != 1:
        raise PackageError(f"{where} names no output, and the model has {len(outputs)}: {_names(outputs)}")
    if one.output and one.output not in outputs:
        raise PackageError(f"{where} reads the output {one.output!r}, and the model has {_names(outputs)}")


def _lanes(bindings: Sequence[Binding], where: str) -> tuple[Lane, ...]:
    """The bindings by the rows that items fill, smallest first."""
    lanes: dict[tuple[TensorSpec, ...], list[Binding]] = {}
    for binding in bindings:
        same = lanes.setdefault(tuple(binding.inputs.values()), [])
        if any(one.bucket.items == binding.bucket.items for one in same):
            raise PackageError(f"{where}: twice a {bucket_words(binding.bucket)}")
        same.append(binding)
    found = [
        Lane(next(iter(rows)), tuple(sorted(same, key=lambda one: one.bucket.items))) for rows, same in lanes.items()
    ]
    return tuple(sorted(found, key=lambda lane: (lane.row.nbytes, lane.row.shape)))


def _operations(calls: Sequence[OpCall], where: str) -> list[Any]:
    """The operations with their parameters."""
    try:
        return [operation(call.op, call.params) for call in calls]
    except OperationError as error:
        raise PackageError(f"{where}: {error}") from error


def _takes_images(one: object) -> TypeGuard[ImageOperation]:
    return hasattr(one, "fits")


def _makes_results(one: object) -> TypeGuard[ResultOperation]:
    return hasattr(one, "answerer")


def _merge(body: dict[str, Any], part: Mapping[str, Json]) -> None:
    """Add a part to an answer; objects of the same name become one."""
    for key, value in part.items():
        there = body.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        elif key in body:
            raise OperationError(f"two operations answer {key!r}")
        else:
            body[key] = dict(value) if isinstance(value, dict) else value


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(one in {size, None} for size, one in zip(shape, wanted, strict=True))


def _words(dtype: str, shape: Iterable[int | None]) -> str:
    return f"{dtype}[{','.join('?' if size is None else str(size) for size in shape)}]"


def bucket_words(bucket: Bucket) -> str:
    """A bucket, for a person."""
    sides = ((bucket.height, "high"), (bucket.width, "wide"))
    return ", ".join([f"bucket of {bucket.items}", *(f"{size} {side}" for size, side in sides if size is not None)])


def _names(tensors: Tensors) -> str:
    return ", ".join(tensors) or "none"


def _named(package: Package, place: int) -> str:
    return f"{package.manifest.pipeline.post[place].op} ({place})"


def _chain(calls: Sequence[OpCall]) -> str:
    return " -> ".join(call.op for call in calls)
