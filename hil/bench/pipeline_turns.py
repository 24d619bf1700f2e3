"""Throughput of a leased worker beside a bare loop on the same model, turn by turn.

Leased is the real thing: the worker's process in its cage, orders and answers over its socket, items in a memfd, read,
pre-processed, computed, answered, digested. Bare is the same model on ONNX Runtime in a process that does nothing else,
on inputs that lie ready (`hil.bench.pipeline_peer`); naive is a script's way: every step after the other. All have the
same engine settings and threads and are held to the same processors. They take turns within a round, the leased worker
between two runs of the bare loop: what the computer does beside hits all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from agent.inference.runner import PackageRunner
from agent.inference.slices import fitting_items
from agent.wire import encode_input
from hil.bench.pipeline_loads import Load, Place, held_to, leased
from hil.bench.pipeline_peer import Took

AIM, AIM_OF_SHORT = 0.98, 0.95
SHORT_MS = 5.0
FIRST_RUNS = 8
LONG_S = 0.1
"""A micro-batch that takes longer is not run `FIRST_RUNS` times only to learn how long it takes."""
NAIVE_SHARE = 4
"""The script's way is run for a part of the micro-batches: it is there for comparison, and nothing is held to it."""
SINGLES = 9

Ask = Callable[[str, int], Took]
"""Asks the peer to run so many micro-batches one way or the other."""


@dataclass(frozen=True)
class Turn:
    """What one round took, in seconds of wall clock and processor for as many micro-batches each."""

    leased: Took
    bare: Took
    naive: Took


class Row(msgspec.Struct, frozen=True):
    """One package in one place: medians over the rounds, and the least and the most of what matters."""

    ratio: float
    ratio_min: float
    ratio_max: float
    aim: float | None
    """None: there is no processor beside the engine's."""
    micro_batch_ms: float
    micro_batch_min_ms: float
    micro_batch_max_ms: float
    overhead_us: float
    overhead_min_us: float
    overhead_max_us: float
    cpu_overhead_us: float
    slice_overhead_us: float
    slice_overhead_min_us: float
    slice_overhead_max_us: float
    naive_ratio: float
    items_per_s: float
    bare_items_per_s: float
    rounds: int
    processors: int
    threads: int


async def measure(load: Load, place: Place, rounds: int, slice_s: float) -> Row:
    """Let the three take turns of about `slice_s` seconds; raises DrivewayError when one does not run."""
    with tempfile.TemporaryDirectory(prefix="driveway-pipeline-") as folder:
        file = Path(folder) / "input.msgpack"
        file.write_bytes(encode_input(load.items))
        with peer(load, place, file) as ask:
            runs = FIRST_RUNS if ask("bare", 1).wall_s < LONG_S else 1
            wanted = max(1, round(slice_s * runs / ask("bare", runs).wall_s))
            count = max(1, fitting_items(load.package, wanted * load.batch_items) // load.batch_items)
            async with leased(load, place) as (runner, _):
                runner.give(load.repeated(count))
                await runner.compute()
                turns = [await _turn(runner, ask, count) for _ in range(rounds)]
                singles_s = [await _single_s(runner, load) for _ in range(SINGLES)]
    return row_of(turns, singles_s, load, place, count)


async def _turn(runner: PackageRunner, ask: Ask, count: int) -> Turn:
    """One round."""
    pid = runner.pid
    bare = await asyncio.to_thread(ask, "bare", count)
    before_s, began_s = _cpu_s(pid), time.perf_counter()
    await runner.compute()
    took = Took(time.perf_counter() - began_s, _cpu_s(pid) - before_s)
    again = await asyncio.to_thread(ask, "bare", count)
    fewer = -(-count // NAIVE_SHARE)
    naive = await asyncio.to_thread(ask, "naive", fewer)
    return Turn(
        leased=took,
        bare=Took((bare.wall_s + again.wall_s) / 2, (bare.cpu_s + again.cpu_s) / 2),
        naive=Took(naive.wall_s * count / fewer, naive.cpu_s * count / fewer),
    )


async def _single_s(runner: PackageRunner, load: Load) -> float:
    """What a slice of one micro-batch takes: all of it in line, nothing overlaps."""
    began_s = time.perf_counter()
    await runner.compute(0, load.batch_items)
    return time.perf_counter() - began_s


def row_of(turns: list[Turn], singles_s: list[float], load: Load, place: Place, count: int) -> Row:
    """The figures of some rounds of `count` micro-batches each, and of some slices of a single one."""
    median = statistics.median
    ratios = [turn.bare.wall_s / turn.leased.wall_s for turn in turns]
    bare_ms = [turn.bare.wall_s / count * 1000 for turn in turns]
    overheads_us = [(turn.leased.wall_s - turn.bare.wall_s) / count * 1e6 for turn in turns]
    singles_us = [one * 1e6 - median(bare_ms) * 1000 for one in singles_s]
    aim = AIM if median(bare_ms) >= SHORT_MS else AIM_OF_SHORT
    return Row(
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        aim=aim if place.spare else None,
        micro_batch_ms=median(bare_ms),
        micro_batch_min_ms=min(bare_ms),
        micro_batch_max_ms=max(bare_ms),
        overhead_us=median(overheads_us),
        overhead_min_us=min(overheads_us),
        overhead_max_us=max(overheads_us),
        cpu_overhead_us=median((turn.leased.cpu_s - turn.bare.cpu_s) / count * 1e6 for turn in turns),
        slice_overhead_us=median(singles_us),
        slice_overhead_min_us=min(singles_us),
        slice_overhead_max_us=max(singles_us),
        naive_ratio=median(turn.bare.wall_s / turn.naive.wall_s for turn in turns),
        items_per_s=count * load.batch_items / median(turn.leased.wall_s for turn in turns),
        bare_items_per_s=count * load.batch_items / median(turn.bare.wall_s for turn in turns),
        rounds=len(turns),
        processors=len(place.processors),
        threads=place.threads,
    )


@contextlib.contextmanager
def peer(load: Load, place: Place, file: Path) -> Iterator[Ask]:
    """The peer, and how to ask it."""
    command = [sys.executable, "-m", "hil.bench.pipeline_peer", str(load.package.path), str(file)]
    command += ["--threads", str(place.threads)]
    with held_to(place):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(way: str, count: int) -> Took:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{way} {count}\n".encode())
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise DrivewayError(f"the bare loop on {load.name} ended", hint="its own words are above")
        return msgspec.json.decode(line, type=Took)

    with process:
        try:
            yield ask
        finally:
            process.kill()


def _cpu_s(pid: int) -> float:
    """What a process' threads have used of processors, as the kernel counts it."""
    used_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # one that has just ended
            used_ns += int((task / "schedstat").read_text("ascii").split()[0])
    return used_ns / 1e9
