"""Giving work out: which job a unit gets, how much of it, and for how long. How leases end is `hil.dispatcher.endings`.

A job is FREE, LEASED, DONE, DEAD or CANCELLED; each grant takes the next epoch, in one compare-and-set. What a unit is
offered: a free job whose package it holds, for its executor and class of device, of a kind that its owner takes, whose
input its traffic allows, and of which at least one slice should fit into the time that its gate is expected to stay
open. More priority comes first, then age; a job that failed waits a while, longer each time, so that one which always
fails stands in nobody's way. Of that job it gets as many slices as should fit; the rest is granted again when this
lease has ended.

A lease that a unit does not name when it asks is sent again at once, while that makes sense. It is taken for lost only
when two different requests do not name it: requests are not signed, and an old one may come again at any time.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from agent.core.model import JobKey, Outlook
from agent.fleet.messages import JobGrant, PackageRef, UploadRef
from hil.dispatcher.database import Database, Row
from hil.dispatcher.endings import MAX_FAILURES, Endings
from hil.dispatcher.inputs import input_ref
from hil.dispatcher.rates import TRY_EVERY_MS, Rates
from hil.dispatcher.sealing import InputSealing, KnownKey
from hil.dispatcher.tickets import Tickets
from hil.dispatcher.units import Unit, Units

MAX_LEASES_PER_UNIT = 4
RESEND_WORTH = 0.5
"""A lost grant is sent again while this share of its time is left."""
FIT_SHARE = 0.8
"""Of the time that there is, this much is planned: measured speeds are averages."""
LONG_LEASE_S = 900
RENEWALS_PER_LEASE = 3
"""A long lease is renewed when a third of its time is gone, so that two renewals may get lost."""
RENEWED_LONGEST_MS = 48 * 3_600_000
"""However well it gets on, a lease is renewed no longer than this after its grant."""
IDLE_TTLS, IDLE_SLICES = 2, 3
"""Without a slice done it is renewed for so many of its times, or so many times as long as a slice should take."""
LOST_AFTER_MS = 10_000
"""What two requests so far apart do not name is lost."""
RIDS_KEPT = 8
UNITS_KEPT = 10_000
NO_LIMIT = 2**62


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where cars fetch an object and bring their answers; no `upload_url`: answers have to fit into messages.

    `small` gives an object that may travel inside its grant; it is asked for no other. Without `sealing` no input can
    be sealed, and no job that asks for it is granted.
    """

    object_url: Callable[[str], str]
    upload_url: str = ""
    sealing: InputSealing | None = None
    small: Callable[[str], bytes | None] = lambda _sha256: None


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that runs, as a unit's question is answered by it; `worth`: sending a lost grant again makes sense.

    `cancel_why`: it is to end, and why. `missed_ms`: when the request `missed_rid` was the first not to name it.
    """

    key: JobKey
    workload_class: str
    worth: bool
    cancel_why: str | None
    cancel_ends_ms: int
    missed_ms: int | None
    missed_rid: str | None


class Leases(Endings):
    """Part of the book; see there for threads and time."""

    def __init__(
        self,
        database: Database,
        units: Units,
        rates: Rates,
        tickets: Tickets,
        *,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        super().__init__(database, units, max_failures=max_failures)
        self._rates, self._tickets = rates, tickets
        self._asked = _Asked()

    def held_by(self, unit: str, now_ms: int) -> list[Holding]:
        """The leases of `unit` that run, those of jobs that were withdrawn included: the unit may still work on them.

        A withdrawn job's lease is never granted or sent again, so it is always one that is to end.
        """
        rows = self._database.rows(
            "SELECT job, epoch, state, expires_ms, ttl_s, workload_class, cancel_why, cancel_ends_ms, missed_ms,"
            " missed_rid FROM jobs"
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
                cancel_why="withdrawn" if row["state"] == "cancelled" and not row["cancel_why"] else row["cancel_why"],
                cancel_ends_ms=row["cancel_ends_ms"],
                missed_ms=row["missed_ms"],
                missed_rid=row["missed_rid"],
            )
            for row in rows
        ]

    def grant(
        self,
        unit: Unit,
        held: list[Holding],
        have: Iterable[JobKey],
        outlook: Outlook,
        now_ms: int,
        *,
        asked: str = "",
    ) -> Row | None:
        """The job of a lease for `unit`, which holds `have`: the one it lost, else the next; None: there is none.

        `asked`: by the request of this `rid`; "": it was none, and what it does not name is not lost for that.
        """
        known, lost, running = set(have), None, 0
        rid = "" if self._asked.before(unit.unit, asked) else asked
        for holding in held:
            may_resend = holding.cancel_why is None and holding.worth and _takes(unit, holding.workload_class)
            if holding.key in known:
                self._found(holding)
                running += 1
            elif may_resend and lost is None:
                lost = holding.key.job
            elif may_resend or not self._is_lost(holding, rid, now_ms):
                running += 1
            elif holding.cancel_why is not None or not _takes(unit, holding.workload_class):
                self._free(holding.key, unit.unit)
            else:
                self._fail(holding.key, unit.unit, "lost", "its grant got lost, or its work", now_ms)
        if rid:
            self._database.on_commit(partial(self._asked.note, unit.unit, rid))
        if lost is not None:
            return self.row(lost)
        if running >= MAX_LEASES_PER_UNIT or unit.benched_until_ms > now_ms:
            return None
        return self._next(unit, outlook, now_ms)

    def _is_lost(self, holding: Holding, rid: str, now_ms: int) -> bool:
        """Whether this is the second request that does not name the lease. The first is written down."""
        if not rid or rid == holding.missed_rid:
            return False
        if holding.missed_ms is not None and holding.missed_ms <= now_ms:
            return now_ms - holding.missed_ms >= LOST_AFTER_MS
        self._note_missed(holding, now_ms, rid)
        return False

    def _found(self, holding: Holding) -> None:
        if holding.missed_ms is not None:
            self._note_missed(holding, None, None)

    def _note_missed(self, holding: Holding, missed_ms: int | None, rid: str | None) -> None:
        self._database.execute(
            "UPDATE jobs SET missed_ms = :missed, missed_rid = :rid WHERE job = :job AND epoch = :epoch",
            missed=missed_ms,
            rid=rid,
            job=holding.key.job,
            epoch=holding.key.epoch,
        )

    def _next(self, unit: Unit, outlook: Outlook, now_ms: int) -> Row | None:
        fit_us = int(FIT_SHARE * 1_000_000 * outlook.open_for_s) if outlook.open_for_s else NO_LIMIT
        job = self._database.row(
            f"""
            SELECT jobs.*, CASE WHEN rates.items > 0 THEN 1000 * rates.took_ms / rates.items
                                ELSE estimate_us_per_item END AS us_per_item, rates.items IS NOT NULL AS measured
            FROM jobs LEFT JOIN rates
              ON rates.package_sha256 = jobs.package_sha256 AND rates.device_class = :device_class
            WHERE state = 'free' AND {self._suits_unit()} AND {self._not_its_own()}
              AND input_bytes <= :most_bytes AND not_before_ms <= :now
              AND CASE WHEN rates.items > 0 AND rates.tried_ms > :tried THEN slice_items * 1000 * rates.took_ms
                 / rates.items WHEN rates.items > 0 THEN 0 ELSE slice_items * estimate_us_per_item END <= :fit_us
            ORDER BY priority DESC, seq LIMIT 1 {self._database.lock_for_me}
            """,  # noqa: S608 - constants of ours
            unit=unit.unit,
            packages=unit.packages,
            any_class=int(not unit.classes),
            classes=unit.classes,
            executor=unit.executor,
            device_class=unit.device_class,
            most_bytes=NO_LIMIT if outlook.budget_bytes is None else outlook.budget_bytes,
            fit_us=fit_us,
            tried=now_ms - TRY_EVERY_MS,
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
            " AND (jobs.sealed = 0 OR EXISTS (SELECT 1 FROM sealing_keys WHERE sealing_keys.unit = :unit))"
            " AND NOT EXISTS (SELECT 1 FROM refusals WHERE refusals.unit = :unit AND until_ms > :now"
            " AND what IN (jobs.package_sha256, jobs.job))"
        )

    @staticmethod
    def _not_its_own() -> str:
        """SQL: the job is no copy of one that the unit worked on itself, nor another copy of what it has copied.

        And where only units of one class can check each other, the unit is known to be of it.
        """
        return (
            "(replica_of IS NULL OR NOT EXISTS (SELECT 1 FROM handins JOIN jobs AS mine ON mine.job = handins.job"
            " WHERE handins.unit = :unit AND mine.job != jobs.job"
            " AND (mine.job = jobs.replica_of OR mine.replica_of = jobs.replica_of))"
            " AND (jobs.equivalence_class = '' OR EXISTS (SELECT 1 FROM unit_classes WHERE unit_classes.unit = :unit"
            " AND unit_classes.package_sha256 = jobs.package_sha256"
            " AND unit_classes.equivalence_class = jobs.equivalence_class)))"
        )

    def _lease(self, job: Row, unit: Unit, fit_us: int, now_ms: int) -> Row | None:
        """Compare-and-set: FREE becomes LEASED with the next epoch."""
        missing = self.missing(job)
        fit_us = time_to_fit_us(job, fit_us)
        slices = slices_that_fit(job, len(missing), fit_us, unit.shorts)
        expected_ms = items_in(job, missing[:slices]) * job["us_per_item"] // 1000
        is_too_long = job["measured"] and job["slice_items"] * job["us_per_item"] > fit_us
        if is_too_long and self._rates.may_try(job["package_sha256"], unit.device_class, now_ms):
            slices, expected_ms = 1, 0  # told what was measured, the car would not begin
        leased = self._database.row(
            "UPDATE jobs SET state = 'leased', epoch = epoch + 1, holder = :unit, nonce = :nonce,"
            " upload_token = :token, granted_slices = :slices, expected_ms = :expected, granted_ms = :now,"
            " expires_ms = :now + 1000 * ttl_s, done_slices = 0, progress_ms = :now, upload_bytes = -1,"
            " missed_ms = NULL, missed_rid = NULL, cancel_why = NULL"
            " WHERE job = :job AND epoch = :epoch AND state = 'free' RETURNING *",
            unit=unit.unit,
            nonce=secrets.token_hex(16),
            token=secrets.token_urlsafe(24),
            slices=slices,
            expected=expected_ms,
            now=now_ms,
            job=job["job"],
            epoch=job["epoch"],
        )
        if leased is not None and job["epoch"]:
            self._tickets.forget(JobKey(job["job"], job["epoch"]))
        return leased

    def renew(self, unit: str, key: JobKey, done: int, now_ms: int) -> Row | None:
        """The lease's job, with its time running from now; None when it is not this unit's, or is to end.

        It is to end when it was cancelled, when it was never to be renewed, when it has been renewed for as long as any
        lease may be, or when no slice was `done` for long.
        """
        return self._database.row(
            "UPDATE jobs SET expires_ms = :now + 1000 * ttl_s, missed_ms = NULL, missed_rid = NULL,"
            " progress_ms = CASE WHEN :done > done_slices AND :done <= granted_slices THEN :now ELSE progress_ms END,"
            " done_slices = CASE WHEN :done > done_slices AND :done <= granted_slices THEN :done ELSE done_slices END"
            " WHERE job = :job AND epoch = :epoch AND holder = :unit"
            " AND state = 'leased' AND expires_ms > :now AND cancel_why IS NULL"
            " AND ttl_s > :short AND granted_ms + :longest > :now"
            " AND (:done > done_slices AND :done <= granted_slices"
            " OR :now - progress_ms <= :ttls * 1000 * ttl_s"
            " OR (:now - progress_ms) * granted_slices <= :slices * expected_ms) RETURNING *",
            now=now_ms,
            done=done,
            short=LONG_LEASE_S,
            longest=RENEWED_LONGEST_MS,
            ttls=IDLE_TTLS,
            slices=IDLE_SLICES,
            job=key.job,
            epoch=key.epoch,
            unit=unit,
        )

    def missing(self, job: Row) -> tuple[int, ...]:
        """The slices without a result."""
        done: set[int] = set()
        if job["settled_epoch"]:
            rows = self._database.rows("SELECT slice FROM results WHERE job = :job", job=job["job"])
            done = {row["slice"] for row in rows}
        return tuple(index for index in range(-(-job["items"] // job["slice_items"])) if index not in done)


class _Asked:
    """The last requests of the units that asked lately: one that comes again says nothing of what is held now."""

    def __init__(self) -> None:
        self._rids: OrderedDict[str, deque[str]] = OrderedDict()

    def before(self, unit: str, rid: str) -> bool:
        """Whether this request was here already."""
        return rid in self._rids.get(unit, ())

    def note(self, unit: str, rid: str) -> None:
        """It is here now."""
        rids = self._rids.setdefault(unit, deque(maxlen=RIDS_KEPT))
        if rid not in rids:
            rids.append(rid)
        self._rids.move_to_end(unit)
        if len(self._rids) > UNITS_KEPT:
            self._rids.popitem(last=False)


def time_to_fit_us(job: Row, fit_us: int) -> int:
    """How long a lease of the job may take: a short one has to be done in its own time as well.

    A lease that is renewed has all the time that the car has.
    """
    return fit_us if renew_s(job["ttl_s"]) else min(fit_us, int(FIT_SHARE * 1_000_000 * job["ttl_s"]))


def slices_that_fit(job: Row, missing: int, fit_us: int, shorts: int) -> int:
    """How many slices to grant of those that are missing: what should fit into the time, at least one."""
    slice_us = job["slice_items"] * job["us_per_item"]
    slices = min(missing, fit_us // slice_us) if slice_us else missing
    return max(1, slices >> shorts)


def items_in(job: Row, slices: Iterable[int]) -> int:
    """How many items these slices have; the last of a job may be a short one."""
    return sum(min(job["slice_items"], job["items"] - index * job["slice_items"]) for index in slices)


def renew_s(ttl_s: int) -> int:
    """How often a lease of so long is renewed; 0 for a short one."""
    return ttl_s // RENEWALS_PER_LEASE if ttl_s > LONG_LEASE_S else 0


def longest_ms(ttl_s: int) -> int:
    """For how long a lease can be worked on, whatever any clock says."""
    return 1000 * ttl_s + (RENEWED_LONGEST_MS if renew_s(ttl_s) else 0)


def job_grant(
    job: Row, slices: tuple[int, ...], now_ms: int, places: Places, seal_to: KnownKey | None = None
) -> JobGrant:
    """The lease of `slices` as a signed payload carries it. Raises StoreError for one that cannot be sealed and must.

    `ttl_s` counts from now on, so a unit that counts from when it asked always stops first.
    """
    return JobGrant(
        job=job["job"],
        epoch=job["epoch"],
        nonce=job["nonce"],
        customer=job["customer"],
        package=PackageRef(name=job["package"], sha256=job["package_sha256"]),
        input=input_ref(job, slices, places, seal_to),
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


def _takes(unit: Unit, workload_class: str) -> bool:
    return not unit.classes or workload_class in unit.classes
