"""The situations in which the agent's footprint is taken: real processes, each watched for a while.

    asleep     the buses silent, the gate shut: a car that sleeps beside its computer
    driving    3,000 frames a second, the gate shut
    quiet      parked, gate open, nothing on the buses but what the profiles read
    parked     parked, gate open, 3,000 frames a second, and no work to be had
    computing  within one long lease: slices of about a second, the daemon and its worker each
    leases     many short leases of a package that does nothing, one after the other: only the agent's own share
    warm       no lease any more, and the worker still there

The state directory is a disk of its own (`hil.bench.footprint_disk`) where one can be had, so that what reaches the
disk is counted by it. Network bytes are those of the connection to the broker, as the daemon counts them at its socket
(without TLS here).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import DrivewayError
from hil.bench.footprint_disk import Disk, DiskCounts, why_not
from hil.bench.footprint_process import Counts, Use, counts, memory_mb, use
from hil.bench.footprint_starts import TIMES, ReadyHeard, Spread, programs, spread
from hil.bench.idle import FRAMES_PER_S, SETTLE_S, QuietRig, until_open
from hil.bench.lease_rig import LeaseRig
from hil.bench.made_work import ITEMS as MICRO_BATCH
from hil.bench.made_work import build_work, work_items
from hil.packages.nothing import build_nothing_package
from hil.rig import Rig

LEASES, ITEMS, WARM_UP_LEASES = 60, 24, 5
WORK_MS, SLICE_ITEMS, SLICES = 50.0, 20 * MICRO_BATCH, 100
"""Made work: slices of twenty micro-batches of so many milliseconds."""
COMPUTING_S = 12.0
"""A lease is handed in after some two dozen slices, so its watch is shorter than the others."""
WAIT_S = 60.0
TRIES = 3
START_SETTLE_S = 30.0
"""A start writes its session, its self-test and its budgets; none of it belongs to an idle hour."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon while it waits. `written`: pages that it made dirty; `disk`: what the disk was given, None without."""

    gate: str
    rss_mb: float
    pss_mb: float
    cpu_percent: float
    wakeups_per_s: float
    written_mb_per_h: float
    disk_mb_per_h: float | None
    flushes_per_h: float | None
    network_kb_per_h: float


