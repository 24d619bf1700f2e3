"""The recipes: built the same each time, honest about what they find, and between them using every operation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.errors import PackageError
from agent.onnx.check import check_model
from agent.package import Package
from agent.wire import decode_input
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from hil.images import accuracy, drawn_lines, scanned_lines, upside_down
from hil.packages import RECIPES, build_named, detector, ocr, orientation, recipe
from hil.packages.onnx_model import with_logits
from hil.packages.tensors import build_tensor_package
from hil.pages import drawn_page, mask_quality
from kernels import OPS
from tests.hil.tiny_models import softmax_model

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

Built = Callable[[str], Package]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each recipe's package, built when it is first asked for."""
    folder, packages = tmp_path_factory.mktemp("packages"), dict[str, Package]()

    def package(name: str) -> Package:
        if name not in packages:
            packages[name] = build_named(name, folder / name)
        return packages[name]

    return package


def answers(package: Package, items: list[bytes]) -> list[dict[str, Any]]:
    engine = OnnxRuntimeCpu(package.read("model.onnx"), threads=2, memory_mb=1024)
    try:
        return [answer.body for answer in Pipeline(package, engine).compute(items)]
    finally:
        engine.close()


def expected(package: Package) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(package.read(package.manifest.golden.expected))
    return found


def items(package: Package) -> list[bytes]:
    return decode_input(package.read(package.manifest.golden.input))


@pytest.mark.parametrize("name", RECIPES)
def test_building_twice_gives_the_same_package(built: Built, tmp_path: Path, name: str) -> None:
    assert build_named(name, tmp_path / "again").package_sha256 == built(name).package_sha256


@pytest.mark.parametrize("name", RECIPES)
def test_a_package_gives_its_golden_answers_in_other_company(built: Built, name: str) -> None:
    """Alone and in another order, so in other batches, within the tolerance that the manifest claims."""
    package = built(name)
    given, wanted = items(package), expected(package)
    again = answers(package, given[::-1])[::-1]
    assert [_plain(one) for one in again] == [_plain(one) for one in wanted]
    assert package.manifest.golden.tolerance_permille <= 20


def _plain(answer: Mapping[str, Any]) -> Any:
    """What of an answer no rounding changes."""
    if "mask" in answer:
        return answer["mask"]["rows"], answer["mask"]["columns"]
    return answer.get("text") or [one["label"] for one in answer["classes"]]


