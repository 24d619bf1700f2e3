"""The OCR package: built the same each time, and honest about what it reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from agent.errors import PackageError
from agent.package import Package
from agent.wire import decode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil.images import accuracy, drawn_lines, scanned_lines
from hil.packages import ocr

SCANNED = [
    "Region-based segmentation",
    "Let us first determine markers of the coins and the",
    "background. These markers are pixels that we can label",
    "unambiguously as either object or background. Here,",
    "the markers are found at the two extreme parts of the",
    "histogram of grey values:",
    ">>> markers = np.zeros_like(coins)",
]
"""What a person reads on the scanned page."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return ocr.build_ocr_package(tmp_path_factory.mktemp("ocr"))


def read(package: Package, items: list[bytes]) -> list[str]:
    engine = OnnxRuntimeCpu(package.read("model.onnx"), threads=2, memory_mb=1024)
    answers = dict(pair for step in Pipeline(package, engine).steps(items) for pair in step)
    return [str(answers[place].body["text"]) for place in range(len(items))]


def test_building_twice_gives_the_same_package(package: Package, tmp_path: Path) -> None:
    assert ocr.build_ocr_package(tmp_path / "again").package_sha256 == package.package_sha256


def test_the_character_list_is_complete(package: Package) -> None:
    characters = package.read("characters.txt").decode("utf-8").removesuffix("\n").split("\n")
    assert len(characters) == 18709
    assert len(set(characters)) == 18709
    assert characters[-1] == " "
    assert all(characters)


def test_the_golden_vector_says_what_was_drawn(package: Package) -> None:
    lines = drawn_lines(5, seed=2)
    assert decode_input(package.read("golden/input.msgpack")) == [line.png for line in lines]
    expected = json.loads(package.read("golden/expected.json"))
    assert accuracy([line.text or "" for line in lines], [answer["text"] for answer in expected]) >= 0.97
    assert all(set(answer) == {"text", "confidence_permille"} for answer in expected)


def test_the_model_is_the_wheels(package: Package) -> None:
    assert hashlib.sha256(ocr._model_bytes()).hexdigest() == package.manifest.files["model.onnx"]


def test_reads_drawn_lines(package: Package) -> None:
    lines = drawn_lines(25, seed=77)
    assert accuracy([line.text or "" for line in lines], read(package, [line.png for line in lines])) >= 0.95


def test_reads_the_scanned_page(package: Package) -> None:
    assert accuracy(SCANNED, read(package, [line.png for line in scanned_lines()])) >= 0.95


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(PackageError, match="is not empty"):
        ocr.build_ocr_package(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_that_cannot_read_makes_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_MIN_GOLDEN_ACCURACY", 1.01)
    with pytest.raises(PackageError, match="of the golden lines, less than"):
        ocr.build_ocr_package(tmp_path / "ocr")


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "_WHEEL", "no-such-wheel")
    with pytest.raises(PackageError, match=r"PP-OCRv6_rec_small.onnx is not installed; install the hil extra"):
        ocr.build_ocr_package(tmp_path / "ocr")
