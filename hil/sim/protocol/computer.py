"""A worker that takes virtual time and gives answers that anybody can check: each item's is a digest of the item.

The station around it is the real one; only the process is not there. It keeps the wire's contract: Load, then Loaded or
Refused; Input and Run, then SliceDone or SliceError; Stop, then Idle and the end.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from agent import wire
from agent.core.model import Grant, JobKey
from agent.errors import PackageError
from agent.inference.launcher import WorkerProcess
from agent.inference.station import Station
from agent.package import Package
from agent.sealed import InputMemory
from hil.sim.protocol.carrier import Soon

LOAD_MS = (800.0, 4_000.0)
MICRO_BATCH_MS = 15.0
KILL_MS = 20.0
FREE_MS = (30.0, 120.0)
MODEL_SHA256 = "d" * 64
KERNELS_SHA256 = "e" * 64


class Troubles(msgspec.Struct):
    """What the worker does now, as chances per occasion."""

    crash: float = 0.0
    hang: float = 0.0
    slow_start: float = 0.0
    slice_fails: float = 0.0


class Worked(msgspec.Struct, frozen=True):
    """A stretch of time in which a slice of a lease was computed, in true time."""

    key: JobKey
    index: int
    began_ms: float
    ended_ms: float


class Bench(msgspec.Struct):
    """What the workers of one car are made of. `item_ms` is what an item of a job takes here."""

    soon: Soon
    chance: random.Random
    true_ms: Callable[[], float]
    item_ms: Callable[[str], float]
    worked: Callable[[Worked], None]
    troubles: Troubles
    pids: int = 0


def package(name: str, sha256: str) -> Package:
    """A package that nobody has to read."""
    manifest = SimpleNamespace(name=name, model="model.onnx", files={"model.onnx": MODEL_SHA256})
    return cast("Package", SimpleNamespace(path="/packages/" + name, package_sha256=sha256, manifest=manifest))


def answers(items: list[bytes], answer_bytes: int) -> bytes:
    """What a worker answers to these items: `answer_bytes` of text for each."""
    texts = [hashlib.sha256(item).hexdigest() for item in items]
    return msgspec.json.encode([{"text": (text * (1 + answer_bytes // 64))[:answer_bytes]} for text in texts])


class SimulatedStation(Station):
    """The station, with a worker in virtual time. `answer_bytes` is how long an item's answer is, by job."""

    def __init__(self, bench: Bench, answer_bytes: Callable[[str], int], **parts: Any) -> None:
        super().__init__(**parts)
        self._bench, self._answer_bytes = bench, answer_bytes

    def start(self, grant: Grant) -> None:
        """As the real one does it, but for the launch."""
        try:
            self._package = self._shelf.find(grant.package_sha256)
        except PackageError as error:
            self._refused(grant.package, str(error))
            self._gone(0, True, str(error))
            return
        process = SimulatedWorker(self._bench, self._package.package_sha256, self._said, self._gone)
        self._process = cast("WorkerProcess", process)
        process.load()

    def run(self, key: JobKey, index: int, span: tuple[int, int], memory: InputMemory, items: int) -> None:
        """Compute, and say to the worker what it computes: the real one does not know."""
        process = cast("SimulatedWorker | None", self._process)
        if process is not None:
            process.at_work_on(key, self._answer_bytes(key.job))
        super().run(key, index, span, memory, items)


