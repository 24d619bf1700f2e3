"""A car has to be witnessed: what runs ahead of the witness is put off, earns nothing, and is not lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.core.model import Verdict
from agent.fleet.messages import CheckpointMessage, JobGrant, LedgerFault, VerdictMessage, WaitsFor
from hil.dispatcher.pay import accounts
from hil.dispatcher.unwitnessed import AGE_MS, LEAVES, Bound
from hil.dispatcher.verdicts import WITNESS_S
from tests.hil.honest_car import PRICE, Car, Desk, bent
from tests.hil.ledger_cars import Ledger, LedgerCar, say

pytestmark = pytest.mark.usefixtures("each_database")

PAID = 9 * PRICE


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "dispatcher", unwitnessed=Bound())
    yield desk
    assert desk.service.counts["crashed"] == 0
    desk.book.close()


class Worker:
    """A car with its ledger: the certificate of its session, and two leaves a lease, statement and verdict."""

    def __init__(self, desk: Desk, car: Car) -> None:
        self.desk, self.car, self.kept = desk, car, LedgerCar(car, Ledger())
        self.kept.work(1, "session")

    def lease(self) -> JobGrant | None:
        self.desk.add_job()
        return self.car.request()

    def hand_in(self, grant: JobGrant) -> VerdictMessage:
        """Its statement is a leaf before it is sent; the verdict becomes one when it is settled."""
        index = len(self.kept.ledger.leaves)
        self.kept.work(1, "statement")
        self.result = self.car.result(grant, bend=bent(log_index=index))
        return self.again()

    def again(self) -> VerdictMessage:
        verdict = self.car.hand_in(self.result)
        if verdict.verdict is Verdict.SETTLED:
            self.kept.work(1, "verdict")
        return verdict

    def work(self) -> VerdictMessage:
        grant = self.lease()
        assert grant is not None
        return self.hand_in(grant)

    def is_witnessed(self, message: CheckpointMessage | None = None) -> None:
        answer = say(self.desk, self.car, message or self.kept.checkpoint())
        assert answer.fault is LedgerFault.NONE
        self.kept.hear(answer, self.desk.trusted())


@pytest.fixture
def worker(desk: Desk, car: Car) -> Worker:
    return Worker(desk, car)


def earned(desk: Desk) -> int:
    return sum(one.settled_micro for one in accounts(desk.book.database))


def test_a_car_that_never_sends_a_checkpoint_earns_what_fits_into_the_bound_and_no_more(
    desk: Desk, worker: Worker, other: Car
) -> None:
    settled = 0
    while (last := worker.work()).verdict is Verdict.SETTLED:
        settled += 1
    assert (last.verdict, last.waits_for, last.retry_s) == (Verdict.LATER, WaitsFor.WITNESS, WITNESS_S)
    assert "0 are witnessed" in last.reason
    assert settled == LEAVES // 2, "two leaves a lease, after that of the session"
    for _ in range(50):
        desk.now_ms += 600_000
        assert worker.lease() is None, "it is granted nothing"
        assert worker.again().verdict is not Verdict.SETTLED
    assert earned(desk) == settled * PAID
    with desk.viewing() as view:
        assert view.counts().units_put_off == 1
        assert view.counts().units_in_dispute == 0, "nothing is held against it"
    assert other.request() is not None, "its neighbour works on"


def test_a_car_whose_checkpoints_were_dropped_recovers_by_itself_and_loses_nothing(desk: Desk, worker: Worker) -> None:
    desk.book.database.in_use()
    while worker.work().verdict is Verdict.SETTLED:
        worker.kept.checkpoint()  # and the broker drops it
    before = earned(desk)
    desk.now_ms += 1_000 * WITNESS_S
    assert worker.again().waits_for is WaitsFor.WITNESS
    worker.is_witnessed()
    verdict = worker.again()
    assert (verdict.verdict, verdict.paid_micro, verdict.waits_for) == (Verdict.SETTLED, PAID, WaitsFor.NOTHING)
    assert earned(desk) == before + PAID
    with desk.viewing() as view:
        assert view.counts().units_put_off == 0
    assert worker.work().verdict is Verdict.SETTLED
    assert desk.service.counts["refused"] == 0, "none of this is odd"


def test_the_lease_of_a_hand_in_that_is_put_off_runs_on_for_a_while(desk: Desk, worker: Worker, other: Car) -> None:
    while worker.work().verdict is Verdict.SETTLED:
        pass
    desk.now_ms += 700_000  # longer than the lease
    assert other.request() is None, "it is given to nobody else"
    worker.is_witnessed()
    assert worker.again().verdict is Verdict.SETTLED


def test_a_proof_that_does_not_hold_is_no_witness(desk: Desk, worker: Worker) -> None:
    worker.is_witnessed()
    while worker.work().verdict is Verdict.SETTLED:
        pass
    message = worker.kept.checkpoint()
    worker.is_witnessed(msgspec.structs.replace(message, proof=("0" * 64, *message.proof[1:])))
    assert worker.again().waits_for is WaitsFor.WITNESS
    worker.is_witnessed()
    assert worker.again().verdict is Verdict.SETTLED


def test_nothing_stands_uncovered_for_longer_than_a_day(desk: Desk, worker: Worker) -> None:
    assert worker.work().verdict is Verdict.SETTLED
    desk.now_ms += AGE_MS
    grant = worker.lease()
    assert grant is not None
    desk.now_ms += 1
    assert worker.lease() is None
    put_off = worker.hand_in(grant)
    assert (put_off.verdict, put_off.waits_for) == (Verdict.LATER, WaitsFor.WITNESS)
    worker.is_witnessed()
    assert worker.again().verdict is Verdict.SETTLED
    desk.now_ms += 10 * AGE_MS
    worker.is_witnessed()
    assert worker.lease() is not None, "a car that slept for days is as good as before, once it is witnessed"


def test_a_car_that_is_witnessed_as_it_goes_on_is_never_put_off(desk: Desk, worker: Worker) -> None:
    for number in range(2 * LEAVES):
        if number % 32 == 0:
            worker.is_witnessed()
        assert worker.work().verdict is Verdict.SETTLED
    assert earned(desk) == 2 * LEAVES * PAID


def test_a_bound_of_none_asks_for_no_ledger(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d", unwitnessed=None)
    worker = Worker(desk, desk.new_car("car-1"))
    worker.kept.work(10 * LEAVES)
    assert worker.work().verdict is Verdict.SETTLED
    desk.now_ms += 10 * AGE_MS
    assert worker.work().verdict is Verdict.SETTLED
    desk.book.close()
