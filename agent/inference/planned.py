"""Which packages of the shelf can be run on this computer now, and which lack the plan that their engine needs.

Where the configured executor needs no plans (ONNX Runtime on the CPU), that is all of them. Else a package is offered
to the fleet only once the accelerator was surveyed and its plan for just this computer lies in the cache; the core is
told of those that lack one (`PlansMissing`) whenever that changes: after a survey of the accelerator, when packages
come, when a plan was built, and when one turned out to be of no use.
"""

from __future__ import annotations

import asyncio

from agent import wire
from agent.core.events import PlansMissing
from agent.inference.making import PlanPlace
from agent.inference.plans import KeptPlan, PlanCache, plan_name
from agent.inference.shelf import Shelf
from agent.package import Package
from agent.ports import Clock, Emit


class PlannedShelf:
    """The shelf as the fleet may see it. `cache` is None for an executor that needs no plans. Use on the event loop.

    `memory_mb` is what a builder may use.
    """

    def __init__(self, shelf: Shelf, cache: PlanCache | None, *, emit: Emit, clock: Clock, memory_mb: int) -> None:
        self._shelf, self._cache, self._emit, self._clock, self._memory_mb = shelf, cache, emit, clock, memory_mb
        self.platform: wire.Platform | None = None
        """Where plans are for; None while there was no survey, or none that asked for plans."""
        self.found: wire.Platform | None = None
        """What the last survey found, whether or not it asked for plans."""
        self._planned: frozenset[str] = frozenset()
        self._missing: tuple[str, ...] = ()
        self._turn = asyncio.Lock()

    @property
    def needs_plans(self) -> bool:
        """Whether a package is loaded with a plan."""
        return self._cache is not None

    @property
    def offered(self) -> tuple[str, ...]:
        """The packages (SHA-256) that can be run now, for new work."""
        if not self._shelf.takes_new():
            return ()
        return tuple(one for one in self._shelf.packages if not self.needs_plans or one in self._planned)

    async def surveyed(self, surveyed: wire.Surveyed) -> None:
        """The accelerator was surveyed: from now on plans are for this platform."""
        self.found = surveyed.platform
        self.platform = surveyed.platform if surveyed.needs_plan and self._cache is not None else None
        await self.refresh()

    async def refresh(self) -> None:
        """Look again which packages have their plan, and tell the core if that has changed."""
        async with self._turn:
            packages = dict(self._shelf.packages)
            missing = await asyncio.to_thread(self._lacking, packages)
            known = self._cache is None or self.platform is not None
            self._planned = frozenset(packages) - frozenset(missing) if known else frozenset()
            if missing != self._missing:
                self._missing = missing
                self._emit(PlansMissing(at_ms=self._clock.boot_ms(), packages=missing))

    def place(self, package: Package) -> PlanPlace | None:
        """Where the package's plan is, or is to be; None while nobody knows the platform, or none needs plans."""
        if self._cache is None or self.platform is None:
            return None
        return PlanPlace(self._cache, package, self.platform, self._memory_mb)

    async def plan_of(self, package: Package) -> KeptPlan | None:
        """The package's plan, the caller's to close; None where there is none (any more).

        Raises WorkerError when there is no memory for it.
        """
        place = self.place(package)
        return None if place is None else await place.read()

    async def unusable(self, package: Package, why: str) -> None:
        """The package's plan does not load: it is deleted, and missing from now on."""
        place = self.place(package)
        if place is not None:
            await place.drop(why)
        await self.refresh()

    def _lacking(self, packages: dict[str, Package]) -> tuple[str, ...]:
        cache, platform = self._cache, self.platform
        if cache is None or platform is None:
            return ()
        names = {sha256: plan_name(one, platform, self._memory_mb) for sha256, one in packages.items()}
        return tuple(sha256 for sha256, name in names.items() if not cache.holds(name))
