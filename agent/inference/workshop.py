"""Where plans are built: the core's order goes in, a worker builds, and what came of it goes back as events.

The worker is a process of its own, confined like any other and killed like any other: the core sees it start, paces it,
stops it, and hears of its end (WorkerGone). The plan comes back in sealed memory and is put into the cache before the
core is told of either, so a plan that counts as built is on the disk, and the memory is free when the worker is gone.

A model of which no plan can be built is refused (BuildRefused), and its package is taken off the shelf; so is one whose
builder has crashed MAX_CRASHES times, since a builder that a model crashes would crash every hour for ever. Whatever
else goes wrong (the disk is full) is the end of this try alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent import wire
from agent.core.events import BuildProgress, BuildRefused, PlanBuilt, WorkerGone, WorkerIdle
from agent.errors import DrivewayError, PackageError
from agent.inference.errand import BuiltPlan, Errand
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.log import logger
from agent.package import Package
from agent.ports import Clock, Emit
from agent.tasks import finished

CLOSE_S = 3.0
MAX_CRASHES = 3
"""Once may be the computer's memory, and twice. A plan that is built is forgiven them."""
PROGRESS_MS = 1_000
"""The core hears of progress so often at most, whatever the builder says."""


class Workshop:
    """At most one build. Use from the event loop's thread. `on_lost` hears that a worker lost the accelerator."""

    def __init__(
        self,
        *,
        emit: Emit,
        clock: Clock,
        shelf: Shelf,
        plans: PlannedShelf,
        limits: WorkerLimits,
        on_lost: Callable[[str], None],
    ) -> None:
        self._emit, self._clock, self._shelf, self._plans, self._limits = emit, clock, shelf, plans, limits
        self._on_lost = on_lost
        self._errand: Errand | None = None
        self._task: asyncio.Task[None] | None = None
        self._crashes: dict[str, int] = {}
        """How often a package's builder died of a signal that was none of ours, since its plan was last built."""
        self._name = ""
        self._told_ms = 0

    def start(self, package_sha256: str) -> None:
        """Begin to build a package's plan; PlanBuilt or BuildRefused may follow, WorkerGone does."""
        self._errand = Errand(
            self._clock,
            python=self._limits.python,
            library_path=self._limits.library_path,
            required=self._limits.required,
            on_building=self._building,
        )
        self._told_ms = 0
        self._task = asyncio.get_running_loop().create_task(self._build(self._errand, package_sha256))

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the builder in, and what of that is absent here; empty without one."""
        return () if self._errand is None else self._errand.confinement

    def pace(self, duty_permille: int) -> None:
        """Let the builder work for this share of the time."""
        if self._errand is not None:
            self._errand.pace(duty_permille)

    def stop(self, budget_ms: int) -> None:
        """End the build: the order is on its way when this returns."""
        if self._errand is not None:
            self._errand.stop(budget_ms)

    async def close(self) -> None:
        """Kill a build that is still there, and wait for its end."""
        self.stop(0)
        errand = self._errand
        if errand is not None:
            await errand.close()
            if not errand.is_over:
                logger().error("worker_cannot_be_ended", pid=errand.pid)
        if self._task is not None:
            await finished({self._task}, CLOSE_S)

    async def _build(self, errand: Errand, package_sha256: str) -> None:
        """One build, from the order to the worker's end."""
        expected, detail = True, ""
        try:
            package = self._shelf.packages.get(package_sha256)
            if package is None:
                detail = f"this unit holds no package {package_sha256[:16]}… any more"
            else:
                await self._built_and_kept(errand, package)
        except PackageError as error:
            detail = str(error)
            self._refused(package_sha256, detail)
        except DrivewayError as error:
            expected, detail = errand.expected, str(error)
            if errand.crashed:
                self._crashed(package_sha256, detail)
        except Exception as error:  # noqa: BLE001 - a bug here is a build that failed, and must not keep the core waiting
            expected, detail = False, repr(error)
            logger().error("effect_failed", effect="StartBuild", error=detail)
        self._errand = None
        if errand.lost_accelerator:
            self._on_lost(detail)
        self._emit(WorkerGone(at_ms=self._clock.boot_ms(), pid=errand.pid, expected=expected, detail=detail))

    async def _built_and_kept(self, errand: Errand, package: Package) -> None:
        """Raises PackageError where there can be no plan, and DrivewayError for all else."""
        self._name = package.manifest.name
        timing = await self._plans.timing(package)
        try:
            built = await errand.build(
                package.path.resolve(),
                executor=self._limits.executor,
                threads=self._limits.threads,
                memory_mb=self._limits.memory_mb,
                timing=None if timing is None else timing.memory,
            )
        finally:
            if timing is not None:
                timing.close()
            self._emit(WorkerIdle(at_ms=self._clock.boot_ms(), pid=errand.pid))
        await self._keep(package, built)

    async def _keep(self, package: Package, built: BuiltPlan) -> None:
        plan_bytes = built.plan.length
        try:
            await self._plans.keep(package, built)
        finally:
            built.close()
        sha256 = package.package_sha256
        self._crashes.pop(sha256, None)
        self._emit(PlanBuilt(at_ms=self._clock.boot_ms(), package_sha256=sha256, plan_bytes=plan_bytes))

    def _crashed(self, package_sha256: str, detail: str) -> None:
        """The builder died: the core tries again later, until that has happened too often."""
        crashes = self._crashes[package_sha256] = self._crashes.get(package_sha256, 0) + 1
        if crashes >= MAX_CRASHES:
            self._refused(package_sha256, f"its plan's builder crashed {crashes} times: {detail}")

    def _refused(self, package_sha256: str, detail: str) -> None:
        """The package is offered no more; the next start looks at it again."""
        package = self._shelf.packages.get(package_sha256)
        if package is not None:
            self._shelf.take_off(package, detail)
        self._emit(BuildRefused(at_ms=self._clock.boot_ms(), package_sha256=package_sha256, detail=detail))

    def _building(self, message: wire.Building) -> None:
        now_ms = self._clock.boot_ms()
        if self._errand is None or now_ms < self._told_ms + PROGRESS_MS:
            return
        self._told_ms = now_ms
        self._emit(
            BuildProgress(
                at_ms=now_ms,
                pid=self._errand.pid,
                package=self._name,
                phase=message.phase,
                done_permille=message.done_permille,
            )
        )
