"""What the agent costs a vehicle that waits for work: memory, processor, wake-ups and writes.

All of it is as the guest's kernel counts it.

Counted over a stretch of time in which nobody does anything. Wake-ups are the voluntary context switches of all its
threads; writes are what it handed to the file system (`write_bytes` of /proc/PID/io), which a flash chip wears by.
"""

from __future__ import annotations

import time

import msgspec

from hil.vm.vehicle import Vehicle

COUNTERS = (
    "pid=$(systemctl show -P MainPID driveway.service); cat /proc/uptime; cat /proc/$pid/stat; "
    "cat /proc/$pid/task/*/status | awk '/^voluntary_ctxt/{n+=$2} END{print n}'; "
    "awk '/^write_bytes/{print $2}' /proc/$pid/io; awk '/^VmRSS/{print $2}' /proc/$pid/status; getconf CLK_TCK"
)


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Of the daemon alone; the processor's share is of one emulated core."""

    observed_s: float
    rss_bytes: int
    cpu_share: float
    wakeups_per_s: float
    written_bytes_per_h: float


class _Counts(msgspec.Struct, frozen=True):
    at_s: float
    cpu_s: float
    wakeups: int
    written_bytes: int
    rss_bytes: int


def footprint(vehicle: Vehicle, observed_s: float) -> Footprint:
    """Watch the daemon for so long. Raises DrivewayError when it is not there, or starts anew meanwhile."""
    before = _counts(vehicle)
    time.sleep(observed_s)
    after = _counts(vehicle)
    span_s = after.at_s - before.at_s
    return Footprint(
        observed_s=span_s,
        rss_bytes=after.rss_bytes,
        cpu_share=(after.cpu_s - before.cpu_s) / span_s,
        wakeups_per_s=(after.wakeups - before.wakeups) / span_s,
        written_bytes_per_h=(after.written_bytes - before.written_bytes) / span_s * 3600,
    )


def _counts(vehicle: Vehicle) -> _Counts:
    uptime, stat, wakeups, written, rss_kib, ticks = vehicle.shell.check(COUNTERS).splitlines()
    fields = stat.rpartition(")")[2].split()  # the command's name, before it, may have spaces
    return _Counts(
        at_s=float(uptime.split()[0]),
        cpu_s=(int(fields[11]) + int(fields[12])) / int(ticks),
        wakeups=int(wakeups),
        written_bytes=int(written),
        rss_bytes=int(rss_kib) * 1024,
    )
