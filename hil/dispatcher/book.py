"""The book of jobs: who holds which lease, what was delivered, and what was paid. Rows decide; nothing is in memory.

A job is FREE, LEASED or DONE, and (job, epoch) fences it: each grant takes the next epoch, and a hand-in counts only
while its epoch is the job's and its unit the holder, in one compare-and-set. An expired lease that nobody else was
given still settles: its epoch is still the job's. So is one that was freed: freeing keeps epoch and holder.

A finished slice is paid once, for the items it answered (not those it failed); what a lease left over becomes FREE.
Asking with a list of what one holds repairs what was lost: a lease the unit should have and does not name is sent
again, with its epoch and nonce, or freed when too little of it is left to be worth starting.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import msgspec

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import JobGrant, ObjectRef, PackageRef
from hil.dispatcher.database import open_for_writing, transaction
from hil.dispatcher.judge import Accepted, Lease
from hil.dispatcher.orders import Orders
from hil.dispatcher.units import Units

MAX_LEASES_PER_UNIT = 4
RESEND_WORTH = 0.5
"""A lost grant is sent again while this share of its time is left."""
TAKEN = (
    "(SELECT classes = '[]' OR jobs.workload_class IN (SELECT value FROM json_each(classes))"
    " FROM units WHERE unit = :unit)"
)
"""Whether the owner of :unit takes work of the job's class: any, where none is named."""
REFUSAL_MS = 3_600_000
"""How long a unit that refused a package is not offered it again."""


class HandedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that has been judged already."""

    verdict: Verdict
    reason: str
    paid_micro: int
    statement_sha256: str


class Book:
    """Use from one thread. `now_ms` is the dispatcher's clock; times in messages are durations from it."""

    def __init__(self, database: sqlite3.Connection, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms
        self.units = Units(database, now_ms)
        self.orders = Orders(database, now_ms)

    @classmethod
    def open(cls, folder: Path, now_ms: Callable[[], int]) -> Self:
        """The book in `folder`; raises StoreError."""
        return cls(open_for_writing(folder), now_ms)

    def close(self) -> None:
        """Close the file; what was answered is in it already."""
        self._database.close()

    # --- granting ----------------------------------------------------------------------------------------------

    def add_job(self, job: JobGrant) -> None:
        """Put a new job up, FREE; epoch, nonce and slices of `job` are not looked at."""
        self._database.execute(
            "INSERT INTO jobs (job, customer, package, package_sha256, input_sha256, input_bytes, items, slice_items,"
            " price_micro_per_item, currency, ttl_s, workload_class) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                job.job,
                job.customer,
                job.package.name,
                job.package.sha256,
                job.input.sha256,
                job.input.bytes,
                job.items,
                job.slice_items,
                job.price_micro_per_item,
                job.currency,
                job.ttl_s,
                job.workload_class or "",
            ),
        )

    def grant(self, unit: str, have: Iterable[JobKey], object_url: Callable[[str], str]) -> JobGrant | None:
        """A lease for `unit`, which holds `have`: the one it lost, else the next it can run; None when there is none.

        `ttl_s` counts from now on, so a unit that counts from when it asked always stops first.
        """
        now = self._now_ms()
        with transaction(self._database):
            job = self._lost_lease(unit, set(have), now) or self._next_lease(unit, now)
        return None if job is None else self._job_grant(job, now, object_url)

    def record_ticket(self, key: JobKey, sha256: str) -> None:
        """Note the digest of a signed payload that carries this grant. Call it before the payload is sent."""
        self._database.execute("INSERT OR IGNORE INTO tickets VALUES (?, ?, ?)", (key.job, key.epoch, sha256))

    def _lost_lease(self, unit: str, have: set[JobKey], now: int) -> str | None:
        lost = None
        rows = self._database.execute(
            f"SELECT job, epoch, expires_ms, ttl_s, {TAKEN} AS taken FROM jobs"  # noqa: S608 - a constant of ours
            " WHERE holder = :unit AND state = 'leased' AND expires_ms > :now",
            {"unit": unit, "now": now},
        ).fetchall()
        for row in rows:
            if JobKey(row["job"], row["epoch"]) in have:
                continue
            if not row["taken"] or row["expires_ms"] - now < max(1000, RESEND_WORTH * 1000 * row["ttl_s"]):
                self._database.execute("UPDATE jobs SET state = 'free' WHERE job = ?", (row["job"],))
            elif lost is None:
                lost = str(row["job"])
        return lost

    def _next_lease(self, unit: str, now: int) -> str | None:
        """Compare-and-set in one statement: FREE or expired becomes LEASED with the next epoch.

        Jobs that were tried least come first, so that one which always fails does not stand in front of the others.
        """
        granted = self._database.execute(
            f"""
            UPDATE jobs SET state = 'leased', epoch = epoch + 1, holder = :unit, nonce = :nonce,
                            granted_ms = :now, expires_ms = :now + 1000 * ttl_s
            WHERE job = (
                SELECT job FROM jobs
                WHERE (state = 'free' OR (state = 'leased' AND expires_ms <= :now))
                  AND package_sha256 IN (SELECT value FROM units, json_each(units.packages) WHERE unit = :unit)
                  AND NOT EXISTS (SELECT 1 FROM refusals WHERE unit = :unit AND until_ms > :now
                                  AND refusals.package_sha256 = jobs.package_sha256)
                  AND {TAKEN}
                ORDER BY epoch, jobs.rowid LIMIT 1)
              AND :most > (SELECT count(*) FROM jobs WHERE holder = :unit AND state = 'leased' AND expires_ms > :now)
            RETURNING job
            """,  # noqa: S608 - a constant of ours
            {"unit": unit, "nonce": secrets.token_hex(16), "now": now, "most": MAX_LEASES_PER_UNIT},
        ).fetchall()
        return str(granted[0]["job"]) if granted else None

    def _job_grant(self, job: str, now: int, object_url: Callable[[str], str]) -> JobGrant:
        row = self._row(job)
        assert row is not None
        return JobGrant(
            job=job,
            epoch=row["epoch"],
            nonce=row["nonce"],
            customer=row["customer"],
            package=PackageRef(name=row["package"], sha256=row["package_sha256"]),
            input=ObjectRef(url=object_url(row["input_sha256"]), sha256=row["input_sha256"], bytes=row["input_bytes"]),
            items=row["items"],
            slice_items=row["slice_items"],
            slices=self._wanted(row),
            ttl_s=(row["expires_ms"] - now) // 1000,
            price_micro_per_item=row["price_micro_per_item"],
            currency=row["currency"],
            workload_class=row["workload_class"] or None,
        )

    # --- what comes back ---------------------------------------------------------------------------------------

    def standing(self, unit: str, key: JobKey) -> Lease | HandedIn | None:
        """What a hand-in of `unit` for `key` meets: its lease, the verdict it has had, or None when it is stale."""
        judged = self._database.execute(
            "SELECT unit, verdict, reason, paid_micro, statement_sha256 FROM handins WHERE job = ? AND epoch = ?",
            (key.job, key.epoch),
        ).fetchone()
        if judged is not None:
            if judged["unit"] != unit:
                return None
            return HandedIn(
                verdict=Verdict(judged["verdict"]),
                reason=judged["reason"],
                paid_micro=judged["paid_micro"],
                statement_sha256=judged["statement_sha256"],
            )
        row = self._row(key.job)
        if row is None or (row["epoch"], row["holder"]) != (key.epoch, unit):
            return None
        tickets = self._database.execute("SELECT sha256 FROM tickets WHERE job = ? AND epoch = ?", (key.job, key.epoch))
        return Lease(
            key=key,
            unit=unit,
            nonce=row["nonce"],
            tickets=frozenset(ticket["sha256"] for ticket in tickets.fetchall()),
            package=row["package"],
            package_sha256=row["package_sha256"],
            input_sha256=row["input_sha256"],
            items=row["items"],
            slice_items=row["slice_items"],
            wanted=self._wanted(row),
            held_ms=self._now_ms() - row["granted_ms"],
            price_micro_per_item=row["price_micro_per_item"],
        )

    def counter_is_new(self, keyid: str, counter: int) -> bool:
        """Whether no accepted statement of this key has this counter."""
        row = self._database.execute("SELECT 1 FROM handins WHERE keyid = ? AND counter = ?", (keyid, counter))
        return row.fetchone() is None

    def settle(self, lease: Lease, accepted: Accepted, statement_sha256: str) -> int | None:
        """Take the slices, pay for them, and end the lease; what was paid, or None when the fence had moved."""
        paid_by_slice = {
            entry.index: lease.price_micro_per_item * (entry.items - entry.failed_items) for entry in accepted.slices
        }
        paid_micro = sum(paid_by_slice.values())
        state = "free" if set(lease.wanted) - paid_by_slice.keys() else "done"
        statement = accepted.statement
        with transaction(self._database):
            if not self._end_lease(lease, state):
                return None
            self._database.execute(
                "INSERT INTO handins (job, epoch, unit, verdict, statement_sha256, paid_micro, micro_wh, at_ms, keyid,"
                " counter, envelope) VALUES (?, ?, ?, 'settled', ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(lease.key.job, lease.key.epoch, lease.unit),
                    *(statement_sha256, paid_micro, statement.energy.micro_wh),
                    *(self._now_ms(), accepted.keyid, statement.counter, accepted.envelope),
                ),
            )
            self._database.executemany(
                "INSERT INTO results (job, slice, epoch, items, failed_items, paid_micro, body)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (lease.key.job, s.index, lease.key.epoch, s.items, s.failed_items, paid_by_slice[s.index], s.body)
                    for s in accepted.slices
                ],
            )
        return paid_micro

    def refuse(self, lease: Lease, reason: str, statement_sha256: str) -> None:
        """The unit itself signed something wrong: the lease is over, unpaid, and its slices are wanted again."""
        with transaction(self._database):
            if self._end_lease(lease, "free"):
                self._database.execute(
                    "INSERT INTO handins (job, epoch, unit, verdict, reason, statement_sha256, at_ms)"
                    " VALUES (?, ?, ?, 'bad', ?, ?, ?)",
                    (lease.key.job, lease.key.epoch, lease.unit, reason, statement_sha256, self._now_ms()),
                )

    def give_back(self, lease: Lease) -> None:
        """The unit gave the lease back with nothing done. It stays the holder: a hand-in may come after all."""
        self._end_lease(lease, "free")

    def note_refusal(self, lease: Lease) -> None:
        """The unit cannot run this package: do not offer it again for an hour."""
        self._database.execute(
            "INSERT OR REPLACE INTO refusals VALUES (?, ?, ?)",
            (lease.unit, lease.package_sha256, self._now_ms() + REFUSAL_MS),
        )

    def _end_lease(self, lease: Lease, state: str) -> bool:
        """The fence: only the holder of the job's present epoch ends its lease, and only once."""
        ended = self._database.execute(
            "UPDATE jobs SET state = :state WHERE job = :job AND epoch = :epoch AND holder = :unit AND state != 'done'"
            " AND NOT EXISTS (SELECT 1 FROM handins WHERE job = :job AND epoch = :epoch)",
            {"state": state, "job": lease.key.job, "epoch": lease.key.epoch, "unit": lease.unit},
        )
        return ended.rowcount == 1

    def _row(self, job: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._database.execute("SELECT * FROM jobs WHERE job = ?", (job,)).fetchone()
        return row

    def _wanted(self, row: sqlite3.Row) -> tuple[int, ...]:
        done = {r["slice"] for r in self._database.execute("SELECT slice FROM results WHERE job = ?", (row["job"],))}
        slices = -(-row["items"] // row["slice_items"])
        return tuple(index for index in range(slices) if index not in done)
