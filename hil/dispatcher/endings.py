"""What becomes of a lease that ends without a result: given back, run out, lost, taken back, wrong.

A lease that comes to nothing is forgiven where the car had reasons of its own (the driver, energy, heat). A fault, a
slice that never fits, a wrong statement, or silence until the end is held against the job: from the second on it waits
before it is granted again, twice as long each time, and after ten such leases in a row, of three units at least, it is
DEAD, kept with its reasons. A unit that failed a job three times is not offered it for an hour, and no unit alone
kills one.
"""

from __future__ import annotations

from agent.core.model import JobKey, YieldReason
from hil.dispatcher.database import Database, Row
from hil.dispatcher.units import Units

MAX_FAILURES = 10
UNITS_TO_KILL = 3
FAILURES_PER_UNIT = 3
BACK_OFF_MS = 15_000
"""What a job waits after its second failure, and the unit that failed it after the first."""
BACK_OFF_DOUBLINGS = 6
"""At most sixteen minutes."""
REFUSAL_MS = 3_600_000
"""How long a unit is not offered again what it refused, or failed three times."""
SHORT_MS = 900_000
CANCELLED_MS = 60_000
DELIVERY_MS = 60_000
"""What a cancelled lease gets beyond its grace, for the car to say what it finished."""
UPLOAD_HOLD_MS = 900_000
UPLOAD_LONGEST_MS = 24 * 3_600_000
EXPIRED_AT_ONCE = 200
SILENT = {"expired", "lost"}
"""Failures of which the unit has said nothing: it may have been the network."""
HELD_AGAINST_THE_JOB = {YieldReason.FAULT, YieldReason.FULL}


class Endings:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database, units: Units, *, max_failures: int = MAX_FAILURES) -> None:
        self._database, self._units, self._max_failures = database, units, max_failures

    def give_back(self, unit: str, key: JobKey, why: YieldReason, detail: str, now_ms: int) -> bool:
        """The unit gave the lease back with nothing done; False when it was over anyway."""
        if not self._free(key, unit):
            return False
        if why in HELD_AGAINST_THE_JOB:
            self._count_failure(key, unit, why.value, detail, now_ms)
        return True

    def hold(self, unit: str, key: JobKey, arrived_bytes: int, now_ms: int) -> None:
        """Let a lease run on a little, while finished work is brought: once, and again whenever more of it is here.

        Not for ever, nor when it was cancelled.
        """
        self._database.execute(
            "UPDATE jobs SET expires_ms = CASE WHEN expires_ms < :until THEN :until ELSE expires_ms END,"
            " upload_bytes = :arrived WHERE job = :job AND epoch = :epoch AND holder = :unit AND state = 'leased'"
            " AND cancel_why IS NULL AND granted_ms > :begun AND upload_bytes < :arrived",
            job=key.job,
            epoch=key.epoch,
            unit=unit,
            arrived=arrived_bytes,
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
        """Free what has run out; how many leases that were. The epoch stays: until the next grant they still settle.

        A lease that was held for answers which never came is a fault of the unit as well.
        """
        rows = self._database.rows(
            "SELECT job, epoch, holder, cancel_why, upload_bytes FROM jobs"  # noqa: S608 - a phrase of the database's own
            " WHERE state = 'leased' AND expires_ms <= :now ORDER BY expires_ms LIMIT :most "
            + self._database.lock_for_me,
            now=now_ms,
            most=EXPIRED_AT_ONCE,
        )
        for row in rows:
            key = JobKey(row["job"], row["epoch"])
            if row["cancel_why"] is not None:
                self._free(key, row["holder"])
            elif row["upload_bytes"] < 0:
                self._fail(key, row["holder"], "expired", "nothing was heard until its time was over", now_ms)
            else:
                self._fail(key, row["holder"], "expired", "its answers were never brought", now_ms)
                self._units.note_fault(row["holder"], now_ms)
        return len(rows)

    def cancel(self, job: str, grace_s: int, why: str, now_ms: int, *, withdraw: bool) -> Row | None:
        """End the job's lease within `grace_s`, and with `withdraw` the job as well; the lease, None when none runs.

        Said again it ends sooner, never later, also when the job was withdrawn with its lease running.
        """
        cancelled = self._database.execute(
            "UPDATE jobs SET cancel_why = :why,"
            " cancel_ends_ms = CASE WHEN cancel_why IS NOT NULL AND cancel_ends_ms < :ends THEN cancel_ends_ms"
            " ELSE :ends END,"
            " expires_ms = CASE WHEN expires_ms < :ends + :delivery THEN expires_ms ELSE :ends + :delivery END"
            " WHERE job = :job AND (state = 'leased'"
            " OR state = 'cancelled' AND settled_epoch < epoch AND expires_ms > :now)",
            job=job,
            why=why,
            now=now_ms,
            ends=now_ms + 1000 * grace_s,
            delivery=DELIVERY_MS,
        )
        lease = self.row(job) if cancelled else None
        if withdraw:
            self._database.execute(
                "UPDATE jobs SET state = 'cancelled' WHERE job = :job AND state IN ('free', 'leased', 'dead')", job=job
            )
        return lease

    def row(self, job: str) -> Row | None:
        """The job, None when there is none."""
        return self._database.row("SELECT * FROM jobs WHERE job = :job", job=job)

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
        """Hold it against the job, which waits, or is dead; each unit counts towards that as one."""
        self._attempt(key, unit, why, detail, now_ms)
        failed = self._database.row(
            "SELECT count(*) AS times FROM attempts WHERE job = :job AND unit = :unit AND why != 'refused'",
            job=key.job,
            unit=unit,
        )
        if failed is not None and failed["times"] >= FAILURES_PER_UNIT:
            self._refuse(unit, key.job, now_ms + REFUSAL_MS)
        elif why not in SILENT:
            self._refuse(unit, key.job, now_ms + BACK_OFF_MS)
        self._database.execute(
            "UPDATE jobs SET failures = failures + 1,"
            " not_before_ms = CASE WHEN failures < 1 THEN :now ELSE :now + :back_off * (1 << CAST("
            "CASE WHEN failures <= :doublings THEN failures - 1 ELSE :doublings END AS INTEGER)) END,"
            " state = CASE WHEN failures + 1 >= :most AND :units <= (SELECT count(DISTINCT unit) FROM attempts"
            " WHERE attempts.job = jobs.job AND attempts.epoch > jobs.progress_epoch AND why != 'refused')"
            " THEN 'dead' ELSE state END WHERE job = :job AND state = 'free'",
            job=key.job,
            now=now_ms,
            back_off=BACK_OFF_MS,
            doublings=BACK_OFF_DOUBLINGS,
            most=self._max_failures,
            units=UNITS_TO_KILL,
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
