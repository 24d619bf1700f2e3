"""One package's plan on one computer: read from the cache, or else built by a worker and kept there.

This is the one way to a plan, for leases (`agent.inference.workshop`) as for a person (`agent.inference.runner`). What
an earlier build measured (the timing cache) goes along with the order; the worker builds, and is gone; then plan and
timing cache are hashed and written, which takes seconds and needs the worker no more. Whoever waits for the
accelerator is told in between (`over`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from agent import wire
from agent.inference.errand import BuiltPlan, Errand
from agent.inference.plans import KeptPlan, PlanCache, plan_name, timing_name
from agent.package import Package
from agent.sealed import InputMemory


def _let_go(written: asyncio.Future[None], built: BuiltPlan) -> None:
    """It is written or not, and nobody wants to know any more."""
    if not written.cancelled():
        written.exception()
    built.close()


def _nothing(_plan_bytes: int) -> None:
    """For those who only wait for the plan."""


@dataclass(frozen=True)
class PlanPlace:
    """Where a package's plan for a platform is, or will be. `memory_mb` is what its builder may use."""

    cache: PlanCache
    package: Package
    platform: wire.Platform
    memory_mb: int

    @property
    def name(self) -> str:
        """The plan's name in the cache."""
        return plan_name(self.package, self.platform, self.memory_mb)

    async def read(self) -> KeptPlan | None:
        """The plan, the caller's to close; None where there is none. Raises WorkerError without memory for it."""
        return await asyncio.to_thread(self.cache.read, self.name)

    async def drop(self, why: str) -> None:
        """The plan turned out to be of no use: it is deleted."""
        await asyncio.to_thread(self.cache.drop, self.name, why)

    async def made(
        self, errand: Errand, *, executor: wire.ExecutorName, threads: int, over: Callable[[int], None] = _nothing
    ) -> InputMemory:
        """The plan, built now by `errand` and kept; the caller's to close.

        `over` hears the plan's length as soon as its builder is gone. Before that this raises what `Errand.build` does;
        after that StoreError, when the disk does not take what was built.
        """
        timing = await asyncio.to_thread(self.cache.read, timing_name(self.package, self.platform), "timing")
        try:
            built = await errand.build(
                self.package.path.resolve(),
                executor=executor,
                threads=threads,
                memory_mb=self.memory_mb,
                timing=None if timing is None else timing.memory,
            )
        finally:
            if timing is not None:
                timing.close()
        try:
            over(built.plan.length)
        except BaseException:
            built.close()
            raise
        await self._kept(built)
        if built.timing is not None:
            built.timing.close()
        return built.plan

    async def _kept(self, built: BuiltPlan) -> None:
        """Write it. A thread cannot be stopped: who waits no longer leaves it the memory until it is done."""
        written = asyncio.get_running_loop().run_in_executor(None, self._write, built)
        try:
            await asyncio.shield(written)
        except BaseException:
            if written.done():
                built.close()
            else:
                written.add_done_callback(lambda done: _let_go(done, built))
            raise

    def _write(self, built: BuiltPlan) -> None:
        self.cache.write(self.name, built.plan)
        if built.timing is not None:
            self.cache.write(timing_name(self.package, self.platform), built.timing, "timing")
