"""A worker for one order: say what the executor finds here (survey), or build a package's plan.

Such a worker answers once and ends. The answer counts when the process is gone, so whoever has it knows that the
accelerator is free again. A worker that ends without an answer is a WorkerError with its last words, and so is one that
cannot use the accelerator; one that refuses the package is a PackageError with the engine's own. `stop` ends it at any
time, at once: then there is no answer either.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from agent import wire
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.inference.launcher import WorkerProcess, launch
from agent.ports import Clock
from agent.sealed import InputMemory

OnBuilding = Callable[[wire.Building], None]
SURVEY_S = 60.0
"""The first CUDA context of a boot takes seconds, on a slow disk many."""


class BuiltPlan:
    """What a build gave, in sealed memory: the plan, and the timing cache where the engine has one. To be closed."""

    def __init__(self, plan: InputMemory, timing: InputMemory | None) -> None:
        self.plan, self.timing = plan, timing

    def close(self) -> None:
        """Give the memory back; may be called again."""
        self.plan.close()
        if self.timing is not None:
            self.timing.close()


class Errand:
    """One order to one worker. Use on the event loop's thread, once."""

    def __init__(
        self,
        clock: Clock,
        *,
        python: str = sys.executable,
        library_path: str = "",
        required: tuple[wire.Measure, ...] = (),
        socket_unit: Path | None = None,
        on_building: OnBuilding | None = None,
    ) -> None:
        self._clock, self._python, self._on_building = clock, python, on_building
        self._library_path, self._required, self._socket_unit = library_path, required, socket_unit
        self._process: WorkerProcess | None = None
        self._stopped = False
        self._answer: wire.Surveyed | BuiltPlan | DrivewayError | None = None
        self._end: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
        self.stopped_early = False
        """It was stopped by its user before it had answered."""
        self.expected = True
        """Whether it ended as it should, or because it was stopped."""
        self.lost_accelerator = False
        """The worker lost the accelerator, or could not use it to begin with."""
        self.crashed = False
        """A signal ended it, and none of ours."""

    @property
    def pid(self) -> int:
        """The process; 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def is_over(self) -> bool:
        """Whether there is no process, or none any more."""
        return self._process is None or self._process.is_gone

    @property
    def confinement(self) -> tuple[wire.Confinement, ...]:
        """What shuts the worker in, and what of that is absent here; empty while there is none."""
        return () if self._process is None else self._process.confinement

    async def survey(self, executor: wire.ExecutorName) -> wire.Surveyed:
        """What the executor finds on this computer; raises WorkerError when it cannot work here, and says why."""
        try:
            async with asyncio.timeout(SURVEY_S):  # not wait_for, which may swallow a cancellation (until 3.12)
                answer = await self._done(executor, lambda worker: worker.survey(executor))
        except TimeoutError:
            raise WorkerError(f"no answer from {executor} within {SURVEY_S:.0f} s") from None
        except PackageError as refusal:
            raise WorkerError(refusal.what) from refusal
        finally:
            await self.close()
        if not isinstance(answer, wire.Surveyed) or answer.platform.executor != executor:
            raise WorkerError(f"the worker surveyed something else than {executor}")
        return answer

    async def build(
        self, package: Path, *, executor: wire.ExecutorName, threads: int, memory_mb: int, timing: InputMemory | None
    ) -> BuiltPlan:
        """The package's plan, the caller's to close; raises PackageError for a model of which there can be none.

        Raises WorkerError when the worker was stopped or lost.
        """

        def give(worker: WorkerProcess) -> None:
            worker.build(package, executor=executor, threads=threads, memory_mb=memory_mb, timing=timing)

        try:
            answer = await self._done(executor, give, package, memory_mb=memory_mb)
        finally:
            await self.close()
        if not isinstance(answer, BuiltPlan):
            raise WorkerError("the worker built nothing")
        return answer

    def pace(self, duty_permille: int) -> None:
        """Let the worker compute for this share of the time."""
        if self._process is not None:
            try:
                self._process.pace(duty_permille)
            except WorkerError as error:
                self._process.condemn(str(error))

    def stop(self, budget_ms: int) -> None:
        """End it, also before it has begun; never raises."""
        self.stopped_early = self.stopped_early or self._answer is None
        self._end_within(budget_ms)

    async def close(self) -> None:
        """Kill what is left of it, and wait for its end, though not for ever (`is_over`)."""
        self._end_within(0)
        if self._process is not None:
            await self._process.gone()

    def _end_within(self, budget_ms: int) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.stop(budget_ms)

    async def _done(
        self,
        executor: wire.ExecutorName,
        give: Callable[[WorkerProcess], None],
        *readable: Path,
        memory_mb: int | None = None,
    ) -> wire.Surveyed | BuiltPlan:
        """Start the worker, give the order, and wait for its end."""
        if self._stopped:
            raise WorkerError("it was stopped before it began")
        self._process = process = launch(
            self._clock,
            self._said,
            self._gone,
            python=self._python,
            readable=readable,
            accelerator=executor != "onnxruntime",
            library_path=self._library_path,
            memory_mb=memory_mb,
            required=self._required,
            socket_unit=self._socket_unit,
        )
        try:
            give(process)
        except WorkerError as error:
            process.condemn(str(error))
        self.expected, detail = await self._end
        answer, self._answer = self._answer, None
        if isinstance(answer, BuiltPlan) and not self.expected:
            answer.close()
            answer = None
        if isinstance(answer, DrivewayError):
            raise answer
        if answer is None:
            raise WorkerError(f"the worker ended without an answer: {detail}")
        return answer

    def _said(self, message: wire.WorkerMessage) -> None:
        process = self._process
        assert process is not None
        match message:
            case wire.Hello() | wire.Beat() | wire.Idle():
                pass
            case wire.Building():
                if self._on_building is not None:
                    self._on_building(message)
            case wire.Surveyed() if self._answer is None:
                self._answer = message
            case wire.Built() if self._answer is None:
                self._answer = _taken(process, message)
            case wire.Refused(unavailable=True) if self._answer is None:
                self._answer, self.lost_accelerator = WorkerError(message.detail), True
            case wire.Refused() if self._answer is None:
                self._answer = PackageError(message.detail)
            case _:
                process.condemn(f"it says {type(message).__name__}, which nobody asked for")

    def _gone(self, _pid: int, expected: bool, detail: str) -> None:  # noqa: FBT001 - the launcher's callback
        assert self._process is not None
        self.lost_accelerator = self.lost_accelerator or self._process.lost_accelerator
        self.crashed = self._process.crashed
        if self._end.cancelled():
            if isinstance(self._answer, BuiltPlan):
                self._answer.close()
        else:
            self._end.set_result((expected, detail))


def _taken(process: WorkerProcess, message: wire.Built) -> BuiltPlan:
    """The memory that came with the plan's message; raises WireError."""
    plan = process.take_memory(message.plan_bytes)
    try:
        return BuiltPlan(plan, process.take_memory(message.timing_bytes) if message.timing_bytes else None)
    except wire.WireError:
        plan.close()
        raise
