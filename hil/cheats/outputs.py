"""What cars would answer: the OCR recogniser on drawn lines, run in every way that honest and dishonest cars run it.

Every variant is a real run of the package's pipeline with ONNX Runtime on this CPU. Honest ones differ in what may
differ: threads, batch size, how far the graph is optimised (which stands for another engine), and float16 throughout
(which stands for hardware that computes in halves, and says so). Dishonest ones have the weights of another model. A
line's answer and the digest of its raw results are kept in a file, since they take minutes to make and moments to use.

The package's bands were found on other lines than those of the play: see `hil.cheats.calibration`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from agent.package import Bucket, Package
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu, session_options
from agent.worker.onnxruntime_library import ort
from agent.worker.pipeline import Pipeline
from hil.cheats.weights import Precision, with_precision
from hil.dispatcher.tolerance import Agreement, Tolerance, compare_slices, tolerance_of
from hil.images import drawn_lines
from hil.packages import build_named
from kernels.tensor_samples import samples_drift_ppm

LINES = 160
LINES_SEED = 11
MADE = 3
"""Raised when what is made changes: files of before are not used."""
BATCH = 8


GraphLevel = Literal["all", "basic", "none"]


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the model."""

    threads: int = 1
    batch: int = 1
    graph: GraphLevel = "all"
    precision: Precision | None = None
    activations: bool = False


HONEST = {
    "float32": Variant(),
    "float32 again": Variant(),
    "two threads": Variant(threads=2),
    "batches of 8": Variant(batch=BATCH),
    "partly optimised": Variant(graph="basic"),
    "not optimised": Variant(graph="none"),
    "float16 hardware": Variant(precision="float16", activations=True),
}
DISHONEST = {
    "float16 weights": Variant(precision="float16"),
    "int8 weights": Variant(precision="int8"),
    "half the weights": Variant(precision="thinned"),
}
VARIANTS = {**HONEST, **DISHONEST}
HALVES = "float16 hardware"
"""The one honest way that is not float32, and does not say that it is."""


class LineAnswer(msgspec.Struct, frozen=True):
    """The answer to a line, as JSON text, and the SHA-256 of its raw results in hex."""

    answer: str
    raw_sha256: str

    @property
    def body(self) -> dict[str, Any]:
        """The answer, read."""
        return msgspec.json.decode(self.answer, type=dict[str, Any])


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """By variant, what it answers to each of the lines; and what the package allows."""

    tolerance: Tolerance
    variants: dict[str, tuple[LineAnswer, ...]]

    @property
    def lines(self) -> int:
        """How many there are."""
        return len(self.variants["float32"])


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How far a variant is from the plain float32 run: shares of the lines, in thousandths.

    `within_tolerance_permille` is of texts and confidences, `within_band_permille` of the samples, held to float32.
    """

    variant: str
    same_bits_permille: int
    same_text_permille: int
    within_tolerance_permille: int
    within_band_permille: int


def outputs(folder: Path, lines: int = LINES, seed: int = LINES_SEED) -> Outputs:
    """The outputs of all variants, from `folder` or made now (minutes) and put there; raises PackageError."""
    file = folder / f"ocr-{MADE}-{lines}-{seed}-{ort.__version__}.json"
    if file.is_file():
        return msgspec.json.decode(file.read_bytes(), type=Outputs)
    with tempfile.TemporaryDirectory(prefix="driveway-cheats-") as name:
        package = build_named("ocr", Path(name) / "ocr")
        model = package.read(package.manifest.model)
        items = [line.png for line in drawn_lines(lines, seed)]
        made = Outputs(
            tolerance=tolerance_of(package.manifest),
            variants={title: _run(package, model, one, items) for title, one in VARIANTS.items()},
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(made))
    part.replace(file)
    return made


def drifts(made: Outputs) -> list[Drift]:
    """How far apart the variants are, line by line."""
    plain = made.variants["float32"]
    allowed = msgspec.structs.replace(made.tolerance, strays_permille=0, bands_ppm={})
    band = made.tolerance.bands_ppm["float32"]

    def share(lines: tuple[LineAnswer, ...], agree: Callable[[LineAnswer, LineAnswer], bool]) -> int:
        return 1000 * sum(agree(one, other) for one, other in zip(plain, lines, strict=True)) // len(plain)

    return [
        Drift(
            variant=name,
            same_bits_permille=share(lines, lambda one, other: one.raw_sha256 == other.raw_sha256),
            same_text_permille=share(lines, lambda one, other: one.body["text"] == other.body["text"]),
            within_tolerance_permille=share(
                lines,
                lambda one, other: compare_slices(slice_body([one]), slice_body([other]), allowed) is Agreement.SAME,
            ),
            within_band_permille=share(lines, lambda one, other: drift_ppm(one, other) <= band),
        )
        for name, lines in made.variants.items()
    ]


def drift_ppm(one: LineAnswer, other: LineAnswer) -> float:
    """How far the samples of two answers to a line are apart."""
    return samples_drift_ppm(one.body["samples"], other.body["samples"])


def slice_body(answers: list[LineAnswer]) -> bytes:
    """The answers of a slice as a car hands them in."""
    return f"[{','.join(one.answer for one in answers)}]".encode("ascii")


def slice_raw_sha256(answers: list[LineAnswer]) -> str:
    """The digest of a slice's raw results, as `agent.wire.SliceDone` defines it."""
    return hashlib.sha256(b"".join(bytes.fromhex(one.raw_sha256) for one in answers)).hexdigest()


_LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class _LessOptimised(OnnxRuntimeCpu):
    """The same executor with a graph in which less was fused, or nothing."""

    def __init__(self, model: bytes, graph: GraphLevel, *, threads: int, memory_mb: int) -> None:
        super().__init__(model, threads=threads, memory_mb=memory_mb)
        options = session_options(threads)
        options.graph_optimization_level = _LEVELS[graph]
        self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(package: Package, model: bytes, variant: Variant, items: list[bytes]) -> tuple[LineAnswer, ...]:
    if variant.precision is not None:
        model = with_precision(model, variant.precision, activations=variant.activations)
    memory_mb = package.manifest.limits.memory_mb
    engine = (
        OnnxRuntimeCpu(model, threads=variant.threads, memory_mb=memory_mb)
        if variant.graph == "all"
        else _LessOptimised(model, variant.graph, threads=variant.threads, memory_mb=memory_mb)
    )
    try:
        answers = Pipeline(_with_batch(package, variant.batch), engine).compute(items)
    finally:
        engine.close()
    return tuple(LineAnswer(one.encoded.decode("ascii"), one.raw_sha256.hex()) for one in answers)


def _with_batch(package: Package, batch: int) -> Package:
    """The package with micro-batches of this size, whatever a car would choose."""
    widths = sorted({one.width for one in package.manifest.buckets if one.width is not None})
    buckets = tuple(Bucket(items=batch, width=width) for width in widths)
    return replace(package, manifest=msgspec.structs.replace(package.manifest, buckets=buckets))
