"""Runs one package here and now, for a person: a worker of its own, some inputs, and their answers.

What the daemon's station does for leases, without leases: the same worker, the same wire. Whoever uses it decides
whether it may run at all (the gate), and closes it whatever happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from agent import wire
from agent.clock import SystemClock
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.inference.launcher import WorkerProcess, launch
from agent.package import open_package
from agent.sealed import InputMemory


class PackageRunner:
    """One worker with one package. Use on one event loop, one question at a time."""

    def __init__(self, package: Path, threads: int) -> None:
        self._path, self._threads = package, threads
        self._worker: WorkerProcess | None = None
        self._answer: asyncio.Future[wire.WorkerMessage] | None = None
        self._gone: WorkerError | None = None
        self._items = 0

    async def open(self) -> wire.Loaded:
        """Start the worker and have it load and prove the package; raises PackageError or WorkerError."""
        package = open_package(self._path)
        self._worker = worker = launch(SystemClock(), self._said, self._ended)
        worker.load(package.path.resolve(), threads=self._threads, memory_mb=package.manifest.limits.memory_mb)
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

    async def compute(self) -> wire.SliceDone:
        """Compute all inputs once, as one slice; raises WorkerError with the worker's own words when it fails."""
        self._running().run(0, 0, self._items)
        answer = await self._next()
        assert isinstance(answer, wire.SliceDone)
        return answer

    async def close(self) -> None:
        """Kill the worker, whatever it is doing."""
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
