"""A customer's ONNX model with tensors as a package: `build_tensor_package(Path("model.onnx"), Path("folder"))`.

What goes in and out is read from the model; no engine is loaded for that. An item is the .npy bytes of the model's
inputs, one after the other (`item_of`). Where every input and output has an open first size, that is the batch: an item
is one row of it, and the package lists a few batch sizes of which a car takes the largest that is quick enough. Any
other open size has to be fixed (`sizes`), since an engine is only ever run with static shapes.

The golden vector is run here once, with the ONNX Runtime on the CPU and the pipeline that will have to repeat it: on
items of the customer's if some are given (better: they are what the model is for), else on drawn ones: normally
distributed floats, and integers 0 and 1, which are an index or a token in most models.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.package import (
    MANIFEST,
    Bucket,
    Golden,
    Limits,
    Manifest,
    Name,
    OpCall,
    Package,
    PipelineSpec,
    encode_manifest,
    open_package,
)
from agent.wire import encode_input
from agent.worker.answers import Answer
from agent.worker.executor import ExecutorError
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.results import canonical
from agent.worker.tensor_pipeline import TensorPipeline
from hil.packages.onnx_model import ModelSpec, TensorSpec, read_model_spec
from kernels.npy_tensor import NpyTensor
from kernels.npy_tensor import sizes as sizes_of

MODEL = "model.onnx"
GOLDEN_INPUT = "golden/input.msgpack"
GOLDEN_EXPECTED = "golden/expected.json"
GOLDEN_ITEMS = 3
GOLDEN_SEED = 7
BATCHES = (1, 4, 16, 64)
VALUES_AT_MOST = 16_384
"""Larger outputs answer with their digest: a slice's answers have to fit into a frame of 1 MiB."""
MAX_ITEM_BYTES = 16 * 1024**2
TOLERANCE_PERMILLE = 5
"""Of an output's largest value: float32 sums in another order differ by far less, float16 by about this."""
MAX_ITEMS = 100_000
LEAST_MEMORY_MB = 512
MEMORY_OF_MODEL = 4
"""Weights, their optimised copy, and what runs need, as a multiple of the file."""


def build_tensor_package(
    onnx_path: Path,
    folder: Path,
    *,
    name: str = "",
    version: str = "1.0.0",
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    golden: Sequence[bytes] = (),
    tolerance_permille: int = TOLERANCE_PERMILLE,
) -> Package:
    """Write the package of a model into `folder` (made when missing, must be empty) and open it.

    `name`: the model's file name unless given. `sizes`: the shape of an item, by input, where the model leaves sizes
    open. `golden`: items to prove the package with. Raises PackageError, which says what is wrong with the model.
    """
    try:
        model = onnx_path.read_bytes()
    except OSError as error:
        raise PackageError(f"cannot read the model {onnx_path}: {error.strerror}", hint="give an .onnx file") from error
    return package_model(
        model,
        folder,
        name=name or _name_of(onnx_path),
        version=version,
        sizes=sizes,
        golden=golden,
        tolerance_permille=tolerance_permille,
        where=onnx_path,
    )


