"""Giving work out: which job a unit gets, how much of it, for how long; and what becomes of a lease that fails.

A job is FREE, LEASED, DONE, DEAD or CANCELLED; each grant takes the next epoch, in one compare-and-set. What a unit is
offered: a free job whose package it holds, for its executor and class of device, of a kind that its owner takes, whose
input its traffic allows, and of which at least one slice should fit into the time that its gate is expected to stay
open. Jobs that were tried least come first, so that one which always fails stands in nobody's way; then priority, then
age. Of that job it gets as many slices as should fit; the rest is granted again when this lease has ended.

A lease that comes to nothing is forgiven where the car had reasons of its own (the driver, energy, heat). A fault, a
wrong statement, or silence until the end is held against the job: ten in a row without progress, and it is DEAD, kept
with its reasons. A unit that failed a job three times is not offered it for an hour, so that no unit alone kills one.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable

import msgspec

from agent.core.model import JobKey, Outlook, YieldReason
from agent.fleet.messages import INLINE_INPUT_BYTES, JobGrant, ObjectRef, PackageRef, UploadRef
from hil.dispatcher.database import Database, Row
from hil.dispatcher.units import Unit, Units

MAX_LEASES_PER_UNIT = 4
RESEND_WORTH = 0.5
"""A lost grant is sent again while this share of its time is left."""
FIT_SHARE = 0.8
"""Of the time that there is, this much is planned: measured speeds are averages."""
LONG_LEASE_S = 900
RENEWALS_PER_LEASE = 3
"""A long lease is renewed when a third of its time is gone, so that two renewals may get lost."""
MAX_FAILURES = 10
FAILURES_PER_UNIT = 3
REFUSAL_MS = 3_600_000
"""How long a unit is not offered again what it refused, or failed three times."""
SHORT_MS = 900_000
CANCELLED_MS = 60_000
DELIVERY_MS = 60_000
"""What a cancelled lease gets beyond its grace, for the car to say what it finished."""
UPLOAD_HOLD_MS = 900_000
UPLOAD_LONGEST_MS = 24 * 3_600_000
EXPIRED_AT_ONCE = 200
NO_LIMIT = 2**62
INLINE_SLICES = 256
"""More slices than these are a list too long to leave room for an input in a message of 16 KiB."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where cars fetch an object and bring their answers; no `upload_url`: answers have to fit into messages.

    `small` gives an object that may travel inside its grant; it is asked for no other.
    """

    object_url: Callable[[str], str]
    upload_url: str = ""
    small: Callable[[str], bytes | None] = lambda _sha256: None


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that runs, as a unit's question is answered by it; `worth`: sending a lost grant again makes sense."""

    key: JobKey
    workload_class: str
    worth: bool
    cancel_why: str | None
    cancel_ends_ms: int


