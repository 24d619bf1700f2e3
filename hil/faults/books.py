"""Reading the books of a fault run, each from where its owner keeps it, and nothing through the owner's own code.

* `read_dispatcher`: the rows of the dispatcher's database (SQLite file or PostgreSQL), by plain SQL.
* `read_agent`: an agent's SQLite file: its leases, its ledger leaf by leaf, its outbox and its unfinished slices.
* What was executed comes from the run itself, which watches the agents (`ground.Agent`).

The copies are values without behaviour; what they prove together is for `accounts.py`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

Query = Callable[[str], Sequence[Sequence[Any]]]


class Ordered(msgspec.Struct, frozen=True):
    """A job as it was put in: what must come back, and what it costs.

    Its items are the numbers from `first_number` on, and the package answers each with itself.
    """

    job: str
    items: int
    slice_items: int
    price_micro_per_item: int
    first_number: int

    @property
    def slices(self) -> int:
        """How many slices it is cut into."""
        return -(-self.items // self.slice_items)

    def items_of(self, index: int) -> int:
        """How many items slice `index` has."""
        return min(self.slice_items, self.items - index * self.slice_items)

    def numbers_of(self, index: int) -> list[int]:
        """The answers to slice `index`."""
        first = self.first_number + index * self.slice_items
        return list(range(first, first + self.items_of(index)))


class JobRow(msgspec.Struct, frozen=True):
    """A job as the dispatcher has it at the end."""

    job: str
    state: str
    epoch: int
    holder: str | None


class HandInRow(msgspec.Struct, frozen=True):
    """A hand-in that the dispatcher judged; `at_ms` is its wall clock.

    `session` is the number of the session whose key signed it, whose certificate is among the dispatcher's sessions.
    """

    job: str
    epoch: int
    unit: str
    verdict: str
    statement_sha256: str
    paid_micro: int
    at_ms: int
    keyid: str | None
    counter: int | None
    session: int | None
    envelope: bytes


class ResultRow(msgspec.Struct, frozen=True):
    """A slice that the dispatcher took. `body` is empty where the answers are an object of their own."""

    job: str
    slice: int
    epoch: int
    items: int
    failed_items: int
    paid_micro: int
    body: bytes


class DispatcherBook(msgspec.Struct, frozen=True):
    """The dispatcher's side: `keys` are each unit's public keys, in PEM, by epoch: the present one and those before it.

    `sessions` are the certificates that it kept, by the id of the unit's key and the session's number; `witnessed` is
    the checkpoint, as the envelope it is, that it countersigned last for each unit.
    """

    jobs: list[JobRow]
    hand_ins: list[HandInRow]
    results: list[ResultRow]
    keys: dict[str, dict[int, str]]
    sessions: dict[tuple[str, int], bytes] = {}
    witnessed: dict[str, bytes] = {}


class LeaseRow(msgspec.Struct, frozen=True):
    """A lease as an agent has it; times are wall clock, `None` while it is open."""

    job: str
    epoch: int
    state: str
    verdict: str | None
    paid_micro: int
    opened_ms: int
    closed_ms: int | None


class Leaf(msgspec.Struct, frozen=True):
    """One leaf of an agent's ledger, `statement`, `verdict` or `session`, as the envelope it is.

    For a session `job` is empty and `epoch` its number.
    """

    kind: str
    job: str
    epoch: int
    envelope: bytes
    hash: bytes


class AgentBook(msgspec.Struct, frozen=True):
    """An agent's side. `outbox` maps a lease to the statement it waits for; `head` is the ledger's size and root."""

    unit: str
    leases: list[LeaseRow]
    ledger: list[Leaf]
    head: tuple[int, str]
    outbox: dict[tuple[str, int], str]
    slices: dict[tuple[str, int], int]


def read_dispatcher(query: Query) -> DispatcherBook:
    """The dispatcher's book, through `query`."""
    jobs = query("SELECT job, state, epoch, holder FROM jobs")
    hand_ins = query(
        "SELECT job, epoch, unit, verdict, statement_sha256, paid_micro, at_ms, keyid, counter, session, envelope"
        " FROM handins"
    )
    results = query("SELECT job, slice, epoch, items, failed_items, paid_micro, body FROM results")
    keys: dict[str, dict[int, str]] = defaultdict(dict)
    for table, epoch in (("former_keys", "epoch"), ("units", "key_epoch")):
        for unit, number, pem in query(f"SELECT unit, {epoch}, public_key_pem FROM {table}"):  # noqa: S608 - two constants
            keys[unit][number] = pem
    sessions = query("SELECT keyid, session, certificate FROM sessions")
    witnessed = query("SELECT unit, envelope FROM ledgers")
    return DispatcherBook(
        jobs=[JobRow(*row) for row in jobs],
        hand_ins=[HandInRow(*_with_bytes(row)) for row in hand_ins],
        results=[ResultRow(*_with_bytes(row)) for row in results],
        keys=dict(keys),
        sessions={(keyid, number): bytes(certificate) for keyid, number, certificate in sessions},
        witnessed={unit: bytes(envelope) for unit, envelope in witnessed},
    )


def _with_bytes(row: Sequence[Any]) -> list[Any]:
    """The row, its last column as bytes: PostgreSQL gives a view, and nothing is none."""
    return [*row[:-1], bytes(row[-1] or b"")]


@contextlib.contextmanager
def sqlite_query(path: Path) -> Iterator[Query]:
    """Queries on a SQLite file, which is not written to."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
    try:
        yield lambda sql: database.execute(sql).fetchall()
    finally:
        database.close()


@contextlib.contextmanager
def postgresql_query(dsn: str) -> Iterator[Query]:
    """Queries on a PostgreSQL database."""
    import psycopg  # noqa: PLC0415 - only where there is such a database

    with psycopg.connect(dsn, autocommit=True) as database:
        yield lambda sql: database.execute(sql.encode()).fetchall()


def read_agent(unit: str, path: Path) -> AgentBook:
    """The book of one agent in its `driveway.db`; the agent has ended."""
    with sqlite_query(path) as query:
        leases = query(
            "SELECT job, epoch, state, verdict, coalesce(paid_micro, 0), opened_wall_ms, closed_wall_ms FROM leases"
        )
        ledger = query("SELECT kind, job, epoch, leaf, hash FROM ledger ORDER BY idx")
        outbox = query("SELECT job, epoch, statement_sha256 FROM outbox")
        slices = query("SELECT job, epoch, count(*) FROM slices GROUP BY job, epoch")
        (head,) = query("SELECT value FROM meta WHERE key = 'ledger_head'")[0]
    kept = msgspec.json.decode(head, type=_Head)
    return AgentBook(
        unit=unit,
        leases=[LeaseRow(*row) for row in leases],
        ledger=[Leaf(kind, job, epoch, bytes(leaf), bytes(digest)) for kind, job, epoch, leaf, digest in ledger],
        head=(kept.size, kept.root),
        outbox={(job, epoch): sha256 for job, epoch, sha256 in outbox},
        slices={(job, epoch): count for job, epoch, count in slices},
    )


class _Head(msgspec.Struct):
    size: int
    root: str
