"""How busy the simulated computer is: measured from the real inference workers, never invented.

The utilisation is the CPU time that the daemon's workers used, over the time that all cores could have given.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

WORKER_MARK = "agent.worker"
"""What the command line of an inference worker has in it."""
SEARCH_INTERVAL_S = 1.0
"""Looking for new workers reads all of /proc; reading a known one's times is cheap."""


class Meter(ABC):
    """How busy the computer is."""

    @abstractmethod
    def measure(self) -> float:
        """The busy share (0..1) of all cores since the last call."""


class UtilisationMeter(Meter):
    """Measures the workers among the descendants of the process whose id is in `pid_file`."""

    def __init__(self, pid_file: Path | None) -> None:
        self._pid_file = pid_file
        self._cores = len(psutil.Process().cpu_affinity())
        self._workers: dict[int, psutil.Process] = {}
        self._used_s: dict[int, float] = {}
        self._searched_s = float("-inf")
        self._measured_s = time.monotonic()

    def measure(self) -> float:
        """The busy share (0..1) of all cores since the last call."""
        now_s = time.monotonic()
        if now_s - self._searched_s >= SEARCH_INTERVAL_S:
            self._searched_s = now_s
            self._workers = self._search()
        used_s = {pid: used for pid, worker in self._workers.items() if (used := _cpu_s(worker)) is not None}
        # A worker seen for the first time counts from now on: what it used before may be from before the last call.
        busy_s = sum(used - self._used_s.get(pid, used) for pid, used in used_s.items())
        elapsed_s = now_s - self._measured_s
        self._used_s, self._measured_s = used_s, now_s
        return min(busy_s / (elapsed_s * self._cores), 1.0) if elapsed_s > 0 else 0.0

    def _search(self) -> dict[int, psutil.Process]:
        try:
            daemon = psutil.Process(int(self._pid_file.read_text("ascii"))) if self._pid_file else None
            children = daemon.children(recursive=True) if daemon else []
        except (OSError, ValueError, psutil.Error):
            return {}  # no daemon yet, or no longer
        return {child.pid: child for child in children if _is_worker(child)}


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(WORKER_MARK in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)
