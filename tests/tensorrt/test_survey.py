"""What a worker process finds on this computer, shut in as on a vehicle: a platform, or what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import wire
from tests.cuda import standin
from tests.tensorrt.bindings import RTX_VERSIONS, folder
from tests.tensorrt.worker import Worker

NEWEST = RTX_VERSIONS[-1]


def surveyed(
    executor: wire.ExecutorName, bindings: Path | None, reads: Path | None = None, **settings: str | int
) -> object:
    """The answer; with settings, on the stand-in for a driver."""
    environment = standin.environment(**settings) if settings else {}  # type: ignore[arg-type] # passed on as they are
    with Worker(bindings, reads, capability="here", environment=environment) as worker:
        worker.tell(wire.Survey(executor=executor))
        return worker.hear((wire.Surveyed, wire.Refused))


def detail_of(answer: object) -> str:
    assert isinstance(answer, wire.Refused), answer
    assert (answer.stale_plan, answer.unavailable) == (False, True)
    return answer.detail


@pytest.fixture
def bindings() -> Path:
    return folder("tensorrt_rtx", NEWEST)


@pytest.fixture
def device() -> Path:
    """Where pycuda and the stand-in for a driver lie; skips the test when they were not prepared."""
    if standin.cuda_include() is None or not (standin.SITE / "pycuda").is_dir():
        pytest.skip("no cuda.h or no pycuda (make packages prepares them)")
    standin.driver()
    return standin.SITE.parent


def test_a_processor_is_surveyed_and_needs_no_plans() -> None:
    answer = surveyed("onnxruntime", None)
    assert isinstance(answer, wire.Surveyed)
    assert not answer.needs_plan
    assert (answer.platform.executor, answer.platform.driver) == ("onnxruntime", "")
    assert answer.platform.version
    assert answer.platform.device
    assert answer.platform.memory_mb > 256


@pytest.mark.parametrize(("executor", "title"), [("tensorrt", "TensorRT"), ("tensorrt_rtx", "TensorRT-RTX")])
def test_a_library_that_is_missing_is_told(executor: wire.ExecutorName, title: str) -> None:
    detail = detail_of(surveyed(executor, None))
    assert detail.startswith(f"{title} is not installed for ")
    assert "worker_python" in detail


def test_a_version_that_is_not_supported_is_told(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'\n")
    assert detail_of(surveyed("tensorrt", tmp_path)).startswith(
        "TensorRT 8.6.1 is not supported; install 10.3 or newer"
    )


def test_a_missing_driver_is_told(bindings: Path) -> None:
    detail = detail_of(surveyed("tensorrt_rtx", bindings))
    assert detail.startswith("the accelerator cannot be used: ")
    assert "No module named 'pycuda'" in detail or "libcuda.so.1" in detail
    assert "it takes the accelerator's driver" in detail


def test_a_device_is_surveyed_with_everything_that_a_plan_depends_on(bindings: Path, device: Path) -> None:
    answer = surveyed(
        "tensorrt_rtx", bindings, device, capability="8.9", integrated=0, memory_bytes=8 * 1024**3, driver_version=12060
    )
    assert isinstance(answer, wire.Surveyed), answer
    found = answer.platform
    assert answer.needs_plan
    assert (found.executor, found.version, found.compute_capability) == ("tensorrt_rtx", NEWEST, "8.9")
    assert (found.memory_mb, found.integrated) == (8192, False)
    assert found.driver == "12.6"
    assert found.device


def test_a_device_that_the_flavour_does_not_serve_is_told(bindings: Path, device: Path) -> None:
    detail = detail_of(surveyed("tensorrt_rtx", bindings, device, capability="8.7"))
    assert f"TensorRT-RTX {NEWEST} does not serve " in detail
    assert "compute capability 8.7" in detail


def test_a_driver_that_does_not_work_is_told(bindings: Path, device: Path) -> None:
    detail = detail_of(surveyed("tensorrt_rtx", bindings, device, fail="cuInit@1+:999"))
    assert "the accelerator cannot be used" in detail
