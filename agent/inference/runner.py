"""Runs one package here and now, for a person: a worker of its own, some inputs, and their answers.

What the daemon's station and workshop do for leases, without leases: the same worker, the same wire. An executor that
needs a plan is surveyed first, and the plan taken from a cache or built now, which takes minutes: `on_building` hears
how far it is. Whoever uses this decides whether it may run at all (the gate), and closes it whatever happens.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import wire
from agent.clock import SystemClock
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.inference.errand import Errand, OnBuilding
from agent.inference.launcher import WorkerProcess, launch
from agent.inference.making import PlanPlace
from agent.inference.plans import open_cache
from agent.package import Package, open_package
from agent.sealed import InputMemory

DRAIN_MS = 50
"""As long as a drain may take in a car: so a person sees the micro-batches that leases get."""
BUILD_MEMORY_MB = 2048
"""What a builder may use, as in the daemon's configuration where that says nothing else."""


class StalePlanError(WorkerError):
    """The plan does not load here and has to be built anew."""


def user_cache() -> Path:
    """Where a person's plans are kept: apart from the daemon's, under a secret of their own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driveway"


class PackageRunner:
    """One worker with one package. Use on one event loop, one question at a time.

    `plans` is the folder with the plan cache and its secret (the daemon's is its `state_dir`); default: `user_cache`.
    `memory_mb` is what a builder may use.
    """

    def __init__(
        self,
        package: Path,
        threads: int,
        *,
        executor: wire.ExecutorName = "onnxruntime",
        python: str = sys.executable,
        library_path: str = "",
        required: tuple[wire.Measure, ...] = (),
        plans: Path | None = None,
        memory_mb: int = BUILD_MEMORY_MB,
        on_building: OnBuilding | None = None,
    ) -> None:
        self._path, self._threads, self._executor, self._python = package, threads, executor, python
        self._library_path, self._required = library_path, required
        self._plans, self._memory_mb, self._on_building = plans, memory_mb, on_building
        self._clock = SystemClock()
        self._errand: Errand | None = None
        self._worker: WorkerProcess | None = None
        self._answer: asyncio.Future[wire.WorkerMessage] | None = None
        self._gone: WorkerError | None = None
        self._items = 0

    @property
    def pid(self) -> int:
        """The worker's process id; raises WorkerError when there is none."""
        return self._running().pid

    async def open(self) -> wire.Loaded:
        """Start the worker and have it load and prove the package, with its plan where the executor needs one.

        Raises PackageError or WorkerError, StoreError or TrustError where the plan cannot be kept.
        """
        package = open_package(self._path)
        if self._executor == "onnxruntime":
            return await self._loaded(package, None)
        self._errand = Errand(
            self._clock, python=self._python, library_path=self._library_path, required=self._required
        )
        surveyed = await self._errand.survey(self._executor)
        if not surveyed.needs_plan:
            return await self._loaded(package, None)
        cache = await asyncio.to_thread(open_cache, self._plans or user_cache())
        place = PlanPlace(cache, package, surveyed.platform, self._memory_mb)
        try:
            return await self._loaded(package, await self._plan(place))
        except StalePlanError as error:
            await self.close()
            await place.drop(error.what)
            self._worker = self._gone = None
            return await self._loaded(package, await self._plan(place))

    async def _plan(self, place: PlanPlace) -> InputMemory:
        """The package's plan, built now unless it is in the cache; the caller's to close."""
        plan = await place.read()
        if plan is not None:
            return plan.memory
        self._errand = Errand(
            self._clock,
            python=self._python,
            library_path=self._library_path,
            required=self._required,
            on_building=self._on_building,
        )
        return await place.made(self._errand, executor=self._executor, threads=self._threads)

    async def _loaded(self, package: Package, plan: InputMemory | None) -> wire.Loaded:
        """The worker, with the package loaded; `plan` is closed."""
        try:
            self._worker = worker = launch(
                self._clock,
                self._said,
                self._ended,
                python=self._python,
                readable=(package.path.resolve(),),
                accelerator=self._executor != "onnxruntime",
                library_path=self._library_path,
                memory_mb=package.manifest.limits.memory_mb,
                required=self._required,
            )
            worker.load(
                package.path.resolve(),
                executor=self._executor,
                threads=self._threads,
                memory_mb=package.manifest.limits.memory_mb,
                drain_ms=DRAIN_MS,
                load_s=package.manifest.limits.load_s,
                plan=plan,
            )
        finally:
            if plan is not None:
                plan.close()
        answer = await self._next()
        assert isinstance(answer, wire.Loaded)
        return answer

    def give(self, items: Sequence[bytes]) -> None:
        """Hand over the inputs that `compute` computes from now on; raises WorkerError."""
        self._items = len(items)
        memory = InputMemory.holding(wire.encode_input(list(items)))
        try:
            self._running().send_input(memory, items=len(items))
        finally:
            memory.close()

    async def compute(self, first: int = 0, last: int | None = None) -> wire.SliceDone:
        """Compute the inputs [first, last), all unless said otherwise, as one slice.

        Raises WorkerError with the worker's own words when it fails.
        """
        self._running().run(0, first, self._items if last is None else last)
        answer = await self._next()
        assert isinstance(answer, wire.SliceDone)
        return answer

    async def stop(self, budget_ms: int) -> None:
        """Have the worker stop as a daemon does, and wait until it is gone; raises WorkerError when there is none."""
        worker = self._running()
        worker.stop(budget_ms)
        await worker.gone()

    async def close(self) -> None:
        """Kill the worker, whatever it is doing."""
        if self._errand is not None:
            await self._errand.close()
        if self._worker is not None:
            self._worker.stop(0)
            await self._worker.gone()

    def _running(self) -> WorkerProcess:
        if self._worker is None or self._gone is not None:
            raise self._gone or WorkerError("the worker was not started")
        return self._worker

    async def _next(self) -> wire.WorkerMessage:
        """What the worker answers to the order at hand."""
        if self._gone is not None:
            raise self._gone
        self._answer = asyncio.get_running_loop().create_future()
        return await self._answer

    def _said(self, message: wire.WorkerMessage) -> None:
        match message:
            case wire.Loaded() | wire.SliceDone():
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(message)
            case wire.Refused(stale_plan=True):
                self._fail(StalePlanError(f"the plan of {self._path} does not load: {message.detail}"))
            case wire.Refused(unavailable=True):
                self._fail(WorkerError(message.detail))
            case wire.Refused():
                self._fail(PackageError(f"the package {self._path} was refused: {message.detail}"))
            case wire.SliceError():
                self._fail(WorkerError(f"the inputs could not be computed: {message.detail}"))
            case _:
                pass

    def _ended(self, _pid: int, _expected: bool, detail: str) -> None:  # noqa: FBT001 - the launcher's callback
        self._gone = WorkerError(f"the worker was lost: {detail}")
        self._fail(self._gone)

    def _fail(self, error: DrivewayError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
