"""Public vectors that are absent are said to be, loudly, at the end of a run; where they are required, it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VECTORS = ("test_dsse.py::test_the_protocols_own_vector", "test_merkle.py::test_public_inclusion_vectors")


def run(folder: Path, *, required: str = "") -> tuple[int, str]:
    """The status and the words of a run of its own, of two tests that need vectors."""
    apart = ("-o", f"cache_dir={folder / 'cache'}")
    asked = [sys.executable, "-m", "pytest", *apart, *(f"tests/trust/{name}" for name in VECTORS)]
    environment = os.environ | {"DRIVEWAY_VECTORS": str(folder), "DRIVEWAY_REQUIRE_VECTORS": required}
    done = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout


def test_a_run_without_its_vectors_ends_with_a_line_for_each(tmp_path: Path) -> None:
    status, said = run(tmp_path)
    assert status == 0
    assert "NOT CHECKED" in said
    told = said.partition("NOT CHECKED")[2]
    for name in ("dsse.json", "rfc9162-inclusion"):
        assert f"conformance vectors are absent: {name} belongs in {tmp_path}\n" in told


def test_where_they_are_required_their_absence_is_a_failure(tmp_path: Path) -> None:
    status, said = run(tmp_path, required="1")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "2 failed" in said
    assert "NOT CHECKED" not in said
