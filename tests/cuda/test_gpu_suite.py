"""The suite for real accelerators, on the stand-in driver: every chapter runs and says the truth. And its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hil.gpu.figures import Bandwidth, Check, Endurance, Facts, Figures, Omitted, Recovery, Vacate
from hil.gpu.report import BANDWIDTH, VACATE, write_report
from tests.cuda import standin
from tests.cuda.host_kernels import library

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
import sys
from pathlib import Path
from agent.worker.cuda.context import DeviceContext
from hil.gpu.command import Effort, Suite
import msgspec

with DeviceContext() as context:
    effort = Effort(scale=0.001, runs=1, repeats=1, values=64, seconds=0.01, slices=10, times=1)
    figures = Suite(context, Path(sys.argv[1]), effort).run()
Path(sys.argv[2]).write_bytes(msgspec.json.encode(figures))
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


def test_every_chapter_runs_on_the_stand_in(pycuda: Path, host_kernels: Path, tmp_path: Path) -> None:
    """Its figures mean nothing there; that the results are right, and that nothing is left behind, does."""
    engine, answers = tmp_path / "engine", tmp_path / "figures.json"
    engine.write_bytes(b"HOSTSHIM:%s\0" % str(library(ROOT / "hil" / "gpu")).encode())
    variables = standin.environment(kernels=host_kernels, capability="9.0", integrated=0, memory_bytes=4 << 30)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(engine), str(answers)],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = msgspec.json.decode(answers.read_bytes(), type=Figures)
    assert {one.name for one in figures.checks} >= {
        "ctc_greedy_decode",
        "softmax_top_k",
        "threshold_bit_pack",
        "tensor_fingerprint",
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
    assert json.loads(answers.read_text())["facts"]["device"] == figures.facts.device
