"""Progress: never wider than the terminal, a bar there, and a few plain lines in a file or on a dumb terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.progress import Progress, bar

WORK = """
from agent.cli.progress import Progress
times = iter(range(1000))
progress = Progress(lambda: next(times))
for done in range(101):
    progress.count("inference", done, 100, "inputs")
progress.end()
"""


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1e6), st.integers(1, 300))
def test_a_bar_fits(done: int, total: int, took_s: float, columns: int) -> None:
    line = bar("inference", min(done, total), total, "inputs", took_s=took_s, columns=columns)
    assert len(line) < columns or columns == 1
    assert line.isascii()


def test_what_a_bar_says() -> None:
    said = bar("inference", 12, 40, "inputs", took_s=4.0, columns=60)
    assert said == "inference [#####............] 12/40 inputs, 3.0/s, 9 s left"
    assert "20.0 s each, 9 min 20 s left" in bar("x", 2, 30, "inputs", took_s=40.0, columns=80)
    assert bar("inference", 3, 4, "inputs", took_s=0.0, columns=24) == "inference 3/4 inputs"


def test_a_file_gets_each_quarter_once_and_nothing_of_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    for slice_s, told in ((0.1, [0, 25, 50, 75, 100]), (0.001, [])):
        times = iter(range(1000))
        progress = Progress(lambda slice_s=slice_s, times=times: next(times) * slice_s)  # type: ignore[misc]
        for done in range(101):
            progress.count("inference", done, 100, "inputs")
        progress.end()
        expected = [f"inference: {share} % of 100 inputs" for share in told]
        assert capsys.readouterr().err.splitlines() == expected


@pytest.mark.parametrize(("terminal", "lively"), [("vt100", True), ("dumb", False), ("", False)])
def test_a_real_terminal(terminal: str, *, lively: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": terminal, "COLUMNS": "60"}
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs, env=environment) as running:
        os.close(theirs)
        said = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            if not more:
                break
            said += more
    os.close(ours)
    assert running.returncode == 0
    assert (b"\x1b[K" in said) == lively
    assert b"100/100 inputs" in said if lively else b"100 % of 100 inputs" in said
    assert said.endswith(b"\r\n")