def test_every_operation_is_used_by_a_package(built: Built, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    used = set()
    for values in (2, 20_000):  # few enough to be answered whole, and too many
        model.write_bytes(softmax_model(None, values))
        pipeline = build_tensor_package(model, tmp_path / str(values)).manifest.pipeline
        used |= {call.op for call in (*pipeline.pre, *pipeline.post)}
    for name in RECIPES:
        pipeline = built(name).manifest.pipeline
        used |= {call.op for call in (*pipeline.pre, *pipeline.post)}
    assert used == set(OPS)


# --- reading ----------------------------------------------------------------------------------------------------


def read(package: Package, given: list[bytes]) -> list[str]:
    return [str(answer["text"]) for answer in answers(package, given)]


def test_the_character_list_is_complete(built: Built) -> None:
    characters = built("ocr").read("characters.txt").decode("utf-8").removesuffix("\n").split("\n")
    assert len(characters) == 18709
    assert len(set(characters)) == 18709
    assert characters[-1] == " "
    assert all(characters)


def test_the_golden_vector_says_what_was_drawn(built: Built) -> None:
    lines = drawn_lines(5, seed=2)
    assert items(built("ocr")) == [line.png for line in lines]
    found = expected(built("ocr"))
    assert accuracy([line.text or "" for line in lines], [answer["text"] for answer in found]) >= 0.97
    assert all(set(answer) == {"text", "confidence_permille", "samples"} for answer in found)


def test_the_model_is_the_wheels_that_also_gives_its_logits(built: Built) -> None:
    model = with_logits(recipe.model_of_wheel(ocr.MODEL_IN_WHEEL), ocr.MODEL_IN_WHEEL, "Softmax")
    assert hashlib.sha256(model).hexdigest() == built("ocr").manifest.files["model.onnx"]


def test_reads_drawn_lines(built: Built) -> None:
    lines = drawn_lines(25, seed=77)
    assert accuracy([line.text or "" for line in lines], read(built("ocr"), [line.png for line in lines])) >= 0.95


def test_reads_the_scanned_page(built: Built) -> None:
    assert accuracy(SCANNED, read(built("ocr"), [line.png for line in scanned_lines()])) >= 0.95


# --- orientation ------------------------------------------------------------------------------------------------


def test_tells_upright_lines_from_those_upside_down(built: Built) -> None:
    lines = drawn_lines(30, seed=78)
    given = [turned.png for line in lines for turned in (line, upside_down(line))]
    best = [answer["classes"][0] for answer in answers(built("orientation"), given)]
    right = [one["label"] == truth for one, truth in zip(best, ["0", "180"] * 30, strict=True)]
    assert sum(right) >= 58
    assert all(500 <= one["probability_permille"] <= 1000 for one in best)


def test_the_softmax_is_the_pipelines_own(built: Built) -> None:
    whole = check_model(recipe.model_of_wheel(orientation.MODEL_IN_WHEEL), "whole")
    cut = check_model(built("orientation").read("model.onnx"), "cut")
    assert cut.nodes == whole.nodes - 2, "the softmax, and an Identity behind it"
    assert (cut.outputs[0].dtype, cut.outputs[0].shape) == (whole.outputs[0].dtype, whole.outputs[0].shape)
    (call,) = built("orientation").manifest.pipeline.post
    assert call.params["softmax"] is True


# --- detection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(480, 640), (640, 480), (500, 300), (700, 900)])
def test_finds_every_line_and_nothing_else(built: Built, rows: int, columns: int) -> None:
    page = drawn_page(rows, columns, seed=rows + columns)
    (answer,) = answers(built("detector"), [page.png])
    mask = detector.mask_of(answer)
    found = mask_quality(mask, page.lines)
    assert found.worst_overlap >= 0.4, "the mask is as large as the bucket, and the page at its top left"
    assert found.stray_share <= 0.02
    assert len(page.lines) >= 5


def test_a_page_larger_than_every_bucket_is_shrunk(built: Built) -> None:
    page = drawn_page(1000, 1440, seed=5)
    (answer,) = answers(built("detector"), [page.png])
    mask = detector.mask_of(answer)
    assert mask.shape == (960, 960)
    enlarged = np.repeat(np.repeat(mask, 3, axis=0), 3, axis=1)[::2, ::2]  # by 1440 / 960
    found = mask_quality(enlarged[: page.rows], page.lines)
    assert found.worst_overlap >= 0.3
    assert found.stray_share <= 0.03


def test_finds_nothing_on_blank_paper_nor_around_it(built: Built) -> None:
    pages = [drawn_page(rows, columns, 9, blank=True) for rows, columns in ((640, 480), (200, 200), (300, 900))]
    for answer in answers(built("detector"), [page.png for page in pages]):
        assert not detector.mask_of(answer).any()


def test_fingerprints_tell_pages_apart(built: Built) -> None:
    """Behind the sigmoid they would not: tens of thousands of pixels are as good as certain."""
    first, second = (set(answer["fingerprint"]["indices"]) for answer in expected(built("detector"))[:2])
    assert len(first) == len(second) == detector.FINGERPRINT_VALUES
    assert len(first & second) < 4
    values = np.abs([answer["fingerprint"]["values"] for answer in expected(built("detector"))])
    assert values.max() > 10, "logits: probabilities end at 1"


def _without(mask: Any, line: Any) -> Any:
    mask[line.top : line.bottom] = False
    return mask


@pytest.mark.parametrize(
    ("change", "overlap", "stray"),
    [
        (lambda mask, line: mask, 0.4, 0.0),
        (lambda mask, line: np.zeros_like(mask), 0.0, 0.0),
        (_without, 0.0, 0.0),
        (lambda mask, line: np.ones_like(mask), 0.0, 0.5),
    ],
)
def test_the_measure_of_a_mask_can_fail(change: Callable[..., Any], overlap: float, stray: float) -> None:
    page = drawn_page(480, 640, 1)
    mask = np.zeros((480, 640), dtype=np.bool_)
    for line in page.lines:
        by = (line.bottom - line.top) // 3
        mask[line.top + by : line.bottom - by, line.left + by : line.right - by] = True
    found = mask_quality(change(mask, page.lines[3]), page.lines)
    assert (found.worst_overlap >= 0.4) == (overlap > 0)
    assert (found.stray_share >= 0.5) == (stray > 0)


# --- what makes no package --------------------------------------------------------------------------------------


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(PackageError, match="is not empty"):
        orientation.build_orientation_package(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "check", "wrong", "said"),
    [
        (
            "ocr",
            partial(ocr._check_read, drawn_lines(1, 2)),
            [{"text": "another line"}],
            "of the golden lines, less than",
        ),
        (
            "orientation",
            partial(orientation._check_turned, ["180"]),
            [{"classes": [{"label": "0", "probability_permille": 900}]}],
            "says 0 of golden line 0, which is turned by 180",
        ),
        (
            "detector",
            partial(detector._check_found, [drawn_page(480, 640, 1)]),
            [{"mask": {"rows": 480, "columns": 640, "bits": "A" * (480 * 640 // 6)}}],
            "misses a line of golden page 0",
        ),
        (
            "detector",
            partial(detector._check_found, [drawn_page(480, 640, 1, blank=True)]),
            [{"mask": {"rows": 480, "columns": 640, "bits": "A" * (480 * 640 // 6 - 4) + "AAAB"}}],
            "finds text on golden page 0 where there is none",
        ),
    ],
)
def test_a_model_that_is_wrong_makes_no_package(
    name: str, check: Callable[[Any], None], wrong: list[dict[str, Any]], said: str
) -> None:
    assert name in RECIPES
    with pytest.raises(PackageError, match=said):
        check(wrong)


def test_wrong_answers_reach_the_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "MIN_ACCURACY", 1.01)
    with pytest.raises(PackageError, match="of the golden lines, less than"):
        ocr.build_ocr_package(tmp_path / "ocr")
    assert expected_bytes(tmp_path / "ocr") == b"[]", "and no golden answers were written"


def expected_bytes(folder: Path) -> bytes:
    return (folder / recipe.GOLDEN_EXPECTED).read_bytes()


def test_a_missing_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "WHEEL", "no-such-wheel")
    with pytest.raises(PackageError, match=r"PP-OCRv6_rec_small.onnx is not installed; install the hil extra"):
        ocr.build_ocr_package(tmp_path / "ocr")
