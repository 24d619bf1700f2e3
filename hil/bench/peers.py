"""The peers that `make peers` installs: whether they are there, and how Celery does on this machine, now.

Redis runs twice, syncing its append-only file with every command (`always`: what was acknowledged is on the disk, as
in our books) and once a second (`everysec`: its default, which loses up to a second); each with a worker that takes one
task ahead, and four. A new Redis for each measurement.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from hil.broker import HOST, free_port

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
DRIVER = Path(__file__).parent / "celery_peer.py"
ALWAYS, EVERY_SECOND = "always", "everysec"
ITEMS = {1: 1500, 10: 4000, 100: 20_000}
PREFETCHES = (1, 4)
LATENCIES = 200
START_TIMEOUT_S = 10.0
RUN_TIMEOUT_S = 300.0


class CeleryFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Items a second by how many of them a task carries, and one task's latency (one item)."""

    items_per_s: dict[str, float]
    p50_ms: float
    p99_ms: float


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One peer: one item a task, the faster prefetch; None where it is not installed, as `detail` says."""

    items_per_s: float | None
    items_per_s_everysec: float | None
    detail: str


class Celery(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of Celery, by how often Redis syncs and by prefetch; empty where it is not installed."""

    peer: Peer
    by_fsync: dict[str, dict[str, CeleryFigures]] = {}
    versions: dict[str, str] = {}

    def best(self, fsync: str, chunk: str) -> float | None:
        """Items a second with so many in a task, by the prefetch that is faster; None where it was not measured."""
        return max((one.items_per_s[chunk] for one in self.by_fsync.get(fsync, {}).values()), default=None)


class _Said(msgspec.Struct, frozen=True):
    """The line that the driver prints."""

    items_per_s: float
    latencies_ms: list[float]
    versions: dict[str, str]


def missing() -> str:
    """What is not installed; "" when everything is."""
    if not PYTHON.exists():
        return ".venv-peers is not there: run `make peers`"
    if not redis_server():
        return "redis-server is not installed: run `make peers` as root, or apt-get install redis-server"
    return ""


def redis_server() -> str:
    """Where Redis is installed; "" when it is not."""
    return shutil.which("redis-server") or ""


def celery() -> Celery:
    """Measure Celery, or say what is missing; raises DrivewayError when it is there and does not work."""
    absent = missing()
    if absent:
        return Celery(peer=Peer(items_per_s=None, items_per_s_everysec=None, detail=f"not measured: {absent}"))
    by_fsync: dict[str, dict[str, CeleryFigures]] = {ALWAYS: {}, EVERY_SECOND: {}}
    versions: dict[str, str] = {}
    for fsync, figures in by_fsync.items():
        for prefetch in PREFETCHES:
            said = {chunk: _measure(fsync, chunk, items // chunk, prefetch) for chunk, items in ITEMS.items()}
            versions = said[1].versions
            figures[str(prefetch)] = CeleryFigures(
                items_per_s={str(chunk): round(one.items_per_s, 1) for chunk, one in said.items()},
                p50_ms=round(statistics.median(said[1].latencies_ms), 2),
                p99_ms=round(percentile(sorted(said[1].latencies_ms), 99), 2),
            )
    measured = Celery(peer=Peer(items_per_s=None, items_per_s_everysec=None, detail=""), by_fsync=by_fsync)
    peer = Peer(
        items_per_s=measured.best(ALWAYS, "1"),
        items_per_s_everysec=measured.best(EVERY_SECOND, "1"),
        detail="an item a task; one worker process, the faster of prefetch 1 and 4, acks_late, reject_on_worker_lost, "
        "results kept, Redis with appendonly yes and appendfsync always",
    )
    return Celery(peer=peer, by_fsync=by_fsync, versions=versions)


def _measure(fsync: str, chunk: int, tasks: int, prefetch: int) -> _Said:
    with _redis(fsync) as (folder, port):
        return _run(folder, port, chunk, tasks, prefetch)


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank: the smallest value that `percent` of all are not above."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@contextlib.contextmanager
def _redis(fsync: str) -> Iterator[tuple[Path, int]]:
    """A Redis of our own in a folder of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="driveway-redis-") as name:
        folder = Path(name)
        options = ("--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--dir", name, "--bind", HOST)
        with (folder / "redis.log").open("wb") as log:
            process = subprocess.Popen([redis_server(), "--port", str(port), *options], stdout=log, stderr=log)
        try:
            _wait_until_open(port, process)
            yield folder, port
        finally:
            process.terminate()
            process.wait()


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=0.2):
            return
        time.sleep(0.02)
    raise DrivewayError("redis-server did not start", hint="run it by hand to see why")


def _run(folder: Path, port: int, chunk: int, tasks: int, prefetch: int) -> _Said:
    command = [str(PYTHON), str(DRIVER), "--redis-port", str(port), "--chunk", str(chunk), "--tasks", str(tasks)]
    command += ["--prefetch", str(prefetch), "--latencies", str(LATENCIES if chunk == 1 else 0)]
    environment = {"PATH": os.environ.get("PATH", ""), "C_FORCE_ROOT": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=RUN_TIMEOUT_S, check=True
        )
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=_Said)
    except (subprocess.SubprocessError, IndexError, msgspec.DecodeError) as error:
        words = getattr(error, "stderr", b"") or b""
        detail = words.decode("utf-8", "replace").strip().splitlines()[-1:] or [str(error)]
        raise DrivewayError(f"Celery could not be measured: {detail[0]}", hint="run `make peers` again") from error
