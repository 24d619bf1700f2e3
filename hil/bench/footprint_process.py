"""What one process takes, as the kernel counts it in /proc: memory, processor time, wake-ups, pages that it writes.

Wake-ups are the voluntary context switches of all threads: each is a wait that began, and every wait that began ends
in a wake-up (by a timer, a socket, a lock), so over a while both are the same number. Processor time is that of all
threads in nanoseconds (schedstat). A thread that ends between two looks takes its counts along, so a watch over threads
that come and go tells a little too little.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from agent.errors import DrivewayError

PROC = Path("/proc")


class Counts(msgspec.Struct, frozen=True):
    """What a process has used until `at_s` of the monotonic clock."""

    at_s: float
    cpu_ns: int
    wakeups: int
    written_bytes: int


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """A process over a while: its memory at the end, processor in percent of one core, wake-ups a second."""

    rss_mb: float
    pss_mb: float
    cpu_percent: float
    wakeups_per_s: float


def counts(pid: int, proc: Path = PROC) -> Counts:
    """Until now; raises DrivewayError for a process that is not there, and where the kernel does not tell."""
    cpu_ns = wakeups = 0
    try:
        for task in (proc / str(pid) / "task").iterdir():
            try:
                ran, status = (task / "schedstat").read_text("ascii"), (task / "status").read_text("ascii", "replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # a thread that just ended
            cpu_ns += int(ran.split()[0])
            wakeups += _field(status, "voluntary_ctxt_switches")
        io = (proc / str(pid) / "io").read_text("ascii")
    except OSError as error:
        raise DrivewayError(f"the kernel does not tell what process {pid} uses: {error.strerror}") from error
    return Counts(time.monotonic(), cpu_ns, wakeups, _field(io, "write_bytes"))


def memory_mb(pid: int, kind: str, proc: Path = PROC) -> float:
    """Resident (`Rss`) or proportional (`Pss`) memory; raises DrivewayError."""
    try:
        text = (proc / str(pid) / "smaps_rollup").read_text("ascii")
    except OSError as error:
        raise DrivewayError(f"the kernel does not tell the memory of process {pid}: {error.strerror}") from error
    return round(_field(text, kind) / 1024, 1)


def use(pid: int, before: Counts, after: Counts) -> Use:
    """Of one process between two looks."""
    took_s = after.at_s - before.at_s
    return Use(
        rss_mb=memory_mb(pid, "Rss"),
        pss_mb=memory_mb(pid, "Pss"),
        cpu_percent=round((after.cpu_ns - before.cpu_ns) / took_s / 1e7, 3),
        wakeups_per_s=round((after.wakeups - before.wakeups) / took_s, 1),
    )


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise DrivewayError(f"the kernel does not tell {name}")
