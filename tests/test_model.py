"""The protocol's model, checked exhaustively by Spin within small bounds; and each planted bug, which must be found.

`make model` takes wider bounds, which last minutes. Without `spin` and a C compiler this is skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tools import needs

MODEL = Path(__file__).parents[1] / "docs" / "model" / "lease.pml"
WIDE = bool(os.environ.get("DRIVEWAY_MODEL_WIDE"))
SAFETY = ("LOSS=2", "EPOCHS=3") if WIDE else ("LOSS=1", "CRASHES=0", "EPOCHS=2")
PROGRESS = ("CHECK_DONE", "EPOCHS=4", "CRASHES=1", "EXPIRIES=1", "YIELDS=0", "LOSS=1")
PROGRESS_SMALL = ("CHECK_DONE", "EPOCHS=4", "CRASHES=0", "EXPIRIES=0", "YIELDS=1", "LOSS=1")
DEPTH = "2000000"

pytestmark = needs(
    shutil.which("spin") and shutil.which("gcc"), "spin or gcc is not installed: apt-get install spin gcc"
)


def errors_in(folder: Path, *defines: str) -> int:
    """How many errors the checker finds; an unfinished search is a failure of its own."""
    subprocess.run(
        ["spin", "-a", *(f"-D{one}" for one in defines), str(MODEL)], cwd=folder, check=True, capture_output=True
    )
    claims = any(one.startswith("CHECK_") for one in defines)
    fair = "CHECK_DONE" in defines
    flags = ["-DNFAIR=4"] if fair else ["-DNOFAIR"] if claims else ["-DSAFETY"]
    subprocess.run(["gcc", "-w", "-O2", *flags, "-DVECTORSZ=2048", "-o", "pan", "pan.c"], cwd=folder, check=True)
    search = ["./pan", f"-m{DEPTH}", *(["-a"] if claims else []), *(["-f"] if fair else [])]
    said = subprocess.run(search, cwd=folder, check=False, capture_output=True, text=True).stdout
    found = re.search(r"errors: (\d+)", said)
    assert found is not None, said[-500:]
    assert "max search depth too small" not in said
    assert "Search not completed" not in said or int(found[1])
    return int(found[1])


def test_nothing_is_lost_and_nothing_is_settled_twice(tmp_path: Path) -> None:
    assert errors_in(tmp_path, *SAFETY) == 0


@pytest.mark.parametrize("bug", ["NO_FENCE", "NO_DEDUP", "NO_OUTBOX", "NO_BINDING", "PUBACK_DELETES"])
def test_without_a_safeguard_something_is(tmp_path: Path, bug: str) -> None:
    assert errors_in(tmp_path, bug) == 1


def test_a_lease_that_was_given_back_can_be_granted_again(tmp_path: Path) -> None:
    assert errors_in(tmp_path, "CHECK_REGRANT", *SAFETY) == 0


def test_unless_a_yield_leaves_the_row_as_it_is(tmp_path: Path) -> None:
    assert errors_in(tmp_path, "CHECK_REGRANT", "YIELD_KEEPS", *SAFETY) == 1


def test_every_job_ends_once_the_faults_have(tmp_path: Path) -> None:
    assert errors_in(tmp_path, *(PROGRESS if WIDE else PROGRESS_SMALL)) == 0


def test_unless_a_hand_in_is_sent_once_only(tmp_path: Path) -> None:
    assert errors_in(tmp_path, "SEND_ONCE", *PROGRESS_SMALL) == 1
