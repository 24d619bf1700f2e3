"""The accounts of a fleet run can say that something was lost, or settled twice."""

from __future__ import annotations

from agent.core.model import Verdict
from hil.fleet.accounts import SettledRow, balance
from hil.fleet.report import Books
from hil.fleet.shells import Settled


def told(number: int, verdict: Verdict = Verdict.SETTLED, paid: int = 50) -> Settled:
    return Settled(f"job-{number}", 1, verdict, paid, f"{number:064x}")


def row(number: int, paid: int = 50) -> SettledRow:
    return SettledRow(f"job-{number}", 1, paid, f"{number:064x}")


def of(
    cars: list[Settled], rows: list[SettledRow], *, made: int | None = None, owed: int = 0, twice_paid: int = 0
) -> Books:
    return balance(len(cars) if made is None else made, owed, cars, rows, twice_paid=twice_paid)


def test_both_sides_agree() -> None:
    books = of([told(1), told(2, Verdict.DUPLICATE), told(3, Verdict.STALE, 0)], [row(1), row(2)])
    assert (books.lost, books.doubled) == (0, 0)
    assert (books.settled, books.duplicate, books.stale) == (1, 1, 1)
    assert books.paid_micro == books.book_paid_micro == 100


def test_a_hand_in_that_only_the_car_calls_settled_is_lost() -> None:
    assert of([told(1), told(2)], [row(1)]).lost == 1


def test_a_hand_in_that_only_the_book_calls_settled_is_lost() -> None:
    assert of([told(1), told(2, Verdict.BAD, 0)], [row(1), row(2)]).lost == 1


def test_a_hand_in_of_which_nobody_knows_the_end_is_lost() -> None:
    assert of([told(1)], [row(1)], made=2).lost == 1
    assert of([told(1)], [row(1)], made=2, owed=1).lost == 0


def test_other_money_or_another_statement_is_lost() -> None:
    assert of([told(1, paid=60)], [row(1)]).lost == 1
    assert of([told(1)], [SettledRow("job-1", 1, 50, "f" * 64)]).lost == 2


def test_settled_twice_is_doubled_whoever_says_so() -> None:
    assert of([told(1), told(1)], [row(1)], made=2).doubled == 1
    assert of([told(1)], [row(1), row(1)]).doubled == 1
    assert of([told(1)], [row(1)], twice_paid=1).doubled == 1
