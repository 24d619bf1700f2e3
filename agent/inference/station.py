"""The one place where a worker stands: the core's orders go in, its messages come out as events.

Holds what belongs to the worker's life and to nothing else: the process, which input it was given, which slice it
computes. A finished slice is handed to `on_slice` to be made durable; only then does the core hear of it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import assert_never

import msgspec

from agent import wire
from agent.core.events import (
    PlanUnusable,
    SliceFailed,
    WorkerGone,
    WorkerIdle,
    WorkerLoading,
    WorkerReady,
    WorkerRefused,
)
from agent.core.model import Grant, JobKey, SliceOutcome
from agent.errors import PackageError, WorkerError
from agent.inference.launcher import WorkerProcess, launch
from agent.inference.memory_probe import MemoryProbe, available_bytes
from agent.inference.planned import PlannedShelf
from agent.inference.plans import KeptPlan
from agent.inference.shelf import Shelf
from agent.log import logger
from agent.package import Package
from agent.ports import Clock, Emit
from agent.rows import Engine, StoredSlice
from agent.sealed import InputMemory
from agent.tasks import finished

EXECUTOR = re.compile(r"[A-Za-z0-9_-]{1,64}")
CLOSE_S = 3.0
OnSlice = Callable[[JobKey, StoredSlice], None]


class WorkerLimits(msgspec.Struct, frozen=True):
    """What a worker runs on, what it may use, and how long its drain may take."""

    threads: int
    memory_mb: int
    executor: wire.ExecutorName = "onnxruntime"
    python: str = sys.executable
    drain_ms: int = 50
    library_path: str = ""
    required: tuple[wire.Measure, ...] = ()
    socket_unit: Path | None = None
    """The socket on which systemd starts workers; None: they are children."""


class Running(msgspec.Struct, frozen=True):
    """The slice being computed, of which lease, and its items [first, last)."""

    key: JobKey
    index: int
    span: tuple[int, int]


class Station:
    """At most one worker. Use from the event loop's thread. `on_lost` hears that a worker lost the accelerator."""

    def __init__(
        self,
        *,
        emit: Emit,
        clock: Clock,
        shelf: Shelf,
        plans: PlannedShelf,
        limits: WorkerLimits,
        on_slice: OnSlice,
        on_lost: Callable[[str], None],
        memory: MemoryProbe | None = None,
    ) -> None:
        self._emit, self._clock, self._shelf, self._limits, self._on_slice = emit, clock, shelf, limits, on_slice
        self._plans, self._on_lost, self._memory = plans, on_lost, memory or MemoryProbe(available_bytes)
        self._tasks: set[asyncio.Task[None]] = set()
        self._process: WorkerProcess | None = None
        self._package: Package | None = None
        self._engine: Engine | None = None
        self._plan_sha256 = ""
        self._proven_ms = 0
        """When this worker's golden vector came out right."""
        self._input_of: JobKey | None = None
        self._running: Running | None = None
        self.items_done = 0

    def start(self, grant: Grant) -> None:
        """Start a worker for the grant's package; WorkerReady, WorkerRefused, PlanUnusable or WorkerGone follows."""
        try:
            self._package = self._shelf.find(grant.package_sha256)
        except PackageError as error:
            self._refused(grant.package, str(error))
            self._gone(0, True, str(error))
            return
        limits = self._limits
        self._memory.launched()
        try:
            self._process = launch(
                self._clock,
                self._said,
                self._gone,
                python=limits.python,
                readable=(self._package.path.resolve(),),
                accelerator=limits.executor != "onnxruntime",
                library_path=limits.library_path,
                memory_mb=limits.memory_mb,
                required=limits.required,
                socket_unit=limits.socket_unit,
            )
        except WorkerError as error:
            self._gone(0, False, str(error))
            return
        if self._plans.needs_plans:
            self._spawn(self._load_with_plan(self._process, self._package))
        else:
            self._load(self._package, None)

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the worker in, and what of that is absent here; empty without a worker."""
        return () if self._process is None else self._process.confinement

    @property
    def memory_returned_ms(self) -> int | None:
        """How long after its worker's end the memory was back, the last time that was seen."""
        return self._memory.returned_ms

    def run(self, key: JobKey, index: int, span: tuple[int, int], memory: InputMemory, items: int) -> None:
        """Compute items [first, last) of the input in `memory`, which crosses once per lease and worker."""
        self._running, self.items_done = Running(key, index, span), 0

        def give(process: WorkerProcess) -> None:
            if self._input_of not in {None, key}:
                process.forget()
            if self._input_of != key:
                process.send_input(memory, items=items)
                self._input_of = key
            process.run(index, *span)

        self._order(give)

    def forget(self, key: JobKey) -> None:
        """The lease is over: a worker that stays warm forgets what it was given of it."""
        if self._input_of == key:
            self._input_of = None
            self._order(lambda process: process.forget())

    def pace(self, duty_permille: int) -> None:
        """Let the worker compute for this share of the time."""
        self._order(lambda process: process.pace(duty_permille))

    def stop(self, budget_ms: int) -> None:
        """End the worker: the order is on its way when this returns."""
        if self._process is not None:
            self._process.stop(budget_ms)

    def give_up(self, detail: str) -> None:
        """A start that failed halfway: whatever is there of the worker ends, and is told of."""
        if self._process is not None:
            self._process.condemn(detail)
        else:
            self._gone(0, False, detail)

    async def close(self) -> None:
        """Kill a worker that is still there, and wait for its end."""
        if self._process is not None:
            process = self._process
            process.stop(0)
            if not await process.gone():
                logger().error("worker_cannot_be_ended", pid=process.pid)
        await finished(self._tasks, CLOSE_S)
        await self._memory.close()

    def _load(self, package: Package, plan: KeptPlan | None) -> None:
        limits = self._limits
        self._plan_sha256 = "" if plan is None else plan.sha256
        self._order(
            lambda process: process.load(
                package.path,
                executor=limits.executor,
                threads=limits.threads,
                memory_mb=limits.memory_mb,
                drain_ms=limits.drain_ms,
                load_s=package.manifest.limits.load_s,
                plan=None if plan is None else plan.memory,
            )
        )
        self._tell_that_it_loads()

    def _tell_that_it_loads(self) -> None:
        """Once the worker is up and was told to load: what follows takes the package's time, no longer the start's."""
        process, package = self._process, self._package
        if process is None or package is None or not process.is_loading:
            return
        load_ms = package.manifest.limits.load_s * 1000
        self._emit(WorkerLoading(at_ms=self._clock.boot_ms(), pid=process.pid, load_ms=load_ms))

    async def _load_with_plan(self, process: WorkerProcess, package: Package) -> None:
        """While the process comes up, its plan is read and checked; one that is not there any more ends it."""
        try:
            plan = await self._plans.plan_of(package)
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker must not wait for ever
            process.condemn(f"its plan cannot be read: {error!r}")
            return
        if self._process is not process or process.is_stopping:  # it was stopped meanwhile
            if plan is not None:
                plan.close()
        elif plan is None:
            self._unusable(package, "its plan is gone or was damaged")
            process.stop(0)
        else:
            self._load(package, plan)
            plan.close()

    def _unusable(self, package: Package, detail: str) -> None:
        """The plan has to be built anew; nothing is wrong with the package."""
        sha256 = package.package_sha256
        self._emit(PlanUnusable(at_ms=self._clock.boot_ms(), package_sha256=sha256, detail=detail))
        self._spawn(self._plans.unusable(package, detail))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _order(self, give: Callable[[WorkerProcess], None]) -> None:
        """Give an order; a worker that does not take it is killed, and its end (WorkerGone) says why."""
        process = self._process
        if process is None:
            return  # it has just ended: WorkerGone is on its way
        try:
            give(process)
        except WorkerError as error:
            process.condemn(str(error))

    def _refused(self, package: str, detail: str) -> None:
        self._emit(WorkerRefused(at_ms=self._clock.boot_ms(), package=package, detail=detail))

    def _said(self, message: wire.WorkerMessage) -> None:  # noqa: C901, PLR0912 - one arm a message
        match message:
            case wire.Hello():
                self._tell_that_it_loads()
            case wire.Beat() | wire.Ending():
                pass
            case wire.Loaded():
                self._loaded(message)
            case wire.Refused(stale_plan=True) if self._plans.needs_plans:
                if self._package is not None:
                    self._unusable(self._package, message.detail)
            case wire.Refused(unavailable=True):
                self._on_lost(message.detail)
                if self._process is not None:
                    self._process.condemn(message.detail)
            case wire.Refused():
                if self._package is not None:
                    self._shelf.take_off(self._package, message.detail)
                    self._refused(self._package.manifest.name, message.detail)
            case wire.Progress():
                self.items_done = message.done
            case wire.SliceDone():
                self._slice_done(message)
            case wire.SliceError():
                self._slice_failed(message.detail)
            case wire.Idle():
                if self._process is not None:
                    self._emit(WorkerIdle(at_ms=self._clock.boot_ms(), pid=self._process.pid))
            case wire.Surveyed() | wire.Building() | wire.Built():
                if self._process is not None:
                    self._process.condemn(f"it says {type(message).__name__}, which nobody asked for")
            case _:
                assert_never(message)

    def _loaded(self, message: wire.Loaded) -> None:
        package, process = self._package, self._process
        if package is None or process is None:
            return
        if message.package_sha256 != package.package_sha256 or not EXECUTOR.fullmatch(message.executor):
            process.condemn(f"it says it loaded {message.package_sha256[:16]}… on {message.executor!r}")
            return
        if self._plans.needs_plans and message.executor != self._limits.executor:
            process.condemn(f"it runs on {message.executor}, and {self._limits.executor} is configured")
            return
        self._memory.loaded()
        manifest, found = package.manifest, self._plans.found
        self._engine = Engine(
            message.executor,
            manifest.files[manifest.model],
            message.kernels_sha256,
            self._plan_sha256,
            version="" if found is None else found.version,
            driver="" if found is None else found.driver,
            precision=message.precision,
            batch=message.batch,
            golden_raw_sha256=message.golden_raw_sha256,
        )
        self._proven_ms = self._clock.boot_ms()
        self._emit(
            WorkerReady(
                at_ms=self._clock.boot_ms(),
                pid=process.pid,
                executor=message.executor,
                device=message.device,
                package=manifest.name,
                micro_batch_ms=message.micro_batch_ms,
                notes=message.notes,
            )
        )

    def _slice_done(self, message: wire.SliceDone) -> None:
        running, engine = self._running, self._engine
        if running is None or engine is None:
            return
        self._running = None
        outcome = SliceOutcome(
            index=message.index,
            items=message.items,
            failed_items=message.failed_items,
            output_sha256=message.output_sha256,
            raw_sha256=message.raw_sha256,
            compute_ms=message.compute_ms,
            raw_form=_raw_form(message),
        )
        engine = msgspec.structs.replace(engine, golden_age_ms=max(0, self._clock.boot_ms() - self._proven_ms))
        self._on_slice(running.key, StoredSlice(outcome, message.output, engine))

    def _slice_failed(self, detail: str) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._emit(SliceFailed(at_ms=self._clock.boot_ms(), key=running.key, index=running.index, detail=detail))

    def _gone(self, pid: int, expected: bool, detail: str) -> None:  # noqa: FBT001 - the launcher's callback
        self._memory.gone()
        lost = self._process is not None and self._process.lost_accelerator
        if lost:
            self._on_lost(detail)
        self._process = self._package = self._engine = self._input_of = self._running = None
        self.items_done = 0
        now_ms = self._clock.boot_ms()
        self._emit(WorkerGone(at_ms=now_ms, pid=pid, expected=expected, detail=detail, lost_accelerator=lost))


def _raw_form(message: wire.SliceDone) -> str:
    """Dtype and shape as a statement says them: `float32[60,2]`; no shape was told of several results."""
    if message.raw_dtype in {"none", "mixed"} or not message.raw_shape:
        return message.raw_dtype
    return f"{message.raw_dtype}[{','.join(map(str, message.raw_shape))}]"
