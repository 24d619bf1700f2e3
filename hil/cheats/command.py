"""`driveway-hil cheats`: what each kind of cheat gains against the dispatcher, and what it costs the honest.

Deterministic by its seed: the outputs are computed once and kept under build/, and everything else is drawn from it.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import structlog
from rich.console import Console
from rich.table import Table

from hil.cheats.calibration import Calibration, calibrate
from hil.cheats.cars import CHEATS
from hil.cheats.outputs import LINES, Drift, Outputs, drifts, outputs
from hil.cheats.world import Played, Terms, World
from hil.output import check_writable

FOLDER = Path("build/cheats")
SEEDS = 5
MAY_ESCAPE = ("cheats once trusted",)
"""That is a matter of how long one waits."""
NOBODY = "nobody cheats"


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one kind of cheat over all seeds.

    `kept_permille` is the share of its pay that was not forfeited nor is stuck behind a ledger in dispute;
    `jobs_median` and `jobs_p95` are how many jobs it handed in until the first was found (None: never).
    """

    cheat: str
    cheats: int
    caught: int
    jobs_median: float | None
    jobs_p95: int | None
    kept_permille: int
    honest_units: int
    honest_jobs: int
    honest_punished: int
    copies_permille: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; `held`: no honest unit was punished, and whatever gives wrong answers was caught."""

    seed: int
    seeds: int
    cars: int
    jobs_per_car: int
    drifts: list[Drift]
    calibrations: list[Calibration]
    detections: list[Detection]
    held: bool


def cheats(json_file: Path | None, *, seed: int, cars: int) -> int:
    """Play all of them, print the table and write it down; 0 when every promise held, else 1. Raises PackageError."""
    check_writable(json_file)
    report = detect(outputs(FOLDER, LINES), calibrate(FOLDER), seed=seed, seeds=SEEDS, terms=Terms(cars=cars))
    _print(Console(), report)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 0 if report.held else 1


def detect(made: Outputs, calibrations: list[Calibration], *, seed: int, seeds: int, terms: Terms) -> Report:
    """Every kind of cheat, with seeds from `seed` on; and the honest among themselves."""
    with _quiet():
        detections = [
            _detection(name, [World(made, name, seed + one, terms).play() for one in range(seeds)])
            for name in ("", *CHEATS)
        ]
    wrong = [one for one in detections if one.cheats and one.cheat not in MAY_ESCAPE]
    held = all(one.caught == one.cheats for one in wrong) and not any(one.honest_punished for one in detections)
    return Report(
        seed=seed,
        seeds=seeds,
        cars=terms.cars,
        jobs_per_car=terms.jobs_per_car,
        drifts=drifts(made),
        calibrations=calibrations,
        detections=detections,
        held=held,
    )


def _detection(name: str, played: list[Played]) -> Detection:
    until = sorted(jobs for one in played for jobs in one.jobs_until_caught)
    settled = sum(one.cheat_settled_micro for one in played)
    kept = sum(one.cheat_kept_micro for one in played)
    return Detection(
        cheat=name or NOBODY,
        cheats=sum(one.cheats for one in played),
        caught=sum(one.caught for one in played),
        jobs_median=statistics.median(until) if until else None,
        jobs_p95=until[math.ceil(0.95 * len(until)) - 1] if until else None,
        kept_permille=1000 * kept // settled if settled else 0,
        honest_units=sum(one.honest_units for one in played),
        honest_jobs=sum(one.honest_jobs for one in played),
        honest_punished=sum(one.honest_punished for one in played),
        copies_permille=1000 * sum(one.copies for one in played) // sum(one.jobs for one in played),
    )


def _print(console: Console, report: Report) -> None:
    drifting = Table("how it ran", "same bits ‰", "same text ‰", "in tolerance ‰", "in float32's band ‰")
    for drift in report.drifts:
        values = drift.within_tolerance_permille, drift.within_band_permille
        drifting.add_row(drift.variant, *map(str, (drift.same_bits_permille, drift.same_text_permille, *values)))
    console.print(drifting)
    bands = Table("held-out lines", "honest, furthest ppm", "band ppm", "others, 5th percentile ppm", "nearest ppm")
    for band in report.calibrations:
        figures = band.honest_ppm, band.band_ppm, band.dishonest_ppm, band.nearest_ppm
        bands.add_row(f"{band.precision} (against {band.dishonest})", *map(str, figures))
    console.print(bands)
    table = Table("cheat", "caught", "jobs (median)", "jobs (p95)", "pay kept ‰", "honest punished", "copies ‰")
    for one in report.detections:
        table.add_row(
            one.cheat,
            f"{one.caught} of {one.cheats}",
            "-" if one.jobs_median is None else f"{one.jobs_median:g}",
            "-" if one.jobs_p95 is None else str(one.jobs_p95),
            str(one.kept_permille),
            f"{one.honest_punished} of {one.honest_units} ({one.honest_jobs} jobs)",
            str(one.copies_permille),
        )
    console.print(table)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the dispatcher's own log: thousands of refusals are the point of it."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
