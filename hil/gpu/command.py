"""`driveway-hil gpu [--out DIR] [--json FILE] [--quick]`: run every chapter that this machine can run, and report.

A chapter that fails ends alone: its error goes into the report, among what was not run. The exit status says whether
everything that was checked was right.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import pycuda.driver as cuda

from agent.errors import DrivewayError
from agent.worker.cuda.context import DeviceContext
from agent.worker.cuda.kernels import KernelLibrary
from agent.worker.executor import ExecutorError
from hil.gpu.cases import all_trials
from hil.gpu.figures import (
    Bandwidth,
    Check,
    Endurance,
    Figures,
    Omitted,
    Recovery,
    Start,
    Throughput,
    Vacate,
    labelled,
)
from hil.gpu.kernel_chapter import run_kernels
from hil.gpu.loop_chapter import run_loops
from hil.gpu.machine import facts_of, kernels_for
from hil.gpu.process_chapter import Load, LoadError, run_processes
from hil.gpu.report import write_report
from hil.gpu.synthetic import ToolError, compile_busy
from kernels.compiler import BuildError
from kernels.fatbin import FatbinError, KernelImage
from kernels.operation import OperationError


@dataclass(frozen=True)
class Effort:
    """How much of everything.

    `scale` cuts the large sizes, `runs` are of a kernel in a series, `repeats` of each check, `values` an item of the
    stand-in engine has, `seconds` each rate is taken over, `slices` one process computes, `times` the accelerator is
    given back.
    """

    scale: float = 1.0
    runs: int = 30
    repeats: int = 50
    values: int = 16_384
    seconds: float = 0.6
    slices: int = 10_000
    times: int = 100


WHOLE, QUICK = Effort(), Effort(scale=0.01, runs=1, repeats=2, values=256, seconds=0.05, slices=100, times=2)
Answer = TypeVar("Answer")
Kind = TypeVar("Kind", bound=msgspec.Struct)
Found = Check | Bandwidth | Throughput | Vacate | Start | Endurance | Recovery | Omitted


FAILURES = (
    *(cuda.Error, ExecutorError, OperationError, DrivewayError, LoadError, BuildError, FatbinError),
    *(OSError, subprocess.SubprocessError),
)
"""What ends a chapter, and only that one: something broke."""


def gpu(out: Path, json_file: Path | None, engine: Path | None, *, quick: bool) -> int:
    """Run, print what was found as it comes, and write the report into the folder `out`."""
    try:
        with DeviceContext() as context:
            figures = Suite(context, engine, QUICK if quick else WHOLE).run()
    except ExecutorError as error:
        raise DrivewayError(str(error), hint="run it on a machine with an NVIDIA GPU and its driver") from error
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    print(f"the report is {write_report(figures, out)}")
    return 1 if figures.faults else 0


class Suite:
    """All chapters in one context, which stays open so that the device's free memory can be seen from here."""

    def __init__(self, context: DeviceContext, engine: Path | None, effort: Effort) -> None:
        self._context, self._engine = context, engine
        self._effort = effort
        self._found: list[Found] = []

    def run(self) -> Figures:
        """Every chapter in turn."""
        began_s = time.monotonic()
        kernels = self._chapter("compiled kernels", lambda: kernels_for(self._context.facts))
        facts = facts_of(self._context.facts, kernels)
        print(f"{facts.device}, driver for CUDA {facts.driver}, pycuda {facts.pycuda}")
        with tempfile.TemporaryDirectory(prefix="driveway-gpu-") as folder:
            busy = self._chapter("stand-in engine", lambda: self._compiled(Path(folder)))
            if kernels is not None:
                self._chapter("kernels", lambda: self._kernels(kernels))
            if busy is not None:
                self._chapter("pipeline beside the bare engine", lambda: self._loops(busy))
                self._chapter("processes", lambda: self._processes(busy))
            self._chapter("packages", self._packages)
        return Figures(
            facts=facts,
            checks=self._all(Check),
            bandwidths=self._all(Bandwidth),
            throughputs=self._all(Throughput),
            vacates=self._all(Vacate),
            starts=self._all(Start),
            endurances=self._all(Endurance),
            recoveries=self._all(Recovery),
            omitted=self._all(Omitted),
            wall_s=time.monotonic() - began_s,
        )

    def _chapter(self, name: str, run: Callable[[], Answer]) -> Answer | None:
        """One chapter; what it raises is why it was not run."""
        print(f"{name}:", flush=True)
        try:
            return run()
        except (ToolError, *FAILURES) as error:
            failed = not isinstance(error, ToolError)
            self._found.append(Omitted(chapter=name, why=str(error), failed=failed))
            print(f"  {'failed' if failed else 'not run'}: {error}")
            return None

    def _take(self, found: Iterable[Found]) -> None:
        for one in found:
            self._found.append(one)
            print(f"  {', '.join(f'{name} {_short(value)}' for name, value in labelled(one).items())}")

    def _compiled(self, folder: Path) -> Path:
        if self._engine is not None:
            return self._engine.resolve()
        image = folder / "busy.cubin"
        image.write_bytes(compile_busy(self._context.facts.compute_capability))
        return image

    def _kernels(self, image: KernelImage) -> None:
        library = KernelLibrary(self._context.driver, image.body)
        self._take(
            run_kernels(library, all_trials(self._effort.scale), runs=self._effort.runs, repeats=self._effort.repeats)
        )

    def _loops(self, busy: Path) -> None:
        self._take(
            run_loops(
                busy.read_bytes(), values=self._effort.values, seconds=self._effort.seconds, slices=self._effort.slices
            )
        )

    def _processes(self, busy: Path) -> None:
        self._take(run_processes(Load(busy, self._effort.values), times=self._effort.times))

    def _packages(self) -> None:
        try:
            from hil.gpu.package_chapter import run_packages  # noqa: PLC0415 - needs what makes packages
        except ImportError as error:
            raise ToolError(f"packages cannot be made here: {error}") from error
        self._take(run_packages(seconds=self._effort.seconds, times=self._effort.times))

    def _all(self, kind: type[Kind]) -> tuple[Kind, ...]:
        return tuple(one for one in self._found if isinstance(one, kind))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
