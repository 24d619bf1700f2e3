from __future__ import annotations

import pytest

from kernels import OperationError, kernels_sha256, operation
from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.resize_normalize_pad import ResizeNormalizePad


def test_operations_by_name() -> None:
    assert operation("resize_normalize_pad", {"height": 32}) == ResizeNormalizePad(height=32)
    assert operation("resize_normalize_pad", {}) == ResizeNormalizePad(height=48)
    assert operation("ctc_greedy_decode", {"characters": "c.txt"}) == CtcGreedyDecode(characters="c.txt")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("sharpen", {}, "no operation is called 'sharpen'"),
        ("resize_normalize_pad", {"heigth": 48}, "resize_normalize_pad: Object contains unknown field `heigth`"),
        ("resize_normalize_pad", {"height": "48"}, r"Expected `int`, got `str` - at `\$.height`"),
        ("resize_normalize_pad", {"height": 4}, r">= 8 - at `\$.height`"),
        ("ctc_greedy_decode", {}, "missing required field `characters`"),
    ],
)
def test_what_is_not_known_is_refused(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(OperationError, match=message):
        operation(name, params)


def test_the_digest_is_stable_within_a_release() -> None:
    assert kernels_sha256() == kernels_sha256()
    assert len(kernels_sha256()) == 64
