"""Jobs whose answers the operator knows: made by themselves, found by no car, and on no customer's bill."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.core.model import Verdict
from agent.fleet.messages import JobGrant
from hil.dispatcher.book import Terms
from hil.dispatcher.pay import accounts
from hil.dispatcher.referee_tasks import KNOWN_AGE_MS, MOST_UNTAKEN, RefereeCounts, referee_counts
from hil.dispatcher.view import JobView
from tests.hil.honest_car import PRICE
from tests.hil.refereed import RefereedDesk, numbers_in

pytestmark = pytest.mark.usefixtures("each_database")

EVERY = 1000
"""Of a thousand: each finished job is imitated."""
DRAWN = {"job", "nonce", "input", "upload", "expected_s"}
"""What of a grant may differ between two jobs of one customer."""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[RefereedDesk]:
    desk = RefereedDesk(tmp_path / "dispatcher", known_permille=EVERY, replicate=False)
    yield desk
    assert desk.service.counts["crashed"] == 0
    desk.book.close()


def step(desk: RefereedDesk) -> bool:
    return asyncio.run(desk.referee().step())


def known_jobs(desk: RefereedDesk) -> list[JobView]:
    with desk.viewing() as view:
        return [job for job in view.jobs() if job.known]


def test_it_looks_like_any_other_job_and_an_honest_car_is_paid_for_it(desk: RefereedDesk) -> None:
    car = desk.tensor_car("honest")
    customers = desk.add_numbers(range(10, 20))
    first = car.ask()
    assert first is not None
    assert car.hand_in(car.result(first)).paid_micro == 10 * PRICE
    assert not known_jobs(desk)
    assert step(desk)
    (known,) = known_jobs(desk)
    second = car.ask()
    assert second is not None
    assert second.job == known.job
    assert _but(first, DRAWN) == _but(second, DRAWN)
    assert [len(one.job) for one in (first, second)] == [len(customers)] * 2
    assert second.input.sha256 != first.input.sha256
    assert second.input.bytes == first.input.bytes
    assert sorted(car.numbers(second)) == list(range(10, 20))
    assert car.numbers(second) != car.numbers(first)
    verdict = car.hand_in(car.result(second))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 10 * PRICE)
    assert desk.record("honest") == (1, 0)
    assert not step(desk), "what is known is not imitated"
    assert [one.settled_micro for one in accounts(desk.book.database)] == [20 * PRICE]
    assert referee_counts(desk.book.database) == RefereeCounts(known_made=1, known_done=1)


def test_nothing_that_was_published_says_which_jobs_are_known(
    desk: RefereedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[bytes] = []
    hear = desk.hear

    def noted() -> tuple[str, bytes]:
        topic, payload = hear()
        said.append(base64.b64decode(msgspec.json.decode(payload)["payload"]))
        return topic, payload

    monkeypatch.setattr(desk, "hear", noted)
    car = desk.tensor_car("honest")
    desk.add_numbers(range(6))
    assert car.work_once() is not None
    assert step(desk)
    assert car.work_once() is not None
    (known,) = known_jobs(desk)
    ours = [body for body in said if known.job.encode() in body]
    theirs = [body for body in said if known.job.encode() not in body]
    assert len(ours) == len(theirs) == 2, "a grant and a verdict of each"
    for one, other in zip(ours, theirs, strict=True):
        assert _keys(msgspec.json.decode(one)) == _keys(msgspec.json.decode(other))
        assert b"known" not in one


def test_who_lies_is_found_at_once_and_loses_what_is_held(desk: RefereedDesk) -> None:
    car = desk.tensor_car("liar", lie=1)
    desk.add_numbers(range(8))
    assert car.work_once() is not None
    assert desk.record("liar") == (0, 0)
    assert step(desk)
    assert car.work_once() is not None
    assert desk.record("liar") == (0, 1)
    assert [one.forfeited_micro for one in accounts(desk.book.database)] == [16 * PRICE]


def test_colluders_who_check_each_other_are_found(tmp_path: Path) -> None:
    """The majority says the same wrong thing, nobody disputes it, and no third is asked."""
    desk = RefereedDesk(tmp_path / "dispatcher", known_permille=EVERY)
    liars = [desk.tensor_car(unit, lie=1) for unit in ("liar", "accomplice")]
    desk.add_numbers(range(8))
    assert all(car.work_once() is not None for car in liars)
    assert [desk.record(car.unit) for car in liars] == [(1, 0), (1, 0)], "they agree"
    assert step(desk)
    assert liars[0].work_once() is not None
    assert desk.record("liar") == (0, 1)
    desk.book.close()


def test_answers_that_are_kept_by_the_input_are_of_no_use(desk: RefereedDesk) -> None:
    car = desk.tensor_car("replayer")
    desk.add_numbers(range(8))
    seen: set[str] = set()
    for _ in range(6):
        grant = car.ask()
        if grant is not None:
            assert grant.input.sha256 not in seen
            seen.add(grant.input.sha256)
            assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
        desk.add_numbers(range(8 * len(seen), 8 * len(seen) + 8))
        while step(desk):
            pass
    assert len(known_jobs(desk)) > 1


def test_none_are_made_without_finished_work_nor_when_nobody_takes_them(desk: RefereedDesk) -> None:
    desk.add_numbers(range(4))
    assert not step(desk), "nobody worked"
    car = desk.tensor_car("honest")
    for number in range(2 * MOST_UNTAKEN):
        desk.add_numbers(range(number, number + 8))
    for _ in range(1 + 2 * MOST_UNTAKEN):
        assert car.work_once() is not None
    while step(desk):
        pass
    assert len(known_jobs(desk)) == MOST_UNTAKEN
    assert car.work_once() is not None
    assert step(desk)
    desk.now_ms += KNOWN_AGE_MS
    assert car.work_once() is not None
    assert not step(desk), "the demand that was is over"
    counted = referee_counts(desk.book.database)
    assert (counted.known_wanted, counted.known_made) == (0, MOST_UNTAKEN + 1)
    assert counted.known_given_up == MOST_UNTAKEN


def test_about_so_many_of_a_thousand_are_drawn(tmp_path: Path) -> None:
    desk = RefereedDesk(tmp_path / "dispatcher", known_permille=100, replicate=False)
    car = desk.tensor_car("honest")
    with desk.book.database.transaction():
        for number in range(300):
            desk.add_numbers([number], slice_items=1)
    for _ in range(300):
        assert car.work_once() is not None
    drawn = len(desk.book.database.rows("SELECT job FROM referee_tasks"))
    assert 10 <= drawn <= 60, "30 are expected; beyond five standard deviations it is no draw"
    desk.book.close()


def test_customers_items_stay_apart_and_so_do_sealed_ones(desk: RefereedDesk) -> None:
    car = desk.tensor_car("honest")
    for first, customer, sealed in ((0, "a", False), (100, "a", True), (200, "b", False), (300, "a", False)):
        desk.add_numbers(range(first, first + 8), customer=customer, terms=Terms(sealed=sealed))
    rows = desk.book.database.rows("SELECT job FROM jobs WHERE sealed = 0")
    for _ in rows:
        assert car.work_once() is not None
    (sealed_job,) = desk.book.database.rows("UPDATE jobs SET state = 'done' WHERE sealed = 1 RETURNING job")
    desk.book.referee_tasks.on_done(sealed_job["job"], desk.now_ms)
    while step(desk):
        pass
    made = desk.book.database.rows("SELECT jobs.* FROM jobs JOIN known_jobs ON known_jobs.job = jobs.job")
    assert len(made) == 4
    for job in made:
        hundreds = {number // 100 for number in numbers_in(desk.objects.read(job["input_sha256"]))}
        match job["customer"], job["sealed"]:
            case "b", _:
                assert hundreds == {2}
            case _, 1:
                assert hundreds == {1}
                assert desk.objects.is_only_sealed(job["input_sha256"])
            case _:
                assert hundreds <= {0, 3}
                assert not desk.objects.is_only_sealed(job["input_sha256"])


def test_a_job_too_short_for_another_order_is_not_imitated(desk: RefereedDesk) -> None:
    car = desk.tensor_car("honest")
    desk.add_numbers([7], slice_items=1)
    assert car.work_once() is not None
    assert not step(desk)
    assert referee_counts(desk.book.database) == RefereeCounts(known_given_up=1)


def test_it_comes_among_the_first_that_wait(desk: RefereedDesk) -> None:
    car = desk.tensor_car("honest")
    for number in range(100):
        desk.add_numbers(range(number, number + 8))
    assert car.work_once() is not None
    assert step(desk)
    (known,) = known_jobs(desk)
    for _ in range(40):
        grant = car.ask()
        assert grant is not None
        if grant.job == known.job:
            return
        assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
    pytest.fail("forty customers' jobs were given out before it")


def test_the_answers_are_known_with_the_job_or_neither_is_there(
    desk: RefereedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    car = desk.tensor_car("honest")
    desk.add_numbers(range(8))
    assert car.work_once() is not None
    with monkeypatch.context() as patched:
        patched.setattr(desk.book.copies, "know", _breaks)
        assert not step(desk)
    assert not known_jobs(desk)
    assert car.ask() is None
    desk.now_ms += KNOWN_AGE_MS // 2
    assert step(desk), "it is tried again"
    assert len(known_jobs(desk)) == 1


def _breaks(*_: object) -> None:
    raise OSError("planted: it fails between the job and its answers")


def _but(grant: JobGrant, fields: set[str]) -> dict[str, object]:
    return {name: value for name, value in msgspec.to_builtins(grant).items() if name not in fields}


def _keys(value: object) -> object:
    """The shape of a message: its fields, and theirs."""
    match value:
        case dict():
            return {key: _keys(one) for key, one in value.items()}
        case list():
            return [_keys(one) for one in value]
        case _:
            return type(value).__name__
