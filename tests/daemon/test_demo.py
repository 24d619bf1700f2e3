"""`driveway-hil demo`, whole, as a newcomer runs it; how fast it is is for the demonstration itself to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hil.record import Outcome

pytestmark = pytest.mark.long

FIGURES = {field.name for field in msgspec.structs.fields(Outcome)}


def test_the_demonstration_holds_everything_but_perhaps_the_clock(tmp_path: Path) -> None:
    figures, picture = tmp_path / "figures.json", tmp_path / "demo.svg"
    command = [sys.executable, "-c", "import sys; from hil.cli import main; sys.exit(main())", "demo"]
    run = subprocess.run(
        [*command, "--dir", str(tmp_path / "demo"), "--json", str(figures), "--figure", str(picture)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert figures.exists(), run.stdout + run.stderr
    outcome = json.loads(figures.read_text())
    assert set(outcome) == FIGURES
    assert outcome["images"] == 487
    assert outcome["accuracy"] >= 0.95
    assert outcome["slices_lost"] <= 1
    assert outcome["attestations"] == outcome["attestations_verified"] > 0
    assert outcome["net"] == round(outcome["gross"] - outcome["energy_cost"], 9) > 0
    assert outcome["vacate_ms"] < 1_000, "however loaded the machine"
    assert outcome["energy_wh"] > 0
    assert run.returncode == (0 if outcome["vacate_ms"] < 250 else 1)
    assert "opens the door" in run.stdout
    assert "<svg" in picture.read_text()
    assert (tmp_path / "demo" / "report.html").exists()
    assert len(list((tmp_path / "demo" / "attestations").glob("*.dsse.json"))) == outcome["attestations"]


def test_a_folder_that_is_not_the_demonstrations_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    command = [sys.executable, "-c", "import sys; from hil.cli import main; sys.exit(main())", "demo"]
    run = subprocess.run([*command, "--dir", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert "was not made by a rig; give another folder" in run.stderr
    assert (tmp_path / "thesis.txt").exists()
