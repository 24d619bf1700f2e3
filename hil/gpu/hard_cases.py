"""The inputs that kernels get wrong, and what the reference makes of them.

`CASES` has for each .cu file sizes that are no multiple of anything, one pixel, ties, what is not a number, rows
without an image, one step, two classes and many. They are run on a GPU, on the host under several thread orders, in a
sanitised process, and against planted bugs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.letterbox_normalize import LetterboxNormalize
from kernels.operation import IMAGE, Array, ImageOperation, ResultOperation
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.softmax_top_k import SoftmaxTopK
from kernels.tensor_fingerprint import TensorFingerprint
from kernels.tensor_samples import TensorSamples
from kernels.threshold_bit_pack import ThresholdBitPack

SOFTMAX_TOLERANCE = 4e-6
"""Relative, of probabilities: see kernels/softmax_top_k.py. Everything else agrees bit for bit."""


@dataclass(frozen=True)
class ImageCase:
    """A micro-batch of images (None: a row without one) for a bucket of this height and width."""

    operation: ImageOperation
    images: Sequence[NDArray[np.uint8] | None]
    height: int | None
    width: int | None


@dataclass(frozen=True)
class ResultCase:
    """The engine's output for a batch: items first."""

    operation: ResultOperation
    output: Array


Case = ImageCase | ResultCase


def reference(case: Case) -> tuple[Array, ...]:
    """What the NumPy reference gives."""
    if isinstance(case, ResultCase):
        return case.operation.reference(case.output)
    spec = case.operation.spec(case.height, case.width)
    batch = np.zeros((len(case.images), *spec.shape), dtype=spec.dtype)
    for row, image in zip(batch, case.images, strict=True):
        if image is not None:
            row[...] = np.nan  # every element is to be written
            case.operation.reference(image, row)
    return (batch,)


def staged(images: Sequence[NDArray[np.uint8] | None]) -> tuple[NDArray[np.void], bytes]:
    """A micro-batch's list of images, and their pixels one image after the other."""
    table = np.zeros(len(images), dtype=IMAGE)
    body = bytearray()
    for row, image in enumerate(images):
        if image is not None:
            table[row] = (len(body), image.shape[0], image.shape[1])
            body += image.tobytes()
    return table, bytes(body)


def tolerance(case: Case, at: int) -> float:
    """By how much of its size a value of result `at` may differ."""
    softmax = isinstance(case, ResultCase) and isinstance(case.operation, SoftmaxTopK) and case.operation.softmax
    return SOFTMAX_TOLERANCE if softmax and at == 1 else 0.0


def equal(want: Array, have: Array, allowed: float) -> NDArray[np.bool_]:
    """Where the results agree; what is not a number agrees with its like."""
    if want.dtype.kind != "f":
        return np.asarray(want == have)
    with np.errstate(invalid="ignore"):  # what is not a number may be of the kind that signals
        found, wanted = have.astype(np.float64), want.astype(np.float64)
    return np.isclose(found, wanted, rtol=allowed, atol=allowed / 1e6, equal_nan=True)


