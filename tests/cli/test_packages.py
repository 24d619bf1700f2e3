"""`driveway packages` and `keys rotate` on what a technician may give them by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.cli import exits
from agent.cli.main import main
from agent.package import MANIFEST


def test_folders_that_are_no_packages_are_counted_and_not_refused_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text("{")
    assert main(["packages", str(tmp_path), "--config", str(tmp_path / "none.toml")]) == exits.DEGRADED
    said = capsys.readouterr()
    assert said.out.startswith("damaged: refused: ")
    assert said.out.count("refused") == 1
    assert said.err == f"driveway: 2 folders there are no packages: they have no {MANIFEST}\n"


def test_an_overlap_that_is_too_long_is_told_before_anybody_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "rotate", "--overlap", "100d", "--socket", "/nowhere/socket"]) == exits.USAGE
    assert capsys.readouterr().err == "driveway: --overlap is 100 days; the old key counts for 90 days at most\n"
