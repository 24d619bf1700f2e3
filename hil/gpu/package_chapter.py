"""The packages on a real engine: right answers, throughput beside the bare engine, and the worker that cars run.

For each flavour of TensorRT that can be loaded, and each package of `hil.packages`: the plan is built here, the golden
answers are computed by the same pipeline as in a car, and a bucket's throughput is held against the engine alone on
the same plan in the same process (and against `trtexec`, where it is, with transfers and sleeping waits as ours). Then
a worker process is started as a daemon starts it, and told to stop in the middle of its work.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.errors import PackageError
from agent.inference.runner import PackageRunner
from agent.onnx.check import check_model
from agent.package import Package, open_package, run_in
from agent.wire import ExecutorName
from agent.worker.building import bucket_shapes
from agent.worker.cuda import opening
from agent.worker.cuda.driver import Driver
from agent.worker.cuda.executor import CudaExecutor
from agent.worker.executor import Binding, ExecutorError, Slot
from agent.worker.pipeline import Pipeline
from agent.worker.program import compile_program
from agent.worker.results import check_golden, golden_items
from agent.worker.tensorrt.builder import BuildOrder, build_plan
from agent.worker.tensorrt.engine import open_engine
from agent.worker.tensorrt.flavour import Flavour, open_flavour
from hil.bench.peers import percentile
from hil.gpu.bare import BareEngine, per_s
from hil.gpu.figures import Check, Start, Throughput, Vacate
from hil.gpu.process_chapter import free_mb
from hil.gpu.synthetic import ToolError
from hil.packages import RECIPES, build_named
from kernels.operation import TensorSpec

FLAVOURS: Sequence[ExecutorName] = ("tensorrt", "tensorrt_rtx")
SCRATCH_BYTES = 2 * 1024**3
STOP_BUDGET_MS = 60
TURNS = 5


@dataclass(frozen=True)
class Built:
    """A package with its plan, and the executor over it."""

    package: Package
    flavour: Flavour
    plan: memoryview


def run_packages(*, seconds: float, times: int) -> Iterator[Check | Throughput | Start | Vacate]:
    """Every package on every flavour that there is; raises ToolError when there is none."""
    flavours: list[Flavour] = []
    missing = []
    for executor in FLAVOURS:
        try:
            flavours.append(open_flavour(executor))
        except ExecutorError as error:
            missing.append(str(error))
    if not flavours:
        raise ToolError("; ".join(missing))
    with tempfile.TemporaryDirectory(prefix="driveway-packages-") as folder:
        for flavour, name in itertools.product(flavours, RECIPES):
            home = Path(folder) / name
            package = open_package(home) if home.exists() else build_named(name, home)
            try:
                built = Built(package, flavour, _plan(package, flavour))
            except ExecutorError as error:
                yield _not_built(package, flavour, str(error))
                continue
            yield _golden(built)
            yield _beside_bare(built, seconds)
            yield from asyncio.run(_worker(package, flavour.name, Path(folder) / "plans", times))


def _not_built(package: Package, flavour: Flavour, why: str) -> Check:
    return Check(
        name=f"{package.manifest.name} on {flavour.title}",
        case="plan",
        values=0,
        equal_permille=0,
        largest_error=0.0,
        right=False,
        detail=why[:200],
    )


def _plan(package: Package, flavour: Flavour) -> memoryview:
    manifest = package.manifest
    model = package.read(manifest.model)
    order = BuildOrder(
        model=model,
        where=manifest.name,
        buckets=bucket_shapes(package, check_model(model, manifest.name)),
        tf32=_precision(package) == "tf32",
        scratch_bytes=SCRATCH_BYTES,
        threads=4,
    )
    return build_plan(order, flavour, _go_on).body


def _precision(package: Package) -> str:
    """What the plan computes in."""
    model = package.read(package.manifest.model)
    return run_in(package.manifest, check_model(model, package.manifest.name).precision, on_accelerator=True)


def _go_on(phase: str, done_permille: int) -> None:
    """Nobody waits for the device here: a build is never interrupted."""
    del phase, done_permille


def _executor(built: Built) -> CudaExecutor:
    limit = built.package.manifest.limits.memory_mb * 1024**2
    return opening.open_executor(lambda: open_engine(built.plan, built.flavour), memory_bytes=limit)


def _golden(built: Built) -> Check:
    """The golden answers, which the package's makers computed on a CPU."""
    executor = _executor(built)
    items = golden_items(built.package)
    detail = ""
    try:
        pipeline = Pipeline(built.package, executor)
        for _ in pipeline.calibrate():
            pass
        check_golden(built.package, pipeline.compute(items), _precision(built.package))
    except PackageError as error:
        detail = str(error)
    finally:
        executor.close()
    return Check(
        name=f"{built.package.manifest.name} on {built.flavour.title}",
        case="golden vector",
        values=len(items),
        equal_permille=0 if detail else 1000,
        largest_error=0.0,
        right=not detail,
        detail=detail[:200],
    )


