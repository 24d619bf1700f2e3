"""The dispatcher as a state machine: honest cars over a real book, and a pipe that loses, repeats and reorders.

The model knows nothing of rows. It believes only what cars were told, and holds the dispatcher to that: which lease was
given to whom and until when, which slices were paid and by which hand-in.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from agent.core.model import JobKey, Verdict, YieldReason
from agent.fleet.messages import JobGrant, Result, Yield
from agent.fleet.operator_messages import CancelMessage
from agent.trust.keys import FileSigner
from agent.trust.statement import parse_statement
from hil.dispatcher.database import Database, SqliteDatabase
from hil.dispatcher.replication import AdaptiveReplication
from hil.dispatcher.view import View
from tests.hil.honest_car import PRICE, Car, Desk, answer_to

TTL_S = 100
LONG_S = 4_000
"""Leases of so long are renewed."""
LONG_AGO_MS = 2 * 3_600_000

MakeDatabase = Callable[[Callable[[], int]], Database]


class Dispatching(RuleBasedStateMachine):
    """Two cars, three jobs, and copies of all of them; in the end a third car. Subclasses say where the book is."""

    held: Bundle[tuple[Car, JobGrant]] = Bundle("held")
    posted: Bundle[tuple[Car, Result | Yield]] = Bundle("posted")
    make_database: ClassVar[Callable[[Path], MakeDatabase]]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._database = type(self).make_database(Path(self._folder.name))
        self.desk = self._new_desk()
        self.cars = [self.desk.new_car(f"car-{number}") for number in range(2)]
        self.having: dict[str, set[JobKey]] = {car.unit: set() for car in self.cars}
        self.jobs: dict[str, int] = {}
        self.ttl_s: dict[str, int] = {}
        self.newest: dict[str, tuple[int, str]] = {}
        self.until_ms: dict[JobKey, int] = {}
        self.paid_by: dict[tuple[str, int], tuple[str, JobKey]] = {}
        self.told: dict[JobKey, int] = {}
        self.restarts = 0
        self.old_requests: dict[str, bytes] = {}
        self.withdrawn: set[str] = set()

    def _new_desk(self, key: FileSigner | None = None) -> Desk:
        return Desk(
            Path(self._folder.name),
            key=key,
            database=self._database,
            replication=AdaptiveReplication(trust=10**9),
            max_failures=10**6,
        )

    @initialize()
    def put_jobs_up(self) -> None:
        for items, slice_items, ttl_s in ((2, 2, TTL_S), (7, 3, TTL_S), (4, 2, LONG_S)):
            job = self.desk.add_job(items, slice_items, ttl_s=ttl_s)
            self.jobs[job], self.ttl_s[job] = items, ttl_s

    @rule(target=held, car=st.integers(0, 1), told=st.booleans())
    def ask(self, car: int, told: bool) -> tuple[Car, JobGrant] | MultipleResults[tuple[Car, JobGrant]]:
        """Ask for work, naming what is held or (after a power cut) nothing."""
        asking = self.cars[car]
        if not told:
            self._forget_all(asking)
        grant = asking.request(*self.having[asking.unit])
        if not self.having[asking.unit]:
            self.old_requests.setdefault(asking.unit, asking.last_request)
        if grant is None:
            return multiple()
        self._granted(asking, grant)
        self.having[asking.unit].add(JobKey(grant.job, grant.epoch))
        return asking, grant

    @rule(car=st.integers(0, 1))
    def ask_and_lose_the_answer(self, car: int) -> None:
        asking = self.cars[car]
        grant = asking.request(*self.having[asking.unit])
        if grant is not None:
            self._granted(asking, grant)
            self.until_ms.pop(JobKey(grant.job, grant.epoch))  # the car knows nothing of it

    @rule(car=st.integers(0, 1))
    def an_old_request_comes_again(self, car: int) -> None:
        """The pipe says again what the car asked first of all, which now heeds no answer to it."""
        asking = self.cars[car]
        if asking.unit in self.old_requests:
            asking.say("request", self.old_requests[asking.unit])
            granted = asking.hear_grant().job
            if granted is not None:
                key = JobKey(granted.job, granted.epoch)
                known_until_ms = self.until_ms.get(key)
                self._granted(asking, granted)
                if known_until_ms is None:
                    self.until_ms.pop(key)

    @rule(lease=held)
    def renew(self, lease: tuple[Car, JobGrant]) -> None:
        car, grant = lease
        key = JobKey(grant.job, grant.epoch)
        again = car.renew(grant)
        if isinstance(again, CancelMessage):
            assert (again.job, again.epoch) == key_of(grant)
            self.until_ms.pop(key, None)
            return
        assert (again.job, again.epoch, again.nonce, again.slices) == (*key_of(grant), grant.nonce, grant.slices)
        assert again.ttl_s == self.ttl_s.get(grant.job, again.ttl_s), "a renewal gives the time anew"
        self._granted(car, again)

    @rule(target=posted, lease=held, deliveries=st.integers(0, 2))
    def finish(self, lease: tuple[Car, JobGrant], deliveries: int) -> tuple[Car, Result | Yield]:
        """Sign a result, which arrives once, twice, or another time."""
        post: tuple[Car, Result | Yield] = lease[0], lease[0].result(lease[1])
        for _ in range(deliveries):
            self.deliver(post, lost=False)
        return post

    @rule(
        target=posted,
        lease=consumes(held),
        why=st.sampled_from([YieldReason.DRIVER, YieldReason.FAULT, YieldReason.SHORT, YieldReason.REFUSED]),
        data=st.data(),
    )
    def give_up(self, lease: tuple[Car, JobGrant], why: YieldReason, data: st.DataObject) -> tuple[Car, Result | Yield]:
        car, grant = lease
        slices = data.draw(st.lists(st.sampled_from(grant.slices), unique=True).map(sorted))
        self.until_ms.pop(JobKey(grant.job, grant.epoch), None)
        return car, car.yielded(grant, tuple(slices), why)

    @rule(post=posted, lost=st.booleans())
    def arrive(self, post: tuple[Car, Result | Yield], lost: bool) -> None:
        """Again, late or for the first time; the verdict may be lost on its way back."""
        self.deliver(post, lost=lost)

    def deliver(self, post: tuple[Car, Result | Yield], *, lost: bool) -> None:
        car, message = post
        key = JobKey(message.job, message.epoch)
        verdict = car.hand_in(message)
        assert verdict.verdict in (Verdict.SETTLED, Verdict.DUPLICATE, Verdict.STALE), verdict.reason
        if verdict.verdict is Verdict.SETTLED and message.statement is not None:
            self._settled(car, key, message, verdict.paid_micro)
        if verdict.verdict is Verdict.DUPLICATE:
            assert self.told[key] == verdict.paid_micro, "a duplicate is what was settled"
        self.until_ms.pop(key, None)
        if not lost:
            self.having[car.unit].discard(key)

    @rule(job=st.integers(0, 2), grace_s=st.sampled_from([0, 30]))
    def cancel(self, job: int, grace_s: int) -> None:
        """The operator takes a lease back; the message may get lost, and the car may finish all the same."""
        message = self.desk.service.cancel(list(self.jobs)[job], grace_s, "because")
        self.desk.sent.clear()
        if message is not None:
            self.until_ms.pop(JobKey(message.job, message.epoch), None)

    @rule(job=st.integers(0, 2), grace_s=st.sampled_from([0, 30]))
    def withdraw(self, job: int, grace_s: int) -> None:
        """The customer changes his mind: nobody is given the job any more, whatever state its leases are in."""
        name = list(self.jobs)[job]
        message = self.desk.service.cancel(name, grace_s, "not wanted", withdraw=True)
        self.desk.sent.clear()
        if message is not None:
            self.until_ms.pop(JobKey(message.job, message.epoch), None)
        self.withdrawn.add(name)

    @rule(seconds=st.sampled_from([1, TTL_S // 2 + 1, TTL_S, LONG_S // 3]))
    def wait(self, seconds: int) -> None:
        self.desk.now_ms += 1000 * seconds

    @precondition(lambda self: self.restarts < 2)
    @rule()
    def restart(self) -> None:
        self.restarts += 1
        self.desk.book.close()
        fresh = self._new_desk(self.desk.key)
        fresh.now_ms = self.desk.now_ms
        self.desk = fresh
        for car in self.cars:
            car.peer = fresh

    # --- what cars were told must hold together ---------------------------------------------------------------

    def _granted(self, car: Car, grant: JobGrant) -> None:
        """A lease, new or again: the newest of its job, and nobody else's is running."""
        key = JobKey(grant.job, grant.epoch)
        assert grant.job not in self.withdrawn, "a withdrawn job was granted"
        epoch, holder = self.newest.get(grant.job, (0, ""))
        if key.epoch == epoch:
            assert holder == car.unit, "two cars have one epoch"
        else:
            assert key.epoch > epoch, "an epoch came again"
            runs_ms = self.until_ms.get(JobKey(grant.job, epoch), 0)
            assert runs_ms <= self.desk.now_ms, "a lease was given to another while it ran"
        self.newest[grant.job] = key.epoch, car.unit
        self.until_ms[key] = self.desk.now_ms + 1000 * grant.ttl_s

    def _settled(self, car: Car, key: JobKey, message: Result | Yield, paid_micro: int) -> None:
        """A hand-in was settled: the first word on it, of the job's newest lease, and of slices nobody was paid for."""
        assert key not in self.told, "a hand-in was settled twice"
        assert self.newest[key.job] == (key.epoch, car.unit), "a lease was settled after its job was granted again"
        self.told[key] = paid_micro
        slices = statement_slices(message)
        for index in slices:
            assert self.paid_by.setdefault((key.job, index), (car.unit, key)) == (car.unit, key), "a slice paid twice"

    def _forget_all(self, car: Car) -> None:
        """A power cut: what runs there is given up."""
        self.having[car.unit].clear()
        for key in list(self.until_ms):
            if self.newest.get(key.job) == (key.epoch, car.unit):
                del self.until_ms[key]

    def _view(self) -> View:
        """What an operator would see, through the dispatcher's own connection (so it is not closed)."""
        return View(self.desk.folder, reading=self.desk.book.database)

    @invariant()
    def the_books_balance(self) -> None:
        view = self._view()
        jobs, payouts = view.jobs(), view.payouts()
        for job in jobs:
            assert (job.state == "done") == (job.slices_done == job.slices), "a job is done when all of it is"
            assert job.paid_micro == PRICE * (job.items_done - job.items_failed), "items that failed are not paid"
            workers = {unit for (name, _), (unit, _) in self.paid_by.items() if name == job.replica_of}
            assert job.holder not in workers, "a copy was granted to a unit that worked on the original"
        paid_micro = sum(job.paid_micro for job in jobs)
        assert sum(payout.paid_micro for payout in payouts) == paid_micro, "units got what jobs cost"
        assert sum(self.told.values()) <= paid_micro, "what cars were told that they got is in the book"

    def teardown(self) -> None:
        """Honest cars that stay finish everything, copies too, and everything was paid exactly once."""
        try:
            if self.jobs:
                self._finish_everything()
            assert self.desk.service.counts["crashed"] == 0
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the book and the folder; again does nothing."""
        self.desk.book.close()
        self._folder.cleanup()

    def _finish_everything(self) -> None:
        self.desk.now_ms += LONG_AGO_MS
        self.cars.append(self.desk.new_car("car-2"))  # who may check what both of the others did
        for _ in range(4):  # until what failed is granted again, and what it was copied for is done
            for car in self.cars:
                while (grant := car.request()) is not None:
                    verdict = car.hand_in(car.result(grant))
                    assert verdict.verdict is Verdict.SETTLED, verdict.reason
            self.desk.now_ms += LONG_AGO_MS
        view = self._view()
        jobs = view.jobs()
        done = {name: items for name, items in self.jobs.items() if name not in self.withdrawn}
        for job in jobs:
            if job.state == "done" and job.replica_of is None:
                done[job.job] = self.jobs[job.job]  # before it was withdrawn
            assert job.state == "done" or job.job in self.withdrawn, "every job is done in the end"
        for name, items in done.items():
            expected = [answer_to(number) for number in range(items)]
            assert view.answers(name) == expected, "every answer is there in the end"
        assert {job.replica_of for job in jobs} - {None} == set(done), "each was copied"
        assert view.disagreements() == []
        answered = sum(items - (items > 3) for items in done.values())
        withdrawn = sum(job.paid_micro for job in jobs if job.state == "cancelled")
        paid_micro = sum(payout.paid_micro for payout in view.payouts()) - withdrawn
        assert paid_micro == 2 * PRICE * answered, "everything was paid once, and once for its copy"
        assert len(view.attestations()) == sum(payout.leases for payout in view.payouts())


class OnSqlite(Dispatching):
    """Over a file whose commits are not synced: what is tested here is not the disk."""

    @staticmethod
    def make_database(folder: Path) -> MakeDatabase:  # type: ignore[override]  # a function, not a variable
        def opened(now_ms: Callable[[], int]) -> Database:
            database = SqliteDatabase(folder, now_ms)
            database.rows("PRAGMA synchronous = OFF")
            return database

        return opened


def key_of(grant: JobGrant) -> tuple[str, int]:
    return grant.job, grant.epoch


def statement_slices(message: Result | Yield) -> list[int]:
    """The slices of a hand-in, from what was signed."""
    assert message.statement is not None
    return [entry.index for entry in parse_statement(base64.b64decode(message.statement.payload)).slices]
