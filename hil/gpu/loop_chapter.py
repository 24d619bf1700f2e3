"""How much of the bare engine's throughput is left when everything around it runs, and whether anything grows.

Bare: `hil.gpu.bare`. Pipeline: the slots as a lease uses them, staged anew each time, copied over, computed, copied
back, and every row's results looked up. Both sleep while they wait, in the same process, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import psutil
import pycuda.driver as cuda

from hil.gpu.bare import BareEngine, per_s
from hil.gpu.figures import Endurance, Throughput
from hil.gpu.load import ITEMS, Work, at_work
from hil.gpu.synthetic import INPUT
from kernels.operation import TensorSpec

TURNS = 5
BATCHES_MS = (0.2, 1.0, 5.0, 20.0)
_MB = 1024**2


def run_loops(busy: bytes, *, values: int, seconds: float, slices: int) -> Iterator[Throughput | Endurance]:
    """Throughput beside the bare engine for engines of several lengths, then `slices` in one process."""
    for batch_ms in BATCHES_MS:
        with at_work(batch_ms, values, busy=busy) as work:
            yield _beside_bare(work, batch_ms, seconds)
    with at_work(0.2, values, busy=busy) as work:
        yield _endure(work, slices)


def _beside_bare(work: Work, batch_ms: float, seconds: float) -> Throughput:
    """Turn by turn, so that a clock that changes meets both."""
    bare = BareEngine(work.driver, work.engine, {INPUT: TensorSpec("float32", work.rows.shape)})
    rates: dict[str, list[float]] = {"bare": [], "pipeline": []}
    try:
        for _ in range(TURNS):
            rates["bare"].append(per_s(bare.turn, seconds))
            rates["pipeline"].append(per_s(_Slots(work).turn, seconds))
    finally:
        bare.close()
    bare_per_s, pipeline_per_s = (statistics.median(rates[one]) for one in ("bare", "pipeline"))
    return Throughput(
        package="stand-in engine",
        case=f"{ITEMS} x {work.rows.shape[1]} float32, {batch_ms:g} ms meant",
        engine_ms=1000 / bare_per_s,
        bare_per_s=bare_per_s,
        pipeline_per_s=pipeline_per_s,
        ratio=statistics.median(mine / theirs for mine, theirs in zip(rates["pipeline"], rates["bare"], strict=True)),
        graph=not (work.executor.notes or bare.plain),
        python_us=_python_us(work),
    )


class _Slots:
    """The whole way of a micro-batch: wait for the older slot, read it, stage and submit it again."""

    def __init__(self, work: Work) -> None:
        work.executor.drain()
        self._work = work
        self._flying = [False] * len(work.bucket.slots)
        self._place = 0

    def turn(self) -> None:
        slot = self._work.bucket.slots[self._place]
        if self._flying[self._place]:
            slot.wait()
            for row in range(ITEMS):
                slot.results(row)
        self._work.stage(self._place)
        slot.submit(ITEMS)
        self._flying[self._place] = True
        self._place = (self._place + 1) % len(self._flying)


def _python_us(work: Work) -> float:
    """Submit and results, with the device idle, in microseconds: the median of many."""
    work.executor.drain()
    slot, taken_us = work.bucket.slots[0], []
    for _ in range(50):
        work.stage(0)
        began_s = time.perf_counter()
        slot.submit(ITEMS)
        submitted_s = time.perf_counter()
        slot.wait()
        woken_s = time.perf_counter()
        slot.results(0)
        taken_us.append((submitted_s - began_s + time.perf_counter() - woken_s) * 1e6)
    return statistics.median(taken_us)


def _endure(work: Work, slices: int) -> Endurance:
    """Many micro-batches; what the process holds on the device and on the host must not grow."""
    turn, process = _Slots(work).turn, psutil.Process()
    for _ in range(200):
        turn()
    work.executor.drain()
    turn = _Slots(work).turn
    free_before, host_before = cuda.mem_get_info()[0], process.memory_info().rss
    began_s = time.perf_counter()
    for _ in range(slices):
        turn()
    work.executor.drain()
    taken_s = time.perf_counter() - began_s
    return Endurance(
        slices=slices,
        device_grown_mb=(free_before - cuda.mem_get_info()[0]) / _MB,
        host_grown_mb=(process.memory_info().rss - host_before) / _MB,
        per_s=slices / taken_s,
    )
