"""The text recognition package: PP-OCRv6 (small) reads one line of print an item.

The model's ONNX metadata holds the characters of the classes 1, 2, …; class 0 is the CTC blank and the last one a
space, which the list leaves out. The golden vector is a few drawn lines, whose answers have to say what was drawn.

Beside the text comes a handful of the values before the softmax: in which precision they were computed shows there,
long before a text changes. How far honest engines may differ in them was measured on lines of their own
(`hil.cheats.calibration`), and `BANDS_PPM` is what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from agent.errors import PackageError
from agent.onnx.check import check_model
from agent.package import Bucket, Limits, Package, PrecisionName
from hil.images import LineImage, accuracy, drawn_lines
from hil.packages.onnx_model import metadata, with_logits
from hil.packages.recipe import Bodies, Recipe, build, call, model_of_wheel

NAME = "ocr-line"
MODEL_IN_WHEEL = "PP-OCRv6_rec_small.onnx"
CHARACTERS = "characters.txt"
HEIGHT_PX = 48
GOLDEN_LINES = 5
GOLDEN_SEED = 2
MIN_ACCURACY = 0.97
SAMPLES = 6
BANDS_PPM: Mapping[PrecisionName, int] = {"float32": 200, "tf32": 40_000, "float16": 40_000}
"""By how much the samples of two honest engines of a precision may differ. TF32 rounds what goes into a product to as
many bits as float16 has, and nobody here has hardware for it: its band is float16's."""
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


def build_ocr_package(folder: Path) -> Package:
    """Write the package into `folder` (made when missing, must be empty) and open it.

    Raises PackageError when the wheel is not installed or the model does not read the golden lines.
    """
    model = with_logits(model_of_wheel(MODEL_IN_WHEEL), MODEL_IN_WHEEL, "Softmax")
    probabilities, logits = (one.name for one in check_model(model, MODEL_IN_WHEEL).outputs)
    lines = drawn_lines(GOLDEN_LINES, GOLDEN_SEED)
    recipe = Recipe(
        name=NAME,
        version="6.2.0",
        where=MODEL_IN_WHEEL,
        model=model,
        input="image",
        pre=(call("resize_normalize_pad", height=HEIGHT_PX),),
        post=(
            call("ctc_greedy_decode", characters=CHARACTERS, output=probabilities),
            call("tensor_samples", output=logits, k=SAMPLES),
        ),
        buckets=_BUCKETS,
        limits=_LIMITS,
        tolerance_permille=20,
        precisions=BANDS_PPM,
        golden=[line.png for line in lines],
        check_answers=partial(_check_read, lines),
        files={CHARACTERS: "\n".join([*_characters(model), ""]).encode()},
    )
    return build(recipe, folder)


def _check_read(lines: list[LineImage], answers: Bodies) -> None:
    read = accuracy([line.text or "" for line in lines], [str(answer["text"]) for answer in answers])
    if read < MIN_ACCURACY:
        raise PackageError(f"the model reads {read:.3f} of the golden lines, less than {MIN_ACCURACY}")


def _characters(model: bytes) -> list[str]:
    """The characters of the classes 1, 2, …: the model's own list, and the space that its training appends."""
    output, _ = check_model(model, MODEL_IN_WHEEL).outputs
    listed = metadata(model, MODEL_IN_WHEEL).get("character", "").split("\n")
    if len(listed) + 2 != output.shape[-1]:
        raise PackageError(f"{MODEL_IN_WHEEL}: {len(listed)} characters for {output.shape[-1]} classes, not two less")
    return [*listed, " "]
