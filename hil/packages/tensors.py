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

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.onnx.check import ModelSummary, Port, check_model
from agent.package import Bucket, Limits, Name, OpCall, Package
from hil.packages.recipe import Bodies, Recipe, build, call
from kernels.npy_tensor import NpyTensor
from kernels.npy_tensor import sizes as sizes_of

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
        name=name or name_of(onnx_path),
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
    pre, stacked, post = _pipeline(check_model(model, str(where)), dict(sizes or {}), where)
    limits = Limits(
        max_item_bytes=_item_bytes(pre, where),
        max_items=MAX_ITEMS,
        memory_mb=max(LEAST_MEMORY_MB, MEMORY_OF_MODEL * len(model) // 1024**2),
    )
    recipe = Recipe(
        name=name,
        version=version,
        where=str(where),
        model=model,
        input="tensor",
        pre=tuple(call("npy_tensor", **msgspec.to_builtins(one)) for one in pre),
        post=post,
        buckets=tuple(Bucket(items=count) for count in (BATCHES if stacked else (1,))),
        limits=limits,
        tolerance_permille=tolerance_permille,
        golden=list(golden) or _drawn_items(pre),
        check_answers=_nothing_is_known,
    )
    return build(recipe, folder)


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


def _nothing_is_known(_answers: Bodies) -> None:
    """What a customer's model should answer only the customer knows."""


def _pipeline(
    model: ModelSummary, sizes: dict[str, tuple[int, ...]], where: str | Path
) -> tuple[tuple[NpyTensor, ...], bool, tuple[OpCall, ...]]:
    """How the tensors of an item are read, whether items are stacked, and what is answered."""
    if not model.inputs:
        raise PackageError(f"{where} has no input", hint="a package computes something from each item")
    stacked = all(one.shape[:1] == (None,) for one in (*model.inputs, *model.outputs))
    found = []
    for one in model.inputs:
        shape = sizes.pop(one.name, None) or (one.shape[1:] if stacked else one.shape)
        if None in shape:
            example = ",".join(str(size or 128) for size in shape)
            raise PackageError(
                f"{where}: the size of input {one.name!r} is open: {_words(one)}",
                hint=f"say what an item has, for example --shape {one.name}={example}",
            )
        found.append(_tensor(one, shape, stacked, where))
    if sizes:
        raise PackageError(
            f"{where} has no input {min(sizes)!r}", hint=f"it has {', '.join(map(_words, model.inputs))}"
        )
    return tuple(found), stacked, tuple(_answering(one) for one in model.outputs)


def _tensor(one: Port, shape: Sequence[int | None], stacked: bool, where: str | Path) -> NpyTensor:  # noqa: FBT001 - private
    text = ",".join(str(size) for size in shape)
    said = {"input": one.name, "dtype": one.dtype, "shape": text, "stacked": stacked}
    try:
        return msgspec.convert(said, NpyTensor)
    except msgspec.ValidationError as error:
        raise PackageError(f"{where}: input {one.name!r} cannot be an item's: {error}") from error


def _answering(one: Port) -> OpCall:
    """The values of an output, or its digest where they are too many or nobody can say how many."""
    count = 1
    for size in one.shape[1:] if one.shape[:1] == (None,) else one.shape:
        count *= VALUES_AT_MOST + 1 if size is None else size
    return call("tensor_values" if count <= VALUES_AT_MOST else "tensor_digest", output=one.name)


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


def name_of(path: Path) -> str:
    """A package's name from a file's: what may not stand in it becomes a hyphen."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in path.stem)[:64]
    return msgspec.convert(plain.strip("-") or "model", Name)


def _words(one: Port) -> str:
    return f"{one.name} {one.dtype}[{','.join('?' if size is None else str(size) for size in one.shape)}]"