class Leases:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database, units: Units, *, max_failures: int = MAX_FAILURES) -> None:
        self._database, self._units, self._max_failures = database, units, max_failures

    # --- granting ----------------------------------------------------------------------------------------------

    def held_by(self, unit: str, now_ms: int) -> list[Holding]:
        """The leases of `unit` that run, those of jobs that were withdrawn included."""
        rows = self._database.rows(
            "SELECT job, epoch, expires_ms, ttl_s, workload_class, cancel_why, cancel_ends_ms FROM jobs"
            " WHERE holder = :unit AND state IN ('leased', 'cancelled') AND settled_epoch < epoch"
            " AND expires_ms > :now",
            unit=unit,
            now=now_ms,
        )
        return [
            Holding(
                key=JobKey(row["job"], row["epoch"]),
                workload_class=row["workload_class"],
                worth=row["expires_ms"] - now_ms >= max(1000, RESEND_WORTH * 1000 * row["ttl_s"]),
                cancel_why=row["cancel_why"],
                cancel_ends_ms=row["cancel_ends_ms"],
            )
            for row in rows
        ]

    def grant(
        self, unit: Unit, held: list[Holding], have: Iterable[JobKey], outlook: Outlook, now_ms: int
    ) -> Row | None:
        """The job of a lease for `unit`, which holds `have`: the one it lost, else the next; None: there is none."""
        known, lost, running = set(have), None, 0
        for holding in held:
            if holding.key in known:
                running += 1
            elif holding.cancel_why is not None or not _takes(unit, holding.workload_class):
                self._free(holding.key, unit.unit)
            elif not holding.worth:
                self._fail(holding.key, unit.unit, "lost", "its grant got lost, or its work", now_ms)
            elif lost is None:
                lost = holding.key.job
            else:
                running += 1
        if lost is not None:
            return self.row(lost)
        if running >= MAX_LEASES_PER_UNIT or unit.benched_until_ms > now_ms:
            return None
        return self._next(unit, outlook, now_ms)

    def _next(self, unit: Unit, outlook: Outlook, now_ms: int) -> Row | None:
        fit_us = int(FIT_SHARE * 1_000_000 * outlook.open_for_s) if outlook.open_for_s else NO_LIMIT
        job = self._database.row(
            f"""
            SELECT jobs.*, CASE WHEN rates.items > 0 THEN 1000 * rates.took_ms / rates.items
                                ELSE estimate_us_per_item END AS us_per_item
            FROM jobs LEFT JOIN rates
              ON rates.package_sha256 = jobs.package_sha256 AND rates.device_class = :device_class
            WHERE state = 'free' AND {self._suits_unit()} AND {self._not_its_own()}
              AND input_bytes <= :most_bytes
              AND slice_items * CASE WHEN rates.items > 0 THEN 1000 * rates.took_ms / rates.items
                                     ELSE estimate_us_per_item END <= :fit_us
            ORDER BY tries, priority DESC, seq LIMIT 1 {self._database.lock_for_me}
            """,  # noqa: S608 - constants of ours
            unit=unit.unit,
            packages=unit.packages,
            any_class=int(not unit.classes),
            classes=unit.classes,
            executor=unit.executor,
            device_class=unit.device_class,
            most_bytes=NO_LIMIT if outlook.budget_bytes is None else outlook.budget_bytes,
            fit_us=fit_us,
            now=now_ms,
        )
        return None if job is None else self._lease(job, unit, fit_us, now_ms)

    def _suits_unit(self) -> str:
        """SQL: the unit can run the job, its owner takes it, and nothing is held against it."""
        held = self._database.among("jobs.package_sha256", "packages")
        taken = self._database.among("workload_class", "classes")
        return (
            f"{held} AND (:any_class = 1 OR {taken})"  # noqa: S608 - constants of ours
            " AND executor IN ('', :executor) AND jobs.device_class IN ('', :device_class)"
            " AND NOT EXISTS (SELECT 1 FROM refusals WHERE refusals.unit = :unit AND until_ms > :now"
            " AND what IN (jobs.package_sha256, jobs.job))"
        )

    @staticmethod
    def _not_its_own() -> str:
        """SQL: the job is no copy of one that the unit worked on itself."""
        return "NOT EXISTS (SELECT 1 FROM handins WHERE handins.job = jobs.replica_of AND handins.unit = :unit)"

    def _lease(self, job: Row, unit: Unit, fit_us: int, now_ms: int) -> Row | None:
        """Compare-and-set: FREE becomes LEASED with the next epoch."""
        missing = self.missing(job)
        slices = slices_that_fit(job, len(missing), fit_us, unit.shorts)
        return self._database.row(
            "UPDATE jobs SET state = 'leased', epoch = epoch + 1, holder = :unit, nonce = :nonce,"
            " upload_token = :token, granted_slices = :slices, expected_ms = :expected, granted_ms = :now,"
            " expires_ms = :now + 1000 * ttl_s, tries = tries + 1, cancel_why = NULL"
            " WHERE job = :job AND epoch = :epoch AND state = 'free' RETURNING *",
            unit=unit.unit,
            nonce=secrets.token_hex(16),
            token=secrets.token_urlsafe(24),
            slices=slices,
            expected=items_in(job, missing[:slices]) * job["us_per_item"] // 1000,
            now=now_ms,
            job=job["job"],
            epoch=job["epoch"],
        )

    def renew(self, unit: str, key: JobKey, now_ms: int) -> Row | None:
        """The lease's job, with its time running from now; None when it is not this unit's, or is to end."""
        return self._database.row(
            "UPDATE jobs SET expires_ms = :now + 1000 * ttl_s WHERE job = :job AND epoch = :epoch AND holder = :unit"
            " AND state = 'leased' AND expires_ms > :now AND cancel_why IS NULL RETURNING *",
            now=now_ms,
            job=key.job,
            epoch=key.epoch,
            unit=unit,
        )

    def row(self, job: str) -> Row | None:
        """The job, None when there is none."""
        return self._database.row("SELECT * FROM jobs WHERE job = :job", job=job)

    def missing(self, job: Row) -> tuple[int, ...]:
        """The slices without a result."""
        done: set[int] = set()
        if job["settled_epoch"]:
            rows = self._database.rows("SELECT slice FROM results WHERE job = :job", job=job["job"])
            done = {row["slice"] for row in rows}
        return tuple(index for index in range(-(-job["items"] // job["slice_items"])) if index not in done)

    # --- how leases end ----------------------------------------------------------------------------------------

    def give_back(self, unit: str, key: JobKey, why: YieldReason, detail: str, now_ms: int) -> bool:
        """The unit gave the lease back with nothing done; False when it was over anyway."""
        if not self._free(key, unit):
            return False
        if why is YieldReason.FAULT:
            self._count_failure(key, unit, why.value, detail, now_ms)
        return True

    def hold(self, unit: str, key: JobKey, now_ms: int) -> None:
        """Let a lease run on a little, while finished work is brought; not for ever, nor when it was cancelled."""
        self._database.execute(
            "UPDATE jobs SET expires_ms = :until WHERE job = :job AND epoch = :epoch AND holder = :unit"
            " AND state = 'leased' AND cancel_why IS NULL AND expires_ms < :until AND granted_ms > :begun",
            job=key.job,
            epoch=key.epoch,
            unit=unit,
            until=now_ms + UPLOAD_HOLD_MS,
            begun=now_ms - UPLOAD_LONGEST_MS,
        )

    def note_reason(self, unit: str, job: Row, why: YieldReason, detail: str, now_ms: int) -> None:
        """What a yield says about unit and job, beside that the lease is over."""
        key = JobKey(job["job"], job["epoch"])
        match why:
            case YieldReason.REFUSED:
                self._refuse(unit, job["package_sha256"], now_ms + REFUSAL_MS)
                self._attempt(key, unit, why.value, detail, now_ms)
            case YieldReason.SHORT:
                self._units.note_short(unit)
                if job["granted_slices"] == 1:  # it cannot get less of this job
                    self._refuse(unit, job["job"], now_ms + SHORT_MS)
            case YieldReason.CANCELLED:
                self._refuse(unit, job["job"], now_ms + CANCELLED_MS)
            case YieldReason.FAULT:
                self._units.note_fault(unit, now_ms)
            case _:
                pass

    def note_bad(self, unit: str, key: JobKey, reason: str, now_ms: int) -> None:
        """The unit signed something wrong about a lease, which is over."""
        self._count_failure(key, unit, "bad", reason, now_ms)
        self._units.note_fault(unit, now_ms)

    def expire(self, now_ms: int) -> int:
        """Free what has run out; how many leases that were. The epoch stays: until the next grant they still settle."""
        rows = self._database.rows(
            "SELECT job, epoch, holder, cancel_why FROM jobs"  # noqa: S608 - a phrase of the database's own
            " WHERE state = 'leased' AND expires_ms <= :now ORDER BY expires_ms LIMIT :most "
            + self._database.lock_for_me,
            now=now_ms,
            most=EXPIRED_AT_ONCE,
        )
        for row in rows:
            key = JobKey(row["job"], row["epoch"])
            if row["cancel_why"] is None:
                self._fail(key, row["holder"], "expired", "nothing was heard until its time was over", now_ms)
            else:
                self._free(key, row["holder"])
        return len(rows)

    def cancel(self, job: str, grace_s: int, why: str, now_ms: int, *, withdraw: bool) -> Row | None:
        """End the job's lease within `grace_s`, and with `withdraw` the job as well; the lease, None when none runs."""
        cancelled = self._database.execute(
            "UPDATE jobs SET cancel_why = :why, cancel_ends_ms = :ends,"
            " expires_ms = CASE WHEN expires_ms < :ends + :delivery THEN expires_ms ELSE :ends + :delivery END"
            " WHERE job = :job AND state = 'leased'",
            job=job,
            why=why,
            ends=now_ms + 1000 * grace_s,
            delivery=DELIVERY_MS,
        )
        lease = self.row(job) if cancelled else None
        if withdraw:
            self._database.execute(
                "UPDATE jobs SET state = 'cancelled' WHERE job = :job AND state IN ('free', 'leased', 'dead')", job=job
            )
        return lease

    def _free(self, key: JobKey, unit: str) -> bool:
        return (
            self._database.execute(
                "UPDATE jobs SET state = 'free'"
                " WHERE job = :job AND epoch = :epoch AND holder = :unit AND state = 'leased'",
                job=key.job,
                epoch=key.epoch,
                unit=unit,
            )
            == 1
        )

    def _fail(self, key: JobKey, unit: str, why: str, detail: str, now_ms: int) -> None:
        """Free it, once, and hold that against the job."""
        if self._free(key, unit):
            self._count_failure(key, unit, why, detail, now_ms)

    def _count_failure(self, key: JobKey, unit: str, why: str, detail: str, now_ms: int) -> None:
        self._attempt(key, unit, why, detail, now_ms)
        failed = self._database.row(
            "SELECT count(*) AS times FROM attempts WHERE job = :job AND unit = :unit AND why != 'refused'",
            job=key.job,
            unit=unit,
        )
        if failed is not None and failed["times"] >= FAILURES_PER_UNIT:
            self._refuse(unit, key.job, now_ms + REFUSAL_MS)
        self._database.execute(
            "UPDATE jobs SET failures = failures + 1,"
            " state = CASE WHEN failures + 1 >= :most THEN 'dead' ELSE state END WHERE job = :job AND state = 'free'",
            job=key.job,
            most=self._max_failures,
        )

    def _attempt(self, key: JobKey, unit: str, why: str, detail: str, now_ms: int) -> None:
        self._database.execute(
            "INSERT INTO attempts (job, epoch, unit, why, detail, at_ms) VALUES (:job, :epoch, :unit, :why, :detail,"
            " :now) ON CONFLICT DO NOTHING",
            job=key.job,
            epoch=key.epoch,
            unit=unit,
            why=why,
            detail=detail[:512],
            now=now_ms,
        )

    def _refuse(self, unit: str, what: str, until_ms: int) -> None:
        self._database.execute(
            "INSERT INTO refusals (unit, what, until_ms) VALUES (:unit, :what, :until)"
            " ON CONFLICT (unit, what) DO UPDATE SET until_ms = excluded.until_ms",
            unit=unit,
            what=what,
            until=until_ms,
        )


def slices_that_fit(job: Row, missing: int, fit_us: int, shorts: int) -> int:
    """How many slices to grant of those that are missing: what should fit into the time, at least one.

    A lease that is renewed has all the time that the car has; another has to be done within its own.
    """
    slice_us = job["slice_items"] * job["us_per_item"]
    slices = missing
    if slice_us:
        if not renew_s(job["ttl_s"]):
            fit_us = min(fit_us, int(FIT_SHARE * 1_000_000 * job["ttl_s"]))
        slices = min(slices, fit_us // slice_us)
    return max(1, slices >> shorts)


def items_in(job: Row, slices: Iterable[int]) -> int:
    """How many items these slices have; the last of a job may be a short one."""
    return sum(min(job["slice_items"], job["items"] - index * job["slice_items"]) for index in slices)


def renew_s(ttl_s: int) -> int:
    """How often a lease of so long is renewed; 0 for a short one."""
    return ttl_s // RENEWALS_PER_LEASE if ttl_s > LONG_LEASE_S else 0


def job_grant(job: Row, slices: tuple[int, ...], now_ms: int, places: Places) -> JobGrant:
    """The lease of `slices` as a signed payload carries it.

    `ttl_s` counts from now on, so a unit that counts from when it asked always stops first.
    """
    return JobGrant(
        job=job["job"],
        epoch=job["epoch"],
        nonce=job["nonce"],
        customer=job["customer"],
        package=PackageRef(name=job["package"], sha256=job["package_sha256"]),
        input=input_ref(job, slices, places),
        items=job["items"],
        slice_items=job["slice_items"],
        slices=slices,
        ttl_s=(job["expires_ms"] - now_ms) // 1000,
        price_micro_per_item=job["price_micro_per_item"],
        currency=job["currency"],
        workload_class=job["workload_class"] or None,
        expected_s=min(86_400, -(-job["expected_ms"] // 1000)),
        renew_s=renew_s(job["ttl_s"]),
        upload=UploadRef(url=places.upload_url, token=job["upload_token"]) if places.upload_url else None,
    )


def input_ref(job: Row, slices: tuple[int, ...], places: Places) -> ObjectRef:
    """The lease's input, in the grant itself where both it and the list of slices are short."""
    sha256, length = job["input_sha256"], job["input_bytes"]
    short = length <= INLINE_INPUT_BYTES and len(slices) <= INLINE_SLICES
    body = places.small(sha256) if short else None
    inside = "" if body is None else base64.b64encode(body).decode("ascii")
    return ObjectRef(url=places.object_url(sha256), sha256=sha256, bytes=length, body=inside)


def _takes(unit: Unit, workload_class: str) -> bool:
    return not unit.classes or workload_class in unit.classes
