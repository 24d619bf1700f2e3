"""What the agent costs a vehicle that waits for work: memory, processor, wake-ups and writes.

All of it is as the vehicle's kernel counts it, in a VM or in a container, over a stretch of time in which nobody does
anything. Wake-ups are the voluntary context switches of all its threads; writes are what it handed to the file system
(`write_bytes` of /proc/PID/io), which a flash chip wears by. What systemd accounts to the unit's control group, with
all its processes, stands beside it: null where the kernel does not account it (control groups of the first kind).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from hil.vm.vehicle import Vehicle

UNIT = ("MemoryCurrent", "CPUUsageNSec", "IOWriteBytes")
COUNTERS = (
    f"systemctl show --property {','.join(UNIT)} driveway.service; "
    "pid=$(systemctl show -P MainPID driveway.service); cat /proc/uptime; cat /proc/$pid/stat; "
    "cat /proc/$pid/task/*/status | awk '/^voluntary_ctxt/{n+=$2} END{print n}'; "
    "awk '/^write_bytes/{print $2}' /proc/$pid/io; awk '/^VmRSS/{print $2}' /proc/$pid/status; getconf CLK_TCK"
)


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Of the daemon alone, and of its unit; the processor's share is of one (in a VM: emulated) core."""

    observed_s: float
    rss_bytes: int
    cpu_share: float
    wakeups_per_s: float
    written_bytes_per_h: float
    unit_memory_bytes: int | None
    unit_cpu_share: float | None
    unit_written_bytes_per_h: float | None


class _Counts(msgspec.Struct, frozen=True):
    at_s: float
    cpu_s: float
    wakeups: int
    written_bytes: int
    rss_bytes: int
    unit: dict[str, int]
    """Those of `UNIT` that are accounted."""


def footprint(vehicle: Vehicle, observed_s: float) -> Footprint:
    """Watch the daemon for so long. Raises DrivewayError when it is not there, or starts anew meanwhile."""
    return watch(lambda command: vehicle.shell.check(command), observed_s)  # noqa: PLW0108 - its other parameters


def watch(shell: Callable[[str], str], observed_s: float) -> Footprint:
    """The same through a shell of the vehicle, which raises for a command that fails."""
    before = _counts(shell)
    time.sleep(observed_s)
    after = _counts(shell)
    span_s = after.at_s - before.at_s
    return Footprint(
        observed_s=span_s,
        rss_bytes=after.rss_bytes,
        cpu_share=(after.cpu_s - before.cpu_s) / span_s,
        wakeups_per_s=(after.wakeups - before.wakeups) / span_s,
        written_bytes_per_h=(after.written_bytes - before.written_bytes) / span_s * 3600,
        unit_memory_bytes=after.unit.get("MemoryCurrent"),
        unit_cpu_share=_per_s("CPUUsageNSec", before, after, 1e9),
        unit_written_bytes_per_h=_per_s("IOWriteBytes", before, after, 1 / 3600),
    )


def _per_s(name: str, before: _Counts, after: _Counts, unit: float) -> float | None:
    if name not in before.unit or name not in after.unit:
        return None
    return (after.unit[name] - before.unit[name]) / (after.at_s - before.at_s) / unit


def _counts(shell: Callable[[str], str]) -> _Counts:
    *told, uptime, stat, wakeups, written, rss_kib, ticks = shell(COUNTERS).splitlines()
    pairs = dict(line.split("=", 1) for line in told if "=" in line)
    fields = stat.rpartition(")")[2].split()  # the command's name, before it, may have spaces
    return _Counts(
        at_s=float(uptime.split()[0]),
        cpu_s=(int(fields[11]) + int(fields[12])) / int(ticks),
        wakeups=int(wakeups),
        written_bytes=int(written),
        rss_bytes=int(rss_kib) * 1024,
        # "[not set]", "infinity" or 2^64 - 1: not accounted
        unit={name: int(pairs[name]) for name in UNIT if pairs.get(name, "").isdigit() and int(pairs[name]) < 2**63},
    )
