"""The worker's life: Hello, one package, then inputs and slices in order, until Stop.

Orders that compute (Load, Input, Run) are queued and carried out one after the other; between any two steps of a
computation the socket is looked at, so that Pace and Stop bite within one micro-batch. Pacing is sleeping: after t ms
of work at a duty of d thousandths, t * (1000 - d) / d ms, asleep on the socket, so that Stop ends it at once.

A package that must not run is answered with Refused; an input or an engine that fails costs its slices (SliceError);
a frame out of order ends the process (WireError), since then nothing the daemon says can be relied on.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Union

from agent.errors import PackageError
from agent.package import open_package
from agent.wire import (
    VERSION,
    Hello,
    Idle,
    Input,
    Load,
    Loaded,
    Pace,
    Progress,
    Refused,
    Run,
    SliceError,
    Stop,
    WireError,
)
from agent.worker.answers import Answer
from agent.worker.channel import Channel
from agent.worker.executor import ExecutorError
from agent.worker.guard import limit_memory
from agent.worker.onnxruntime_cpu import OnnxRuntimeCpu
from agent.worker.pipeline import Pipeline
from agent.worker.results import check_golden, golden_items, slice_done
from agent.worker.tensor_pipeline import TensorPipeline
from kernels import kernels_sha256

_PROGRESS_EVERY_S = 0.25


_MAX_DETAIL = 2000

_Order = Union[Load, Input, Run]  # noqa: UP007 - as in agent.wire


class StopNowError(Exception):
    """The daemon wants the computer back."""


class RefusedError(Exception):
    """The package was refused, and the daemon has been told."""


class Session:
    """One daemon, one package, any number of slices."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._orders: deque[_Order] = deque()
        self._duty_permille = 1000
        self._pipeline: Pipeline | TensorPipeline | None = None
        self._max_items = 0
        self._items: Sequence[bytes] = ()
        self._input_fault = "no input was sent"

    def serve(self) -> None:
        """Work until Stop. Raises RefusedError, WireError, or ChannelClosedError when the daemon is gone."""
        self._channel.send(Hello(pid=os.getpid(), version=VERSION))
        try:
            while True:
                self._attend(0 if self._orders else None)
                if self._orders:
                    self._carry_out(self._orders.popleft())
        except StopNowError:
            self._channel.send(Idle())

    def _attend(self, timeout_s: float | None) -> None:
        """Take what the daemon says within `timeout_s`; raises StopNowError on Stop."""
        for message in self._channel.receive(timeout_s):
            match message:
                case Stop():
                    raise StopNowError
                case Pace(duty_permille=duty_permille):
                    self._duty_permille = duty_permille
                case Load() | Input() | Run():
                    self._orders.append(message)
                case _:
                    _assert_never(message)

    def _carry_out(self, order: _Order) -> None:
        match order:
            case Load():
                self._load(order)
            case Input():
                self._take_input(order)
            case Run():
                self._run(order)
            case _:
                _assert_never(order)

    def _load(self, order: Load) -> None:
        """Check, build, calibrate and prove the package; answers Loaded, or Refused and raises RefusedError."""
        if self._pipeline is not None:
            raise WireError("a second Load: a process runs one package")
        try:
            self._channel.send(self._loaded(order))
        except (PackageError, ExecutorError, MemoryError) as error:
            detail = "the package needs more memory than its limit" if isinstance(error, MemoryError) else str(error)
            self._channel.send(Refused(detail=detail[:_MAX_DETAIL]))
            raise RefusedError(detail) from error

    def _loaded(self, order: Load) -> Loaded:
        """Do what `_load` says."""
        package = open_package(Path(order.path))
        limits = package.manifest.limits
        if limits.memory_mb > order.memory_mb:
            raise PackageError(f"package {package.path} needs {limits.memory_mb} MiB, more than {order.memory_mb}")
        limit_memory(limits.memory_mb)
        self._attend(0)
        model = package.read(package.manifest.model)
        executor = OnnxRuntimeCpu(model, threads=order.threads, memory_mb=limits.memory_mb)
        tensors = package.manifest.input == "tensor"
        pipeline = TensorPipeline(package, executor) if tensors else Pipeline(package, executor)
        micro_batch_ms = 0.0
        for latency_ms in pipeline.calibrate():
            micro_batch_ms = max(micro_batch_ms, latency_ms)
            self._attend(0)
        answers, _ = self._compute(pipeline, golden_items(package), slice_index=None)
        check_golden(package, answers)
        self._pipeline, self._max_items = pipeline, limits.max_items
        return Loaded(
            executor=executor.name,
            device=executor.device,
            micro_batch_ms=micro_batch_ms,
            package_sha256=package.package_sha256,
            kernels_sha256=kernels_sha256(),
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
            self._channel.send(SliceError(index=order.index, detail=fault[:_MAX_DETAIL]))
            return
        try:
            items = self._items[order.first : order.last]
            answers, busy_s = self._compute(self._pipeline, items, slice_index=order.index)
            done = slice_done(order.index, answers, round(busy_s * 1000))
            self._channel.send(done)
        except (ExecutorError, MemoryError, WireError) as error:
            detail = "the slice needs more memory than the package's limit" if isinstance(error, MemoryError) else ""
            self._channel.send(SliceError(index=order.index, detail=(detail or str(error))[:_MAX_DETAIL]))

    def _compute(
        self, pipeline: Pipeline | TensorPipeline, items: Sequence[bytes], *, slice_index: int | None
    ) -> tuple[list[Answer], float]:
        """The answers in order, and the seconds of work; rests, reports progress and looks out for Stop on the way."""
        answers: dict[int, Answer] = {}
        busy_s = 0.0
        reported_s = -_PROGRESS_EVERY_S
        started_s = time.monotonic()
        for answered in pipeline.steps(items):
            answers.update(answered)
            now_s = time.monotonic()
            busy_s += now_s - started_s
            if slice_index is not None and answered and now_s - reported_s >= _PROGRESS_EVERY_S:
                self._channel.send(Progress(index=slice_index, done=len(answers)))
                reported_s = now_s
            self._rest(now_s - started_s)
            started_s = time.monotonic()
        return [answers[place] for place in range(len(items))], busy_s

    def _rest(self, busy_s: float) -> None:
        """Sleep as long as the pace asks after `busy_s` seconds of work; a new pace counts at once."""
        began_s = time.monotonic()
        self._attend(0)
        while self._duty_permille < 1000:
            if self._duty_permille == 0:
                self._attend(None)
                continue
            rest_s = busy_s * (1000 - self._duty_permille) / self._duty_permille
            left_s = began_s + rest_s - time.monotonic()
            if left_s <= 0:
                return
            self._attend(left_s)


def _assert_never(value: NoReturn) -> NoReturn:  # noqa: PYI050 - Python 3.10 lacks Never too
    """typing.assert_never, which Python 3.10 lacks."""
    raise AssertionError(value)
