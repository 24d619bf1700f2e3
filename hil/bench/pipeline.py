"""How much of an engine's throughput a lease gets, and how soon: the leased worker beside a bare loop, taking turns.

    driveway-hil bench pipeline --json pipeline.json               about four minutes
    python -m hil.bench.pipeline --rounds 2 --json pipeline.json   rougher

Leased is the real thing: the worker's process in its cage, orders and answers over its socket, items in a memfd, read,
pre-processed, computed, answered, digested. Bare is the same model on ONNX Runtime in a process that does nothing else,
on inputs that lie ready (`hil.bench.pipeline_peer`); naive is a script's way: every step after the other. All have the
same engine settings and threads and are held to the same processors. They take turns within a round, and a round's
`ratio` is leased throughput over bare: what the computer does beside hits all of them. Medians over the rounds, with
the lowest and highest ratio. `overhead_us` is what a micro-batch takes longer than bare; `cpu_overhead_us` what it
costs of processor time beyond bare, wherever that was.

With a processor to spare beside the engine's, reading and answering cost nothing: the aim (0.98, and 0.95 for
micro-batches of about 2 ms) is held to there. With none, what the items need is taken from the engine: the ratio then
tells how much.

`cold_start_ms`: from starting a process to the first slice (one micro-batch), the package and the libraries having been
put out of the page cache as far as nobody else uses them; `process_start_ms`: they being there; `warm_start_ms`: of a
worker that has the package loaded, for the next lease.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from agent.inference.runner import PackageRunner
from agent.inference.slices import fitting_items
from agent.package import Bucket, Package
from agent.wire import encode_input
from agent.worker.images import decode_image
from hil.bench.made_work import ITEMS, build_work, work_items
from hil.bench.pipeline_peer import Took
from hil.images import drawn_lines
from hil.packages.ocr import build_ocr_package
from hil.packages.recipe import GOLDEN_EXPECTED, GOLDEN_INPUT, MODEL, Recipe, build
from kernels.resize_normalize_pad import resized_width

ROUNDS = 9
SLICE_S = 0.8
STARTS = 3
WARM_STARTS = 9
WORK_MS = (2.0, 10.0)
OCR_WIDTH_PX = 480
OCR_HEIGHT_PX = 48
SEED = 3
FIRST_RUNS = 8
AIM, AIM_OF_SHORT = 0.98, 0.95
SHORT_MS = 5.0
FOLDERS = {"onnxruntime": "onnxruntime", "numpy": "numpy", "pillow": "PIL", "msgspec": "msgspec"}
"""The libraries that a worker loads, and where they are among the installed ones."""


Ask = Callable[[str, int], Took]
"""Asks the peer to run so many micro-batches one way or the other."""


class Row(msgspec.Struct, frozen=True):
    """One package on some processors with some threads."""

    ratio: float
    ratio_low: float
    ratio_high: float
    naive_ratio: float
    micro_batch_ms: float
    overhead_us: float
    cpu_overhead_us: float
    items_per_s: float
    bare_items_per_s: float
    processors: int
    threads: int
    aim: float | None
    """None: there is no processor beside the engine's."""


class Start(msgspec.Struct, frozen=True):
    """How soon a package's first slice is there."""

    cold_start_ms: float
    process_start_ms: float
    warm_start_ms: float


class PipelineFigures(msgspec.Struct, frozen=True):
    """What came of it; `held`: every ratio that has an aim reached it."""

    held: bool
    pipelines: dict[str, Row]
    starts: dict[str, Start]
    rounds: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Load:
    """A package with one bucket, and items that fill micro-batches of it."""

    name: str
    package: Package
    items: list[bytes]
    batch_items: int


@dataclass(frozen=True)
class Place:
    """The processors that both sides are held to, and the engine's threads."""

    processors: tuple[int, ...]
    threads: int

    @property
    def spare(self) -> bool:
        """Whether there is a processor that the engine leaves free."""
        return len(self.processors) > self.threads


@dataclass(frozen=True)
class Turn:
    """What one round took, in seconds of wall clock and processor for as many micro-batches each."""

    leased: Took
    bare: Took
    naive: Took


def run(rounds: int = ROUNDS, slice_s: float = SLICE_S, starts: int = STARTS) -> PipelineFigures:
    """Measure every package in every place; raises DrivewayError when one does not run."""
    with tempfile.TemporaryDirectory(prefix="driveway-pipeline-") as folder:
        return asyncio.run(_measured(_loads(Path(folder)), rounds, slice_s, starts))


