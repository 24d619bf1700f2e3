"""The orientation package: PP-OCR's text-line classifier (mobile v2.0) says whether a line of print is upside down.

The model ends in a softmax, which is cut off: the pipeline's own operation makes probabilities of what is left, on the
accelerator as on a CPU, and answers with names. The golden vector is a few drawn lines, each also turned by half a
turn, whose answers have to say so. Lines longer than four times their height are squeezed, as PP-OCR squeezes them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from agent.errors import PackageError
from agent.package import Bucket, Limits, Package
from hil.images import drawn_lines, upside_down
from hil.packages.onnx_model import without_softmax
from hil.packages.recipe import Bodies, Recipe, build, call, model_of_wheel

NAME = "line-orientation"
MODEL_IN_WHEEL = "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
LABELS = "labels.txt"
UPRIGHT, UPSIDE_DOWN = "0", "180"
"""Degrees by which the line is turned, as PP-OCR names its classes."""
HEIGHT_PX, WIDTH_PX = 48, 192
GOLDEN_LINES = 4
GOLDEN_SEED = 11
_LIMITS = Limits(max_item_bytes=2 * 1024**2, max_items=100_000, memory_mb=512)
_BUCKETS = tuple(Bucket(items=items, width=WIDTH_PX) for items in (1, 4, 16, 64))
"""One line takes well under a millisecond on a CPU, so many at once pay everywhere."""


def build_orientation_package(folder: Path) -> Package:
    """Write the package into `folder` (made when missing, must be empty) and open it.

    Raises PackageError when the wheel is not installed or the model gets a golden line wrong.
    """
    lines = drawn_lines(GOLDEN_LINES, GOLDEN_SEED)
    recipe = Recipe(
        name=NAME,
        version="2.0.0",
        where=MODEL_IN_WHEEL,
        model=without_softmax(model_of_wheel(MODEL_IN_WHEEL), MODEL_IN_WHEEL),
        input="image",
        pre=(call("resize_normalize_pad", height=HEIGHT_PX),),
        post=(call("softmax_top_k", k=2, softmax=True, labels=LABELS),),
        buckets=_BUCKETS,
        limits=_LIMITS,
        tolerance_permille=20,
        golden=[turned.png for line in lines for turned in (line, upside_down(line))],
        check_answers=partial(_check_turned, [UPRIGHT, UPSIDE_DOWN] * len(lines)),
        files={LABELS: f"{UPRIGHT}\n{UPSIDE_DOWN}\n".encode()},
    )
    return build(recipe, folder)


def _check_turned(truths: list[str], answers: Bodies) -> None:
    for place, (truth, answer) in enumerate(zip(truths, answers, strict=True)):
        said = answer["classes"][0]["label"]
        if said != truth:
            raise PackageError(f"the model says {said} of golden line {place}, which is turned by {truth} degrees")
