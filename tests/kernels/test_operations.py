from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kernels
from kernels import OPS, OperationError, kernels_sha256, operation
from kernels.ctc_greedy_decode import CtcGreedyDecode
from kernels.npy_tensor import NpyTensor
from kernels.resize_normalize_pad import ResizeNormalizePad
from kernels.tensor_answers import TensorDigest, TensorValues


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


@pytest.mark.parametrize("name", ["ctc_greedy_decode.py", "common.cuh", "ctc_greedy_decode.cu"])
def test_the_digest_covers_python_and_cuda_sources(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, copy)
    monkeypatch.setattr(kernels, "__file__", str(copy / "__init__.py"))
    before = kernels_sha256()
    assert len(before) == 64
    (copy / "notes.txt").write_text("not a source", "utf-8")
    assert kernels_sha256() == before
    with (copy / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert kernels_sha256() != before


def test_an_operation_stands_either_before_the_engine_or_behind_it() -> None:
    images = {name for name, kind in OPS.items() if hasattr(kind, "fits")}
    results = {name for name, kind in OPS.items() if hasattr(kind, "answerer")}
    assert images == {"resize_normalize_pad", "letterbox_normalize"}
    assert results == OPS.keys() - images - {"npy_tensor"}
    for name in images:
        assert {"spec", "fits", "reference", "launch"} <= set(dir(OPS[name]))
    for name in results:
        assert {"output", "results", "scratch_bytes", "reference", "launches", "answerer"} <= set(dir(OPS[name]))


def test_tensor_operations_by_name() -> None:
    said = {"input": "x", "dtype": "float32", "shape": "3,4", "stacked": True}
    assert operation("npy_tensor", said) == NpyTensor(input="x", dtype="float32", shape="3,4", stacked=True)
    assert operation("tensor_values", {"output": "y"}) == TensorValues(output="y")
    assert operation("tensor_digest", {"output": "y"}) == TensorDigest(output="y")


@pytest.mark.parametrize("shape", ["0", "3,", ",3", "-1", "3 4", "1" * 10, ",".join("1" * 9)])
def test_a_shape_has_one_to_eight_sizes_or_none(shape: str) -> None:
    with pytest.raises(OperationError, match=r"`\$.shape`"):
        operation("npy_tensor", {"input": "x", "dtype": "float32", "shape": shape, "stacked": False})
