"""What the dispatcher knows, for other processes: jobs, answers, payouts and the envelopes that prove them.

Read-only and live: open it on the dispatcher's folder while the dispatcher runs, or afterwards; with `database`, on the
PostgreSQL that its replicas share, where the server itself refuses this connection any writing.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any, Self

import msgspec

from agent.errors import FleetError
from hil.dispatcher.database import Database, SqliteReader
from hil.dispatcher.objects import Objects
from hil.dispatcher.referee_tasks import RefereeCounts, referee_counts


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job; `state` is `free`, `leased`, `done`, `dead` or `cancelled`. Items count once their slice is settled.

    `replica_of` is the job that it is a copy of, `failures` the leases of it that failed since it last came on.
    `known`: the operator put it in since he knows its answers. Neither copies nor these are on any customer's bill.
    """

    job: str
    state: str
    epoch: int
    holder: str | None
    slices: int
    slices_done: int
    items: int
    items_done: int
    items_failed: int
    paid_micro: int
    currency: str
    replica_of: str | None = None
    failures: int = 0
    known: bool = False


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How the dispatcher is doing: jobs by state, leases that run, slices whose copy said the same and another.

    `units_in_dispute` are granted nothing until an operator has looked into their ledgers, `units_put_off` until more
    of their ledgers is witnessed. `referee`: what waits for the operator's own worker, and what it did.
    """

    free: int
    leased: int
    done: int
    dead: int
    cancelled: int
    copies: int
    slices_agreeing: int
    slices_disagreeing: int
    units: int
    units_benched: int
    units_in_dispute: int
    units_put_off: int
    referee: RefereeCounts


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that came to nothing, and why: the car's reason, or `expired`, `lost`, `bad`."""

    job: str
    epoch: int
    unit: str
    why: str
    detail: str
    at_ms: int


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A slice whose copy had another answer, and the two units that gave them."""

    job: str
    slice: int
    unit: str
    copy_unit: str


class Payout(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit was paid in one currency, and for what; `micro_wh` is the energy it says it drew."""

    unit: str
    currency: str
    paid_micro: int
    leases: int
    slices: int
    items: int
    micro_wh: int