async def _measured(loads: list[Load], rounds: int, slice_s: float, starts: int) -> PipelineFigures:
    begun = {load.name: await _starts(load, starts) for load in loads}
    rows: dict[str, Row] = {}
    for load in loads:
        for place in places():
            key = f"{load.name} on {len(place.processors)} with {place.threads}"
            rows[key] = await _row(load, place, rounds, slice_s)
            print(f"{key}: {rows[key].ratio:.3f}", file=sys.stderr, flush=True)
    return PipelineFigures(
        held=all(row.aim is None or row.ratio >= row.aim for row in rows.values()),
        pipelines=rows,
        starts=begun,
        rounds=rounds,
        versions={name: importlib.metadata.version(name) for name in FOLDERS},
    )


def places() -> list[Place]:
    """All processors with one left free, all with a thread each, and one alone."""
    all_here = tuple(sorted(os.sched_getaffinity(0)))
    wanted = [Place(all_here, max(1, len(all_here) - 1)), Place(all_here, len(all_here)), Place(all_here[:1], 1)]
    return list(dict.fromkeys(wanted))


def _loads(folder: Path) -> list[Load]:
    """The packages: lines of text that fit one bucket, and made work."""
    bucket = Bucket(items=1, width=OCR_WIDTH_PX)
    lines = [line.png for line in drawn_lines(400, SEED)]
    fitting = [png for png in lines if _width_px(png) <= OCR_WIDTH_PX]
    ocr = _one_bucket(build_ocr_package(folder / "whole"), bucket, fitting[:2], folder / "ocr")
    loads = [Load(f"{ocr.manifest.name}/1x{OCR_WIDTH_PX}", ocr, fitting, 1)]
    for milliseconds in WORK_MS:
        made = build_work(folder / f"work-{milliseconds:g}", milliseconds)
        loads.append(Load(f"{made.manifest.name}/{ITEMS}", made, work_items(ITEMS * 64), ITEMS))
    return loads


def _width_px(png: bytes) -> int:
    """How wide a line is at the recogniser's height."""
    rows, columns, _ = decode_image(png).shape
    return resized_width(rows, columns, OCR_HEIGHT_PX)


def _one_bucket(package: Package, bucket: Bucket, golden: list[bytes], folder: Path) -> Package:
    """The package with this bucket alone, so that nobody chooses."""
    manifest = package.manifest
    others = manifest.files.keys() - {MODEL, GOLDEN_INPUT, GOLDEN_EXPECTED}
    recipe = Recipe(
        name=manifest.name,
        version=manifest.version,
        where=MODEL,
        model=package.read(MODEL),
        input=manifest.input,
        pre=manifest.pipeline.pre,
        post=manifest.pipeline.post,
        buckets=(bucket,),
        limits=manifest.limits,
        tolerance_permille=manifest.golden.tolerance_permille,
        golden=golden,
        check_answers=lambda _: None,
        files={name: package.read(name) for name in others},
    )
    return build(recipe, folder)


async def _starts(load: Load, starts: int) -> Start:
    """How soon the first slice of one micro-batch is there, in a new process and in one that is ready."""
    first = load.items[: load.batch_items]
    cold_ms, process_ms, warm_ms = [], [], []
    for _ in range(starts):
        _put_out_of_cache(load.package.path)
        cold_ms.append(await _first_slice_ms(load, first))
        process_ms.append(await _first_slice_ms(load, first))
    async with _leased(load, Place(tuple(os.sched_getaffinity(0)), 1)) as runner:
        for _ in range(WARM_STARTS):
            began_s = time.perf_counter()
            runner.give(first)
            await runner.compute()
            warm_ms.append((time.perf_counter() - began_s) * 1000)
    median = statistics.median
    return Start(cold_start_ms=median(cold_ms), process_start_ms=median(process_ms), warm_start_ms=median(warm_ms))


async def _first_slice_ms(load: Load, items: list[bytes]) -> float:
    began_s = time.perf_counter()
    async with _leased(load, Place(tuple(os.sched_getaffinity(0)), 1)) as runner:
        runner.give(items)
        await runner.compute()
        return (time.perf_counter() - began_s) * 1000