class SimulatedWorker:
    """See `agent.inference.launcher.WorkerProcess`."""

    lost_accelerator = False

    def __init__(
        self,
        bench: Bench,
        package_sha256: str,
        said: Callable[[wire.WorkerMessage], None],
        gone: Callable[[int, bool, str], None],
    ) -> None:
        bench.pids += 1
        self.pid = bench.pids
        self._bench, self._package_sha256, self._said, self._on_gone = bench, package_sha256, said, gone
        self._items: list[bytes] = []
        self._key = JobKey("", 0)
        self._answer_bytes = 16
        self._slice: tuple[int, float, float] | None = None
        """Its index, the work left in ms at full pace, and since when (true time)."""
        self._began_ms = 0.0
        self._span = (0, 0)
        self._duty = 1.0
        self._hangs = False
        self._stopping = self._over = False

    def load(self) -> None:
        """Answered by Loaded, unless it comes up too slowly."""
        bench = self._bench
        if bench.chance.random() < bench.troubles.slow_start:
            return
        loaded = wire.Loaded(
            executor="simulated",
            device="virtual",
            micro_batch_ms=MICRO_BATCH_MS,
            package_sha256=self._package_sha256,
            kernels_sha256=KERNELS_SHA256,
            precision="float32",
            batch=(1,),
            golden_raw_sha256=KERNELS_SHA256,
        )
        self._later(bench.chance.uniform(*LOAD_MS), lambda: None if self._stopping else self._said(loaded))

    def at_work_on(self, key: JobKey, answer_bytes: int) -> None:
        """Which lease the next slice is of."""
        self._key, self._answer_bytes = key, answer_bytes

    def send_input(self, memory: InputMemory, *, items: int) -> None:
        """A job's input."""
        self._items = msgspec.msgpack.decode(memory.read(), type=list[bytes])
        assert len(self._items) == items

    def run(self, index: int, first: int, last: int) -> None:
        """Compute items [first, last)."""
        bench = self._bench
        now_ms = bench.true_ms()
        self._slice = (index, (last - first) * bench.item_ms(self._key.job) * bench.chance.uniform(0.9, 1.1), now_ms)
        self._began_ms, self._span = now_ms, (first, last)
        self._hangs = bench.chance.random() < bench.troubles.hang
        if bench.chance.random() < bench.troubles.crash:
            self._later(bench.chance.uniform(50, 5_000), lambda: self._end("signal 11", expected=False))
        self._plan()

    def forget(self) -> None:
        """The lease is over: its input is dropped."""
        self._items = []

    def pace(self, duty_permille: int) -> None:
        """Compute for so much of the time."""
        if self._slice is not None:
            index, left_ms, since_ms = self._slice
            now_ms = self._bench.true_ms()
            self._slice = (index, left_ms - (now_ms - since_ms) * self._duty, now_ms)
        self._duty = duty_permille / 1000
        self._plan()

    def stop(self, budget_ms: int) -> None:
        """Finish the micro-batch, say so, free everything; or be killed."""
        if self._stopping or self._over:
            return
        self._stopping = True
        if budget_ms and not self._hangs:
            self._later(self._bench.chance.uniform(0, MICRO_BATCH_MS), self._idle)
        else:
            self._later(budget_ms + KILL_MS, lambda: self._end("killed", expected=True))

    def condemn(self, detail: str) -> None:
        """It is no good: kill it."""
        self._later(KILL_MS, lambda: self._end(detail, expected=False))

    async def gone(self) -> None:
        """Nobody waits for it: the simulated agent does not close, it loses its power."""

    def _later(self, delay_ms: float, action: Callable[[], object]) -> None:
        self._bench.soon(delay_ms, lambda: None if self._over else action())

    def _plan(self) -> None:
        if self._slice is None or self._hangs or not self._duty:
            return
        mark = self._slice
        self._later(max(0.0, mark[1]) / self._duty, lambda: self._computed(mark))

    def _computed(self, mark: tuple[int, float, float]) -> None:
        if self._slice is not mark or self._stopping:
            return
        bench, (index, _, _) = self._bench, mark
        self._rest()
        if bench.chance.random() < bench.troubles.slice_fails:
            self._said(wire.SliceError(index=index, detail="out of memory"))
            return
        first, last = self._span
        output = answers(self._items[first:last], self._answer_bytes)
        self._said(
            wire.SliceDone(
                index=index,
                items=last - first,
                failed_items=0,
                output=output,
                output_sha256=hashlib.sha256(output).hexdigest(),
                raw_sha256=hashlib.sha256(b"raw" + output).hexdigest(),
                raw_dtype="float32",
                raw_shape=(1,),
                compute_ms=round(bench.true_ms() - self._began_ms),
            )
        )

    def _rest(self) -> None:
        """No slice is computed any more."""
        if self._slice is not None:
            index = self._slice[0]
            self._slice = None
            self._bench.worked(Worked(self._key, index, self._began_ms, self._bench.true_ms()))

    def _idle(self) -> None:
        self._rest()
        self._said(wire.Idle())
        self._later(self._bench.chance.uniform(*FREE_MS), lambda: self._end("", expected=True))

    def _end(self, detail: str, *, expected: bool) -> None:
        self._rest()
        self._over = True
        self._on_gone(self.pid, expected or self._stopping, detail)
