"""What must hold of the database and of the answers: who held what, what was settled, and what was paid for it.

Triggers of this connection alone note every row that is written, as SQLite commits it; they are looked at after every
call to the book. What was settled is never written again, and the sums are taken anew at the end.
"""

from __future__ import annotations

import base64
import hashlib
import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import Envelope, VerdictMessage
from hil.sim.protocol.clocks import DatabaseClock
from hil.sim.protocol.computer import answers
from hil.sim.protocol.invariants import Invariant

CLOCK_SLACK_MS = 1.0
ROW_CHANGED = """
CREATE TEMP TRIGGER saw_{kind}_{way} AFTER {when} ON main.{table} BEGIN
  INSERT INTO seen VALUES ('{kind}', '{way}', {columns}); END;
"""
JOB = ("job", "epoch", "holder", "expires_ms", "state", "0", "0")
HAND_IN = ("job", "epoch", "unit", "verdict", "paid_micro", "statement_sha256", "reason")
RESULT = ("job", "epoch", "slice", "items", "failed_items", "paid_micro", "body")
ENDED = frozenset({"done", "dead", "cancelled"})
Break = Callable[[Invariant, str], None]


class Package(msgspec.Struct, frozen=True):
    """What jobs run: how long an item takes, how long its answer is, and how many items a slice has at most.

    `ttl_s` is how long a lease lasts; 0: three times as long as its work takes.
    """

    name: str
    sha256: str
    item_ms: int
    answer_bytes: int
    most_items: int
    ttl_s: int = 0
    inline: bool = False
    """Inputs go with their grants."""


class Job(msgspec.Struct, frozen=True):
    """A job as it was put up; `items` are its inputs."""

    name: str
    customer: str
    package: Package
    items: tuple[bytes, ...]
    slice_items: int
    price_micro_per_item: int
    ttl_s: int


class Lease(msgspec.Struct):
    """A lease as the database has it; `ends_ms` in true time, `jumps` how often the clock had been set by then."""

    holder: str
    ends_ms: float
    jumps: int


class Settled(msgspec.Struct, frozen=True):
    """A hand-in that was accepted."""

    unit: str
    verdict: str
    paid_micro: int
    statement_sha256: str