async def _row(load: Load, place: Place, rounds: int, slice_s: float) -> Row:
    """Let the three take turns."""
    with tempfile.TemporaryDirectory(prefix="driveway-pipeline-") as folder:
        file = Path(folder) / "input.msgpack"
        file.write_bytes(encode_input(load.items))
        with peer(load, place, file) as ask:
            ask("bare", FIRST_RUNS)
            wanted = max(FIRST_RUNS, round(slice_s * FIRST_RUNS / ask("bare", FIRST_RUNS).wall_s))
            count = max(1, fitting_items(load.package, wanted * load.batch_items) // load.batch_items)
            async with _leased(load, place) as runner:
                runner.give([load.items[one % len(load.items)] for one in range(count * load.batch_items)])
                await runner.compute()
                turns = [await _turn(runner, ask, count) for _ in range(rounds)]
    return row_of(turns, load, place, count)


async def _turn(runner: PackageRunner, ask: Ask, count: int) -> Turn:
    """One round: the leased worker between two runs of the bare loop."""
    pid = runner.pid
    bare = await asyncio.to_thread(ask, "bare", count)
    before_s, began_s = _cpu_s(pid), time.perf_counter()
    await runner.compute()
    leased = Took(time.perf_counter() - began_s, _cpu_s(pid) - before_s)
    again = await asyncio.to_thread(ask, "bare", count)
    naive = await asyncio.to_thread(ask, "naive", count)
    return Turn(leased, Took((bare.wall_s + again.wall_s) / 2, (bare.cpu_s + again.cpu_s) / 2), naive)


def row_of(turns: list[Turn], load: Load, place: Place, count: int) -> Row:
    """The figures of some rounds of `count` micro-batches each."""
    median = statistics.median
    ratios = [turn.bare.wall_s / turn.leased.wall_s for turn in turns]
    bare_ms = median([turn.bare.wall_s for turn in turns]) / count * 1000
    aim = AIM if bare_ms >= SHORT_MS else AIM_OF_SHORT
    return Row(
        ratio=median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        naive_ratio=median([turn.bare.wall_s / turn.naive.wall_s for turn in turns]),
        micro_batch_ms=bare_ms,
        overhead_us=median([turn.leased.wall_s - turn.bare.wall_s for turn in turns]) / count * 1e6,
        cpu_overhead_us=median([turn.leased.cpu_s - turn.bare.cpu_s for turn in turns]) / count * 1e6,
        items_per_s=count * load.batch_items / median([turn.leased.wall_s for turn in turns]),
        bare_items_per_s=count * load.batch_items / median([turn.bare.wall_s for turn in turns]),
        processors=len(place.processors),
        threads=place.threads,
        aim=aim if place.spare else None,
    )


@contextlib.asynccontextmanager
async def _leased(load: Load, place: Place) -> AsyncIterator[PackageRunner]:
    """A worker with the package loaded."""
    runner = PackageRunner(load.package.path, place.threads)
    try:
        with _held_to(place):
            await runner.open()
        yield runner
    finally:
        await runner.close()


@contextlib.contextmanager
def peer(load: Load, place: Place, file: Path) -> Iterator[Ask]:
    """The peer, and how to ask it."""
    command = [sys.executable, "-m", "hil.bench.pipeline_peer", str(load.package.path), str(file)]
    command += ["--threads", str(place.threads)]
    with _held_to(place):
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


@contextlib.contextmanager
def _held_to(place: Place) -> Iterator[None]:
    """What is started meanwhile keeps to the place's processors for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, place.processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_s(pid: int) -> float:
    """What a process' threads have used of processors, as the kernel counts it."""
    used_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # one that has just ended
            used_ns += int((task / "schedstat").read_text("ascii").split()[0])
    return used_ns / 1e9


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


def main() -> int:
    """Measure, print, and write the figures down where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m hil.bench.pipeline", description="A leased pipeline beside the bare engine."
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each (default: {ROUNDS})")
    parser.add_argument("--slice-s", type=float, default=SLICE_S, help=f"seconds of a turn (default: {SLICE_S})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    try:
        figures = run(options.rounds, options.slice_s)
    except DrivewayError as error:
        print(f"pipeline: {error}", file=sys.stderr)
        return 1
    told = msgspec.json.format(msgspec.json.encode(figures)).decode()
    print(told)
    if options.json is not None:
        options.json.write_text(told + "\n", "utf-8")
    return 0 if figures.held else 1


if __name__ == "__main__":
    sys.exit(main())
