"""The running dispatcher computes what cars dispute, and puts in jobs whose answers it knows, beside its other work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.core.model import Verdict
from agent.fleet.messages import ObjectRef, PackageRef
from agent.package import Package
from agent.wire import encode_input
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.referee_tasks import RefereeCounts
from hil.dispatcher.replication import drawn
from hil.dispatcher.submit import job_grant
from hil.dispatcher.view import View
from hil.packages.nothing import build_nothing_package, nothing_item
from tests.hil.honest_car import PRICE
from tests.hil.refereed import TensorCar
from tests.hil.test_dispatcher_process import PATIENCE_S, DispatcherProcess, Remote

PERMILLE = 200


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    kind = EmbeddedBroker if Mosquitto.binary() is None else Mosquitto
    with kind(tmp_path / "broker", free_port()) as running:
        yield running


def put_up(folder: Path, package: Package, *, imitated: bool) -> str:
    """A job that the dispatcher will, or will not, draw to be imitated."""
    book, objects = Book.open(folder, SystemClock().wall_ms), Objects(folder / "objects")
    secret = book.secret("audit_draw")
    names = (f"job-{number:012x}" for number in range(1000))
    job = next(name for name in names if (drawn(secret, f"known {name}") * 1000 < PERMILLE) == imitated)
    body = encode_input([nothing_item(number) for number in range(8)])
    grant = job_grant(
        job=job,
        customer="customer-1",
        package=PackageRef(name=package.manifest.name, sha256=package.package_sha256),
        input=ObjectRef(url="", sha256=objects.put(body), bytes=len(body)),
        items=8,
        slice_items=4,
        price_micro_per_item=PRICE,
        currency="EUR",
        ttl_s=600,
    )
    book.add_job(grant)
    book.close()
    return job


def wait_for(folder: Path, done: Callable[[RefereeCounts], bool]) -> RefereeCounts:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with View(folder) as view:
            counts = view.counts().referee
        if done(counts):
            return counts
        assert time.monotonic() < deadline, f"the referee did not come: {counts}"
        time.sleep(0.05)


def test_a_colluding_majority_is_outvoted_in_the_running_service(broker: BrokerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "dispatcher"
    package = build_nothing_package(tmp_path / "packages" / "nothing")
    disputed = put_up(folder, package, imitated=False)
    more = ("--replicate", "--packages", str(tmp_path / "packages"), "--referee", "--known-permille", str(PERMILLE))
    codes = [part for unit in ("liar", "accomplice") for part in ("--enrol-code", unit)]
    process = DispatcherProcess(folder, broker.port, *more, *codes)
    ready = process.start()
    key = (folder / "dispatcher.pub").read_text()
    remotes = {unit: Remote(unit, broker.port, ready, key) for unit in ("honest", "liar", "accomplice")}
    try:
        honest, liar, accomplice = (
            TensorCar(
                remotes[unit],
                unit,
                code,
                read_input=Objects(folder / "objects").read,
                package_sha256=package.package_sha256,
                lie=lie,
            )
            for unit, code, lie in (("honest", "welcome", 0), ("liar", "liar", 1), ("accomplice", "accomplice", 1))
        )
        for car in (honest, liar):
            verdict = car.work_once()
            assert verdict is not None
            assert verdict.verdict is Verdict.SETTLED
        assert accomplice.ask() is None, "nobody is asked to vote"
        wait_for(folder, lambda counts: counts.disputes_decided == 1)
        assert records(folder) == {"honest": (1, 0), "liar": (0, 1), "accomplice": (0, 0)}

        put_up(folder, package, imitated=True)
        assert accomplice.work_once() is not None
        wait_for(folder, lambda counts: counts.known_made == 1)
        while records(folder)["accomplice"] == (0, 0):
            assert accomplice.work_once() is not None, "the known job waits for somebody"
        assert records(folder)["accomplice"] == (0, 1)
        with View(folder) as view:
            assert [job.state for job in view.jobs() if job.job == disputed] == ["done"]
        assert process.end(signal.SIGTERM) == 0
    finally:
        for remote in remotes.values():
            remote.close()
        process.kill()


def records(folder: Path) -> dict[str, tuple[int, int]]:
    with View(folder) as view:
        rows = view._database.rows("SELECT unit, agreed, disagreed FROM units")
    return {row["unit"]: (row["agreed"], row["disagreed"]) for row in rows}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--referee",), "say where they are with --packages"),
        (("--known-permille", "5"), "needs --referee"),
        (("--known-permille", "900", "--referee", "--packages", "."), "from 0 to 200"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    command = [sys.executable, "-m", "hil.dispatcher", "--dir", str(tmp_path), "--broker", "127.0.0.1:1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert why in done.stderr
