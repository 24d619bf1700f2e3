"""Items a second with a verdict, through one agent with a warm worker and work that does nothing, beside Celery.

    driveway-hil bench leases --json leases.json        about three minutes; `make peers` first for Celery's figures

Real processes throughout: the daemon, its worker with the package that does nothing, the broker (Mosquitto where it is
installed), the dispatcher on its SQLite book, and the simulated car, which opens the gate by parking. Each lease is
granted, signed, fetched, computed by ONNX Runtime, written to disk, attested, handed in, judged and settled.

For each size of lease, jobs are put up in one transaction, and counted:

* items a second: between the first and the last verdict in the dispatcher's book, by its clock;
* latency of a lease, from its request to its verdict: from the moment the hand-in before it (which asks for it) is
  taken down to the moment its verdict is on the car's disk, by the car's own books, read when all is over. Both ends
  err against us: the signing and writing of the earlier hand-in, and the writing of the verdict, are in it;
* publishes and bytes: Mosquitto's `$SYS` counters of what it received, so each message counts once, on its way in, and
  bytes are those of MQTT with its acknowledgements, both ways, without TCP or TLS. With the few questions that an idle
  car asks at both ends. The embedded broker keeps no counters: then they are null;
* CPU: each process's own time between the same two moments.

At the end the broker is killed in the middle of leases and started again a second later, a few times: from its first
accepted connection to the next verdict. Each time it is killed once more as soon as that has come.
"""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec

from hil.bench import peers
from hil.bench.lease_rig import DOWN_S, LeaseRig, Pass, latencies_ms
from hil.bench.peers import Celery, CeleryFigures, Peer, percentile
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto
from hil.demo.story import quiet_logs
from hil.fleet.broker import FleetMosquitto, SysTopics
from hil.packages.nothing import build_nothing_package
from hil.rig import Rig

LEASES = {1: 300, 10: 250, 100: 200}
WARM_UP_LEASES = 30
MEASURED = 100
"""The size of lease whose figures stand at the top."""
RESTARTS = 7
RESTART_LEASES = 2500
PARKED_FOR_S = 0.5


