"""The lease benchmark where no time counts: its arithmetic, its jobs, and what it says without the peers."""

from __future__ import annotations

import ast
import sqlite3
import sys
from pathlib import Path

import msgspec
import pytest

from agent import schema
from agent.wire import decode_input
from hil.bench import leases, peers
from hil.bench.lease_rig import LeaseRig, Pass, Standing, latencies_ms
from hil.bench.peers import Celery, CeleryFigures, Peer, percentile
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.fleet.broker import BrokerCounts
from hil.packages.nothing import build_nothing_package, nothing_item
from hil.rig import Rig


def test_a_latency_is_from_the_hand_in_before_to_the_verdict_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "driveway.db"
    with sqlite3.connect(file) as database:
        schema.bring_up(database)
        for job, closed_ms, settled_ms in (("a", 100, 130), ("b", 120, 145), ("c", 140, 180), ("other", 1, 2)):
            database.execute(
                "INSERT INTO leases (job, epoch, state, closed_wall_ms) VALUES (?, 1, 'closed', ?)", (job, closed_ms)
            )
            fields = msgspec.json.encode({"lease": f"{job}/1"})
            database.execute("INSERT INTO log VALUES (?, 'lease_settled', ?)", (settled_ms, fields))
    database.close()
    assert latencies_ms(file, ("a", "b", "c", "never")) == [145 - 100, 180 - 120]


def test_jobs_are_put_up_at_once_for_the_dispatcher_to_find(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig")
    package = build_nothing_package(tmp_path / "nothing")
    bench = LeaseRig(rig, package, None)
    try:
        first, second = bench.put_up(3, 2), bench.put_up(2, 5)
        assert len({*first, *second}) == 5
        assert bench.settled_ms(first) == ()
    finally:
        bench.close()
    folder = rig.folder / "dispatcher"
    book = Book.open(folder, lambda: 0)
    rows = book.database.rows("SELECT job, items, slice_items, input_sha256 FROM jobs ORDER BY seq")
    book.close()
    assert [(row["job"], row["items"], row["slice_items"]) for row in rows] == [
        *((job, 2, 2) for job in first),
        *((job, 5, 5) for job in second),
    ]
    body = (Objects(folder / "objects").folder / rows[4]["input_sha256"]).read_bytes()
    assert decode_input(body) == [nothing_item(number) for number in range(5)]


ALWAYS = CeleryFigures(items_per_s={"1": 200.0, "10": 1000.0, "100": 4000.0}, p50_ms=1.0, p99_ms=2.0)
UNMEASURED = Peer(items_per_s=None, items_per_s_everysec=None, detail="not measured")


def a_pass() -> Pass:
    cpu = {"daemon": 1.0, "worker": 0.5, "dispatcher": 2.0, "broker": 0.0}
    after = {"daemon": 1.3, "worker": 0.6, "dispatcher": 2.06, "broker": 0.03}
    return Pass(
        jobs=("a", "b", "c"),
        settled_ms=(1000, 1020, 1040),
        before=Standing(cpu, BrokerCounts(publishes_received=10, bytes_received=100)),
        after=Standing(after, BrokerCounts(publishes_received=16, bytes_received=3100)),
    )


def test_figures_of_a_pass() -> None:
    figures = leases._figures(10, a_pass(), [5, 9], counted=True)
    assert (figures.leases_per_s, figures.items_per_s) == (50.0, 500.0)
    assert (figures.publishes_per_lease, figures.bytes_per_lease) == (2.0, 1000)
    expected = leases.CpuPerLease(daemon=100.0, worker=33.33, dispatcher=20.0, broker=10.0)
    assert leases._cpu_per_lease(a_pass()) == expected


def test_what_was_not_counted_is_not_nought() -> None:
    figures = leases._figures(1, a_pass(), [5], counted=False)
    assert (figures.publishes_per_lease, figures.bytes_per_lease) == (None, None)


def test_beside_celery() -> None:
    slower = CeleryFigures(items_per_s={"1": 100.0, "10": 1250.0, "100": 1.0}, p50_ms=1.0, p99_ms=2.0)
    beside = leases.versus(500.0, "10", Celery(peer=UNMEASURED, by_fsync={"always": {"1": slower, "4": ALWAYS}}))
    assert (beside.celery, beside.ratio) == (1250.0, 0.4), "a batch beside a batch, by Celery's better prefetch"
    assert (beside.single, beside.single_ratio) == (200.0, 2.5)
    beside = leases.versus(500.0, "10", Celery(peer=UNMEASURED))
    assert (beside.celery, beside.ratio, beside.single, beside.single_ratio) == (None, None, None, None)


def test_without_the_peers_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "python")
    said = peers.celery()
    assert (said.peer.items_per_s, said.by_fsync) == (None, {})
    assert said.peer.detail == "not measured: .venv-peers is not there: run `make peers`"
    monkeypatch.setattr(peers, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = peers.celery()
    assert said.peer.items_per_s is None
    assert "redis-server is not installed: run `make peers`" in said.peer.detail


def test_nearest_rank() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], percent) for percent in (1, 50, 99, 100)] == [1.0, 2.0, 4.0, 4.0]


def test_what_runs_among_the_peers_imports_nothing_of_ours() -> None:
    tree = ast.parse(peers.DRIVER.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"celery", "kombu", "redis"}


def test_every_size_is_measured_on_both_sides() -> None:
    assert leases.LEASES.keys() == peers.ITEMS.keys()
    assert leases.MEASURED in leases.LEASES
