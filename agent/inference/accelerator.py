"""Is the accelerator ready? A worker is sent to look (a survey): at start, after a worker lost it, after a sleep.

    starting --Surveyed--> ready --a worker lost it, or the computer slept--> lost or starting --Surveyed--> ready
        +------ not there, no engine, no answer ------> absent, and asked again later and later

What is configured is what counts: a car that is set up for TensorRT and has none is `absent`, holds its gate shut and
says why, and never runs on the CPU instead. The survey loads the engine's library and looks at the device; it computes
nothing, and its process ends with the answer.

It makes a context on the accelerator all the same, so it runs only when a worker might (`permit`): never while somebody
drives, and never beside a worker. One that runs when that ends is killed at once, and begun again when it may. The gate
that waits for its answer does not count there: else neither would ever come. A CPU is surveyed at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent import wire
from agent.clock import slept_s
from agent.core.events import AcceleratorSeen
from agent.core.model import Accelerator, Readiness
from agent.errors import DrivewayError, WorkerError
from agent.inference.errand import Errand
from agent.ports import Clock, Emit

RETRY_FIRST_S, RETRY_MAX_S = 10.0, 600.0
LOOK_S = 2.0
"""How often it is looked whether the computer has slept."""
SLEPT_S = 1.0
NOT_YET = "it has not been asked yet"

OnSurveyed = Callable[[wire.Surveyed], Awaitable[None]]


class AcceleratorWatch:
    """A source (`agent.ports.Source`) of AcceleratorSeen. `on_surveyed` hears of every good survey, first.

    `slept_s` is how long this computer has slept since it was started.
    """

    def __init__(
        self,
        executor: wire.ExecutorName,
        *,
        clock: Clock,
        on_surveyed: OnSurveyed,
        python: str = sys.executable,
        library_path: str = "",
        required: tuple[wire.Measure, ...] = (),
        socket_unit: Path | None = None,
        slept_s: Callable[[], float] = slept_s,
    ) -> None:
        self._executor, self._clock, self._python, self._library_path = executor, clock, python, library_path
        self._on_surveyed, self._slept_s, self._required = on_surveyed, slept_s, required
        self._socket_unit = socket_unit
        self._emit: Emit | None = None
        self._lost, self._permitted = asyncio.Event(), asyncio.Event()
        self._errand: Errand | None = None
        self._on_accelerator = executor != "onnxruntime"
        if not self._on_accelerator:
            self._permitted.set()
        self._platform: wire.Platform | None = None
        self._tries = 0

    def begins(self) -> Accelerator:
        """What is known before the first survey."""
        return Accelerator(state=Readiness.STARTING, executor=self._executor, detail=NOT_YET)

    def lost(self, detail: str) -> None:
        """A worker lost the accelerator: it is surveyed anew before the next one is started."""
        self._say(Readiness.LOST, detail)
        self._lost.set()

    def permit(self, *, permitted: bool) -> None:
        """Whether a process may be on the accelerator now, to look; if not, one that is ends before this returns."""
        if not self._on_accelerator or permitted is self._permitted.is_set():
            return
        if permitted:
            self._permitted.set()
            return
        self._permitted.clear()
        if self._errand is not None:
            self._errand.stop(0)

    async def run(self, emit: Emit) -> None:
        """Survey whenever there is a reason to."""
        self._emit = emit
        while True:
            self._lost.clear()
            await self._permitted.wait()
            slept_s = self._slept_s()
            ready = await self._survey()
            if ready is None or self._lost.is_set():
                continue
            if not ready:
                wait_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._tries, 10))
                self._tries += 1
                await self._lost_within(wait_s)
                continue
            self._tries = 0
            while not await self._lost_within(LOOK_S):
                # not before it may be looked at: a worker that is there would be held back by a survey that waits
                if self._permitted.is_set() and self._sleep_matters and self._slept_s() - slept_s > SLEPT_S:
                    self._say(Readiness.STARTING, "the computer has slept")
                    break

    @property
    def _sleep_matters(self) -> bool:
        """A CPU is after a sleep what it was before."""
        return self._platform is not None and bool(self._platform.driver)

    async def _lost_within(self, wait_s: float) -> bool:
        """Wait so long at most for a worker to lose it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._lost.wait()
        return self._lost.is_set()

    async def _survey(self) -> bool | None:
        """Whether the accelerator is ready; None: the survey was ended, because it may not be now."""
        try:
            surveyed = await self._ask()
            if surveyed is None:
                return None
            await self._on_surveyed(surveyed)
        except DrivewayError as error:
            self._platform = None
            self._say(Readiness.ABSENT, str(error))
            return False
        self._platform = surveyed.platform
        self._say(Readiness.READY, "")
        return True

    async def _ask(self) -> wire.Surveyed | None:
        """What one process finds; None when it was ended before it could say. Raises WorkerError."""
        if self._errand is not None and not self._errand.is_over:
            raise WorkerError(f"process {self._errand.pid}, which was asked before, cannot be ended")
        errand = self._errand = Errand(
            self._clock,
            python=self._python,
            library_path=self._library_path,
            required=self._required,
            socket_unit=self._socket_unit,
        )
        try:
            return await errand.survey(self._executor)
        except WorkerError:
            if errand.stopped_early and errand.is_over:
                return None
            raise

    def _say(self, state: Readiness, detail: str) -> None:
        """Tell the core."""
        platform = self._platform
        accelerator = Accelerator(
            state=state,
            executor=self._executor,
            version="" if platform is None else platform.version,
            device="" if platform is None else platform.device,
            detail=detail,
        )
        if self._emit is not None:
            self._emit(AcceleratorSeen(at_ms=self._clock.boot_ms(), accelerator=accelerator))
