"""The OCR package, whole and as a copy that may be damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.package import Package
from hil.packages.ocr import build_ocr_package
from tests.inference.ways import Way


@pytest.fixture(scope="session")
def ocr_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The OCR package, built once (in each pytest-xdist worker's own directory)."""
    return build_ocr_package(tmp_path_factory.mktemp("packages") / "ocr")


@pytest.fixture
def ocr_copy(ocr_package: Package, tmp_path: Path) -> Path:
    """A copy of the OCR package that may be damaged."""
    return Path(shutil.copytree(ocr_package.path, tmp_path / "ocr"))


@pytest.fixture(params=["child", "unit"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Way]:
    """How the workers of a test are started: a test that takes it is run both ways."""
    folder = tmp_path / "way"
    folder.mkdir()
    one = Way(request.param, folder)
    yield one
    one.close()
