#!/usr/bin/python3
"""In the vehicle: writes the sensors that the simulated car shows, and tells it how busy the computer is.

Lines on a virtio-serial port: `PATH VALUE` writes a file below /run/vehicle/sysfs (by renaming, so that no reader sees
half a number), and `?` is answered with the CPU time, in microseconds, that inference workers have used since this was
started (`usage_usec` of their control groups, between two looks: what a worker uses after its last look is missed).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PORT = "/dev/virtio-ports/sensors.0"
ROOT = Path("/run/vehicle/sysfs")
SLICE, WORKERS = Path("/sys/fs/cgroup/driveway.slice"), "driveway-worker*/cpu.stat"
UNCONNECTED_S = 0.2


def write(path: str, value: str) -> None:
    """One sensor's value."""
    target = ROOT / path
    if ".." in target.parts or not target.is_relative_to(ROOT):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_text(value, "ascii")
    fresh.rename(target)


class Usage:
    """CPU time of the workers, which never goes back though their control groups come and go."""

    def __init__(self) -> None:
        self._last: dict[Path, int] = {}
        self._total_us = 0

    def total_us(self) -> int:
        """All of it since this was started."""
        seen: dict[Path, int] = {}
        for group in SLICE.glob(WORKERS):
            try:
                seen[group] = int(group.read_text("ascii").split()[1])  # its first line is usage_usec
            except (OSError, ValueError, IndexError):
                continue
        self._total_us += sum(max(0, used - self._last.get(group, 0)) for group, used in seen.items())
        self._last = seen
        return self._total_us


def main() -> None:
    """Until the vehicle is switched off."""
    port, waiting, usage = os.open(PORT, os.O_RDWR), b"", Usage()
    while True:
        chunk = os.read(port, 65536)
        if not chunk:
            time.sleep(UNCONNECTED_S)
            continue
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            path, _, value = line.decode("ascii", "replace").partition(" ")
            if path == "?":
                os.write(port, b"%d\n" % usage.total_us())
            elif value:
                write(path, value)


if __name__ == "__main__":
    main()
