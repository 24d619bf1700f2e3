"""Every fuzz target survives a short run from a fixed seed, within bounds; and the harness finds what is planted."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import needs
from tests.trust.hardware_keys import needs_swtpm

HERE = Path(__file__).parent
HARNESS, PLANTED = HERE / "trust.py", HERE / "planted.py"
ROOT = HERE.parents[1]
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=70000", "-len_control=0", "-seed=7")
"""A single input may take 10 s and the whole process 1 GiB: far from what any honest one needs, and an end to both."""
RUNS = 20_000
FEW_RUNS = {"catalogue": 400}
"""Where each is a refresh of a whole catalogue."""
OF_A_TPM = ("evidence", "tpm")
TARGETS = (
    "catalogue",
    "certified",
    "checkpoint",
    "deny_list",
    "dispatchers",
    "dsse",
    "endorsement",
    "grant",
    "proof",
    "public_key",
    "result",
    "sealing_key",
    "sealing_key_record",
    "session",
    "statement",
    "succession",
    "succession_record",
    "ticket",
    "witnessed",
)

pytestmark = needs(importlib.util.find_spec("atheris"), "atheris is not installed (it has no wheel for this platform)")


def fuzz(
    target: str, folder: Path, *options: str, harness: Path = HARNESS, runs: int = RUNS
) -> subprocess.CompletedProcess[str]:
    """Run one target in a folder of its own, where libFuzzer leaves what it finds."""
    return subprocess.run(
        [sys.executable, str(harness), target, *LIMITS, f"-runs={runs}", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("target", [*TARGETS, *(pytest.param(one, marks=needs_swtpm) for one in OF_A_TPM)])
def test_nothing_but_refusals_and_the_truth_comes_out(target: str, tmp_path: Path) -> None:
    runs = FEW_RUNS.get(target, RUNS)
    done = fuzz(target, tmp_path, runs=runs)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = re.search(r"Done (\d+) runs", done.stderr)
    assert ran, done.stderr[-2000:]
    assert int(ran[1]) >= runs
    assert list(tmp_path.iterdir()) == [], "nothing was found"


def test_every_target_is_run() -> None:
    code = "import tests.fuzz.trust as trust; print(*trust.TARGETS)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted((*TARGETS, *OF_A_TPM))


def found(folder: Path) -> bool:
    """Whether the input that shows it was kept."""
    return any(one.name.startswith("crash-") for one in folder.iterdir())


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_what_lies_behind_branches_is_found_and_only_because_they_are_seen(seed: int, tmp_path: Path) -> None:
    """Chance needs ten thousand times as many runs; with the branches unseen, these many find nothing."""
    for mode, finds in (("guided", True), ("blind", False)):
        folder = tmp_path / mode
        folder.mkdir()
        done = fuzz(mode, folder, f"-seed={seed}", "-max_len=16", harness=PLANTED, runs=400_000)
        assert ("PlantedError" in done.stderr + done.stdout, found(folder)) == (finds, finds), done.stderr[-2000:]
        assert (done.returncode != 0) is finds


@pytest.mark.parametrize("target", ["certified", "endorsement", "grant", "sealing_key"])
def test_a_verifier_that_takes_any_signature_is_found(target: str, tmp_path: Path) -> None:
    """Signatures are not looked at any more: what the fuzzer then makes is accepted, and is seen to be a forgery."""
    text, mark = HARNESS.read_text("utf-8"), "\nTARGETS = sorted("
    assert mark in text
    planted, folder = tmp_path / "planted.py", tmp_path / "found"
    folder.mkdir()
    planted.write_text(text.replace(mark, f"\n{GULLIBLE}{mark}"), "utf-8")
    done = fuzz(target, folder, harness=planted, runs=100_000)
    assert "Forged" in done.stderr + done.stdout, done.stderr[-2000:]
    assert done.returncode != 0
    assert found(folder)


GULLIBLE = """
from hil.dispatcher import endorsement
targets.dsse.signature_holds = lambda *_: True
endorsement._is_issued_by = lambda one, other: one.issuer == other.subject
"""
