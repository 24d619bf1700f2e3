"""What every recipe has in common: from a model, a pipeline and golden inputs to a package that has proven itself.

A recipe says what the package is made of and what the right answers look like. `build` writes the files, computes the
golden answers with the very pipeline that will have to repeat them, and lists them only when the recipe finds them
right: a package whose model does not do its work is never made. The same wheels on the same kind of processor give the
same package; another processor may round a golden confidence differently, which gives the manifest another digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.errors import PackageError
from agent.onnx.check import check_model
from agent.package import (
    MANIFEST,
    Bucket,
    Golden,
    Limits,
    Manifest,
    OpCall,
    Package,
    PipelineSpec,
    PrecisionName,
    encode_manifest,
    open_package,
)
from agent.wire import encode_input
from agent.worker.answers import Answer
from agent.worker.executor import ExecutorError
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from agent.worker.results import canonical
from kernels.operation import OperationError

MODEL = "model.onnx"
GOLDEN_INPUT = "golden/input.msgpack"
GOLDEN_EXPECTED = "golden/expected.json"
WHEEL = "rapidocr"
"""Of this wheel only the models (PP-OCR, Apache-2.0) are used, never its code."""

Bodies = Sequence[Mapping[str, Any]]
"""The golden answers, in the order of the golden items."""


@dataclass(frozen=True)
class Recipe:
    """What a package is made of. `where` names the model in errors; `files` are what the operations name, by name.

    `check_answers` raises PackageError, which says what is wrong, unless the golden answers are right.
    """

    name: str
    version: str
    where: str
    model: bytes
    input: Literal["image", "tensor"]
    pre: tuple[OpCall, ...]
    post: tuple[OpCall, ...]
    buckets: tuple[Bucket, ...]
    limits: Limits
    tolerance_permille: int
    golden: Sequence[bytes]
    check_answers: Callable[[Bodies], None]
    files: Mapping[str, bytes] = field(default_factory=dict)
    precisions: Mapping[PrecisionName, int] = field(default_factory=dict)
    """See `Manifest`."""


def build(recipe: Recipe, folder: Path) -> Package:
    """Write the package into `folder` (made when missing, must be empty) and open it.

    Raises PackageError when the model may not run, does not fit the pipeline, or does not give the right answers.
    """
    check_model(recipe.model, recipe.where)
    files = {
        **recipe.files,
        MODEL: recipe.model,
        GOLDEN_INPUT: encode_input(list(recipe.golden)),
        GOLDEN_EXPECTED: b"[]",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PackageError(f"{folder} is not empty", hint="build a package into a new directory")
        for name, body in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(body)
        _write_manifest(recipe, folder, files)
        answers = _golden_answers(recipe, open_package(folder))
        files[GOLDEN_EXPECTED] = canonical(answers)
        (folder / GOLDEN_EXPECTED).write_bytes(files[GOLDEN_EXPECTED])
        _write_manifest(recipe, folder, files)
    except OSError as error:
        raise PackageError(
            f"cannot write the package {folder}: {error.strerror}", hint="give another folder"
        ) from error
    return open_package(folder)


def model_of_wheel(name: str) -> bytes:
    """A model out of the installed wheel's files; raises PackageError."""
    path = f"{WHEEL}/models/{name}"
    try:
        found = importlib.metadata.distribution(WHEEL).locate_file(path)
        return Path(str(found)).read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise PackageError(f"{path} is not installed", hint="install the hil extra") from error


def call(op: str, **params: bool | float | str) -> OpCall:
    """One operation of a pipeline."""
    return OpCall(op=op, params=dict(params))


def _golden_answers(recipe: Recipe, package: Package) -> list[Answer]:
    """What the package answers to its golden items; raises PackageError unless every one is right."""
    try:
        engine = OnnxRuntimeCpu(recipe.model, threads=1, memory_mb=recipe.limits.memory_mb)
        try:
            answers = Pipeline(package, engine).compute(recipe.golden)
        finally:
            engine.close()
    except (ExecutorError, OperationError) as error:
        raise PackageError(f"{recipe.where} does not run: {error}") from error
    for place, answer in enumerate(answers):
        if answer.failed:
            raise PackageError(f"{recipe.where}: golden item {place} is no good: {answer.body['error']}")
    recipe.check_answers([answer.body for answer in answers])
    return answers


def _write_manifest(recipe: Recipe, folder: Path, files: Mapping[str, bytes]) -> None:
    """manifest.json over the files as they are now; raises PackageError for what a manifest cannot say."""
    manifest = Manifest(
        v=1,
        name=recipe.name,
        version=recipe.version,
        input=recipe.input,
        model=MODEL,
        pipeline=PipelineSpec(pre=recipe.pre, engine="onnx", post=recipe.post),
        buckets=recipe.buckets,
        golden=Golden(input=GOLDEN_INPUT, expected=GOLDEN_EXPECTED, tolerance_permille=recipe.tolerance_permille),
        limits=recipe.limits,
        precisions=dict(recipe.precisions),
        files={name: hashlib.sha256(body).hexdigest() for name, body in files.items()},
    )
    body = encode_manifest(manifest)
    try:
        msgspec.json.decode(body, type=Manifest)
    except msgspec.ValidationError as error:
        raise PackageError(f"{recipe.where} makes no package: {error}") from error
    (folder / MANIFEST).write_bytes(body)
