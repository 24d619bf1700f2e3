"""What the kernels are tried on: the hard cases, and sizes that packages have, too large in all for any cache.

The images of the large cases are scaled to exactly half, so that every pixel of theirs is read. `scale` cuts the large
cases down for a machine that only has to run through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hil.gpu.hard_cases import CASES, ImageCase, ResultCase
from hil.gpu.kernel_chapter import Trial
from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.letterbox_normalize import LetterboxNormalize
from kernels.operation import ResultOperation
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.softmax_top_k import SoftmaxTopK
from kernels.tensor_fingerprint import TensorFingerprint
from kernels.tensor_samples import TensorSamples
from kernels.threshold_bit_pack import ThresholdBitPack


def all_trials(scale: float = 1.0) -> Iterator[Trial]:
    """Every kernel, on the hard cases and on large ones, in both precisions where it has both."""
    for source, cases in CASES.items():
        for number, case in enumerate(cases, start=1):
            yield Trial(Path(source).stem, f"hard case {number}", case)
    chance = np.random.default_rng(11)
    many = max(1, round(64 * scale))
    yield from _large_results(chance, many)
    yield from _large_images(chance, many)


def _large_results(chance: np.random.Generator, many: int) -> Iterator[Trial]:
    operations: dict[str, tuple[ResultOperation, tuple[int, ...]]] = {
        "ctc_greedy_decode": (CtcGreedyDecode(characters="-"), (many, 80, 18_710)),
        "softmax_top_k": (SoftmaxTopK(k=5, softmax=True), (many, 1_000_000)),
        "threshold_bit_pack": (ThresholdBitPack(threshold=0.3), (many, 1, 1280, 1280)),
        "tensor_fingerprint": (TensorFingerprint(output="y", k=64), (many, 1_638_400)),
        "tensor_samples": (TensorSamples(output="y"), (many, 80, 18_710)),
    }
    for dtype in ("float32", "float16"):
        for name, (operation, shape) in operations.items():
            output = chance.random(shape, dtype=np.float32).astype(dtype)
            words = f"{' x '.join(str(size) for size in shape)} {dtype}"
            yield Trial(name, words, ResultCase(operation, output), timed=True)


def _large_images(chance: np.random.Generator, many: int) -> Iterator[Trial]:
    def images(count: int, rows: int, columns: int) -> list[NDArray[np.uint8]]:
        return [chance.integers(0, 256, (rows, columns, 3), dtype=np.uint8) for _ in range(count)]

    float32 = LetterboxNormalize(mean="0.485,0.456,0.406", std="0.229,0.224,0.225", fill="114")
    float16 = LetterboxNormalize(mean="0.485,0.456,0.406", std="0.229,0.224,0.225", fill="114", dtype="float16")
    for box in (float32, float16):
        case = ImageCase(box, images(many, 960, 1280), 640, 640)
        yield Trial("letterbox_normalize", f"{many} of 960 x 1280 to 640 x 640 {box.dtype}", case, timed=True)
    lines = ImageCase(ResizeNormalizePad(), images(8 * many, 96, 1280), None, 640)
    yield Trial("resize_normalize_pad", f"{8 * many} of 96 x 1280 to 48 x 640", lines, timed=True)