def picture(seed: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """An image in which neighbours differ."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def floats(seed: int, *shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Values around zero, all kinds of sizes."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _ties(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Few different values, both zeros among them."""
    return np.random.default_rng(7).choice(np.array([-2, -1, -0.0, 0.0, 1, 2], dtype=dtype), shape)


def _planted(values: NDArray[Any], *places: tuple[tuple[int | slice, ...], float]) -> NDArray[Any]:
    for place, value in places:
        values[place] = value
    return values


def _resize_cases() -> list[Case]:
    line = ResizeNormalizePad()
    small = ResizeNormalizePad(height=9)
    return [
        ImageCase(line, [picture(1, 31, 77), None, picture(2, 100, 60)], None, 130),
        ImageCase(line, [picture(3, 48, 150)], 48, 150),
        ImageCase(small, [picture(4, 1, 1), picture(5, 1, 40), picture(6, 40, 1), None], None, 16),
        ImageCase(small, [None], None, 8),
        ImageCase(small, [picture(7, 5, 200)], 9, 131),
    ]


def _letterbox_cases() -> list[Case]:
    common = LetterboxNormalize(mean="0.485,0.456,0.406", std="0.229,0.224,0.225", fill="114,7,200")
    operations = (
        common,
        msgspec.structs.replace(common, channels="bgr", align="top_left", enlarge=False),
        msgspec.structs.replace(common, dtype="float16"),
        msgspec.structs.replace(common, channels="bgr", align="top_left", enlarge=False, dtype="float16"),
    )
    images = [picture(1, 50, 35), None, picture(2, 10, 160), picture(3, 1, 1)]
    return [
        *(ImageCase(operation, images, 37, 131) for operation in operations),
        *(ImageCase(operation, [picture(4, 100, 2), picture(5, 2, 3)], 17, 8) for operation in operations),
    ]


def _ctc_cases() -> list[Case]:
    operation = CtcGreedyDecode(characters="c")
    cases: list[Case] = []
    for dtype in ("float32", "float16"):
        cases += [
            ResultCase(operation, floats(1, 2, 3, 1031, dtype=dtype)),
            ResultCase(operation, floats(2, 1, 1, 2, dtype=dtype)),
            ResultCase(operation, floats(3, 3, 5, 7, dtype=dtype)),
            ResultCase(operation, _ties(2, 2, 517, dtype=dtype)),
            ResultCase(operation, np.full((1, 2, 300), -np.inf, dtype=dtype)),
            ResultCase(operation, np.array([[[-1, -0.0, 0.0, -2]]], dtype=dtype)),
            ResultCase(operation, _planted(floats(4, 1, 4, 700, dtype=dtype), ((0, 0, 699), 9), ((0, 1, 0), 9),
                                           ((0, 2, 400), np.nan), ((0, 2, 650), np.nan), ((0, 3, 3), np.inf))),
        ]  # fmt: skip
    signalling = np.array([[[0x3F800000, 0xFFFFFFFF, 0x7F800001]]], dtype=np.uint32).view(np.float32)
    return [*cases, *(ResultCase(operation, each) for each in (floats(5, 1, 2, 18_710), signalling))]


def _softmax_cases() -> list[Case]:
    cases: list[Case] = []
    for dtype in ("float32", "float16"):
        cases += [
            ResultCase(SoftmaxTopK(k=5, softmax=True), 4 * floats(1, 2, 1000, dtype=dtype)),
            ResultCase(SoftmaxTopK(k=2, softmax=True), floats(2, 3, 2, dtype=dtype)),
            ResultCase(SoftmaxTopK(k=4, softmax=True), 200 * floats(4, 2, 777, dtype=dtype)),
            ResultCase(SoftmaxTopK(k=1, softmax=False), _ties(2, 300, dtype=dtype)),
            ResultCase(SoftmaxTopK(k=20, softmax=False), _ties(1, 2500, dtype=dtype)),
            ResultCase(SoftmaxTopK(k=3, softmax=True), _planted(floats(3, 3, 600, dtype=dtype), ((0, 555), np.nan),
                                                                ((1, 300), np.inf), ((2, slice(0, 512)), -np.inf))),
            ResultCase(SoftmaxTopK(k=2, softmax=True), np.full((1, 9), -np.inf, dtype=dtype)),
        ]  # fmt: skip
    rising = np.arange(20_000, dtype=np.float32)[None] / 1000
    return [*cases, ResultCase(SoftmaxTopK(k=128, softmax=True), rising)]


def _threshold_cases() -> list[Case]:
    operation = ThresholdBitPack(threshold=0.3)
    cases: list[Case] = []
    for dtype in ("float32", "float16"):
        at = np.array([0.25, 0.3, np.nextafter(np.float32(0.3), np.float32(1)), 0.5], dtype=dtype)
        cases += [
            ResultCase(operation, abs(floats(1, 2, 1, 9, 133, dtype=dtype))),
            ResultCase(operation, abs(floats(2, 1, 17, 8, dtype=dtype))),
            ResultCase(operation, np.ones((3, 1, 1), dtype=dtype)),
            ResultCase(operation, np.random.default_rng(3).choice(at, (1, 3, 259))),
            ResultCase(operation, _planted(floats(4, 2, 4, 130, dtype=dtype), ((0, 1, 129), np.nan), ((1, 0, 0), 9))),
        ]
    return cases


def _crowded() -> NDArray[np.float32]:
    """The 128 largest of 2^15 values where the kernel's threads each hold nothing but candidates, or none."""
    groups = np.zeros((128, 256), dtype=np.float32)
    groups[:, :64] = 11 + np.random.default_rng(8).random((128, 64), dtype=np.float32)
    groups[:, 0] -= 1  # one place in each group is lower: what bounds the candidates from below
    return groups.reshape(1, -1)


def _fingerprint_cases() -> list[Case]:
    cases: list[Case] = []
    odd = _planted(floats(3, 1, 3000), ((0, 2999), np.nan), ((0, 7), np.nan), ((0, 800), -np.inf))
    for dtype in ("float32", "float16"):
        cases += [
            ResultCase(TensorFingerprint(output="y", k=8), floats(1, 2, 7, 301, dtype=dtype)),
            ResultCase(TensorFingerprint(output="y", k=1), floats(2, 3, 1, dtype=dtype)),
            ResultCase(TensorFingerprint(output="y", k=64), _ties(1, 900, dtype=dtype)),
            ResultCase(TensorFingerprint(output="y", k=4), odd.astype(dtype)),
            ResultCase(TensorFingerprint(output="y", k=5), np.zeros((1, 5), dtype=dtype)),
        ]
    operation = TensorFingerprint(output="y", k=128)
    return [*cases, *(ResultCase(operation, each) for each in (np.arange(40_001, dtype=np.float32)[None], _crowded()))]


def _samples_cases() -> list[Case]:
    return [
        ResultCase(TensorSamples(output="y", k=k), floats(4, *shape, dtype=dtype))
        for dtype in ("float32", "float16")
        for k, shape in ((6, (3, 120, 211)), (64, (2, 7)), (1, (1, 1)))
    ]


CASES: Mapping[str, Sequence[Case]] = {
    "resize_normalize_pad.cu": _resize_cases(),
    "letterbox_normalize.cu": _letterbox_cases(),
    "ctc_greedy_decode.cu": _ctc_cases(),
    "softmax_top_k.cu": _softmax_cases(),
    "threshold_bit_pack.cu": _threshold_cases(),
    "tensor_fingerprint.cu": _fingerprint_cases(),
    "tensor_samples.cu": _samples_cases(),
}
