"""A rig whose daemon has nothing to do but leases: put them up, wait for the verdicts, see what was used meanwhile.

Jobs go straight into the dispatcher's book, all of a pass in one transaction, so that putting them up is no part of
what is measured; the running dispatcher finds them there with the car's next question.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from agent.clock import SystemClock
from agent.errors import DrivewayError
from agent.fleet.messages import ObjectRef, PackageRef
from agent.package import Package
from agent.wire import encode_input
from hil.dispatcher.book import Book
from hil.dispatcher.objects import Objects
from hil.dispatcher.submit import job_grant
from hil.fleet.broker import SYS_INTERVAL_S, BrokerCounts, SysTopics
from hil.packages.nothing import nothing_item
from hil.rig import Rig

DOWN_S = 1.0
WAIT_S = 120.0
POLL_S = 0.02
TTL_S = 600
LEASES_BEFORE = 5
"""So many are settled over a new link before the broker is killed."""


class Standing(msgspec.Struct, frozen=True):
    """What had been used at one moment."""

    cpu_s: dict[str, float]
    counts: BrokerCounts


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """Leases of one size, as they were counted while they ran."""

    jobs: tuple[str, ...]
    settled_ms: tuple[int, ...]
    before: Standing
    after: Standing


class LeaseRig:
    """A running rig whose car is parked, and its dispatcher's book."""

    def __init__(self, rig: Rig, package: Package, sys_topics: SysTopics | None) -> None:
        self._rig, self._package, self._sys = rig, package, sys_topics
        folder = rig.folder / "dispatcher"
        self._book = Book.open(folder, SystemClock().wall_ms)
        self._objects = Objects(folder / "objects")
        self._put_up = 0

    def close(self) -> None:
        """Let go of the book."""
        self._book.close()

    def put_up(self, leases: int, items: int) -> tuple[str, ...]:
        """So many jobs of so many items, all at once."""
        body = encode_input([nothing_item(number) for number in range(items)])
        reference = ObjectRef(url="", sha256=self._objects.put(body), bytes=len(body))
        jobs = tuple(f"bench-{self._put_up + number:06d}" for number in range(leases))
        self._put_up += leases
        package = PackageRef(name=self._package.manifest.name, sha256=self._package.package_sha256)
        with self._book.database.transaction():
            for job in jobs:
                self._book.add_job(
                    job_grant(
                        job=job,
                        customer="bench",
                        package=package,
                        input=reference,
                        items=items,
                        slice_items=items,
                        price_micro_per_item=1,
                        currency="USD",
                        ttl_s=TTL_S,
                    )
                )
        return jobs

    def settled_ms(self, jobs: tuple[str, ...]) -> tuple[int, ...]:
        """When each of the jobs that are settled was, in order, by the dispatcher's clock."""
        first, last = jobs[0], jobs[-1]
        rows = self._book.database.rows(
            "SELECT at_ms FROM handins WHERE verdict = 'settled' AND job BETWEEN :first AND :last ORDER BY at_ms",
            first=first,
            last=last,
        )
        return tuple(int(row["at_ms"]) for row in rows)

    def wait_for(self, jobs: tuple[str, ...], count: int) -> tuple[int, ...]:
        """Until so many of the jobs are settled; raises DrivewayError when that does not come."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            self._rig.alive()
            done = self.settled_ms(jobs)
            if len(done) >= count:
                return done
            time.sleep(10 * POLL_S)
        status = self._rig.status() or {"reasons": []}
        reasons = "; ".join(reason["text"] for reason in status["reasons"])
        raise DrivewayError(
            f"{len(self.settled_ms(jobs))} of {count} leases were settled in {WAIT_S:.0f} s. {reasons}",
            hint=f"see {self._rig.folder}/daemon.log",
        )

    def standing(self) -> Standing:
        """What has been used until now; waits until the broker's counters say so too."""
        if self._sys is not None:
            time.sleep(2 * SYS_INTERVAL_S + 0.2)
        status = self._rig.status()
        worker = None if status is None else status["worker"]
        pids = {
            "daemon": self._rig.pid("daemon"),
            "dispatcher": self._rig.pid("dispatcher"),
            "broker": self._rig.broker.pid,
            "worker": None if worker is None else worker["pid"],
        }
        cpu_s = {name: _cpu_s(pid) for name, pid in pids.items() if pid}
        return Standing(cpu_s, BrokerCounts() if self._sys is None else self._sys.counts())

    def measure(self, leases: int, items: int) -> Pass:
        """Run leases of one size."""
        before = self.standing()
        jobs = self.put_up(leases, items)
        settled = self.wait_for(jobs, leases)
        return Pass(jobs=jobs, settled_ms=settled, before=before, after=self.standing())

    def restart_broker(self, jobs: tuple[str, ...]) -> tuple[float, float]:
        """Kill the broker in the middle of leases; seconds from when it accepts connections to the next verdict.

        The first with a daemon and a dispatcher that have just been started, the second right after the first: a link
        that was lost a moment ago waits longer, since it cannot know that this outage is another one.
        """
        for name in ("daemon", "dispatcher"):
            self._rig.stop(name)
        self._rig.start_dispatcher()
        self._rig.start_daemon()
        self.wait_for(jobs, len(self.settled_ms(jobs)) + LEASES_BEFORE)
        return self._outage_s(jobs), self._outage_s(jobs)

    def _outage_s(self, jobs: tuple[str, ...]) -> float:
        self._rig.broker.kill()
        time.sleep(DOWN_S)
        self._rig.broker.start()
        up_ms = SystemClock().wall_ms()
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            done = self.settled_ms(jobs)
            after = [at_ms for at_ms in done if at_ms > up_ms]
            if after:
                return (after[0] - up_ms) / 1000
            time.sleep(POLL_S)
        raise DrivewayError(f"no verdict came in {WAIT_S:.0f} s after the broker was back")


def latencies_ms(books: Path, jobs: tuple[str, ...]) -> list[int]:
    """From the hand-in before it to its verdict on disk, for each lease but the first, in order of length.

    Of a daemon that has ended: its store is nobody else's to open while it runs.
    """
    with sqlite3.connect(f"{books.absolute().as_uri()}?mode=ro", uri=True) as database:
        closed = dict(database.execute("SELECT job, closed_wall_ms FROM leases WHERE state = 'closed'"))
        events = database.execute("SELECT at_wall_ms, fields FROM log WHERE name = 'lease_settled'").fetchall()
    database.close()
    settled = {}
    for at_ms, fields in events:
        lease: dict[str, Any] = msgspec.json.decode(fields)
        settled[lease["lease"].rpartition("/")[0]] = at_ms
    done = sorted((job for job in jobs if job in settled and job in closed), key=lambda job: closed[job])
    return sorted(settled[job] - closed[before] for before, job in itertools.pairwise(done))


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
