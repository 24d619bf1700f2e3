"""What the operator does about disputes and odd figures: he computes the one, and only looks at the other."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hil.dispatcher.pay import accounts
from hil.dispatcher.plausible import band_of, flags
from hil.dispatcher.referee import Disputed, Referee
from hil.packages.nothing import build_nothing_package, nothing_item
from tests.hil.honest_car import Desk, bent


def test_a_job_is_computed_slice_by_slice(tmp_path: Path) -> None:
    package = build_nothing_package(tmp_path / "package")
    body = msgspec.msgpack.encode([nothing_item(number) for number in range(5)])
    name = hashlib.sha256(body).hexdigest()
    referee = Referee({package.package_sha256: package.path}, {name: body}.get)
    job = Disputed(job="j", package_sha256=package.package_sha256, input_sha256=name, items=5, slice_items=2)
    known: dict[str, dict[int, bytes]] = {}
    missing = msgspec.structs.replace(job, job="k", input_sha256="0" * 64)
    decided = asyncio.run(referee.decide([missing, job], lambda one, answers: known.update({one: dict(answers)})))
    assert (decided, list(known)) == (1, ["j"]), "what cannot be computed is left"
    assert [len(msgspec.json.decode(answers)) for answers in known["j"].values()] == [2, 2, 1]


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
