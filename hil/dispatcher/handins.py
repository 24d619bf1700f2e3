"""What comes back from leases: what a hand-in meets, how it is settled and paid, and how a lease ends unpaid.

(job, epoch) fences a job: a hand-in counts only while its epoch is the job's, its unit the holder, and no hand-in of
that epoch was judged, in one compare-and-set (`_end_lease`). An expired lease that nobody else was given still settles:
its epoch is still the job's. So is one that was freed: freeing keeps epoch and holder.

A finished slice is paid once, for the items it answered (not those it failed); what a lease left over becomes FREE.
What a hand-in has to show before it is settled is in `hil.dispatcher.judge`.
"""

from __future__ import annotations

from functools import partial

import msgspec

from agent.core.model import JobKey, Verdict, YieldReason
from agent.trust.statement import Statement
from hil.dispatcher.copies import Copies
from hil.dispatcher.database import Database, Row
from hil.dispatcher.judge import Accepted, Lease
from hil.dispatcher.leases import Leases, longest_ms
from hil.dispatcher.rates import Rates
from hil.dispatcher.sessions import Sessions, UsedSession
from hil.dispatcher.tickets import MOST_KEPT, Tickets
from hil.dispatcher.tolerance import claimed_precision
from hil.dispatcher.units import Unit, Units
from hil.dispatcher.unwitnessed import Unwitnessed


