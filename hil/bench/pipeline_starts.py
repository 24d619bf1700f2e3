"""How soon a package's first slice (of one micro-batch) is there.

Cold: from starting a process, the package and the libraries having been put out of the page cache as far as nobody else
uses them. Process: from starting one, they being there. Warm: of a worker that has the package loaded, for the next
lease. All with one thread; the process starts with its cage, and the package's golden vector is proven in between.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from pathlib import Path

import msgspec

from hil.bench.pipeline_loads import Load, Place, leased

WARM_STARTS = 9
FOLDERS = {"onnxruntime": "onnxruntime", "numpy": "numpy", "pillow": "PIL", "msgspec": "msgspec"}
"""The libraries that a worker loads, and where they are among the installed ones."""


class Start(msgspec.Struct, frozen=True):
    """Medians over some starts, and the shortest and the longest."""

    cold_start_ms: float
    cold_start_min_ms: float
    cold_start_max_ms: float
    process_start_ms: float
    process_start_min_ms: float
    process_start_max_ms: float
    warm_start_ms: float
    warm_start_min_ms: float
    warm_start_max_ms: float


async def measure_starts(load: Load, starts: int) -> Start:
    """Start so many processes cold, and as many not; raises DrivewayError."""
    place = Place(tuple(os.sched_getaffinity(0)), 1)
    first = load.items[: load.batch_items]
    cold_ms, process_ms, warm_ms = [], [], []
    for _ in range(starts):
        _put_out_of_cache(load.package.path)
        cold_ms.append(await _first_slice_ms(load, place, first))
        process_ms.append(await _first_slice_ms(load, place, first))
    async with leased(load, place) as (runner, _):
        for _ in range(WARM_STARTS):
            began_s = time.perf_counter()
            runner.give(first)
            await runner.compute()
            warm_ms.append((time.perf_counter() - began_s) * 1000)
    return start_of(cold_ms, process_ms, warm_ms)


def start_of(cold_ms: list[float], process_ms: list[float], warm_ms: list[float]) -> Start:
    """The figures of some starts."""
    median = statistics.median
    return Start(
        cold_start_ms=median(cold_ms),
        cold_start_min_ms=min(cold_ms),
        cold_start_max_ms=max(cold_ms),
        process_start_ms=median(process_ms),
        process_start_min_ms=min(process_ms),
        process_start_max_ms=max(process_ms),
        warm_start_ms=median(warm_ms),
        warm_start_min_ms=min(warm_ms),
        warm_start_max_ms=max(warm_ms),
    )


async def _first_slice_ms(load: Load, place: Place, items: list[bytes]) -> float:
    began_s = time.perf_counter()
    async with leased(load, place) as (runner, _):
        runner.give(items)
        await runner.compute()
        return (time.perf_counter() - began_s) * 1000


def _put_out_of_cache(package: Path) -> None:
    """Have the kernel forget the package and the libraries, but for what some process has mapped."""
    folders = [
        package,
        *(Path(str(importlib.metadata.distribution(name).locate_file(""))) / FOLDERS[name] for name in FOLDERS),
    ]
    os.sync()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
