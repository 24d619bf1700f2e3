"""The suite for real accelerators, on the stand-in driver: every chapter runs and says the truth. And its report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hil.gpu.figures import Bandwidth, Check, Endurance, Facts, Figures, Omitted, Recovery, Vacate, labelled
from hil.gpu.report import BANDWIDTH, VACATE, write_report
from kernels.compiler import toolkit
from tests.cuda import standin
from tests.cuda.host_kernels import library

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
FACTS = Facts(
    device="Some | GPU",
    compute_capability="9.0",
    memory_mb=1000,
    integrated=False,
    driver="13.0",
    cuda_toolkit="",
    pycuda="1",
    engine="",
    kernels_sha256="a" * 64,
    agent="0",
    python="3",
    system="Linux",
    processor="x",
    cores=2,
)
RIGHT = Check(name="k", case="small", values=10, equal_permille=1000, largest_error=0.0, right=True)
FIGURES = Figures(
    facts=FACTS,
    checks=(RIGHT,),
    bandwidths=(
        Bandwidth(kernel="k", case="big", moved_mb=1, kernel_us=2, kernel_gb_s=500, copy_gb_s=600, of_copy=0.83),
    ),
    vacates=(
        Vacate(
            how="told to stop",
            times=3,
            micro_batch_ms=10,
            idle_p50_ms=5,
            idle_p99_ms=21,
            freed_p50_ms=80,
            freed_p99_ms=120,
            memory_mb=100,
            left_mb=0,
        ),
    ),
    omitted=(Omitted(chapter="packages", why="no TensorRT", failed=False),),
)
PROGRAM = """
import hashlib
import sys
from pathlib import Path
from agent.worker.cuda.context import DeviceContext
from hil.gpu.command import Effort, Suite
import msgspec
import pycuda.driver as cuda

load, loaded = cuda.module_from_buffer, []
def remembered(image):
    loaded.append(hashlib.sha256(image).hexdigest())
    return load(image)
cuda.module_from_buffer = remembered
with DeviceContext() as context:
    effort = Effort(scale=0.001, runs=1, repeats=1, values=64, seconds=0.01, slices=10, times=1)
    figures = Suite(context, Path(sys.argv[1]), effort).run()
Path(sys.argv[2]).write_bytes(msgspec.json.encode(figures))
Path(sys.argv[3]).write_text(" ".join(loaded))
"""
STALE = """
import sys
from pathlib import Path
import msgspec
from agent.worker.cuda.context import DeviceContext
from hil.gpu.machine import facts_of, kernels_for
from kernels import fatbin
from kernels.build import build

folder = Path(sys.argv[1])
right = build(folder, architectures=("sm_90",), ptx=None, jetpack_6=False)
fatbin.default_folder = lambda: folder
with DeviceContext() as context:
    image = kernels_for(context.facts)
    stale = msgspec.structs.replace(right, sources_sha256="0" * 64)
    (folder / fatbin.MANIFEST).write_bytes(msgspec.json.encode(stale))
    (folder / right.files[0].name).unlink()
    again = kernels_for(context.facts)
    assert again == image, "built anew, and not taken from there"
    assert facts_of(context.facts, again).kernels_sha256 == again.sha256