class HandedIn(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that has been judged already."""

    verdict: Verdict
    reason: str
    paid_micro: int
    statement_sha256: str


class HandIns:
    """Part of the book; see there for threads and errors."""

    def __init__(
        self,
        database: Database,
        *,
        units: Units,
        unwitnessed: Unwitnessed,
        leases: Leases,
        copies: Copies,
        rates: Rates,
        tickets: Tickets,
    ) -> None:
        self._database, self._units, self._leases, self._copies = database, units, leases, copies
        self._unwitnessed, self._rates, self._tickets, self._sessions = unwitnessed, rates, tickets, Sessions(database)

    def standing(self, unit: Unit, key: JobKey) -> Lease | HandedIn | None:
        """What a hand-in of `unit` for `key` meets: its lease, the verdict it has had, or None when it is stale."""
        rows = self._database.rows(
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
        missing = self._leases.missing(row)
        return Lease(
            key=key,
            unit=unit.unit,
            nonce=row["nonce"],
            tickets=tickets,
            tickets_dropped=len(tickets) >= MOST_KEPT,
            package=row["package"],
            package_sha256=row["package_sha256"],
            precisions=self._copies.precisions(row["package_sha256"]),
            input_sha256=row["input_sha256"],
            items=row["items"],
            slice_items=row["slice_items"],
            wanted=missing[: row["granted_slices"]],
            left_over=len(missing),
            held_ms=self._database.now_ms() - row["granted_ms"],
            longest_ms=longest_ms(row["ttl_s"]),
            estimate_us_per_item=row["estimate_us_per_item"],
            price_micro_per_item=row["price_micro_per_item"],
            replica_of=row["replica_of"],
        )

    def statement_with(self, keyid: str, counter: int) -> bytes | None:
        """The envelope of the accepted statement of this unit's key with this counter; None: there is none."""
        row = self._database.row(
            "SELECT envelope FROM handins WHERE keyid = :keyid AND counter = :counter", keyid=keyid, counter=counter
        )
        return None if row is None else bytes(row["envelope"])

    def session(self, keyid: str, number: int) -> UsedSession | None:
        """The session of this number that this unit's key certified, as it came first; None: there was none."""
        return self._sessions.of(keyid, number)

    def sessions_beside(self, keyid: str, number: int) -> list[UsedSession]:
        """The sessions next to this number, below and above, that this unit's key certified and that came already."""
        return self._sessions.beside(keyid, number)

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
        now_ms = self._database.now_ms()
        with self._database.transaction():
            if not self._end_lease(lease, "done" if done else "free", progress=bool(paid_by_slice)):
                return None
            self._sessions.note(accepted.keyid, accepted.session)
            self._database.execute(
                "INSERT INTO handins (job, epoch, unit, verdict, statement_sha256, paid_micro, micro_wh, at_ms,"
                " equivalence_class, precision, items, compute_ms, session, keyid, counter, envelope) VALUES"
                " (:job, :epoch, :unit, 'settled', :statement, :paid, :micro_wh, :now, :class, :precision, :items,"
                " :compute_ms, :session, :keyid, :counter, :envelope)",
                job=lease.key.job,
                epoch=lease.key.epoch,
                unit=lease.unit,
                statement=statement_sha256,
                paid=paid_micro,
                micro_wh=statement.energy.micro_wh,
                now=now_ms,
                session=accepted.session.number,
                keyid=accepted.keyid,
                counter=statement.counter,
                envelope=accepted.envelope,
                precision=claimed_precision(statement.engine),
                items=sum(entry.items for entry in statement.slices),
                compute_ms=sum(entry.compute_ms for entry in statement.slices),
                **{"class": statement.equivalence_class},
            )
            self._copies.note_class(unit.unit, lease.package_sha256, statement.equivalence_class)
            self._database.many(
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
            self._unwitnessed.note_settled(unit.unit, statement.log_index, now_ms)
            if forgive:
                self._units.note_settled(unit)
            if done:
                self._copies.on_done(lease.key.job, lease.replica_of, now_ms)
            self._database.on_commit(partial(self._note_rate, lease, unit, statement))
        return paid_micro

    def _note_rate(self, lease: Lease, unit: Unit, statement: Statement) -> None:
        items = sum(entry.items for entry in statement.slices)
        took_ms = sum(entry.compute_ms for entry in statement.slices)
        self._rates.note(lease.package_sha256, unit.device_class, items, took_ms, lease.estimate_us_per_item)

    def refuse(self, lease: Lease, reason: str, statement_sha256: str) -> None:
        """The unit itself signed something wrong: the lease is over, unpaid, and its slices are wanted again."""
        now_ms = self._database.now_ms()
        with self._database.transaction():
            if self._end_lease(lease, "free", progress=False):
                self._database.execute(
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
                self._leases.note_bad(lease.unit, lease.key, reason, now_ms)

    def give_back(self, lease: Lease, why: YieldReason, detail: str) -> bool:
        """The unit gave the lease back with nothing done; False when it was over anyway.

        It stays the holder: a hand-in may come after all.
        """
        return self._leases.give_back(lease.unit, lease.key, why, detail, self._database.now_ms())

    def wait_for_uploads(self, lease: Lease, arrived_bytes: int) -> None:
        """The unit has finished, and so much of its answers is here: give the job to nobody else while more comes."""
        self._leases.hold(lease.unit, lease.key, arrived_bytes, self._database.now_ms())

    def wait_for_witness(self, lease: Lease) -> bool:
        """The hand-in is put off until more of the unit's ledger is witnessed; whether the unit was not put off before.

        The job is given to nobody else for a while, once.
        """
        now_ms = self._database.now_ms()
        self._leases.hold(lease.unit, lease.key, 0, now_ms)
        return self._unwitnessed.put_off(lease.unit, now_ms)

    def note_reason(self, lease: Lease, why: YieldReason, detail: str) -> None:
        """Why a lease was given back says something of unit and job: what is offered next depends on it."""
        row = self._leases.row(lease.key.job)
        if row is not None:
            self._leases.note_reason(lease.unit, row, why, detail, self._database.now_ms())

    def _end_lease(self, lease: Lease, state: str, *, progress: bool) -> bool:
        """The fence: only the holder of the job's present epoch ends its lease, and only once.

        All of it is in the one row that is changed: another replica that waits for the row looks at it again.
        """
        ended = self._database.execute(
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
