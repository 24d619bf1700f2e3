"""Where plans are built: the core's order goes in, a worker builds, and what came of it goes back as events.

The worker is a process of its own, confined like any other and killed like any other: the core sees it start, paces it,
stops it, and hears of its end (PlanMade where it has made one, then WorkerGone) as soon as the process is gone and its
memory free. Then the plan, which came back in sealed memory, is put into the cache. That takes seconds, and the next
worker may be at work meanwhile. PlanBuilt says that the plan is on the disk.

A model of which no plan can be built is refused (BuildRefused), and its package is taken off the shelf; so is one whose
builder has crashed MAX_CRASHES times, since a builder that a model crashes would crash every hour for ever. Whatever
else goes wrong is the end of this try alone, and so is a disk that does not take the plan (PlanNotKept).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent import wire
from agent.core.events import (
    BuildProgress,
    BuildRefused,
    PlanBuilt,
    PlanMade,
    PlanNotKept,
    WorkerGone,
    WorkerIdle,
)
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.inference.errand import Errand
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.log import logger
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
        self._tasks: set[asyncio.Task[None]] = set()
        """The build at hand, and those before it whose plan is still being written."""
        self._crashes: dict[str, int] = {}
        """How often a package's builder died of a signal that was none of ours, since its plan was last built."""
        self._name = ""
        self._told_ms = 0

    def start(self, package_sha256: str) -> None:
        """Begin to build a package's plan; PlanMade or BuildRefused may follow, WorkerGone does."""
        self._errand = Errand(
            self._clock,
            python=self._limits.python,
            library_path=self._limits.library_path,
            required=self._limits.required,
            socket_unit=self._limits.socket_unit,
            on_building=self._building,
        )
        self._told_ms = 0
        task = asyncio.get_running_loop().create_task(self._build(self._errand, package_sha256))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        """Kill a build that is still there, and wait for its end, and until plans are written."""
        self.stop(0)
        errand = self._errand
        if errand is not None:
            await errand.close()
            if not errand.is_over:
                logger().error("worker_cannot_be_ended", pid=errand.pid)
        await finished(self._tasks, CLOSE_S)

    async def _build(self, errand: Errand, package_sha256: str) -> None:
        """One build, from the order to the worker's end, and what is made of it to the disk."""
        expected, detail = True, ""
        try:
            await self._made(errand, package_sha256)
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
        if self._errand is errand:  # else the core has heard of the worker's end
            self._over(errand, expected=expected, detail=detail)

    async def _made(self, errand: Errand, package_sha256: str) -> None:
        """Build the plan, tell of its worker's end, and keep it.

        Until the worker's end this raises PackageError where there can be no plan, and DrivewayError for all else.
        """
        package = self._shelf.packages.get(package_sha256)
        if package is None:
            raise WorkerError(f"this unit holds no package {package_sha256[:16]}… any more")
        place = self._plans.place(package)
        if place is None:
            raise WorkerError("nobody has looked yet for which accelerator to build")
        self._name = package.manifest.name
        plan_bytes = 0

        def over(length: int) -> None:
            nonlocal plan_bytes
            plan_bytes = length
            self._crashes.pop(package_sha256, None)
            self._idle(errand)
            self._emit(PlanMade(at_ms=self._clock.boot_ms(), package_sha256=package_sha256, plan_bytes=length))
            self._over(errand, expected=errand.expected, detail="")

        try:
            plan = await place.made(errand, executor=self._limits.executor, threads=self._limits.threads, over=over)
            plan.close()
            await self._plans.refresh()
        except Exception as error:
            if not plan_bytes:
                self._idle(errand)
                raise
            detail = str(error) if isinstance(error, DrivewayError) else repr(error)
            self._emit(PlanNotKept(at_ms=self._clock.boot_ms(), package_sha256=package_sha256, detail=detail))
        else:
            self._emit(PlanBuilt(at_ms=self._clock.boot_ms(), package_sha256=package_sha256, plan_bytes=plan_bytes))

    def _idle(self, errand: Errand) -> None:
        self._emit(WorkerIdle(at_ms=self._clock.boot_ms(), pid=errand.pid))

    def _over(self, errand: Errand, *, expected: bool, detail: str) -> None:
        """The worker is gone."""
        self._errand = None
        if errand.lost_accelerator:
            self._on_lost(detail)
        self._emit(WorkerGone(at_ms=self._clock.boot_ms(), pid=errand.pid, expected=expected, detail=detail))

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