class BookWatch:
    """`database` is looked at between the calls of the book, never in the middle of a transaction."""

    def __init__(self, database: sqlite3.Connection, clock: DatabaseClock, jobs: dict[str, Job], broken: Break) -> None:
        self._database, self._clock, self.jobs, self._break = database, clock, jobs, broken
        self._changes = -1
        self.leases: dict[JobKey, Lease] = {}
        self._epochs: dict[str, int] = {}
        self._ended: set[str] = set()
        self.settled: dict[JobKey, Settled] = {}
        self._results: set[tuple[str, int]] = set()
        self.unfinished = len(jobs)
        self.answers = 0
        database.executescript(_triggers())

    def booked(self) -> None:
        """The book took a call: what it wrote, change by change."""
        if self._database.total_changes == self._changes:
            return
        changes = self._database.execute("SELECT * FROM seen ORDER BY rowid").fetchall()
        if changes:
            self._database.execute("DELETE FROM seen")
        self._changes = self._database.total_changes
        for kind, *change in changes:
            match kind:
                case "job":
                    self._saw_job(change)
                case "handin":
                    self._saw_hand_in(change)
                case _:
                    self._saw_result(change)

    def _saw_job(self, change: list[Any]) -> None:
        _way, job, epoch, holder, expires_ms, state, *_ = change
        self.unfinished -= (state in ENDED) - (job in self._ended)
        (self._ended.add if state in ENDED else self._ended.discard)(job)
        if not epoch or holder is None or expires_ms is None:
            return
        if epoch < self._epochs.get(job, 0):
            self._break(Invariant.ONE_HOLDER, f"{job} went back from epoch {self._epochs[job]} to {epoch}")
        self._epochs[job] = epoch
        key, ends_ms = JobKey(job, epoch), self._clock.true_ms(expires_ms)
        lease = self.leases.get(key)
        if lease is None:
            self.leases[key] = Lease(holder, ends_ms, self._clock.jumps)
        elif lease.holder != holder:
            self._break(Invariant.ONE_HOLDER, f"{key} was {lease.holder}'s and is {holder}'s")
        else:
            lease.ends_ms, lease.jumps = max(lease.ends_ms, ends_ms), self._clock.jumps

    def _saw_hand_in(self, change: list[Any]) -> None:
        way, job, epoch, unit, verdict, paid_micro, sha256, reason = change
        key = JobKey(job, epoch)
        if way != "insert":
            self._break(Invariant.SETTLED_STAYS, f"{way} of the hand-in of {key}, {self.settled.get(key)}")
        if key in self.settled:
            self._break(Invariant.PAID_ONCE, f"{key} has a second hand-in")
        self.settled[key] = Settled(unit, verdict, paid_micro, sha256)
        lease = self.leases.get(key)
        if verdict != "settled":
            self._break(Invariant.HONEST_ACCEPTED, f"the hand-in of {key} by {unit} is {verdict}: {reason}")
        if lease is None or lease.holder != unit:
            self._break(Invariant.ONE_HOLDER, f"{key} was settled for {unit}, its holder is {lease}")
        if self._epochs[job] != epoch:
            self._break(Invariant.ONE_HOLDER, f"{key} was settled in epoch {self._epochs[job]}")

    def _saw_result(self, change: list[Any]) -> None:
        way, job, epoch, index, items, failed_items, paid_micro, body = change
        if way != "insert":
            self._break(Invariant.SETTLED_STAYS, f"{way} of slice {index} of {job}")
        if (job, index) in self._results:
            self._break(Invariant.PAID_ONCE, f"slice {index} of {job} is paid again, in epoch {epoch}")
        self._results.add((job, index))
        self._check_result(self.jobs[job], index, items - failed_items, paid_micro, body)

    def _check_result(self, job: Job, index: int, items: int, paid_micro: int, body: bytes | None) -> None:
        """The answers are those to the slice's items, and paid as was promised."""
        if paid_micro != items * job.price_micro_per_item:
            self._break(Invariant.MONEY, f"slice {index} of {job.name} ({items} items) was paid {paid_micro}")
        first = index * job.slice_items
        right = answers(list(job.items[first : first + job.slice_items]), job.package.answer_bytes)
        if body is not None and bytes(body) != right:
            self._break(Invariant.HONEST_ACCEPTED, f"slice {index} of {job.name} has the answers of something else")

    def leased(self, unit: str, key: JobKey, car_ends_ms: float) -> None:
        """A car believes in a lease, until then (true time)."""
        lease = self.leases.get(key)
        if lease is None or lease.holder != unit:
            self._break(Invariant.ONE_HOLDER, f"{unit} works on {key}, which is {lease}")
        elif lease.jumps == self._clock.jumps and car_ends_ms > lease.ends_ms + CLOCK_SLACK_MS:
            over_ms = car_ends_ms - lease.ends_ms
            self._break(Invariant.ENDS_FIRST, f"{unit} believes in {key} for {over_ms:.0f} ms longer than the book")

    def said(self, message: VerdictMessage) -> None:
        """A verdict leaves: it says what the rows say."""
        self.answers += 1
        key = JobKey(message.job, message.epoch)
        if message.verdict is Verdict.BAD:
            self._break(Invariant.HONEST_ACCEPTED, f"{key} of {message.unit}: {message.reason}")
        settled = self.settled.get(key)
        if message.verdict in {Verdict.SETTLED, Verdict.DUPLICATE} and message.statement_sha256:
            if settled is None or settled.unit != message.unit or settled.verdict != "settled":
                self._break(Invariant.SETTLED_STAYS, f"{message.unit} is told {message.verdict} of {key}: {settled}")
            elif (settled.paid_micro, settled.statement_sha256) != (message.paid_micro, message.statement_sha256):
                self._break(Invariant.MONEY, f"{key} was settled for {settled.paid_micro}, said {message.paid_micro}")
        elif message.paid_micro:
            self._break(Invariant.MONEY, f"{key}: {message.verdict} pays {message.paid_micro}")

    def audit(self) -> None:
        """What was settled is there, with the statements that prove it, and the sums agree."""
        one = self._database.execute
        rows = {JobKey(row[0], row[1]): row[2] for row in one("SELECT job, epoch, envelope FROM handins").fetchall()}
        count = one("SELECT count(*) FROM results").fetchone()[0]
        if rows.keys() != self.settled.keys() or count != len(self._results):
            self._break(Invariant.SETTLED_STAYS, f"{len(rows)} hand-ins and {count} results are left")
        by_handin = one("SELECT coalesce(sum(paid_micro), 0) FROM handins WHERE verdict = 'settled'").fetchone()[0]
        by_result = one("SELECT coalesce(sum(paid_micro), 0) FROM results").fetchone()[0]
        if by_handin != by_result:
            self._break(Invariant.MONEY, f"{by_handin} was paid for hand-ins, {by_result} for slices")
        for key, settled in self.settled.items():
            if settled.verdict == "settled" and not _is_of(rows[key], settled.statement_sha256):
                self._break(Invariant.SETTLED_STAYS, f"the statement of {key} is gone, or another")

    @property
    def slices(self) -> int:
        """Slices with a result."""
        return len(self._results)

    def has_ended(self, job: str) -> bool:
        """Done, or dead with a reason."""
        return job in self._ended

    def paid_to(self, unit: str) -> int:
        """What a unit was paid, by the hand-ins."""
        return sum(one.paid_micro for one in self.settled.values() if one.unit == unit)

    @property
    def fingerprint(self) -> str:
        """Of what was settled, by whom, and for what."""
        rows = self._database.execute(
            "SELECT job, epoch, unit, verdict, paid_micro, statement_sha256 FROM handins ORDER BY job, epoch"
        )
        return hashlib.sha256(repr([tuple(row) for row in rows.fetchall()]).encode()).hexdigest()


def _triggers() -> str:
    """SQL of triggers that note each change of what matters."""
    ways = {"insert": ("INSERT", "new"), "update": ("UPDATE", "new"), "delete": ("DELETE", "old")}
    script = "CREATE TEMP TABLE seen (kind, way, job, epoch, c1, c2, c3, c4, c5);"
    for kind, table, columns in (("handin", "handins", HAND_IN), ("result", "results", RESULT), ("job", "jobs", JOB)):
        for way, (when, row) in ways.items():
            of_row = ", ".join(one if one == "0" else f"{row}.{one}" for one in columns)
            script += ROW_CHANGED.format(kind=kind, way=way, when=when, table=table, columns=of_row)
    return script


def _is_of(envelope: bytes | None, sha256: str) -> bool:
    """Whether it holds the statement of this digest."""
    if envelope is None:
        return False
    payload = msgspec.json.decode(bytes(envelope), type=Envelope).payload
    return hashlib.sha256(base64.b64decode(payload)).hexdigest() == sha256
