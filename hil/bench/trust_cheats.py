"""What cheats gain against the dispatcher: the table of `driveway-hil cheats`, for whoever puts benchmarks together."""

from __future__ import annotations

from hil.cheats.calibration import calibrate
from hil.cheats.command import FOLDER, SEEDS, Report, detect
from hil.cheats.outputs import LINES, outputs
from hil.cheats.world import Terms


def measure_cheats(*, seed: int = 1, seeds: int = SEEDS, cars: int = 10) -> Report:
    """Every kind of cheat, and what honest engines differ by; minutes the first time, since outputs are made then."""
    return detect(outputs(FOLDER, LINES), calibrate(FOLDER), seed=seed, seeds=seeds, terms=Terms(cars=cars))
