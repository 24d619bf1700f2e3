"""What the tests of the device code need, and why one of them is skipped where it is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import standin
from tests.cuda.host_kernels import SOURCES, library
from tests.tools import lacking

PREPARE = "make packages prepares it"


@pytest.fixture(scope="session")
def host_kernels() -> Path:
    """The library of kernels/*.cu, compiled for the host."""
    if shutil.which("g++") is None:
        lacking("no g++")
    return library()


@pytest.fixture(scope="session")
def stand_in() -> Path:
    """The folder of the stand-in driver."""
    if shutil.which("g++") is None:
        lacking("no g++")
    if standin.cuda_include() is None:
        pytest.skip(f"no cuda.h ({PREPARE})")
    return standin.driver()


@pytest.fixture(scope="session")
def pycuda(stand_in: Path) -> Path:
    """The folder with pycuda, which only a process with the stand-in's environment can import."""
    if not (standin.SITE / "pycuda").is_dir():
        pytest.skip(f"no pycuda in {standin.SITE.relative_to(standin.ROOT)} ({PREPARE})")
    return standin.SITE


@pytest.fixture(scope="session")
def engine_kernels(pycuda: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of kernels/*.cu together with the stand-in engine's."""
    folder = tmp_path_factory.mktemp("sources")
    for source in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"), Path(__file__).parent / "standin_engine.cu"):
        (folder / source.name).symlink_to(source)
    return library(folder)


RunOnDevice = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_on_device(pycuda: Path, host_kernels: Path) -> RunOnDevice:
    """Runs a Python program, given as text, in a process of its own that meets the stand-in.

    Keywords are `standin.environment`'s. The library of kernels stands behind real images, and its path is `argv[1]`.
    """

    def run(program: str, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        variables = standin.environment(kernels=host_kernels, **settings)  # type: ignore[arg-type] # passed on as they are
        command = [sys.executable, "-c", program, str(host_kernels), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)

    return run
