"""The worker's life: Hello, then one of three things, in the words of `agent.wire`.

Survey and Build are other modules' work, and end the process. Load is answered here: the package is checked, its model
looked at by `agent.onnx` before any native parser sees it, the engine opened, its buckets timed, and its golden vector
computed. Then come inputs and slices in order, until Stop.

Orders that compute (Load, Input, Run, Forget) are queued and carried out one after the other; between any two steps of
a computation the socket is looked at, so that Pace and Stop bite within one micro-batch. Timing the buckets and the
golden vector are such computations, at the pace that applies. Whoever looks at it also says Beat: a worker that says
nothing for long is inside the engine.

A package that must not run is answered with Refused; an input or an engine that fails costs its slices (SliceError); a
lost accelerator costs the process alone (LostError); a frame out of order ends the process (WireError), since
then nothing the daemon says can be relied on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, Union

from agent.errors import PackageError, WorkerError
from agent.onnx.check import check_model
from agent.package import open_package, run_in
from agent.wire import (
    MAX_NOTES,
    MAX_TEXT,
    VERSION,
    Beat,
    Build,
    Confinement,
    DaemonMessage,
    Forget,
    Hello,
    Idle,
    Input,
    Load,
    Loaded,
    Pace,
    Refused,
    Require,
    Run,
    SliceError,
    Stop,
    Survey,
    WireError,
)
from agent.worker.channel import Channel
from agent.worker.ending import free_at_end, heed_sigterm_no_more
from agent.worker.executor import ExecutorError, LostError, StalePlanError, UnavailableError
from agent.worker.executors import host_memory_mb, open_executor
from agent.worker.pacing import Pacer
from agent.worker.pipeline import Pipeline
from agent.worker.results import check_golden, golden_items, raw_sha256, slice_done
from agent.worker.sandbox import lacking, limit_memory
from agent.worker.scrub import scrub
from agent.worker.survey import survey
from kernels.operation import OperationError

_BEAT_EVERY_S = 0.5
_MAX_DETAIL = 2000
_LACKING_HINT = "run a kernel that has it, or require less under [inference]"
_Order = Union[Survey, Build, Load, Input, Run, Forget]  # noqa: UP007 - as in agent.wire


class StopNowError(Exception):
    """The daemon wants the computer back."""


class RefusedError(Exception):
    """The package was refused, and the daemon has been told."""


class Session:
    """One daemon, one package, any number of slices."""

    def __init__(self, channel: Channel, confinement: tuple[Confinement, ...] = (), lacking: str = "") -> None:
        """`lacking`: what is required of the cage and does not stand; with it every order is refused."""
        self._channel, self._confinement, self._lacking = channel, confinement, lacking
        self._orders: deque[_Order] = deque()
        self._pacer = Pacer(channel, self.attend)
        self._pipeline: Pipeline | None = None
        self._max_items = 0
        self._items: Sequence[bytes] = ()
        self._input_fault = "no input was sent"
        self._beaten_s = time.monotonic()

    def serve(self) -> None:
        """Work until Stop, or until a survey or build is done.

        Raises RefusedError, LostError, WorkerError (WireError is one), or ChannelClosedError when the daemon is gone.
        """
        self._channel.send(Hello(pid=os.getpid(), version=VERSION, confinement=self._confinement))
        goes_on = True
        try:
            while goes_on:
                self.attend(0 if self._orders else None)
                if self._orders:
                    goes_on = self._carry_out(self._orders.popleft())
        except StopNowError:
            heed_sigterm_no_more()
            self._channel.send(Idle())

    def attend(self, timeout_s: float | None) -> None:
        """Take what the daemon says within `timeout_s` (None: until it says something), and show that we live.

        Raises StopNowError on Stop.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            if now_s >= self._beaten_s + _BEAT_EVERY_S:
                self._channel.send(Beat())
                self._beaten_s = now_s
            wait_s = self._beaten_s + _BEAT_EVERY_S - now_s
            messages = self._channel.receive(
                wait_s if deadline_s is None else max(0.0, min(wait_s, deadline_s - now_s))
            )
            for message in messages:
                self._take(message)
            if messages or (deadline_s is not None and time.monotonic() >= deadline_s):
                return

    def _take(self, message: DaemonMessage) -> None:
        match message:
            case Stop():
                raise StopNowError
            case Pace(duty_permille=duty_permille):
                self._pacer.duty_permille = duty_permille
            case Require(measures=measures):
                self._lacking = self._lacking or lacking(self._confinement, measures)
            case Survey() | Build() | Load() | Input() | Run() | Forget():
                self._orders.append(message)
            case _:
                _assert_never(message)

    def _carry_out(self, order: _Order) -> bool:
        """Do it; whether the process is to go on."""
        match order:
            case Survey():
                self._or_refused(lambda: survey(order, self._channel))
                return False
            case Build():
                self._or_refused(lambda: self._build(order))
                return False
            case Load():
                self._load(order)
            case Input():
                self._take_input(order)
            case Run():
                self._run(order)
            case Forget():
                self._forget()
            case _:
                _assert_never(order)
        return True

    def _or_refused(self, work: Callable[[], None]) -> None:
        """Do the work; when it must not or cannot be done, answer with Refused and raise RefusedError."""
        try:
            if self._lacking:
                raise UnavailableError(self._lacking, hint=_LACKING_HINT)
            work()
        except LostError:
            raise
        except (PackageError, ExecutorError, OperationError, MemoryError) as error:
            detail = "the package needs more memory than its limit" if isinstance(error, MemoryError) else str(error)
            stale, unavailable = isinstance(error, StalePlanError), isinstance(error, UnavailableError)
            self._channel.send(Refused(detail=detail[:_MAX_DETAIL], stale_plan=stale, unavailable=unavailable))
            raise RefusedError(detail) from error

    def _build(self, order: Build) -> None:
        """Build a plan, at the pace that the daemon sets."""
        from agent.worker.building import build  # noqa: PLC0415 - few workers build

        build(order, self._channel, self._pacer.rest)

    def _load(self, order: Load) -> None:
        """Check, open, time and prove the package; answers Loaded."""
        if self._pipeline is not None:
            raise WireError("a second Load: a process runs one package")
        plan = self._channel.take_memory(order.plan_bytes) if order.plan_bytes else None
        self._or_refused(lambda: self._channel.send(self._loaded(order, plan)))

    def _loaded(self, order: Load, plan: memoryview | None) -> Loaded:
        """Do what `_load` says."""
        package = open_package(Path(order.path))
        limits = package.manifest.limits
        if limits.memory_mb > order.memory_mb:
            raise PackageError(f"package {package.path} needs {limits.memory_mb} MiB, more than {order.memory_mb}")
        limit_memory(host_memory_mb(order.executor, limits.memory_mb))
        self.attend(0)
        model = package.read(package.manifest.model)
        written_in = check_model(model, f"package {package.path}: {package.manifest.model}").precision
        precision = run_in(package.manifest, written_in, on_accelerator=order.executor != "onnxruntime")
        self.attend(0)
        executor = open_executor(order.executor, model, plan, threads=order.threads, memory_mb=limits.memory_mb)
        free_at_end(executor)
        pipeline = Pipeline(package, executor, drain_ms=order.drain_ms)
        began_s = time.monotonic()
        for _ in pipeline.calibrate():
            self._pacer.rest(time.monotonic() - began_s)
            began_s = time.monotonic()
        answers, _ = self._pacer.compute(pipeline, golden_items(package), slice_index=None)
        check_golden(package, answers, precision)
        self._pipeline, self._max_items = pipeline, limits.max_items
        return Loaded(
            executor=executor.name,
            device=executor.device,
            micro_batch_ms=pipeline.micro_batch_ms,
            package_sha256=package.package_sha256,
            kernels_sha256=executor.kernels_sha256,
            precision=precision,
            batch=pipeline.batch,
            golden_raw_sha256=raw_sha256(answers),
            notes=tuple(note[:MAX_TEXT] for note in executor.notes[:MAX_NOTES]),
        )

    def _take_input(self, order: Input) -> None:
        """Replace the input. What the customer sent may be anything: a bad one fails its slices, not the worker."""
        self._items, self._input_fault = (), ""
        try:
            items = self._channel.take_items(order)
        except WireError as error:
            self._input_fault = error.what
            return
        if len(items) > self._max_items:
            self._input_fault = f"an input of {len(items)} items, more than the package's {self._max_items}"
            return
        self._items = items

    def _run(self, order: Run) -> None:
        """Compute one slice and hand it over."""
        if self._pipeline is None:
            raise WireError("Run before a package was loaded")
        fault = self._input_fault
        if not fault and not order.first < order.last <= len(self._items):
            fault = f"items [{order.first}, {order.last}) of an input of {len(self._items)}"
        if fault:
            self._failed(order, fault)
            return
        try:
            items = self._items[order.first : order.last]
            answers, engine_s = self._pacer.compute(self._pipeline, items, slice_index=order.index)
            self._channel.send(slice_done(order.index, answers, round(engine_s * 1000)))
        except LostError:
            raise  # the end of the process says it: the slice itself has not failed
        except MemoryError:
            self._failed(order, "the slice needs more memory than the package's limit")
        except (ExecutorError, OperationError, PackageError, WireError) as error:
            self._failed(order, str(error))

    def _failed(self, order: Run, detail: str) -> None:
        self._channel.send(SliceError(index=order.index, detail=detail[:_MAX_DETAIL]))

    def _forget(self) -> None:
        """The lease is over: nothing of its input stays."""
        self._items, self._input_fault = (), "no input was sent"
        if self._pipeline is None:
            return
        try:
            self._pipeline.wipe()
        except LostError:
            raise
        except ExecutorError as error:
            raise WorkerError(f"what held a lease's items could not be overwritten: {error}") from error
        scrub()


def _assert_never(value: NoReturn) -> NoReturn:  # noqa: PYI050 - Python 3.10 lacks Never too
    """typing.assert_never, which Python 3.10 lacks."""
    raise AssertionError(value)
