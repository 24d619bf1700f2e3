"""One scenario on the rig with processes, through the command: everything that a run should leave is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from hil.cli import main
from hil.scenario.output import read_figures

pytestmark = pytest.mark.long


def test_a_worker_is_killed(tmp_path: Path) -> None:
    status = main(["run", "worker_killed", "--rig", "sil", "--out", str(tmp_path), "--json", str(tmp_path / "f.json")])
    run = read_figures(tmp_path).runs[0]
    assert (status, run.verdict, run.why) == (0, "passed", "")
    names = {one.name: one.value for one in run.measurements}
    assert names["promises broken in recording-1.jsonl.gz"] == 0
    assert names["steps of recording-1.jsonl.gz that replay otherwise"] == 0
    left = {path.name for path in (tmp_path / "worker_killed-sil").iterdir()}
    assert left >= {"report.html", "daemon.log", "candump.log", "frames.asc", "recording-1.jsonl.gz", "attestations"}
    assert (tmp_path / "worker_killed-sil" / "candump.log").stat().st_size > 10_000
    assert "Die temperature" in (tmp_path / "worker_killed-sil" / "report.html").read_text("utf-8")
    assert (tmp_path / "f.json").read_bytes() == (tmp_path / "measurements.json").read_bytes()
