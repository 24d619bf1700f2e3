"""What the operator does about disputes and odd figures: he computes the one, and only looks at the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import PackageError
from hil.dispatcher.pay import accounts
from hil.dispatcher.plausible import band_of, flags
from hil.dispatcher.referee import Referee, UnfitJobError, Work, packages_in
from hil.packages.nothing import build_nothing_package, nothing_item
from tests.hil.honest_car import Desk, bent

pytestmark = pytest.mark.usefixtures("each_database")


def test_a_job_is_computed_slice_by_slice(tmp_path: Path) -> None:
    package = build_nothing_package(tmp_path / "packages" / "nothing")
    referee = Referee(packages_in(tmp_path / "packages"))
    assert referee.packages == (package.package_sha256,)
    body = msgspec.msgpack.encode([nothing_item(number) for number in range(5)])
    work = Work(job="j", package_sha256=package.package_sha256, items=5, slice_items=2)
    answers = asyncio.run(referee.answers(work, body))
    assert [len(msgspec.json.decode(answers[index])) for index in range(3)] == [2, 2, 1]
    assert msgspec.json.decode(answers[2]) == [{"outputs": {"y": 4}}]


@pytest.mark.parametrize(
    ("package", "body", "why"),
    [
        ("0" * 64, b"\x90", "the package of job j is not here"),
        ("", None, "the input of job j is not here"),
        ("", b"rubbish", "cannot be read"),
        ("", b"\x90", "has 0 items, not 5"),
    ],
)
def test_what_cannot_be_computed_here_is_told(tmp_path: Path, package: str, body: bytes | None, why: str) -> None:
    ours = build_nothing_package(tmp_path / "packages" / "nothing").package_sha256
    referee = Referee(packages_in(tmp_path / "packages"))
    work = Work(job="j", package_sha256=package or ours, items=5, slice_items=2)
    with pytest.raises(UnfitJobError, match=why):
        asyncio.run(referee.answers(work, body))


def test_a_shelf_that_is_not_there_is_told() -> None:
    with pytest.raises(PackageError, match="cannot read the packages"):
        packages_in(Path("/nowhere/at/all"))


@given(st.lists(st.floats(90, 110), min_size=5, max_size=40))
def test_honest_figures_are_within_their_own_band(values: list[float]) -> None:
    band = band_of(values)
    assert band is not None
    assert all(band.holds(value) for value in values)
    assert not band.holds(1)
    assert band_of(values[:4]) is None


def test_who_is_far_too_quick_is_flagged_and_keeps_his_pay(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "d")
    for number in range(7):
        car = desk.new_car(f"car-{number}")
        desk.add_job()
        grant = car.must_request()
        result = car.result(grant, bend=bent(energy__micro_wh=1)) if number == 3 else car.result(grant)
        paid_micro = car.hand_in(result).paid_micro
        assert paid_micro > 0
    found = flags(desk.book.database)
    assert [(one.unit, one.what) for one in found] == [("car-3", "uwh_per_item")]
    assert {one.forfeited_micro for one in accounts(desk.book.database)} == {0}
    assert desk.book.database.rows("SELECT unit FROM units WHERE disagreed > 0") == []
    desk.book.close()
