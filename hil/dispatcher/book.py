"""The book of jobs: who holds which lease, what was delivered, and what was paid. Rows decide; nothing is in memory.

(job, epoch) fences a job: each grant takes the next epoch, and a hand-in counts only while its epoch is the job's, its
unit the holder, and no hand-in of that epoch was judged, in one compare-and-set. An expired lease that nobody else was
given still settles: its epoch is still the job's. So is one that was freed: freeing keeps epoch and holder.

A finished slice is paid once, for the items it answered (not those it failed); what a lease left over becomes FREE.
How leases are given out is in `hil.dispatcher.leases`, how they end without a result in `hil.dispatcher.endings`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from agent.core.model import JobKey, Outlook, Verdict, YieldReason
from agent.errors import FleetError
from agent.fleet.messages import JobGrant
from agent.trust.statement import Statement
from hil.dispatcher.copies import Checking, Copies, ReadObject, Tolerances
from hil.dispatcher.database import Database, Row, SqliteDatabase
from hil.dispatcher.endings import EXPIRED_AT_ONCE, MAX_FAILURES
from hil.dispatcher.judge import Accepted, Lease
from hil.dispatcher.leases import Holding, Leases, Places, job_grant, longest_ms
from hil.dispatcher.ledgers import Ledgers
from hil.dispatcher.orders import Orders
from hil.dispatcher.paces import Paces
from hil.dispatcher.pay import HoldBack, Pay
from hil.dispatcher.rates import Rates
from hil.dispatcher.replication import ByClassOrValue, Comparator, NoReplication, Replication
from hil.dispatcher.sealing import SealingKeyBook
from hil.dispatcher.sessions import Sessions, UsedSession
from hil.dispatcher.submissions import Submissions
from hil.dispatcher.tickets import MOST_KEPT, Tickets
from hil.dispatcher.units import Unit, Units
from hil.dispatcher.upload_rights import UploadRights

MOST_MICRO = 10**12
"""What a verdict can say that was paid: a million units of the currency."""
EXPIRE_EVERY_MS = 1_000
RELEASE_EVERY_MS = 60_000


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Who may run a job, and when: an executor or device class of "" is any; more priority comes first.

    `sealed`: only a unit that its input can be sealed to.
    """

    executor: str = ""
    device_class: str = ""
    priority: int = 0
    sealed: bool = False


class HandedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that has been judged already."""

    verdict: Verdict
    reason: str
    paid_micro: int
    statement_sha256: str


class Book:
    """Use from one thread at a time. The clock is the database's; times in messages are durations from it.

    Every method raises DatabaseLostError when the database does not answer, and ConflictError where another replica
    was first; then nothing was done.
    """

    def __init__(
        self,
        database: Database,
        *,
        replication: Replication | None = None,
        comparator: Comparator | None = None,
        tolerances: Tolerances = lambda _package_sha256: None,
        read_object: ReadObject = lambda _sha256: None,
        has_referee: bool = False,
        hold_back: HoldBack | None = None,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        self.database = database
        database.in_use()
        self.units = Units(database)
        self.orders = Orders(database)
        self.paces = Paces(database)
        self.upload_rights = UploadRights(database)
        self.ledgers, self._sessions = Ledgers(database), Sessions(database)
        self._rates, self._tickets = Rates(database), Tickets(database)
        self.leases = Leases(database, self.units, self._rates, self._tickets, max_failures=max_failures)
        self.submissions = Submissions(database)
        self.sealing_keys = SealingKeyBook(database)
        checking = Checking(
            replication=replication or NoReplication(),
            comparator=comparator or ByClassOrValue(),
            tolerances=tolerances,
            read_object=read_object,
            has_referee=has_referee,
        )
        self._pay = Pay(database, hold_back or HoldBack())
        self.copies = Copies(database, checking, self._pay, lambda: self.secret("audit_draw"))
        self._expired_ms, self._released_ms = 0, 0

    @classmethod
    def open(cls, folder: Path, now_ms: Callable[[], int]) -> Self:
        """The book in `folder`, in SQLite; `now_ms` is its clock. Raises StoreError."""
        return cls(SqliteDatabase(folder, now_ms))

    def close(self) -> None:
        """Let go of the database; what was answered is in it already."""
        self.database.close()

    def now_ms(self) -> int:
        """The time by which leases are counted."""
        return self.database.now_ms()

    def keep_house(self, now_ms: int) -> None:
        """Free what has run out, and write down what was measured; cheap when it was done a moment ago."""
        self._rates.flush(now_ms)
        if 0 <= now_ms - self._expired_ms < EXPIRE_EVERY_MS:
            return
        with self.database.transaction():
            if self.leases.expire(now_ms) < EXPIRED_AT_ONCE:
                self._expired_ms = now_ms
        if not 0 <= now_ms - self._released_ms < RELEASE_EVERY_MS:
            with self.database.transaction():
                self._pay.release_aged(now_ms)
            self._released_ms = now_ms

    def know(self, job: str, answers: Mapping[int, bytes]) -> None:
        """What is right for slices of a job, known beforehand or computed by the operator (see `Copies.know`)."""
        now_ms = self.now_ms()
        with self.database.transaction():
            self.copies.know(job, answers, now_ms)

    def secret(self, name: str) -> str:
        """A random word that all who share this database agree on, made when it is first asked for."""
        self.database.execute(
            "INSERT INTO settings (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING",
            name=name,
            value=secrets.token_hex(16),
        )
        row = self.database.row("SELECT value FROM settings WHERE name = :name", name=name)
        assert row is not None
        return str(row["value"])

    # --- granting ----------------------------------------------------------------------------------------------

    def add_job(self, job: JobGrant, terms: Terms | None = None) -> None:
        """Put a new job up, FREE; epoch, nonce and slices of `job` are not looked at.

        `expected_s` of the whole job, where it is known, is what counts until its speed has been measured. Raises
        FleetError for a job whose payment no car could be told.
        """
        if job.price_micro_per_item * job.items > MOST_MICRO:
            raise FleetError(f"the job {job.job} may cost more than a verdict can say", hint="cut it into smaller jobs")
        wanted = terms or Terms()
        sealed = self.sealing_keys.must_seal(job.input.sha256, wanted=wanted.sealed)
        self.database.execute(
            "INSERT INTO jobs (job, seq, customer, package, package_sha256, input_sha256, input_bytes, items,"
            " slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor, device_class, priority,"
            " estimate_us_per_item, sealed) VALUES"
            " (:job, (SELECT coalesce(max(seq), 0) + 1 FROM jobs), :customer, :package, :package_sha256, :input_sha256,"
            " :input_bytes, :items, :slice_items, :price, :currency, :ttl_s, :class, :executor, :device_class,"
            " :priority, :estimate, :sealed)",
            **{
                "job": job.job,
                "customer": job.customer,
                "package": job.package.name,
                "package_sha256": job.package.sha256,
                "input_sha256": job.input.sha256,
                "input_bytes": job.input.bytes,
                "items": job.items,
                "slice_items": job.slice_items,
                "price": job.price_micro_per_item,
                "currency": job.currency,
                "ttl_s": job.ttl_s,
                "class": job.workload_class or "",
                "executor": wanted.executor,
                "device_class": wanted.device_class,
                "priority": wanted.priority,
                "sealed": int(sealed),
                "estimate": job.expected_s * 1_000_000 // job.items,
            },
        )

    def grant(
        self,
        unit: Unit,
        held: list[Holding],
        have: Iterable[JobKey],
        outlook: Outlook,
        places: Places,
        *,
        asked: str = "",
    ) -> JobGrant | None:
        """A lease for `unit`: the one it lost, else the next it can run (see `Leases.grant`); None: there is none."""
        now_ms = self.now_ms()
        with self.database.transaction():
            job = self.leases.grant(unit, held, have, outlook, now_ms, asked=asked)
            return None if job is None else self._as_granted(job, now_ms, places)

    def renew(self, unit: Unit, key: JobKey, done: int, places: Places) -> JobGrant | None:
        """The same lease, `done` slices of it, with its time running anew; None when it is to end, or another's."""
        now_ms = self.now_ms()
        with self.database.transaction():
            job = self.leases.renew(unit.unit, key, done, now_ms)
            return None if job is None else self._as_granted(job, now_ms, places)

    def _as_granted(self, job: Row, now_ms: int, places: Places) -> JobGrant | None:
        """None for a lease from before its input had to be sealed, whose unit has no key."""
        slices = self.leases.missing(job)[: job["granted_slices"]]
        seal_to = None if places.sealing is None else self.sealing_keys.of(job["holder"])
        return None if job["sealed"] and seal_to is None else job_grant(job, slices, now_ms, places, seal_to)

    def record_ticket(self, key: JobKey, sha256: str) -> None:
        """Note the digest of a signed payload that carries this grant. Call it before the payload is sent."""
        self._tickets.record(key, sha256)

    # --- what comes back ---------------------------------------------------------------------------------------

    def standing(self, unit: Unit, key: JobKey) -> Lease | HandedIn | None:
        """What a hand-in of `unit` for `key` meets: its lease, the verdict it has had, or None when it is stale."""
        rows = self.database.rows(
            "SELECT jobs.*, handins.unit AS judged_unit, verdict, reason, paid_micro, statement_sha256,"
            " tickets.sha256 AS ticket FROM jobs"
            " LEFT JOIN handins ON handins.job = jobs.job AND handins.epoch = :epoch"
            " LEFT JOIN tickets ON tickets.job = jobs.job AND tickets.epoch = :epoch WHERE jobs.job = :job",
            job=key.job,
            epoch=key.epoch,
        )
        if not rows:
            return None
        row = rows[0]
        if row["judged_unit"] is None:
            tickets = frozenset(one["ticket"] for one in rows if one["ticket"] is not None)
            return self._lease(row, unit, key, tickets) if self._holds(row, unit, key) else None
        if row["judged_unit"] != unit.unit:
            return None
        return HandedIn(
            verdict=Verdict(row["verdict"]),
            reason=row["reason"],
            paid_micro=row["paid_micro"],
            statement_sha256=row["statement_sha256"],
        )

    def _holds(self, row: Row, unit: Unit, key: JobKey) -> bool:
        return (row["epoch"], row["holder"]) == (key.epoch, unit.unit)

    def _lease(self, row: Row, unit: Unit, key: JobKey, tickets: frozenset[str]) -> Lease:
        missing = self.leases.missing(row)
        return Lease(
            key=key,
            unit=unit.unit,
            nonce=row["nonce"],
            tickets=tickets,
            tickets_dropped=len(tickets) >= MOST_KEPT,
            package=row["package"],
            package_sha256=row["package_sha256"],
            input_sha256=row["input_sha256"],
            items=row["items"],
            slice_items=row["slice_items"],
            wanted=missing[: row["granted_slices"]],
            left_over=len(missing),
            held_ms=self.now_ms() - row["granted_ms"],
            longest_ms=longest_ms(row["ttl_s"]),
            estimate_us_per_item=row["estimate_us_per_item"],
            price_micro_per_item=row["price_micro_per_item"],
            replica_of=row["replica_of"],
        )

    def statement_with(self, keyid: str, counter: int) -> bytes | None:
        """The envelope of the accepted statement of this unit's key with this counter; None: there is none."""
        row = self.database.row(
            "SELECT envelope FROM handins WHERE keyid = :keyid AND counter = :counter", keyid=keyid, counter=counter
        )
        return None if row is None else bytes(row["envelope"])

    def session(self, keyid: str, number: int) -> UsedSession | None:
        """The session of this number that this unit's key certified, as it came first; None: there was none."""
        return self._sessions.of(keyid, number)

    def settle(
        self, lease: Lease, unit: Unit, accepted: Accepted, statement_sha256: str, *, forgive: bool = True
    ) -> int | None:
        """Take the slices, pay for them, and end the lease; what was paid, or None when the fence had moved.

        With `forgive`, what was held against the unit is less, or gone: it did what it was asked.
        """
        paid_by_slice = {
            entry.index: lease.price_micro_per_item * (entry.items - entry.failed_items) for entry in accepted.slices
        }
        paid_micro = sum(paid_by_slice.values())
        done = len(paid_by_slice) == lease.left_over
        statement = accepted.statement
        raw_sha256 = {entry.index: entry.raw_sha256 for entry in statement.slices}
        now_ms = self.now_ms()
        with self.database.transaction():
            if not self._end_lease(lease, "done" if done else "free", progress=bool(paid_by_slice)):
                return None
            if accepted.session is not None:
                self._sessions.note(accepted.keyid, accepted.session)
            self.database.execute(
                "INSERT INTO handins (job, epoch, unit, verdict, statement_sha256, paid_micro, micro_wh, at_ms,"
                " equivalence_class, items, compute_ms, session, keyid, counter, envelope) VALUES (:job, :epoch, :unit,"
                " 'settled', :statement, :paid, :micro_wh, :now, :class, :items, :compute_ms, :session, :keyid,"
                " :counter, :envelope)",
                job=lease.key.job,
                epoch=lease.key.epoch,
                unit=lease.unit,
                statement=statement_sha256,
                paid=paid_micro,
                micro_wh=statement.energy.micro_wh,
                now=now_ms,
                session=None if accepted.session is None else accepted.session.number,
                keyid=accepted.keyid,
                counter=statement.counter,
                envelope=accepted.envelope,
                items=sum(entry.items for entry in statement.slices),
                compute_ms=sum(entry.compute_ms for entry in statement.slices),
                **{"class": statement.equivalence_class},
            )
            self.copies.note_class(unit.unit, lease.package_sha256, statement.equivalence_class)
            self.database.many(
                "INSERT INTO results (job, slice, epoch, items, failed_items, raw_sha256, paid_micro, output_sha256,"
                " body) VALUES (:job, :slice, :epoch, :items, :failed, :raw, :paid, :sha256, :body)",
                [
                    {
                        "job": lease.key.job,
                        "slice": entry.index,
                        "epoch": lease.key.epoch,
                        "items": entry.items,
                        "failed": entry.failed_items,
                        "paid": paid_by_slice[entry.index],
                        "sha256": entry.output_sha256,
                        "body": entry.body,
                        "raw": raw_sha256[entry.index],
                    }
                    for entry in accepted.slices
                ],
            )
            self._tickets.forget(lease.key)
            if forgive:
                self.units.note_settled(unit)
            if done:
                self.copies.on_done(lease.key.job, lease.replica_of, now_ms)
            self.database.on_commit(partial(self._note_rate, lease, unit, statement))
        return paid_micro

    def _note_rate(self, lease: Lease, unit: Unit, statement: Statement) -> None:
        items = sum(entry.items for entry in statement.slices)
        took_ms = sum(entry.compute_ms for entry in statement.slices)
        self._rates.note(lease.package_sha256, unit.device_class, items, took_ms, lease.estimate_us_per_item)

    def refuse(self, lease: Lease, reason: str, statement_sha256: str) -> None:
        """The unit itself signed something wrong: the lease is over, unpaid, and its slices are wanted again."""
        now_ms = self.now_ms()
        with self.database.transaction():
            if self._end_lease(lease, "free", progress=False):
                self.database.execute(
                    "INSERT INTO handins (job, epoch, unit, verdict, reason, statement_sha256, at_ms)"
                    " VALUES (:job, :epoch, :unit, 'bad', :reason, :statement, :now)",
                    job=lease.key.job,
                    epoch=lease.key.epoch,
                    unit=lease.unit,
                    reason=reason,
                    statement=statement_sha256,
                    now=now_ms,
                )
                self._tickets.forget(lease.key)
                self.leases.note_bad(lease.unit, lease.key, reason, now_ms)

    def give_back(self, lease: Lease, why: YieldReason, detail: str) -> bool:
        """The unit gave the lease back with nothing done; False when it was over anyway.

        It stays the holder: a hand-in may come after all.
        """
        return self.leases.give_back(lease.unit, lease.key, why, detail, self.now_ms())

    def wait_for_uploads(self, lease: Lease, arrived_bytes: int) -> None:
        """The unit has finished, and so much of its answers is here: give the job to nobody else while more comes."""
        self.leases.hold(lease.unit, lease.key, arrived_bytes, self.now_ms())

    def note_reason(self, lease: Lease, why: YieldReason, detail: str) -> None:
        """Why a lease was given back says something of unit and job: what is offered next depends on it."""
        row = self.leases.row(lease.key.job)
        if row is not None:
            self.leases.note_reason(lease.unit, row, why, detail, self.now_ms())

    def _end_lease(self, lease: Lease, state: str, *, progress: bool) -> bool:
        """The fence: only the holder of the job's present epoch ends its lease, and only once.

        All of it is in the one row that is changed: another replica that waits for the row looks at it again.
        """
        ended = self.database.execute(
            "UPDATE jobs SET settled_epoch = :epoch,"
            " state = CASE WHEN :state = 'done' THEN 'done' WHEN state = 'cancelled' THEN 'cancelled'"
            " WHEN state = 'dead' AND :progress = 0 THEN 'dead' ELSE 'free' END,"
            " failures = CASE WHEN :progress = 1 THEN 0 ELSE failures END,"
            " not_before_ms = CASE WHEN :progress = 1 THEN 0 ELSE not_before_ms END,"
            " progress_epoch = CASE WHEN :progress = 1 THEN :epoch ELSE progress_epoch END"
            " WHERE job = :job AND epoch = :epoch AND holder = :unit AND settled_epoch < :epoch",
            job=lease.key.job,
            epoch=lease.key.epoch,
            unit=lease.unit,
            state=state,
            progress=int(progress),
        )
        return ended == 1