"""


def test_the_report_names_the_machine_the_figures_and_what_was_not_run(tmp_path: Path) -> None:
    page = write_report(FIGURES, tmp_path).read_text("utf-8")
    for words in ("Some / GPU", "came out right", "| k | big |", "0.83", "no TensorRT", "![bandwidth]", "21.0"):
        assert words in page, words
    assert (tmp_path / BANDWIDTH).read_bytes().startswith(b"<?xml")
    assert (tmp_path / VACATE).exists()
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(FIGURES, tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir()}, "the same figures, the same bytes"
    assert msgspec.json.decode(first["figures.json"], type=Figures) == FIGURES


@pytest.mark.parametrize(
    "wrong",
    [
        msgspec.structs.replace(FIGURES, checks=(msgspec.structs.replace(RIGHT, right=False),)),
        msgspec.structs.replace(FIGURES, checks=()),
        msgspec.structs.replace(FIGURES, omitted=(Omitted(chapter="kernels", why="broke", failed=True),)),
        msgspec.structs.replace(
            FIGURES, endurances=(Endurance(slices=10, device_grown_mb=99, host_grown_mb=0, per_s=1),)
        ),
        msgspec.structs.replace(
            FIGURES, recoveries=(Recovery(how="h", reported="nothing", right_again=False, again_ms=1),)
        ),
    ],
)
def test_whatever_is_wrong_is_said_at_the_top(wrong: Figures, tmp_path: Path) -> None:
    assert wrong.faults
    assert "**Wrong:**" in write_report(wrong, tmp_path).read_text("utf-8")


@pytest.mark.parametrize(("times", "label"), [(3, "max of 3"), (99, "max of 99"), (100, "p99")])
def test_the_longest_of_few_is_not_called_a_percentile(times: int, label: str, tmp_path: Path) -> None:
    vacate = msgspec.structs.replace(FIGURES.vacates[0], times=times)
    page = write_report(msgspec.structs.replace(FIGURES, vacates=(vacate,)), tmp_path).read_text("utf-8")
    assert f"| 21.0 ({label}) | 80 | 120 ({label}) |" in page
    assert f"told to stop ({label})" in (tmp_path / VACATE).read_text("utf-8") or label == "p99"
    assert labelled(vacate)[f"idle_{label.replace(' ', '_')}_ms"] == 21


CAGED = """
import sys
from pathlib import Path
from agent.worker.cuda.context import DeviceContext
from hil.gpu.process_chapter import Load, loading

with loading(Load(Path(sys.argv[1]), 64), "hold", 1.0) as process:
    process.hear("ready ")
    print(process.uncaged)
    print(Path(f"/proc/{process.child.pid}/status").read_text())
    print(Path(f"/proc/{process.child.pid}/limits").read_text())
"""


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """The stand-in engine with its kernels beside it, where the caged processes may read them."""
    copied = shutil.copy(library(ROOT / "hil" / "gpu"), tmp_path)
    path = tmp_path / "engine"
    path.write_bytes(b"HOSTSHIM:%s\0" % str(copied).encode())
    return path


def on_stand_in(program: str, host_kernels: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=standin.environment(kernels=host_kernels, capability="9.0", integrated=0, memory_bytes=4 << 30),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_load_is_shut_in_as_a_worker_is(pycuda: Path, host_kernels: Path, busy: Path) -> None:
    done = on_stand_in(CAGED, host_kernels, busy)
    assert done.returncode == 0, done.stdout + done.stderr
    uncaged, *rest = done.stdout.splitlines()
    assert "NoNewPrivs:\t1" in rest
    assert ("Seccomp:\t2" in rest) == ("system_calls" not in uncaged)
    (core,) = (line for line in rest if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    (memory,) = (line for line in rest if line.startswith("Max data size"))
    assert int(memory.split()[3]) < 4 << 30


@pytest.mark.skipif(toolkit() is None, reason="no nvcc (make packages prepares it)")
def test_kernels_of_other_sources_are_built_anew(pycuda: Path, host_kernels: Path, tmp_path: Path) -> None:
    done = on_stand_in(STALE, host_kernels, tmp_path / "kernels")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_chapter_runs_on_the_stand_in(pycuda: Path, host_kernels: Path, busy: Path, tmp_path: Path) -> None:
    """Its figures mean nothing there; that the results are right, and that nothing is left behind, does."""
    answers, loaded = tmp_path / "figures.json", tmp_path / "loaded"
    done = on_stand_in(PROGRAM, host_kernels, busy, answers, loaded)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = msgspec.json.decode(answers.read_bytes(), type=Figures)
    assert {one.name for one in figures.checks} >= {
        "ctc_greedy_decode",
        "softmax_top_k",
        "threshold_bit_pack",
        "tensor_fingerprint",
        "tensor_samples",
        "letterbox_normalize",
        "resize_normalize_pad",
    }
    assert [one for one in figures.checks if not one.right] == []
    assert all(one.graph for one in figures.throughputs)
    assert figures.throughputs
    assert {one.how for one in figures.vacates} >= {"told to stop, 10 ms meant", "killed in the middle"}
    assert figures.endurances[0].device_grown_mb == 0
    reset = next(one for one in figures.recoveries if "suspend" in one.how)
    assert (reset.right_again, reset.reported[:9]) == (True, "LostError")
    assert figures.facts.kernels_sha256 in loaded.read_text().split(), "of an image that the driver was given"
    assert json.loads(answers.read_text())["facts"]["device"] == figures.facts.device
