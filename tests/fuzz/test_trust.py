"""Every fuzz target survives a short run from a fixed seed, within bounds; and the harness finds a planted bug."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "trust.py"
ROOT = HARNESS.parents[2]
RUNS = 20_000
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=70000", "-len_control=0", "-seed=7", f"-runs={RUNS}")
"""A single input may take 10 s and the whole process 1 GiB: far from what any honest one needs, and an end to both."""
TARGETS = ("dsse", "statement", "session", "checkpoint", "result", "proof")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed (it has no wheel for this platform)"
)


def fuzz(target: str, folder: Path, harness: Path = HARNESS) -> subprocess.CompletedProcess[str]:
    """Run one target in a folder of its own, where libFuzzer leaves what it finds."""
    return subprocess.run(
        [sys.executable, str(harness), target, *LIMITS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_trust_errors_comes_out(target: str, tmp_path: Path) -> None:
    done = fuzz(target, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = re.search(r"Done (\d+) runs", done.stderr)
    assert ran, done.stderr[-2000:]
    assert int(ran[1]) >= RUNS
    assert list(tmp_path.iterdir()) == [], "nothing was found"


def test_the_harness_finds_what_it_looks_for(tmp_path: Path) -> None:
    """A parser that lets one other error through is found, and the input that shows it is kept."""
    planted = tmp_path / "planted.py"
    text = HARNESS.read_text("utf-8")
    bug = "    def one(body: bytes) -> None:\n        if b'\"counter\":1' not in body:\n            raise ValueError\n"
    assert "    def one(body: bytes) -> None:\n" in text
    planted.write_text(text.replace("    def one(body: bytes) -> None:\n", bug), "utf-8")
    folder = tmp_path / "found"
    folder.mkdir()
    done = fuzz("statement", folder, planted)
    assert done.returncode != 0
    assert "ValueError" in done.stderr + done.stdout
    assert any(one.name.startswith("crash-") for one in folder.iterdir())