class Working(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon while it works off leases of `items` items, and its worker's memory."""

    leases: int
    items: int
    rss_mb: float
    worker_rss_mb: float
    cpu_ms_per_lease: float
    worker_cpu_ms_per_lease: float
    wakeups_per_lease: float
    written_kb_per_lease: float
    disk_kb_per_lease: float | None
    flushes_per_lease: float | None
    network_kb_per_lease: float
    warm: Waiting
    """After the last of them, while the worker keeps its engine loaded: buses are looked at every 20 ms then."""


class Computing(msgspec.Struct, frozen=True, kw_only=True):
    """Both processes within a lease."""

    daemon: Use
    worker: Use
    disk_mb_per_h: float | None
    flushes_per_h: float | None


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """Every situation without work, and how long programs took to begin."""

    asleep: Waiting
    driving: Waiting
    quiet: Waiting
    parked: Waiting
    ready: Spread
    """From the start of the process to READY=1, as a service manager hears it."""
    starts: dict[str, Spread]


def waiting(folder: Path, seconds: float) -> Waits:
    """Watch the daemon without work, so long in each situation. Raises DrivewayError."""
    with _fleet(folder) as (rig, disk):
        return _waits(rig, disk, seconds)


def _waits(rig: QuietRig, disk: Disk | None, seconds: float) -> Waits:
    rig.start_buses(0)
    ready = _ready(rig)
    pid = rig.start_quiet_daemon(rig.buses)
    time.sleep(START_SETTLE_S)
    asleep = _watched(rig, pid, disk, seconds)
    rig.order(signal.SIGUSR2)
    until_open(rig)
    time.sleep(SETTLE_S)
    quiet = _watched(rig, pid, disk, seconds)
    rig.stop("daemon")
    rig.stop("bus", signal.SIGKILL)
    (rig.folder / "bus.log").unlink()
    rig.start_buses(FRAMES_PER_S)
    pid = rig.start_quiet_daemon(rig.buses)  # a daemon hears only the car that was there before it
    rig.order(signal.SIGUSR1)
    time.sleep(START_SETTLE_S)
    driving = _watched(rig, pid, disk, seconds)
    rig.order(signal.SIGUSR2)
    until_open(rig)
    time.sleep(SETTLE_S)
    parked = _watched(rig, pid, disk, seconds)
    starts = programs(rig.config)
    return Waits(asleep=asleep, driving=driving, quiet=quiet, parked=parked, ready=ready, starts=starts)


def _ready(rig: QuietRig) -> Spread:
    """Start the daemon again and again; the first, which enrols and makes keys, does not count."""
    took_s = []
    with ReadyHeard() as heard:
        for _ in range(TIMES + 1):
            began_s = time.monotonic()
            pid = rig.start_quiet_daemon(rig.buses)
            took_s.append((heard.at_s(pid) - began_s, counts(pid).cpu_ns / 1e9))
            rig.stop("daemon")
    return spread([(wall_s * 1000, cpu_s * 1000) for wall_s, cpu_s in took_s[1:]])


def _watched(rig: QuietRig, pid: int, disk: Disk | None, seconds: float) -> Waiting:
    network_before, disk_before, before = _network_bytes(rig), _counts(disk), counts(pid)
    time.sleep(seconds)
    after, disk_after, network_after = counts(pid), _counts(disk), _network_bytes(rig)
    used, given = use(pid, before, after), _given(disk_before, disk_after)
    return Waiting(
        gate=str(rig.ask("status")["gate"]),
        rss_mb=used.rss_mb,
        pss_mb=used.pss_mb,
        cpu_percent=used.cpu_percent,
        wakeups_per_s=used.wakeups_per_s,
        written_mb_per_h=round(_per_h(after.written_bytes - before.written_bytes, before, after) / 1e6, 2),
        disk_mb_per_h=None if given is None else round(_per_h(given.written_bytes, before, after) / 1e6, 2),
        flushes_per_h=None if given is None else round(_per_h(given.flushes, before, after)),
        network_kb_per_h=round(_per_h(network_after - network_before, before, after) / 1000, 1),
    )


def working(folder: Path, seconds: float) -> Working:
    """Short leases, one after the other. Raises DrivewayError."""
    with _fleet(folder) as (rig, disk):
        package = rig.publish("nothing", build_nothing_package)
        work = LeaseRig(rig, package, None)
        try:
            warm_up = work.put_up(WARM_UP_LEASES, ITEMS)
            pid = _park(rig)
            work.wait_for(warm_up, WARM_UP_LEASES)
            worker = _worker(rig)
            network_before, disk_before, before = _network_bytes(rig), _counts(disk), counts(pid)
            done = work.measure(LEASES, ITEMS)
            after, disk_after, network_after = counts(pid), _counts(disk), _network_bytes(rig)
            if worker is None or worker != _worker(rig):
                raise DrivewayError("the worker was given back between the leases", hint="is the machine busy?")
            worker_rss_mb = memory_mb(worker, "Rss")
            time.sleep(SETTLE_S)
            warm = _watched(rig, pid, disk, seconds)
        finally:
            work.close()
        given = _given(disk_before, disk_after)
        worker_cpu_s = done.after.cpu_s["worker"] - done.before.cpu_s["worker"]
        return Working(
            leases=LEASES,
            items=ITEMS,
            rss_mb=memory_mb(pid, "Rss"),
            worker_rss_mb=worker_rss_mb,
            cpu_ms_per_lease=round((after.cpu_ns - before.cpu_ns) / 1e6 / LEASES, 2),
            worker_cpu_ms_per_lease=round(worker_cpu_s * 1000 / LEASES, 2),
            wakeups_per_lease=round((after.wakeups - before.wakeups) / LEASES, 1),
            written_kb_per_lease=round((after.written_bytes - before.written_bytes) / 1000 / LEASES, 2),
            disk_kb_per_lease=None if given is None else round(given.written_bytes / 1000 / LEASES, 2),
            flushes_per_lease=None if given is None else round(given.flushes / LEASES, 2),
            network_kb_per_lease=round((network_after - network_before) / 1000 / LEASES, 2),
            warm=warm,
        )


def computing(folder: Path, seconds: float) -> Computing:
    """One long lease, watched so long, `COMPUTING_S` at most. Raises DrivewayError where no lease is that long, too."""
    with _fleet(folder) as (rig, disk):
        package = rig.publish("work", lambda place: build_work(place, WORK_MS))
        rig.submit(package, work_items(SLICES * SLICE_ITEMS), slice_items=SLICE_ITEMS, price_micro_per_item=1)
        pid = _park(rig)
        for _ in range(TRIES):
            if (found := _within_a_lease(rig, pid, disk, min(seconds, COMPUTING_S))) is not None:
                return found
    raise DrivewayError(f"{TRIES} leases were over before they were watched to the end", hint="is the machine busy?")


def _within_a_lease(rig: Rig, pid: int, disk: Disk | None, seconds: float) -> Computing | None:
    """None when the lease was over before."""
    worker, lease = _until_computing(rig)
    disk_before, before, worker_before = _counts(disk), counts(pid), counts(worker)
    time.sleep(seconds)
    if _until_computing(rig) != (worker, lease):
        return None
    after, worker_after, disk_after = counts(pid), counts(worker), _counts(disk)
    given = _given(disk_before, disk_after)
    return Computing(
        daemon=use(pid, before, after),
        worker=use(worker, worker_before, worker_after),
        disk_mb_per_h=None if given is None else round(_per_h(given.written_bytes, before, after) / 1e6, 2),
        flushes_per_h=None if given is None else round(_per_h(given.flushes, before, after)),
    )


# --- helpers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _fleet(folder: Path) -> Iterator[tuple[QuietRig, Disk | None]]:
    """A rig with everything but its car and its daemon; that ends before its disk is taken away."""
    with QuietRig(folder) as rig, _disk(folder) as disk:
        rig.start_fleet()
        try:
            yield rig, disk
        finally:
            rig.stop("bus", signal.SIGKILL)  # it minds no other
            rig.stop("daemon")


def _park(rig: QuietRig) -> int:
    """Start a parked car and the daemon, whose process this is."""
    rig.start_buses(FRAMES_PER_S)
    rig.order(signal.SIGUSR2)
    return rig.start_quiet_daemon(rig.buses)


def _disk(folder: Path) -> contextlib.AbstractContextManager[Disk | None]:
    return contextlib.nullcontext() if why_not() else Disk(folder / "state")


def _until_computing(rig: Rig) -> tuple[int, str]:
    """(the worker's process, the lease) once a slice of it is done."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        rig.alive()
        status = rig.status() or {}
        lease, worker = status.get("lease"), status.get("worker")
        if lease and worker and worker["pid"] and lease["slices_done"]:
            return int(worker["pid"]), f"{lease['job']}/{lease['epoch']}"
        time.sleep(0.1)
    raise DrivewayError(f"no lease was computed in {WAIT_S:.0f} s", hint=f"see {rig.folder}/daemon.log")


def _worker(rig: Rig) -> int | None:
    """Its process, None while there is none."""
    worker: dict[str, Any] | None = (rig.status() or {}).get("worker")
    return None if worker is None else worker["pid"]


def _network_bytes(rig: Rig) -> int:
    link: dict[str, Any] = rig.ask("status")["link"]
    return int(link["sent_bytes"]) + int(link["received_bytes"])


def _counts(disk: Disk | None) -> DiskCounts | None:
    return None if disk is None else disk.counts()


def _given(before: DiskCounts | None, after: DiskCounts | None) -> DiskCounts | None:
    return None if before is None or after is None else after.since(before)


def _per_h(count: int, before: Counts, after: Counts) -> float:
    return count / (after.at_s - before.at_s) * 3600