def package_model(
    model: bytes,
    folder: Path,
    *,
    name: str,
    version: str,
    where: str | Path,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
    golden: Sequence[bytes] = (),
    tolerance_permille: int = TOLERANCE_PERMILLE,
) -> Package:
    """As `build_tensor_package`, for a model that is not in a file; `where` names it in errors."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise PackageError(f"{folder} is not empty", hint="build a package into a new directory")
    spec = read_model_spec(model, where)
    pre, stacked = _pre(spec, dict(sizes or {}), where)
    items = list(golden) or _drawn_items(pre)
    bare = Manifest(
        v=1,
        name=name,
        version=version,
        input="tensor",
        model=MODEL,
        pipeline=PipelineSpec(pre=tuple(_call("npy_tensor", one) for one in pre), engine="onnx", post=_post(spec)),
        buckets=tuple(Bucket(items=count) for count in (BATCHES if stacked else (1,))),
        golden=Golden(input=GOLDEN_INPUT, expected=GOLDEN_EXPECTED, tolerance_permille=tolerance_permille),
        limits=Limits(
            max_item_bytes=_item_bytes(pre, where),
            max_items=MAX_ITEMS,
            memory_mb=max(LEAST_MEMORY_MB, MEMORY_OF_MODEL * len(model) // 1024**2),
        ),
        files={},
    )
    (folder / "golden").mkdir()
    (folder / MODEL).write_bytes(model)
    (folder / GOLDEN_INPUT).write_bytes(encode_input(items))
    (folder / GOLDEN_EXPECTED).write_bytes(b"[]")
    _write_manifest(folder, bare)
    (folder / GOLDEN_EXPECTED).write_bytes(canonical(_answers(open_package(folder), model, items, where)))
    _write_manifest(folder, bare)
    return open_package(folder)


def inputs_of(package: Package) -> tuple[NpyTensor, ...]:
    """The tensors that an item of a tensor package holds, in order; raises PackageError for another package."""
    calls = package.manifest.pipeline.pre
    try:
        return tuple(msgspec.convert(call.params, NpyTensor) for call in calls if call.op == "npy_tensor")
    except msgspec.ValidationError as error:
        raise PackageError(f"package {package.path}: pipeline.pre: {error}") from error


def item_of(tensors: Sequence[NDArray[Any]]) -> bytes:
    """An item: its tensors as .npy bytes, one after the other, little-endian and in C order as a worker takes them."""
    body = io.BytesIO()
    for tensor in tensors:
        plain = tensor.astype(tensor.dtype.newbyteorder("<"), order="C", copy=False)
        np.lib.format.write_array(body, plain, version=(1, 0), allow_pickle=False)
    return body.getvalue()


def _pre(spec: ModelSpec, sizes: dict[str, tuple[int, ...]], where: str | Path) -> tuple[tuple[NpyTensor, ...], bool]:
    """How the tensors of an item are read, and whether items are stacked."""
    if not spec.inputs:
        raise PackageError(f"{where} has no input", hint="a package computes something from each item")
    stacked = all(one.shape[:1] == (None,) for one in (*spec.inputs, *spec.outputs))
    found = []
    for one in spec.inputs:
        shape = sizes.pop(one.name, None) or (one.shape[1:] if stacked else one.shape)
        if None in shape:
            example = ",".join(str(size or 128) for size in shape)
            raise PackageError(
                f"{where}: the size of input {one.name!r} is open: {_words(one)}",
                hint=f"say what an item has, for example --shape {one.name}={example}",
            )
        found.append(_tensor(one, shape, stacked, where))
    if sizes:
        raise PackageError(f"{where} has no input {min(sizes)!r}", hint=f"it has {', '.join(map(_words, spec.inputs))}")
    return tuple(found), stacked


def _tensor(one: TensorSpec, shape: Sequence[int | None], stacked: bool, where: str | Path) -> NpyTensor:  # noqa: FBT001 - private
    text = ",".join(str(size) for size in shape)
    said = {"input": one.name, "dtype": one.dtype, "shape": text, "stacked": stacked}
    try:
        return msgspec.convert(said, NpyTensor)
    except msgspec.ValidationError as error:
        raise PackageError(f"{where}: input {one.name!r} cannot be an item's: {error}") from error


def _post(spec: ModelSpec) -> tuple[OpCall, ...]:
    """The values of each output, or its digest where they are too many or nobody can say how many."""
    calls = []
    for one in spec.outputs:
        count = 1
        for size in one.shape[1:] if one.shape[:1] == (None,) else one.shape:
            count *= VALUES_AT_MOST + 1 if size is None else size
        op = "tensor_values" if count <= VALUES_AT_MOST else "tensor_digest"
        calls.append(OpCall(op=op, params={"output": one.name}))
    return tuple(calls)


def _call(op: str, params: msgspec.Struct) -> OpCall:
    return OpCall(op=op, params=msgspec.to_builtins(params))


def _item_bytes(pre: Sequence[NpyTensor], where: str | Path) -> int:
    """The size of an item, which is the same for all."""
    values = sum(int(np.prod(sizes_of(one.shape), dtype=np.int64)) * np.dtype(one.dtype).itemsize for one in pre)
    if values > MAX_ITEM_BYTES:
        raise PackageError(f"{where}: an item has {values} bytes, more than {MAX_ITEM_BYTES}", hint="use smaller items")
    return values + 256 * len(pre)


def _drawn_items(pre: Sequence[NpyTensor]) -> list[bytes]:
    dice = np.random.default_rng(GOLDEN_SEED)
    return [item_of([_drawn(one, dice) for one in pre]) for _ in range(GOLDEN_ITEMS)]


def _drawn(one: NpyTensor, dice: np.random.Generator) -> NDArray[Any]:
    shape = sizes_of(one.shape)
    if np.dtype(one.dtype).kind == "f":
        return dice.standard_normal(shape).astype(one.dtype)
    return dice.integers(0, 2, shape).astype(one.dtype)


def _answers(package: Package, model: bytes, items: Sequence[bytes], where: str | Path) -> list[Answer]:
    """The golden answers; raises PackageError when the engine does not take the model, or an item has none."""
    try:
        engine = OnnxRuntimeCpu(model, threads=1, memory_mb=package.manifest.limits.memory_mb)
        answered = dict(pair for step in TensorPipeline(package, engine).steps(items) for pair in step)
    except ExecutorError as error:
        raise PackageError(f"{where} does not run: {error}") from error
    answers = [answered[place] for place in range(len(items))]
    for place, answer in enumerate(answers):
        if answer.failed:
            raise PackageError(f"{where}: golden item {place} is no good: {answer.body['error']}")
    return answers


def _write_manifest(folder: Path, bare: Manifest) -> None:
    """manifest.json over the files that are there now."""
    names = (MODEL, GOLDEN_INPUT, GOLDEN_EXPECTED)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / MANIFEST).write_bytes(encode_manifest(msgspec.structs.replace(bare, files=files)))


def _name_of(path: Path) -> str:
    """A package's name from a file's: what may not stand in it becomes a hyphen."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in path.stem)[:64]
    return msgspec.convert(plain.strip("-") or "model", Name)


def _words(one: TensorSpec) -> str:
    return f"{one.name} {one.dtype}[{','.join('?' if size is None else str(size) for size in one.shape)}]"
