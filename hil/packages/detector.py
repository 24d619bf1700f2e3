"""The detection package: PP-OCRv6 (small) says which pixels of a page belong to text.

The answer is the page's mask at PP-OCR's threshold, a bit a pixel, from which the boxes are made elsewhere
(Liao et al. 2020, see `hil.pages`). The mask is the size of the bucket, with the page at its top left: a page that fits
keeps its size, a larger one is shrunk until it fits.

Beside it comes a fingerprint for verifiers on other hardware, of the values before the sigmoid. Behind the sigmoid tens
of thousands of pixels have nearly the same largest value, so that "the largest" would be anybody's guess; before it a
few dozen stand out.

One call takes far longer on a CPU than a vacate may: there the worker is killed, not drained (`micro_batch_ms` says
so). Normalisation is PaddleOCR's: ImageNet's mean and deviation, applied to blue, green and red in this order, as it
reads images in that order. The golden vector is drawn pages, one blank, on which the mask has to find every line and
nothing else.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import PackageError
from agent.onnx.check import check_model
from agent.package import Bucket, Limits, Package
from hil.packages.onnx_model import with_logits
from hil.packages.recipe import Bodies, Recipe, build, call, model_of_wheel
from hil.pages import PageImage, drawn_page, mask_quality

NAME = "text-detector"
MODEL_IN_WHEEL = "PP-OCRv6_det_small.onnx"
THRESHOLD = 0.3
MEAN, STD = "0.485,0.456,0.406", "0.229,0.224,0.225"
FILL = "0"
"""Black around a smaller page, as in training: around a blank page the network takes white or grey for text."""
FINGERPRINT_VALUES = 64
MIN_OVERLAP = 0.4
"""Of the worst line: the mask is grown by a rule of thumb, and the drawn boxes are tight around the ink."""
MAX_STRAY_SHARE = 0.02
_LIMITS = Limits(max_item_bytes=8 * 1024**2, max_items=10_000, memory_mb=1536)
_BUCKETS = (
    Bucket(items=1, height=480, width=640),
    Bucket(items=1, height=640, width=480),
    Bucket(items=1, height=960, width=960),
)
"""Sides are multiples of 32, as the network needs them. The largest is square: what is larger than all of them goes
there, whichever way it lies."""


def build_detector_package(folder: Path) -> Package:
    """Write the package into `folder` (made when missing, must be empty) and open it.

    Raises PackageError when the wheel is not installed or the model does not find the golden lines.
    """
    model = with_logits(model_of_wheel(MODEL_IN_WHEEL), MODEL_IN_WHEEL)
    probabilities, logits = (one.name for one in check_model(model, MODEL_IN_WHEEL).outputs)
    frame = call("letterbox_normalize", mean=MEAN, std=STD, fill=FILL, channels="bgr", align="top_left", enlarge=False)
    pages = golden_pages()
    recipe = Recipe(
        name=NAME,
        version="6.0.0",
        where=MODEL_IN_WHEEL,
        model=model,
        input="image",
        pre=(frame,),
        post=(
            call("threshold_bit_pack", threshold=THRESHOLD, output=probabilities),
            call("tensor_fingerprint", output=logits, k=FINGERPRINT_VALUES),
        ),
        buckets=_BUCKETS,
        limits=_LIMITS,
        tolerance_permille=20,
        golden=[page.png for page in pages],
        check_answers=partial(_check_found, pages),
    )
    return build(recipe, folder)


def golden_pages() -> list[PageImage]:
    """A page in each direction, and a large blank one; two of them leave a part of their bucket free."""
    return [drawn_page(480, 640, 1), drawn_page(600, 470, 2), drawn_page(730, 950, 4, blank=True)]


def mask_of(answer: Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask in an answer, rows x columns."""
    mask = answer["mask"]
    rows = np.frombuffer(base64.b64decode(mask["bits"]), dtype=np.uint8).reshape(mask["rows"], -1)
    return np.unpackbits(rows, axis=1, count=mask["columns"]).astype(np.bool_)


def _check_found(pages: list[PageImage], answers: Bodies) -> None:
    for place, (page, answer) in enumerate(zip(pages, answers, strict=True)):
        mask = mask_of(answer)
        found = mask_quality(mask, page.lines)
        if found.worst_overlap < MIN_OVERLAP:
            raise PackageError(f"the model misses a line of golden page {place}: overlap {found.worst_overlap:.2f}")
        if found.stray_share > MAX_STRAY_SHARE or (not page.lines and mask.any()):
            raise PackageError(f"the model finds text on golden page {place} where there is none")
