"""How fast a busy worker is gone when it is told to, and whether its memory is back.

A vacate: a worker is started, has its package loaded, computes a first slice and is in the middle of a long one; at a
random moment it is told to stop as the daemon tells it, within the vacate's budget. It drains, says Idle, frees and
exits; or it is killed at once, with a budget of 0, where a micro-batch takes longer than the budget: the daemon's own
rule (`agent.core.plan`). `drained` says which it was, `killed` how many were killed in the end: a drain that does not
end in time is a kill as well. Timed is from the order to the end of the process, as its pidfd tells.

Memory: `worker_rss_mb` is all that the worker has in memory, its libraries too, which programs share and the kernel
keeps; `worker_own_mb` is what it alone has there (RssAnon and RssShmem of proc_pid_status(5)), which has to come back.
`memory_freed_mb` is by how much less the whole computer has of that (AnonPages and Shmem of proc_meminfo(5)) once it
has ended, looked at for up to the second that is promised; `memory_left_mb` is what then is missing. Other programs
come and go: medians over the vacates count, and what is left may be a little below 0. MemAvailable is not asked: in a
virtual machine whose host takes freed pages back, it follows seconds later.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import msgspec

from agent.core.policy import Policy
from agent.errors import DrivewayError, WorkerError
from agent.inference.memory_probe import LOOKS_MS, PROMISED_MS, Held
from agent.wire import SliceDone
from hil.bench.pipeline_loads import Load, Place, leased
from hil.bench.vacate import percentile

BUDGET_MS = Policy().vacate_budget_ms
BUSY_S = 1.0
"""The slice is at least half as long on an executor with two micro-batches in flight: longer than any wait."""
WAITS_S = (0.02, 0.2)
FEWEST_FOR_P99 = 100
SEED = 17
_MB = 1024**2


@dataclass(frozen=True)
class Vacate:
    """One worker's end, and the memory around it."""

    gone_ms: float
    drained: bool
    killed: bool
    rss_bytes: int
    own_bytes: int
    freed_bytes: int


@dataclass(frozen=True)
class Memory:
    """What a process has in memory, and how much of that nobody else has."""

    rss_bytes: int
    own_bytes: int


class Vacated(msgspec.Struct, frozen=True):
    """Some vacates of one package."""

    vacates: int
    drained: bool
    """Whether it is given time to end its micro-batch; else it is killed at once."""
    killed: int
    vacate_p50_ms: float
    vacate_p99_ms: float | None
    """None: of fewer than 100 the longest is all that can be said."""
    vacate_min_ms: float
    vacate_max_ms: float
    worker_rss_mb: float
    worker_own_mb: float
    memory_freed_mb: float
    memory_left_mb: float


async def vacate_often(load: Load, place: Place, times: int) -> list[Vacate]:
    """Vacate so many busy workers, one after the other; raises DrivewayError when one is not busy or not gone."""
    chance = random.Random(SEED)
    return [await _vacate(load, place, chance.uniform(*WAITS_S)) for _ in range(times)]


async def _vacate(load: Load, place: Place, wait_s: float) -> Vacate:
    async with leased(load, place) as (runner, loaded):
        drained = loaded.micro_batch_ms <= BUDGET_MS
        runner.give(load.repeated(math.ceil(BUSY_S * 1000 / max(loaded.micro_batch_ms, 0.1)) + 2))
        await runner.compute(0, load.batch_items)
        working = asyncio.ensure_future(runner.compute())
        await asyncio.sleep(wait_s)
        memory, at_work_bytes = memory_of(_kernels_words(f"{runner.pid}/status")), _in_use_bytes()
        if working.done():
            raise DrivewayError(f"the worker with {load.name} was not busy when it was to be vacated")
        began_s = perf_counter()
        await runner.stop(BUDGET_MS if drained else 0)
        gone_ms = (perf_counter() - began_s) * 1000
        killed = await _was_killed(working, load)
        freed_bytes = await _freed_bytes(at_work_bytes, memory.own_bytes)
    return Vacate(gone_ms, drained, killed, memory.rss_bytes, memory.own_bytes, freed_bytes)


async def _was_killed(working: asyncio.Task[SliceDone], load: Load) -> bool:
    """How the worker ended, which whoever waits for its slice is told."""
    try:
        await asyncio.wait_for(working, 1.0)
    except WorkerError as error:
        return "SIGKILL" in error.what
    except TimeoutError as error:
        raise DrivewayError(f"the worker with {load.name} cannot be killed") from error
    raise DrivewayError(f"the worker with {load.name} ended its slice although it was told to stop")


async def _freed_bytes(at_work_bytes: int, own_bytes: int) -> int:
    """How much less is in use once most of it is back, or when the promised second is over."""
    held = Held(before_bytes=own_bytes - at_work_bytes, loaded_bytes=-at_work_bytes)
    now_s = asyncio.get_running_loop().time
    began_s = now_s()
    in_use_bytes = _in_use_bytes()
    for look_ms in LOOKS_MS:
        if look_ms > PROMISED_MS or not held.missing_bytes(-in_use_bytes):
            break
        await asyncio.sleep(max(0.0, began_s + look_ms / 1000 - now_s()))
        in_use_bytes = _in_use_bytes()
    return at_work_bytes - in_use_bytes


def memory_of(status: str) -> Memory:
    """Out of /proc/PID/status; raises DrivewayError when it is not there, as of a process that has ended."""
    own_bytes = sum_bytes(status, "RssAnon", "RssShmem")
    return Memory(rss_bytes=sum_bytes(status, "VmRSS"), own_bytes=own_bytes)


def sum_bytes(words: str, *keys: str) -> int:
    """The sum of some lines `KEY: N kB`; raises DrivewayError when one is missing."""
    kib = {key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", words, re.MULTILINE)}
    try:
        return sum(kib[key] for key in keys) * 1024
    except KeyError as error:
        raise DrivewayError(f"memory cannot be seen: the kernel does not say {error.args[0]}") from error


def _in_use_bytes() -> int:
    """What all programs together have in memory that is no file's."""
    return sum_bytes(_kernels_words("meminfo"), "AnonPages", "Shmem")


def _kernels_words(name: str) -> str:
    return Path("/proc", name).read_text("utf-8")


def vacated(taken: list[Vacate]) -> Vacated:
    """The figures of some vacates of one package."""
    ordered = sorted(one.gone_ms for one in taken)
    return Vacated(
        vacates=len(taken),
        drained=all(one.drained for one in taken),
        killed=sum(one.killed for one in taken),
        vacate_p50_ms=statistics.median(ordered),
        vacate_p99_ms=p99_ms(ordered),
        vacate_min_ms=ordered[0],
        vacate_max_ms=ordered[-1],
        worker_rss_mb=statistics.median(one.rss_bytes for one in taken) / _MB,
        worker_own_mb=statistics.median(one.own_bytes for one in taken) / _MB,
        memory_freed_mb=statistics.median(one.freed_bytes for one in taken) / _MB,
        memory_left_mb=statistics.median(one.own_bytes - one.freed_bytes for one in taken) / _MB,
    )


def p99_ms(ordered: list[float]) -> float | None:
    """The 99th percentile, where there are enough values to have one."""
    return percentile(ordered, 99) if len(ordered) >= FEWEST_FOR_P99 else None