def _beside_bare(built: Built, seconds: float) -> Throughput:
    """The largest bucket, turn by turn."""
    executor = _executor(built)
    with ExitStack() as undo:
        undo.callback(executor.close)
        program = compile_program(built.package, executor.inputs, executor.outputs)
        binding = program.lanes[-1].bindings[-1]
        slots = _Slots(executor.bind(binding).slots, binding)
        engine = open_engine(built.plan, built.flavour)
        undo.callback(engine.close)
        shapes = {
            name: TensorSpec(spec.dtype, (binding.bucket.items, *spec.shape)) for name, spec in binding.inputs.items()
        }
        bare = BareEngine(Driver(), engine, shapes)
        undo.callback(bare.close)
        pairs = []
        for _ in range(TURNS):
            executor.drain()
            slots.begin()
            pairs.append((per_s(bare.turn, seconds), per_s(slots.turn, seconds)))
        bare_per_s, pipeline_per_s = (statistics.median(rates) for rates in zip(*pairs, strict=True))
        return Throughput(
            package=f"{built.package.manifest.name} on {built.flavour.title}",
            case=f"{binding.bucket.items} items",
            engine_ms=1000 / bare_per_s,
            bare_per_s=bare_per_s,
            pipeline_per_s=pipeline_per_s,
            ratio=statistics.median(mine / theirs for theirs, mine in pairs),
            graph=not (executor.notes or bare.plain),
            python_us=slots.python_us,
            trtexec_per_s=_trtexec(built, binding),
        )


class _Slots:
    """The slots of a bucket as a lease uses them, with images that fill the bucket's frame."""

    def __init__(self, slots: Sequence[Slot], binding: Binding) -> None:
        (spec,) = binding.inputs.values()
        self._slots, self._items = slots, binding.bucket.items
        self._image = np.random.default_rng(3).integers(0, 256, (*spec.shape[1:], 3), dtype=np.uint8)
        self._taken_us: list[float] = []
        self.begin()

    def begin(self) -> None:
        """Nothing is in flight."""
        self._flying = [False] * len(self._slots)
        self._place = 0

    @property
    def python_us(self) -> float:
        """Submit and results of a micro-batch, in the middle."""
        return statistics.median(self._taken_us)

    def turn(self) -> None:
        slot, taken_s = self._slots[self._place], 0.0
        if self._flying[self._place]:
            slot.wait()
            began_s = time.perf_counter()
            for row in range(self._items):
                slot.results(row)
            taken_s = time.perf_counter() - began_s
        for row in range(self._items):
            slot.stage_image(row, self._image)
        began_s = time.perf_counter()
        slot.submit(self._items)
        self._taken_us.append((taken_s + time.perf_counter() - began_s) * 1e6)
        self._flying[self._place] = True
        self._place = (self._place + 1) % len(self._slots)


async def _worker(package: Package, executor: str, plans: Path, times: int) -> Sequence[Start | Vacate]:
    """The worker as a daemon starts it: cold with its build, then warm; stopped in the middle of its work."""
    starts: list[float] = []
    gone_ms: list[float] = []
    micro_batch_ms, before, held, left = 0.0, free_mb(), 0, 0
    for _ in range(times + 1):
        runner = PackageRunner(package.path, 4, executor=executor, plans=plans)  # type: ignore[arg-type]  # a flavour's
        began_s = time.monotonic()
        try:
            micro_batch_ms = (await runner.open()).micro_batch_ms
            runner.give(golden_items(package) * 50)
            await runner.compute(0, 1)
            starts.append((time.monotonic() - began_s) * 1000)
            held = max(held, before - free_mb())
            working = asyncio.ensure_future(runner.compute())
            await asyncio.sleep(0.05)
            began_s = time.monotonic()
            await runner.stop(STOP_BUDGET_MS)
            gone_ms.append((time.monotonic() - began_s) * 1000)
            left = max(left, before - free_mb())
            await asyncio.gather(working, return_exceptions=True)
        finally:
            await runner.close()
    name = f"{package.manifest.name} on {executor}"
    ordered = sorted(gone_ms)
    return [
        Start(how=f"worker of {name} to its first slice, its plan built meanwhile", start_ms=starts[0]),
        Start(how=f"worker of {name} to its first slice, with its plan", start_ms=statistics.median(starts[1:])),
        Vacate(
            how=f"worker of {name}",
            times=len(ordered),
            micro_batch_ms=micro_batch_ms,
            idle_p50_ms=percentile(ordered, 50),
            idle_p99_ms=percentile(ordered, 99),
            freed_p50_ms=percentile(ordered, 50),
            freed_p99_ms=percentile(ordered, 99),
            memory_mb=held,
            left_mb=left,
        ),
    ]


def _trtexec(built: Built, binding: Binding) -> float | None:
    """What NVIDIA's own loop makes of the same plan: runs a second, with transfers and sleeping waits as ours."""
    tool = shutil.which("trtexec")
    if tool is None or built.flavour.name != "tensorrt":
        return None
    shapes = ",".join(
        f"{name}:{'x'.join(str(size) for size in (binding.bucket.items, *spec.shape))}"
        for name, spec in binding.inputs.items()
    )
    with tempfile.NamedTemporaryFile(suffix=".plan") as file:
        file.write(built.plan)
        file.flush()
        command = [tool, f"--loadEngine={file.name}", f"--shapes={shapes}", *_trtexec_settings(built.flavour)]
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120).stdout
    found = re.search(r"Throughput: ([0-9.]+) qps", said)
    return float(found[1]) if found else None


def _trtexec_settings(flavour: Flavour) -> tuple[str, ...]:
    """A graph, transfers and sleeping waits: 10.x has graphs off by default, 11.x transfers off and spinning on."""
    if int(flavour.version.split(".")[0]) < 11:
        return ("--useCudaGraph",)
    return ("--includeDataTransfers", "--noSpinWait")