class Attestation(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted hand-in: its DSSE envelope, and what an independent tool verifies it with.

    That is the key in the certificate `session`, an envelope that the unit's key signed; None: the unit's key itself.
    """

    job: str
    epoch: int
    unit: str
    keyid: str
    public_key_pem: str
    envelope: bytes
    session: bytes | None = None


class View(contextlib.AbstractContextManager["View"]):
    """A reader of the book in `folder`; raises StoreError when there is none yet.

    `database` is the URL of a PostgreSQL, `reading` an open database that becomes the view's own; `objects` is where
    answers are that were uploaded (`folder`/objects).
    """

    def __init__(
        self, folder: Path, *, database: str = "", reading: Database | None = None, objects: Path | None = None
    ) -> None:
        self._database = reading or open_database(folder, database)
        self._objects = objects or folder / "objects"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._database.close()

    def jobs(self) -> list[JobView]:
        """Every job, oldest first, copies included."""
        rows = self._database.rows(
            """
            SELECT jobs.job, state, jobs.epoch, holder, (jobs.items + slice_items - 1) / slice_items AS slices,
                   count(slice) AS slices_done, jobs.items,
                   CAST(coalesce(sum(results.items), 0) AS BIGINT) AS items_done,
                   CAST(coalesce(sum(failed_items), 0) AS BIGINT) AS items_failed,
                   CAST(coalesce(sum(paid_micro), 0) AS BIGINT) AS paid_micro, currency, replica_of, failures,
                   EXISTS (SELECT 1 FROM known_jobs WHERE known_jobs.job = jobs.job) AS known
            FROM jobs LEFT JOIN results ON results.job = jobs.job GROUP BY jobs.job ORDER BY jobs.seq, jobs.job
            """
        )
        return [JobView(**{**row, "known": bool(row["known"])}) for row in rows]

    def answers(self, job: str) -> list[Any]:
        """The answers to the job's items, in the order of the items, as the package writes them.

        Raises FleetError while slices are missing, or when answers that were uploaded are no longer there.
        """
        state = self._database.row("SELECT state FROM jobs WHERE job = :job", job=job)
        if state is None or state["state"] != "done":
            raise FleetError(f"job {job} is not done", hint="wait until its state is 'done'")
        rows = self._database.rows("SELECT body, output_sha256 FROM results WHERE job = :job ORDER BY slice", job=job)
        bodies = (row["body"] if row["body"] is not None else self._uploaded(row["output_sha256"]) for row in rows)
        return [answer for body in bodies for answer in msgspec.json.decode(body, type=list[Any])]

    def _uploaded(self, sha256: str) -> bytes:
        path = Objects(self._objects).path(sha256)
        if path is None:
            raise FleetError(f"answers that were uploaded are gone from {self._objects}: {sha256}")
        return path.read_bytes()

    def counts(self, now_ms: int = 0) -> Counts:
        """How many of everything; units are benched that may not work at `now_ms`."""
        return counts(self._database, now_ms)

    def attempts(self, job: str) -> list[Attempt]:
        """The leases of a job that came to nothing: why it is dead, or slow."""
        rows = self._database.rows(
            "SELECT job, epoch, unit, why, detail, at_ms FROM attempts WHERE job = :job ORDER BY epoch", job=job
        )
        return [Attempt(**dict(row)) for row in rows]

    def disagreements(self) -> list[Disagreement]:
        """Every slice whose copy had another answer."""
        rows = self._database.rows(
            "SELECT job, slice, unit, copy_unit FROM comparisons WHERE same = 0 ORDER BY at_ms, job, slice"
        )
        return [Disagreement(**dict(row)) for row in rows]

    def payouts(self) -> list[Payout]:
        """What each unit has been paid."""
        rows = self._database.rows(
            """
            SELECT unit, currency, CAST(sum(handins.paid_micro) AS BIGINT) AS paid_micro, count(*) AS leases,
                   CAST(sum(slices) AS BIGINT) AS slices, CAST(sum(answered) AS BIGINT) AS items,
                   CAST(sum(micro_wh) AS BIGINT) AS micro_wh
            FROM handins JOIN jobs ON jobs.job = handins.job
            JOIN (SELECT job, epoch, count(*) AS slices, sum(items - failed_items) AS answered
                  FROM results GROUP BY job, epoch) AS done ON done.job = handins.job AND done.epoch = handins.epoch
            WHERE verdict = 'settled' GROUP BY unit, currency ORDER BY unit, currency
            """
        )
        return [Payout(**dict(row)) for row in rows]

    def attestations(self) -> list[Attestation]:
        """Every accepted hand-in, in the order of acceptance."""
        rows = self._database.rows(
            "SELECT job, handins.epoch, handins.unit, handins.keyid,"
            " coalesce(former_keys.public_key_pem, units.public_key_pem) AS public_key_pem, envelope,"
            " certificate AS session FROM handins JOIN units ON units.unit = handins.unit"
            " LEFT JOIN former_keys ON former_keys.keyid = handins.keyid"
            " LEFT JOIN sessions ON sessions.keyid = handins.keyid AND sessions.session = handins.session"
            " WHERE verdict = 'settled' ORDER BY at_ms, counter, job, handins.epoch"
        )
        return [Attestation(**dict(row)) for row in rows]


def counts(database: Database, now_ms: int) -> Counts:
    """How many of everything there is; units are benched that may not work at `now_ms`."""
    jobs = _by(database, "SELECT state AS key, count(*) AS many FROM jobs GROUP BY state")
    same = _by(database, "SELECT same AS key, count(*) AS many FROM comparisons GROUP BY same")
    copies = database.row("SELECT count(*) AS many FROM jobs WHERE replica_of IS NOT NULL")
    units = database.row(
        "SELECT count(*) AS many, count(CASE WHEN benched_until_ms > :now THEN 1 END) AS benched,"
        " count(CASE WHEN ledger_fault != '' THEN 1 END) AS in_dispute FROM units",
        now=now_ms,
    )
    put_off = database.row("SELECT count(*) AS many FROM unwitnessed WHERE put_off_ms > 0")
    return Counts(
        free=jobs["free"],
        leased=jobs["leased"],
        done=jobs["done"],
        dead=jobs["dead"],
        cancelled=jobs["cancelled"],
        copies=0 if copies is None else copies["many"],
        slices_agreeing=same[1],
        slices_disagreeing=same[0],
        units=0 if units is None else units["many"],
        units_benched=0 if units is None else units["benched"],
        units_in_dispute=0 if units is None else units["in_dispute"],
        units_put_off=0 if put_off is None else put_off["many"],
        referee=referee_counts(database),
    )


def _by(database: Database, sql: str) -> Counter[Any]:
    return Counter({row["key"]: row["many"] for row in database.rows(sql)})


def open_database(folder: Path, url: str) -> Database:
    """For reading: the SQLite file in `folder`, or the PostgreSQL at `url`; raises StoreError."""
    if not url:
        return SqliteReader(folder)
    from hil.dispatcher.postgres import PostgresReader  # noqa: PLC0415 - psycopg is loaded only where it is used

    return PostgresReader(url)
