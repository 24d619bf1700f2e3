"""The book of jobs: who holds which lease, what was delivered, and what was paid. Rows decide; nothing is in memory.

(job, epoch) fences a job: each grant takes the next epoch. How leases are given out is in `hil.dispatcher.leases`, how
they end without a result in `hil.dispatcher.endings`, what becomes of a hand-in in `hil.dispatcher.handins`, and how
finished work is checked in `hil.dispatcher.copies`. Here they are put together, over one database.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import msgspec

from agent.core.model import JobKey, Outlook
from agent.errors import FleetError
from agent.fleet.messages import JobGrant
from hil.dispatcher.copies import Checking, Copies, ReadObject, Tolerances
from hil.dispatcher.database import Database, Row, SqliteDatabase
from hil.dispatcher.endings import EXPIRED_AT_ONCE, MAX_FAILURES
from hil.dispatcher.handins import HandIns
from hil.dispatcher.known_jobs import KnownJobs
from hil.dispatcher.leases import Holding, Leases, Places, job_grant
from hil.dispatcher.ledgers import Ledgers
from hil.dispatcher.orders import Orders
from hil.dispatcher.paces import Paces
from hil.dispatcher.pay import HoldBack, Pay
from hil.dispatcher.rates import Rates
from hil.dispatcher.referee_tasks import RefereeTasks
from hil.dispatcher.replication import ByClassOrValue, Comparator, NoReplication, Replication
from hil.dispatcher.sealing import SealingKeyBook
from hil.dispatcher.submissions import Submissions
from hil.dispatcher.tickets import Tickets
from hil.dispatcher.units import Unit, Units
from hil.dispatcher.unwitnessed import Unwitnessed
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
        known_permille: int = 0,
        hold_back: HoldBack | None = None,
        max_failures: int = MAX_FAILURES,
    ) -> None:
        self.database = database
        database.in_use()
        self.units = Units(database)
        self.orders = Orders(database)
        self.paces = Paces(database)
        self.upload_rights = UploadRights(database)
        self.ledgers, self.unwitnessed = Ledgers(database), Unwitnessed(database)
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

        def secret() -> str:
            return self.secret("audit_draw")

        self.referee_tasks = RefereeTasks(database, known_permille, secret)
        finished = self.referee_tasks.on_done if known_permille else None
        self.copies = Copies(database, checking, self._pay, secret, finished)
        self.known_jobs = KnownJobs(database, self.copies)
        self.handins = HandIns(
            database,
            units=self.units,
            unwitnessed=self.unwitnessed,
            leases=self.leases,
            copies=self.copies,
            rates=self._rates,
            tickets=self._tickets,
        )
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