class CpuPerLease(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of CPU for each lease, by process; `worker` is the daemon's child that computes."""

    daemon: float
    worker: float
    dispatcher: float
    broker: float


class LeaseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Leases of one size."""

    leases: int
    items_per_s: float
    leases_per_s: float
    p50_ms: float
    p99_ms: float
    publishes_per_lease: float | None
    bytes_per_lease: float | None


class Versus(msgspec.Struct, frozen=True, kw_only=True):
    """Items a second, ours in leases of one size and Celery's, and ours over Celery's.

    `ratio` compares batch to batch: a lease of one slice with all its items, and a task of as many items (`celery`).
    Both are acknowledged, retried and, here, paid as a whole. `single` is a task an item, of which each is acknowledged
    and retried by itself, which ours are not: `single_ratio` stands beside it and is no like for like, except for
    leases of one item. All with Redis syncing always, and the prefetch with which Celery is faster.
    """

    ours: float
    celery: float | None
    ratio: float | None
    single: float | None
    single_ratio: float | None


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """From the broker's first accepted connection to the next verdict, after `down_s` without one.

    `repeated`: of a second outage right after that verdict, when the links wait longer between their attempts.
    """

    median_s: float
    max_s: float
    repeated_median_s: float
    repeated_max_s: float
    restarts: int
    down_s: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """At the top: leases of 100 items."""

    items_per_s: float
    p50_ms: float
    p99_ms: float
    publishes_per_lease: float | None
    bytes_per_lease: float | None
    cpu_ms_per_lease: CpuPerLease
    leases: dict[str, LeaseFigures]
    cpu_ms: dict[str, CpuPerLease]
    versus_celery: dict[str, Versus]
    recovery: Recovery
    peers: dict[str, Peer]
    celery_by_fsync: dict[str, dict[str, CeleryFigures]]
    """By how often Redis syncs, and by prefetch."""
    counted: str
    versions: dict[str, str]


def run() -> Figures:
    """Measure ours, then the peers. Raises DrivewayError when the rig is stuck."""
    quiet_logs()
    kind: type[BrokerProcess] = EmbeddedBroker if Mosquitto.binary() is None else FleetMosquitto
    with tempfile.TemporaryDirectory(prefix="driveway-leases-") as folder:
        rig_folder = Path(folder) / "rig"
        with Rig(rig_folder, parked_for_s=PARKED_FOR_S, broker=kind) as rig:
            passes, recovery = _ours(rig, counted=kind is FleetMosquitto)
        books = rig_folder / "state" / "driveway.db"
        latencies = {size: latencies_ms(books, one.jobs) for size, one in passes.items()}
    celery = peers.celery()
    counted = kind is FleetMosquitto
    sizes = {str(size): _figures(size, one, latencies[size], counted=counted) for size, one in passes.items()}
    cpu = {str(size): _cpu_per_lease(one) for size, one in passes.items()}
    top = sizes[str(MEASURED)]
    return Figures(
        items_per_s=top.items_per_s,
        p50_ms=top.p50_ms,
        p99_ms=top.p99_ms,
        publishes_per_lease=top.publishes_per_lease,
        bytes_per_lease=top.bytes_per_lease,
        cpu_ms_per_lease=cpu[str(MEASURED)],
        leases=sizes,
        cpu_ms=cpu,
        versus_celery={size: versus(one.items_per_s, size, celery) for size, one in sizes.items()},
        recovery=recovery,
        peers={"celery": celery.peer},
        celery_by_fsync=celery.by_fsync,
        counted=_how_counted(kind),
        versions=_versions() | celery.versions,
    )


# --- ours -----------------------------------------------------------------------------------------------------------


def _ours(rig: Rig, *, counted: bool) -> tuple[dict[int, Pass], Recovery]:
    package = rig.publish("nothing", build_nothing_package)
    rig.start()
    rig.car("driver_leaves")
    sys_topics = SysTopics(rig.broker.port) if counted else None
    bench = LeaseRig(rig, package, sys_topics)
    try:
        warm = bench.put_up(WARM_UP_LEASES, 1)
        bench.wait_for(warm, WARM_UP_LEASES)
        passes = {size: bench.measure(leases, size) for size, leases in LEASES.items()}
        jobs = bench.put_up(RESTART_LEASES, 1)
        times_s = [bench.restart_broker(jobs) for _ in range(RESTARTS)]
        first_s, repeated_s = [one[0] for one in times_s], [one[1] for one in times_s]
    finally:
        bench.close()
        if sys_topics is not None:
            sys_topics.close()
    recovery = Recovery(
        median_s=round(statistics.median(first_s), 2),
        max_s=round(max(first_s), 2),
        repeated_median_s=round(statistics.median(repeated_s), 2),
        repeated_max_s=round(max(repeated_s), 2),
        restarts=RESTARTS,
        down_s=DOWN_S,
    )
    return passes, recovery


def _figures(size: int, one: Pass, latencies: list[int], *, counted: bool) -> LeaseFigures:
    leases = len(one.jobs)
    per_s = (leases - 1) / ((one.settled_ms[-1] - one.settled_ms[0]) / 1000)
    counts = one.after.counts.since(one.before.counts)
    return LeaseFigures(
        leases=leases,
        items_per_s=round(per_s * size, 1),
        leases_per_s=round(per_s, 1),
        p50_ms=percentile([float(one) for one in latencies], 50),
        p99_ms=percentile([float(one) for one in latencies], 99),
        publishes_per_lease=round(counts.publishes_received / leases, 3) if counted else None,
        bytes_per_lease=round(counts.bytes_received / leases) if counted else None,
    )


def _cpu_per_lease(one: Pass) -> CpuPerLease:
    before, after = one.before.cpu_s, one.after.cpu_s
    spent_ms = {name: (after[name] - before.get(name, 0.0)) * 1000 for name in after}
    return CpuPerLease(**{name: round(ms / len(one.jobs), 2) for name, ms in spent_ms.items()})


def versus(ours: float, size: str, celery: Celery) -> Versus:
    """Ours beside Celery's; None where Celery was not measured."""
    batch, single = celery.best(peers.ALWAYS, size), celery.best(peers.ALWAYS, "1")
    return Versus(
        ours=ours,
        celery=batch,
        ratio=None if batch is None else round(ours / batch, 2),
        single=single,
        single_ratio=None if single is None else round(ours / single, 2),
    )


def _how_counted(kind: type[BrokerProcess]) -> str:
    if kind is EmbeddedBroker:
        return "the embedded broker keeps no counters: publishes and bytes were not counted"
    return "Mosquitto's $SYS counters of what it received: each publish once, bytes of MQTT both ways with their acks"


def _versions() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("paho-mqtt", "onnxruntime", "msgspec", "cryptography")}
    versions["sqlite"] = sqlite3.sqlite_version
    binary = Mosquitto.binary()
    if binary is None:
        return versions | {"iotcore": metadata.version("iotcore")}
    said = subprocess.run([binary, "-h"], capture_output=True, text=True, check=False).stdout.splitlines()
    return versions | {"mosquitto": said[0].removeprefix("mosquitto version ") if said else "?"}
