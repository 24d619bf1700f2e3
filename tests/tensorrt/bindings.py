"""Real bindings, fetched into build/tensorrt by `.ci/cuda`, and processes that import them.

Each runs in a process of its own: a process knows one TensorRT, and what crashes costs that process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.tools import lacking

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / "build" / "tensorrt"
VERSIONS = ("10.3.0", "10.7.0", "10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
RTX_VERSIONS = ("1.6.1.120", "1.7.1.116")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def folder(flavour: str, version: str) -> Path:
    """The folder to put on the path of Python; skips the test when it was not fetched."""
    found = FETCHED / f"{flavour}-{version}"
    if not list(found.glob("*/tensorrt*.so")):
        pytest.skip(f"{flavour} {version} is not in build/tensorrt (sh .ci/cuda fetches it)")
    return found


def stub_libraries(into: Path) -> Path:
    """A folder with libraries that the bindings of 10.x and 11.x can be linked with, compiled from nvinfer_stub.c."""
    compiler = shutil.which("gcc")
    if compiler is None:
        lacking("gcc is not installed")
    source = Path(__file__).parent / "nvinfer_stub.c"
    library = into / "stub.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source], check=True)
    for name in LIBRARIES:
        for major in (10, 11):
            shutil.copy(library, into / f"lib{name}.so.{major}")
    return into


def run_script(
    script: Path,
    *arguments: str,
    packages: Path | None,
    libraries: Path | None = None,
    memory_mb: int | None = None,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a file of this folder with these bindings on the path, and no more than so much memory."""
    path = [str(ROOT)] if packages is None else [str(ROOT), str(packages)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(path), "PYTHONFAULTHANDLER": "1"}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    return subprocess.run(
        [sys.executable, "-W", "error", "-P", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_s,
        check=False,
        preexec_fn=None if memory_mb is None else partial(_limit_data, memory_mb),
    )


def _limit_data(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb * 1024**2,) * 2)


def answer_of(script: Path, *arguments: str, packages: Path | None, libraries: Path | None = None) -> Any:
    """The JSON that a script prints in its last line; fails when it ends in any other way."""
    ended = run_script(script, *arguments, packages=packages, libraries=libraries)
    assert ended.returncode == 0, f"exit status {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return json.loads(ended.stdout.splitlines()[-1])
