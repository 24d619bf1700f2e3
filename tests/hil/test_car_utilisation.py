from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from hil.car import utilisation
from hil.car.utilisation import UtilisationMeter

WORK = """
import time
input()
end = time.process_time() + {}
while time.process_time() < end:
    pass
print("done", flush=True)
input()
"""


def worker(mark: str, busy_s: float) -> subprocess.Popen[bytes]:
    """A child of this process that computes for `busy_s` when told to, with `mark` in its command line."""
    command = [sys.executable, "-c", WORK.format(busy_s), mark]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run_and_measure(mark: str, busy_s: float, pid_file: Path) -> tuple[float, float]:
    """What the meter says of a child that computed for `busy_s`, and over how many seconds."""
    meter = UtilisationMeter(pid_file)
    with worker(mark, busy_s) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        meter.measure()  # finds it
        started_s = time.monotonic()
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"
        measured = meter.measure()
        elapsed_s = time.monotonic() - started_s
        child.stdin.write(b"\n")
    return measured, elapsed_s


def test_the_cpu_time_of_the_workers_is_what_counts(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{os.getpid()}\n")
    measured, elapsed_s = run_and_measure("agent.worker", 0.2, pid_file)
    cores = len(os.sched_getaffinity(0))
    # At least what it computed over at least the time it took; at most that and its share of starting Python.
    assert 0.15 / (cores * elapsed_s * 1.2) <= measured <= 0.6 / (cores * elapsed_s)


def test_other_children_do_not_count(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{os.getpid()}\n")
    measured, _ = run_and_measure("something.else", 0.1, pid_file)
    assert measured == 0


def test_without_a_daemon_the_computer_is_idle(tmp_path: Path) -> None:
    assert UtilisationMeter(None).measure() == 0
    assert UtilisationMeter(tmp_path / "no.pid").measure() == 0
    (tmp_path / "garbage.pid").write_text("not a number")
    assert UtilisationMeter(tmp_path / "garbage.pid").measure() == 0
    assert utilisation.WORKER_MARK == "agent.worker"
