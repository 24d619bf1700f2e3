"""Which CUDA toolkit is taken, and that what prepares the tests takes the same one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compiler
from kernels.compiler import BuildError, main, other_cuda, toolkit

ROOT = Path(__file__).parents[2]
UNREACHABLE = "http://127.0.0.1:9/simple"
"""The port `discard`, where nobody listens."""


def place(home: Path, cuda: str = "13.0") -> Path:
    """A toolkit as far as it is looked at: a compiler that says its version, and the driver's headers."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    program = home / "bin" / "nvcc"
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {cuda}, V{cuda}.88'\n")
    program.chmod(0o755)
    for name in ("cuda.h", "cudaProfiler.h"):
        (home / "include" / name).touch()
    return home


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any toolkit."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "on-path" / "bin"))
    monkeypatch.setattr(compiler, "USUAL_HOME", tmp_path / "usual")
    monkeypatch.setattr(compiler, "FETCHED_HOME", tmp_path / "fetched")
    return tmp_path


def test_the_order_of_places(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toolkit() is None
    assert main() == 1
    for name in ("fetched", "on-path", "usual", "named"):
        place(machine / name)
        monkeypatch.setenv("CUDA_HOME", str(machine / "named"))
        assert toolkit() == machine / name
    assert main() == 0
    assert capsys.readouterr().out == f"{machine / 'named'}\n"


def test_the_usual_place_is_that_of_our_version() -> None:
    assert compiler.USUAL_HOME.name == f"cuda-{compiler.CUDA}"
    pins = (ROOT / ".ci" / "requirements-cuda-toolkit.txt").read_text("utf-8")
    assert f"nvidia-cuda-nvcc=={compiler.CUDA}." in pins


@pytest.mark.parametrize("part", ["bin/nvcc", "include/cuda.h", "include/cudaProfiler.h"])
def test_half_a_toolkit_is_none(machine: Path, part: str) -> None:
    (place(machine / "usual") / part).unlink()
    assert toolkit() is None


def test_a_link_on_path_leads_to_its_toolkit(machine: Path) -> None:
    place(machine / "opt")
    (machine / "on-path" / "bin").mkdir(parents=True)
    (machine / "on-path" / "bin" / "nvcc").symlink_to(machine / "opt" / "bin" / "nvcc")
    assert toolkit() == machine / "opt"


def test_another_version_is_taken_and_told(machine: Path) -> None:
    assert other_cuda(place(machine / "usual")) is None
    home = place(machine / "other", "12.8")
    assert other_cuda(home) == f"{home} is CUDA 12.8, and budgets are of CUDA 13.0"
    with pytest.raises(BuildError):
        other_cuda(machine)


def prepare(tree: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `.ci/cuda` in a tree of its own, where no package index answers."""
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    (tree / "kernels").symlink_to(ROOT / "kernels")
    (tree / "tests").symlink_to(ROOT / "tests")
    index = {"PIP_INDEX_URL": UNREACHABLE, "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "DRIVEWAY_", "CUDA_"))}
    return subprocess.run(
        ["/bin/sh", ".ci/cuda"],
        cwd=tree,
        env={**keep, **index, "DRIVEWAY_PYTHON": sys.executable, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_a_package_index_one_try_is_enough(tmp_path: Path) -> None:
    """One line says what is not there and what that skips; nothing fails."""
    home = place(tmp_path / "home")
    done = prepare(tmp_path / "tree", CUDA_HOME=str(home))
    assert done.returncode == 0, done.stderr
    said = "no package index answers (see build/cuda/log/"
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(said))
    for words in (
        "tests/cuda (pycuda)",
        "tests/kernels/test_build.py (NVRTC 12.6)",
        "tests/tensorrt (tensorrt-10.",
    ):
        assert words in line
    assert "nvcc" not in line, "the toolkit is there"
    assert len(list((tmp_path / "tree" / "build" / "cuda" / "log").iterdir())) == 1, "one package was tried"


def test_what_prepares_the_tests_asks_for_the_same_toolkit(tmp_path: Path) -> None:
    """Else it would build pycuda against one, and the tests would compile with another."""
    home = place(tmp_path / "home", "12.8")
    (tmp_path / "bin").mkdir()
    asked = tmp_path / "asked"
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >>{asked}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    prepare(tmp_path / "tree", CUDA_HOME=str(home), DRIVEWAY_PYTHON=str(python))
    assert "-m kernels.compiler" in asked.read_text("utf-8").splitlines()
    text = (ROOT / ".ci" / "cuda").read_text("utf-8")
    assert "/usr/local/cuda" not in text
    assert "CUDA_HOME:-" not in text
