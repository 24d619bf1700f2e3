"""No slice is paid twice and none is lost, whatever order messages come in, get lost, repeat, or expire."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import JobGrant, Result, Yield
from hil.dispatcher.view import View
from tests.hil.honest_car import PRICE, Car, Desk

TTL_S = 100


class Dispatching(RuleBasedStateMachine):
    """Two cars and three jobs; `paid` is what cars were told that they got, once for each hand-in."""

    held: Bundle[tuple[Car, JobGrant]] = Bundle("held")
    posted: Bundle[tuple[Car, Result | Yield]] = Bundle("posted")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.desk = Desk(Path(self._folder.name))
        self.cars = [self.desk.new_car("car-1"), self.desk.new_car("car-2")]
        self.having: dict[str, set[JobKey]] = {car.unit: set() for car in self.cars}
        self.paid: dict[tuple[str, JobKey], int] = {}
        self.jobs: dict[str, int] = {}

    @initialize()
    def put_jobs_up(self) -> None:
        for items, slice_items in ((1, 1), (7, 3), (8, 2)):
            self.jobs[self.desk.add_job(items, slice_items, ttl_s=TTL_S)] = items

    @rule(target=held, car=st.integers(0, 1), told=st.booleans())
    def ask(self, car: int, told: bool) -> tuple[Car, JobGrant] | MultipleResults[tuple[Car, JobGrant]]:
        """Ask for work, naming what is held or (after a power cut) nothing."""
        asking = self.cars[car]
        have = self.having[asking.unit] if told else set()
        grant = asking.request(*have)
        if grant is None:
            return multiple()
        self.having[asking.unit].add(JobKey(grant.job, grant.epoch))
        return asking, grant

    @rule(car=st.integers(0, 1))
    def ask_and_lose_the_answer(self, car: int) -> None:
        self.cars[car].request(*self.having[self.cars[car].unit])

    @rule(target=posted, lease=held)
    def finish(self, lease: tuple[Car, JobGrant]) -> tuple[Car, Result | Yield]:
        """Sign a result; when it arrives is another matter."""
        return lease[0], lease[0].result(lease[1])

    @rule(target=posted, lease=consumes(held), data=st.data())
    def give_up(self, lease: tuple[Car, JobGrant], data: st.DataObject) -> tuple[Car, Result | Yield]:
        car, grant = lease
        slices = data.draw(st.lists(st.sampled_from(grant.slices), unique=True).map(sorted))
        return car, car.yielded(grant, tuple(slices))

    @rule(post=posted, lost=st.booleans())
    def deliver(self, post: tuple[Car, Result | Yield], lost: bool) -> None:
        """Once, again, late or never; the verdict may be lost on its way back."""
        car, message = post
        verdict = car.hand_in(message)
        key = JobKey(message.job, message.epoch)
        assert verdict.verdict in (Verdict.SETTLED, Verdict.DUPLICATE, Verdict.STALE)
        if lost:
            return
        self.having[car.unit].discard(key)
        if verdict.paid_micro:
            assert self.paid.setdefault((car.unit, key), verdict.paid_micro) == verdict.paid_micro

    @rule(seconds=st.sampled_from([1, TTL_S // 2 + 1, TTL_S]))
    def wait(self, seconds: int) -> None:
        self.desk.now_ms += 1000 * seconds

    @rule()
    def restart(self) -> None:
        self.desk.book.close()
        fresh = Desk(self.desk.folder)
        fresh.now_ms, fresh.key, fresh.service._key = self.desk.now_ms, self.desk.key, self.desk.key
        self.desk = fresh
        for car in self.cars:
            car.peer = fresh

    @invariant()
    def the_books_balance(self) -> None:
        with View(self.desk.folder) as view:
            jobs = view.jobs()
            payouts = view.payouts()
        for job in jobs:
            assert (job.state == "done") == (job.slices_done == job.slices)
            assert job.paid_micro == PRICE * (job.items_done - job.items_failed)
        assert sum(payout.paid_micro for payout in payouts) == sum(job.paid_micro for job in jobs)
        assert sum(self.paid.values()) <= sum(job.paid_micro for job in jobs)

    def teardown(self) -> None:
        """An honest car that stays finishes everything, and everything was paid exactly once."""
        self.desk.now_ms += 1000 * TTL_S
        if self.jobs:
            while (grant := self.cars[0].request()) is not None:
                assert self.cars[0].hand_in(self.cars[0].result(grant)).verdict is Verdict.SETTLED
            with View(self.desk.folder) as view:
                for job, items in self.jobs.items():
                    expected = [None if number == 3 else {"item": number} for number in range(items)]
                    assert view.answers(job) == expected
                answered = sum(items - (items > 3) for items in self.jobs.values())
                assert sum(payout.paid_micro for payout in view.payouts()) == PRICE * answered
                assert len(view.attestations()) == sum(payout.leases for payout in view.payouts())
        assert self.desk.service.counts["crashed"] == 0
        self.desk.book.close()
        self._folder.cleanup()


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)
