from __future__ import annotations

from pathlib import Path

import pytest

from tests.telemetry.gpu import Gpu
from tests.telemetry.stand_in import Card, build, load


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def card(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    file = tmp_path / "card"
    monkeypatch.setenv("NVML_STAND_IN", str(file))
    load(nvml_library)
    return Card(file)


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    return Gpu(tmp_path)
