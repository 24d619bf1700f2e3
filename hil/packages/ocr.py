"""The text recognition package: PP-OCRv6 (small) reads one line of print an item.

The model (Apache-2.0) comes out of the installed `rapidocr` wheel, of which only this file is used. Its ONNX metadata
holds the characters of the classes 1, 2, …; class 0 is the CTC blank and the last one a space, which the list leaves
out. The golden vector is a few drawn lines: their answers are computed here by the pipeline that will have to repeat
them, and only taken when they say what was drawn. The same wheels on the same kind of processor give the same package;
another processor may round a golden confidence differently, which gives the manifest another digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import onnxruntime as ort

from agent.errors import PackageError
from agent.package import (
    MANIFEST,
    Bucket,
    Golden,
    Limits,
    Manifest,
    OpCall,
    Package,
    PipelineSpec,
    encode_manifest,
    open_package,
)
from agent.wire import encode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from agent.worker.results import canonical
from hil.images import accuracy, drawn_lines

NAME = "ocr-line"
_WHEEL = "rapidocr"
_MODEL_IN_WHEEL = "rapidocr/models/PP-OCRv6_rec_small.onnx"
_MODEL = "model.onnx"
_CHARACTERS = "characters.txt"
_GOLDEN_INPUT = "golden/input.msgpack"
_GOLDEN_EXPECTED = "golden/expected.json"
_GOLDEN_LINES = 5
_GOLDEN_SEED = 2
_MIN_GOLDEN_ACCURACY = 0.97
_LIMITS = Limits(max_item_bytes=2 * 1024**2, max_items=100_000, memory_mb=1536)
_BUCKETS = (
    Bucket(items=1, width=160),
    Bucket(items=1, width=320),
    Bucket(items=8, width=320),
    Bucket(items=1, width=480),
    Bucket(items=1, width=640),
    Bucket(items=1, width=960),
    Bucket(items=1, width=1280),
)
"""Single lines keep to 20 ms on a slow CPU; eight at once pay on an accelerator, and are chosen only there."""


def build_ocr_package(out_dir: Path) -> Package:
    """Write the package into the directory `out_dir` (made when missing, must be empty) and open it.

    Raises PackageError when the wheel is not installed or the model does not read the golden lines.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if any(out_dir.iterdir()):
        raise PackageError(f"{out_dir} is not empty", hint="build a package into a new directory")
    model = _model_bytes()
    characters = _characters(model)
    lines = drawn_lines(_GOLDEN_LINES, _GOLDEN_SEED)
    (out_dir / "golden").mkdir()
    (out_dir / _MODEL).write_bytes(model)
    (out_dir / _CHARACTERS).write_text("\n".join(characters) + "\n", "utf-8")
    (out_dir / _GOLDEN_INPUT).write_bytes(encode_input([line.png for line in lines]))
    (out_dir / _GOLDEN_EXPECTED).write_bytes(b"[]")
    _write_manifest(out_dir)

    pipeline = Pipeline(open_package(out_dir), OnnxRuntimeCpu(model, threads=1, memory_mb=_LIMITS.memory_mb))
    answered = dict(pair for step in pipeline.steps([line.png for line in lines]) for pair in step)
    answers = [answered[place] for place in range(len(lines))]
    read = accuracy([line.text or "" for line in lines], [str(answer.body.get("text", "")) for answer in answers])
    if read < _MIN_GOLDEN_ACCURACY:
        raise PackageError(f"the model reads {read:.3f} of the golden lines, less than {_MIN_GOLDEN_ACCURACY}")
    (out_dir / _GOLDEN_EXPECTED).write_bytes(canonical(answers))
    _write_manifest(out_dir)
    return open_package(out_dir)


def _model_bytes() -> bytes:
    """The model, from the wheel's files."""
    try:
        found = importlib.metadata.distribution(_WHEEL).locate_file(_MODEL_IN_WHEEL)
        return Path(str(found)).read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise PackageError(f"{_MODEL_IN_WHEEL} is not installed", hint="install the hil extra") from error


def _characters(model: bytes) -> list[str]:
    """The characters of the classes 1, 2, …: the model's own list, and the space that its training appends."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    listed = session.get_modelmeta().custom_metadata_map["character"].split("\n")
    classes = session.get_outputs()[0].shape[-1]
    characters = [*listed, " "]
    if len(characters) + 1 != classes:
        raise PackageError(f"{_MODEL_IN_WHEEL}: {len(listed)} characters for {classes} classes, expected two less")
    return characters


def _write_manifest(out_dir: Path) -> None:
    """manifest.json over the files that are there now."""
    names = (_MODEL, _CHARACTERS, _GOLDEN_INPUT, _GOLDEN_EXPECTED)
    manifest = Manifest(
        v=1,
        name=NAME,
        version="6.0.0",
        input="image",
        model=_MODEL,
        pipeline=PipelineSpec(
            pre=(OpCall(op="resize_normalize_pad", params={"height": 48}),),
            engine="onnx",
            post=(OpCall(op="ctc_greedy_decode", params={"characters": _CHARACTERS}),),
        ),
        buckets=_BUCKETS,
        golden=Golden(input=_GOLDEN_INPUT, expected=_GOLDEN_EXPECTED, tolerance_permille=20),
        limits=_LIMITS,
        files={name: hashlib.sha256((out_dir / name).read_bytes()).hexdigest() for name in names},
    )
    (out_dir / MANIFEST).write_bytes(encode_manifest(manifest))
