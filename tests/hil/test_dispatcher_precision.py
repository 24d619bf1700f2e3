"""A precision that is owned up to is taken where the package allows it, and refused where it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.model import Verdict
from agent.trust.statement import SelfTest, Statement, equivalence_class
from hil.dispatcher import judge
from hil.dispatcher.tolerance import Tolerance
from tests.hil.honest_car import PACKAGE, Desk

GOLDEN = SelfTest(outcome="passed", raw_sha256="0d" * 32, age_ms=60_000)


def claiming(precision: str) -> Callable[[Statement], Statement]:
    def bend(statement: Statement) -> Statement:
        engine = replace(statement.engine, precision=precision, batch=(1,))
        told = equivalence_class(statement.model_sha256, engine, statement.device)
        return replace(statement, engine=engine, self_test=GOLDEN, equivalence_class=told)

    return bend


@pytest.fixture
def strict(tmp_path: Path) -> Desk:
    allowed = Tolerance(bands_ppm={"float32": 200, "tf32": 40_000})
    return Desk(tmp_path / "d", tolerances={PACKAGE.sha256: allowed}.get)


def test_what_the_package_does_not_allow_is_bad_and_somebody_elses(strict: Desk) -> None:
    car, other = strict.new_car("car-1"), strict.new_car("car-2")
    strict.add_job()
    verdict = car.hand_in(car.result(car.must_request(), bend=claiming("float16")))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.BAD, 0)
    assert verdict.reason == "precision is float16, and ocr may be run in float32, tf32"
    assert issubclass(judge.PrecisionError, judge.MisstatementError)
    assert other.hand_in(other.result(other.must_request(), bend=claiming("tf32"))).verdict is Verdict.SETTLED
    row = strict.book.database.row("SELECT precision FROM handins WHERE verdict = 'settled'")
    assert row is not None
    assert row["precision"] == "tf32"
    strict.book.close()


def test_statements_of_before_settle(strict: Desk) -> None:
    car = strict.new_car("car-1")
    strict.add_job()
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    strict.book.close()


def test_where_the_package_does_not_say_any_precision_is_taken(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d")
    car = desk.new_car("car-1")
    desk.add_job()
    assert car.hand_in(car.result(car.must_request(), bend=claiming("float16"))).verdict is Verdict.SETTLED
    desk.book.close()
