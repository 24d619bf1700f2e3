"""Pay that is held back: nothing is lost between held, released and forfeited, whatever happens in whatever order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import Verdict
from hil.dispatcher.pay import HeldPay, HoldBack, accounts, releasable
from hil.dispatcher.replication import AdaptiveReplication
from tests.hil.honest_car import PRICE, Car, Desk
from tests.hil.test_dispatcher_copies import wrong_in

pytestmark = pytest.mark.usefixtures("each_database")

HELD = st.builds(HeldPay, job=st.just("j"), epoch=st.integers(1, 10**6), cleared=st.booleans(), disputed=st.booleans())


@given(st.lists(HELD, max_size=30, unique_by=lambda one: one.epoch), st.integers(0, 10))
def test_only_cleared_pay_with_enough_cleared_after_it_is_released(held: list[HeldPay], keep: int) -> None:
    released = releasable(held, keep)
    assert all(one.cleared and not one.disputed for one in released)
    for one in released:
        assert sum(other.cleared for other in held[held.index(one) + 1 :]) >= keep
    kept = [one for one in held if one not in released]
    assert sum(one.cleared for one in kept) >= min(keep, sum(one.cleared for one in held)), "so much is always at stake"
    once_more = [one for one in kept if one.cleared and not one.disputed]
    assert all(sum(other.cleared for other in held[held.index(one) + 1 :]) < keep for one in once_more)


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["work", "cheat", "other", "third", "week"]), max_size=12), keep=st.integers(0, 2)
)
def test_the_sums_always_add_up(tmp_path_factory: pytest.TempPathFactory, steps: list[str], keep: int) -> None:
    desk = Desk(
        tmp_path_factory.mktemp("desk"),
        replication=AdaptiveReplication(trust=10**6),
        hold_back=HoldBack(keep=keep, age_ms=7 * 86_400_000),
    )
    cars = {name: desk.new_car(f"car-{name}") for name in ("work", "other", "third")}
    paid, final = dict.fromkeys(cars, 0), dict.fromkeys(cars, (0, 0))
    for step in steps:
        if step == "week":
            desk.now_ms += 8 * 86_400_000
        else:
            name = "work" if step == "cheat" else step
            desk.add_job()
            grant = cars[name].must_request()
            result = wrong_in(cars[name], grant, 1) if step == "cheat" else cars[name].result(grant)
            verdict = cars[name].hand_in(result)
            assert verdict.verdict is Verdict.SETTLED
            paid[name] += verdict.paid_micro
        desk.book.keep_house(desk.now_ms)
        found = {one.unit: one for one in accounts(desk.book.database)}
        for name in cars:
            one = found.get(f"car-{name}")
            assert (one.settled_micro if one else 0) == paid[name], "each is in exactly one place"
            now = (one.released_micro, one.forfeited_micro) if one else (0, 0)
            assert now[0] >= final[name][0], "what is released stays so"
            assert now[1] >= final[name][1], "what is forfeited stays so"
            assert name == "work" or now[1] == 0, "no honest unit loses anything"
            final[name] = now
    desk.book.close()


def test_pay_that_nobody_looked_at_is_released_when_it_has_aged(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d", hold_back=HoldBack(keep=1, age_ms=1000))
    car = desk.new_car("car-1")
    for _ in range(3):
        desk.add_job()
        car.hand_in(car.result(car.must_request()))
        desk.now_ms += 10
    assert _account(desk, car) == (27 * PRICE, 0, 0)
    desk.now_ms += 100_000
    desk.book.keep_house(desk.now_ms)
    assert _account(desk, car) == (9 * PRICE, 18 * PRICE, 0), "the newest stays at stake"
    desk.book.close()


def test_a_ledger_in_dispute_is_paid_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d", hold_back=HoldBack(keep=0, age_ms=1000))
    car = desk.new_car("car-1")
    desk.add_job()
    car.hand_in(car.result(car.must_request()))
    desk.book.database.execute("UPDATE units SET ledger_fault = 'fork'")
    desk.now_ms += 100_000
    desk.book.keep_house(desk.now_ms)
    assert _account(desk, car) == (9 * PRICE, 0, 0)
    desk.book.database.execute("UPDATE units SET ledger_fault = ''")
    desk.now_ms += 100_000
    desk.book.keep_house(desk.now_ms)
    assert _account(desk, car) == (0, 9 * PRICE, 0)
    desk.book.close()


def _account(desk: Desk, car: Car) -> tuple[int, int, int]:
    (one,) = [one for one in accounts(desk.book.database) if one.unit == car.unit]
    return one.held_micro, one.released_micro, one.forfeited_micro
