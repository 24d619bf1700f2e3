"""Does a worker come up here, load a package, and compute what its publisher says it computes? Asked by `doctor`.

A worker of its own loads a package of the shelf just as one for a lease does: cage, engine, plan, golden vector. It
computes for a moment, so it runs only when a worker might (`permit`): never while somebody drives and never beside
another worker. One that runs when that ends is killed at once, and its question has no answer then.
"""

from __future__ import annotations

import asyncio

import msgspec

from agent import wire
from agent.errors import DrivewayError, WorkerError
from agent.inference.launcher import WorkerProcess, launch
from agent.inference.planned import PlannedShelf
from agent.inference.shelf import Shelf
from agent.inference.station import WorkerLimits
from agent.package import Package
from agent.ports import Clock

START_S = 30.0
"""For a process to come up, besides the package's own time to load."""


class ProofView(msgspec.Struct, frozen=True):
    """What came of it. `result`: passed, failed, or none where nobody could be asked now; `detail` says why.

    `confinement` is the worker's cage: `enforced`, or why not on this computer.
    """

    result: str
    detail: str = ""
    package: str = ""
    executor: str = ""
    device: str = ""
    micro_batch_ms: float | None = None
    took_ms: int | None = None
    confinement: dict[str, str] = {}


class Prover:
    """At most one proof. Use on the event loop's thread."""

    def __init__(self, *, clock: Clock, shelf: Shelf, plans: PlannedShelf, limits: WorkerLimits) -> None:
        self._clock, self._shelf, self._plans, self._limits = clock, shelf, plans, limits
        self._permitted = False
        self._process: WorkerProcess | None = None
        self._answer: asyncio.Future[wire.Loaded] | None = None
        self._busy = asyncio.Lock()

    def permit(self, *, permitted: bool) -> None:
        """Whether a worker may compute now; if not, one that does is killed before this returns."""
        self._permitted = permitted
        if not permitted:
            self._end("it was ended, because the computer is needed")

    async def close(self) -> None:
        """Kill a worker that is still there, and wait for its end."""
        self._permitted = False
        process = self._process
        self._end("the daemon ends")
        if process is not None:
            await process.gone()

    async def prove(self) -> ProofView:
        """Ask for the proof, with the first package that can be run now."""
        async with self._busy:
            if not self._permitted:
                return ProofView("none", "no worker may run now: the gate is shut, or there is one already")
            offered = next(iter(self._plans.offered), None)
            if offered is None:
                return ProofView("none", "no package can be run now (see `driveway packages`)")
            return await self._proved(self._shelf.find(offered))

    async def _proved(self, package: Package) -> ProofView:
        name, began_ms = package.manifest.name, self._clock.boot_ms()
        self._answer = answer = asyncio.get_running_loop().create_future()
        cage: dict[str, str] = {}
        try:
            async with asyncio.timeout(START_S + package.manifest.limits.load_s):
                await self._start(package)
                loaded = await answer
                if self._process is not None:
                    cage = {one.name: one.state for one in self._process.confinement}
        except TimeoutError:
            return ProofView("failed", "the worker did not answer in its time", name)
        except DrivewayError as error:
            return ProofView("failed" if self._permitted else "none", str(error), name)
        finally:
            if self._process is not None:
                process = self._process
                process.stop(0)
                await process.gone()
        return ProofView(
            "passed",
            package=name,
            executor=loaded.executor,
            device=loaded.device,
            micro_batch_ms=loaded.micro_batch_ms,
            took_ms=self._clock.boot_ms() - began_ms,
            confinement=cage,
        )

    async def _start(self, package: Package) -> None:
        """Start the worker, and give the order; raises WorkerError."""
        limits = self._limits
        plan = await self._plans.plan_of(package) if self._plans.needs_plans else None
        try:
            if self._plans.needs_plans and plan is None:
                raise WorkerError(f"the plan of {package.manifest.name} is gone")
            if not self._permitted:
                raise WorkerError("no worker may run any more")
            self._process = launch(
                self._clock,
                self._said,
                self._gone,
                python=limits.python,
                readable=(package.path.resolve(),),
                accelerator=limits.executor != "onnxruntime",
                library_path=limits.library_path,
                memory_mb=limits.memory_mb,
                required=limits.required,
                socket_unit=limits.socket_unit,
            )
            self._process.load(
                package.path,
                executor=limits.executor,
                threads=limits.threads,
                memory_mb=limits.memory_mb,
                drain_ms=limits.drain_ms,
                load_s=package.manifest.limits.load_s,
                plan=None if plan is None else plan.memory,
            )
        finally:
            if plan is not None:
                plan.close()

    def _said(self, message: wire.WorkerMessage) -> None:
        match message:
            case wire.Loaded():
                self._settle(message)
            case wire.Refused():
                self._settle(WorkerError(message.detail))
            case _:
                pass

    def _gone(self, _pid: int, _expected: bool, detail: str) -> None:  # noqa: FBT001 - the launcher's callback
        self._process = None
        self._settle(WorkerError(f"the worker ended without an answer: {detail}"))

    def _end(self, why: str) -> None:
        if self._process is not None:
            self._settle(WorkerError(why))
            self._process.stop(0)

    def _settle(self, answer: wire.Loaded | WorkerError) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(answer, WorkerError):
            self._answer.set_exception(answer)
        else:
            self._answer.set_result(answer)
