"""The one place where a worker stands: the core's orders go in, its messages come out as events.

Holds what belongs to the worker's life and to nothing else: the process, which input it was given, which slice it
computes. A finished slice is handed to `on_slice` to be made durable; only then does the core hear of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import assert_never

import msgspec

from agent import wire
from agent.core.events import SliceFailed, WorkerGone, WorkerIdle, WorkerReady, WorkerRefused
from agent.core.model import Grant, JobKey, SliceOutcome
from agent.errors import PackageError, WorkerError
from agent.inference.launcher import WorkerProcess, launch
from agent.inference.shelf import Shelf
from agent.package import Package
from agent.ports import Clock, Emit
from agent.rows import Engine, StoredSlice
from agent.sealed import InputMemory

EXECUTOR = re.compile(r"[A-Za-z0-9_-]{1,64}")
OnSlice = Callable[[JobKey, StoredSlice], None]


class WorkerLimits(msgspec.Struct, frozen=True):
    """What the worker may use."""

    threads: int
    memory_mb: int


class Running(msgspec.Struct, frozen=True):
    """The slice being computed, of which lease, and its items [first, last)."""

    key: JobKey
    index: int
    span: tuple[int, int]


class Station:
    """At most one worker. Use from the event loop's thread."""

    def __init__(self, *, emit: Emit, clock: Clock, shelf: Shelf, limits: WorkerLimits, on_slice: OnSlice) -> None:
        self._emit, self._clock, self._shelf, self._limits, self._on_slice = emit, clock, shelf, limits, on_slice
        self._process: WorkerProcess | None = None
        self._package: Package | None = None
        self._engine: Engine | None = None
        self._input_of: JobKey | None = None
        self._running: Running | None = None
        self.items_done = 0

    def start(self, grant: Grant) -> None:
        """Start a worker for the grant's package; WorkerReady, WorkerRefused or WorkerGone follows."""
        try:
            self._package = self._shelf.find(grant.package_sha256)
        except PackageError as error:
            self._refused(grant.package, str(error))
            self._gone(0, True, str(error))
            return
        path, limits = self._package.path, self._limits
        try:
            self._process = launch(self._clock, self._said, self._gone)
        except WorkerError as error:
            self._gone(0, False, str(error))
            return
        self._order(lambda process: process.load(path, threads=limits.threads, memory_mb=limits.memory_mb))

    def run(self, key: JobKey, index: int, span: tuple[int, int], memory: InputMemory, items: int) -> None:
        """Compute items [first, last) of the input in `memory`, which crosses once per lease and worker."""
        self._running, self.items_done = Running(key, index, span), 0

        def give(process: WorkerProcess) -> None:
            if self._input_of != key:
                process.send_input(memory, items=items)
                self._input_of = key
            process.run(index, *span)

        self._order(give)

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
            await process.gone()

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

    def _said(self, message: wire.WorkerMessage) -> None:
        match message:
            case wire.Hello():
                pass
            case wire.Loaded():
                self._loaded(message)
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
            case _:
                assert_never(message)

    def _loaded(self, message: wire.Loaded) -> None:
        package, process = self._package, self._process
        if package is None or process is None:
            return
        if message.package_sha256 != package.package_sha256 or not EXECUTOR.fullmatch(message.executor):
            process.condemn(f"it says it loaded {message.package_sha256[:16]}… on {message.executor!r}")
            return
        manifest = package.manifest
        self._engine = Engine(message.executor, manifest.files[manifest.model], message.kernels_sha256)
        self._emit(
            WorkerReady(
                at_ms=self._clock.boot_ms(),
                pid=process.pid,
                executor=message.executor,
                device=message.device,
                package=manifest.name,
                micro_batch_ms=message.micro_batch_ms,
            )
        )

    def _slice_done(self, message: wire.SliceDone) -> None:
        running, engine, process = self._running, self._engine, self._process
        if running is None or engine is None or process is None:
            return
        first, last = running.span
        if (message.index, message.items) != (running.index, last - first) or message.failed_items > message.items:
            process.condemn(f"it answered slice {message.index} with {message.items} items, not what it was asked")
            return
        self._running = None
        outcome = SliceOutcome(
            index=message.index,
            items=message.items,
            failed_items=message.failed_items,
            output_sha256=message.output_sha256,
            raw_sha256=message.raw_sha256,
            compute_ms=message.compute_ms,
        )
        self._on_slice(running.key, StoredSlice(outcome, message.output, engine))

    def _slice_failed(self, detail: str) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._emit(SliceFailed(at_ms=self._clock.boot_ms(), key=running.key, index=running.index, detail=detail))

    def _gone(self, pid: int, expected: bool, detail: str) -> None:  # noqa: FBT001 - the launcher's callback
        self._process = self._package = self._engine = self._input_of = self._running = None
        self.items_done = 0
        self._emit(WorkerGone(at_ms=self._clock.boot_ms(), pid=pid, expected=expected, detail=detail))
