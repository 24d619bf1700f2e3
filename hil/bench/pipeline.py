"""How much of an engine's throughput a lease gets, how soon, and how fast it is gone again, package by package.

    driveway-hil bench pipeline --json pipeline.json                 about six minutes on two cores
    driveway-hil bench pipeline --package ocr --json pipeline.json   one package
    python -m hil.bench.pipeline --rounds 2 --vacates 5              rougher

For each package: the leased worker beside a bare loop and a script, taking turns (`pipeline_turns`); how soon the first
slice is there (`pipeline_starts`); and how fast a busy worker is gone, and its memory back (`pipeline_vacate`).

`packages` has an entry for each package and micro-batch, all of its figures with one processor left free beside the
engine's where there are two or more: there, reading and answering should cost nothing, and the aim (0.98, and 0.95 for
micro-batches of about 2 ms) is held to. `places` has throughput with other threads and processors. With none to spare,
what the items need is taken from the engine: the ratio then tells how much. Medians over the rounds, with the least and
the most as `…_min…` and `…_max…`. docs/proof.md says what each key is.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import sys
import tempfile
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from hil.bench import PIPELINE_PACKAGES
from hil.bench.pipeline_loads import Load, build_load, places
from hil.bench.pipeline_starts import FOLDERS, Start, measure_starts
from hil.bench.pipeline_turns import Row, measure
from hil.bench.pipeline_vacate import Vacate, Vacated, p99_ms, vacate_often, vacated
from hil.bench.vacate import percentile

ROUNDS, OTHER_ROUNDS = 7, 3
"""In the main place, and at most in the others, which nothing is held to and whose turns are half as long."""
SLICE_S = 0.8
STARTS = 3
VACATES = 30

Entry = dict[str, float | int | bool | None]
"""Row, Start and Vacated side by side."""


class Elsewhere(msgspec.Struct, frozen=True):
    """Throughput with other threads and processors, which its key names: of a Row what a table has room for."""

    ratio: float
    ratio_min: float
    ratio_max: float
    micro_batch_ms: float
    overhead_us: float
    cpu_overhead_us: float


class PipelineFigures(msgspec.Struct, frozen=True):
    """What came of it; `held`: every ratio that has an aim reached it. The vacates here are those of all packages."""

    held: bool
    vacates: int
    vacate_p50_ms: float
    vacate_p99_ms: float | None
    vacate_max_ms: float
    packages: dict[str, Entry]
    places: dict[str, Elsewhere]
    versions: dict[str, str]


def run(
    package: str | None = None,
    *,
    rounds: int = ROUNDS,
    slice_s: float = SLICE_S,
    starts: int = STARTS,
    vacates: int = VACATES,
) -> PipelineFigures:
    """Measure this package, or every one; raises DrivewayError when one does not run."""
    with tempfile.TemporaryDirectory(prefix="driveway-pipeline-") as folder:
        names = PIPELINE_PACKAGES if package is None else (package,)
        return asyncio.run(
            _measured([build_load(name, Path(folder) / name) for name in names], rounds, slice_s, starts, vacates)
        )


async def _measured(loads: list[Load], rounds: int, slice_s: float, starts: int, vacates: int) -> PipelineFigures:
    main, *others = places()
    packages: dict[str, Entry] = {}
    elsewhere: dict[str, Elsewhere] = {}
    ends: list[Vacate] = []
    held = True
    for load in loads:
        _say(f"{load.name}: throughput with {main.words}")
        row = await measure(load, main, rounds, slice_s)
        held = held and (row.aim is None or row.ratio >= row.aim)
        for place in others:
            key = f"{load.name}, {place.words}"
            _say(key)
            other = await measure(load, place, min(rounds, OTHER_ROUNDS), slice_s / 2)
            elsewhere[key] = msgspec.convert(other, Elsewhere, from_attributes=True)
        _say(f"{load.name}: starts")
        start = await measure_starts(load, starts)
        _say(f"{load.name}: vacates")
        taken = await vacate_often(load, main, vacates)
        packages[load.name] = entry_of(row, start, vacated(taken))
        ends += taken
    ordered = sorted(one.gone_ms for one in ends)
    return PipelineFigures(
        held=held,
        vacates=len(ordered),
        vacate_p50_ms=percentile(ordered, 50),
        vacate_p99_ms=p99_ms(ordered),
        vacate_max_ms=ordered[-1],
        packages=packages,
        places=elsewhere,
        versions={name: importlib.metadata.version(name) for name in FOLDERS},
    )


def entry_of(row: Row, start: Start, gone: Vacated) -> Entry:
    """One package's figures, flat."""
    return {key: value for part in (row, start, gone) for key, value in msgspec.structs.asdict(part).items()}


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and write the figures down where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m hil.bench.pipeline", description="A leased pipeline beside the bare engine."
    )
    parser.add_argument("--package", choices=PIPELINE_PACKAGES, help="this one alone")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each (default: {ROUNDS})")
    parser.add_argument("--slice-s", type=float, default=SLICE_S, help=f"seconds of a turn (default: {SLICE_S})")
    parser.add_argument("--vacates", type=int, default=VACATES, help=f"of each package (default: {VACATES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    try:
        figures = run(options.package, rounds=options.rounds, slice_s=options.slice_s, vacates=options.vacates)
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
