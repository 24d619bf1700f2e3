"""What each car saw and decided, kept where a run did not hold: its flight recorder's files, beside the figures.

Before the agents are ended each is asked to write down what it recorded (`driveway record`), which reaches back to its
last start; one whose core failed has written by itself. The files lie on a disk of their own, since a recording gives
way where the disk is nearly full, and the car's small disk always is. Each plays again with `driveway simulate`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.recorder import SUFFIX

FOLDER = "recordings"


def recorded_apart(car: Path, state: Path) -> None:
    """Have the agent of this car write its recordings into the car's folder and not onto the disk of its state."""
    (car / FOLDER).mkdir(mode=0o700)
    (state / FOLDER).symlink_to(car / FOLDER, target_is_directory=True)


def recordings_of(run: Path) -> list[Path]:
    """All recordings of a run, car by car, each car's in the order of time."""
    return sorted(run.glob(f"*/{FOLDER}/*{SUFFIX}"))


def keep(run: Path, beside: Path) -> list[Path]:
    """Copy a run's recordings into a folder of their own, named by their cars; raises OSError."""
    found = recordings_of(run)
    if found:
        beside.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy2(path, beside / f"{path.parent.parent.name}-{path.name}")) for path in found]
