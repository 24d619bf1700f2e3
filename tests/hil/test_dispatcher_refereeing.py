"""The referee in the dispatcher's process: who is wrong shows by computing, once, whatever ends in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import wire
from agent.inference.runner import PackageRunner
from hil.dispatcher import referee as referee_module
from hil.dispatcher.book import Book
from hil.dispatcher.pay import HoldBack, accounts
from hil.dispatcher.referee import Referee, Work
from hil.dispatcher.referee_tasks import BACK_OFF_MS, CLAIM_MS, RefereeCounts, Task, referee_counts
from tests.hil.honest_car import PRICE
from tests.hil.refereed import RefereedDesk, on

pytestmark = pytest.mark.usefixtures("each_database")

DAY_MS = 24 * 3_600_000
PATIENCE_S = 20.0
"""A bound on waiting for another thread; nothing is measured against it."""


class CountingReferee(Referee):
    """Counts what it computes, and tells when it begins; it waits for `may_end` before it says what is right."""

    def __init__(self, desk: RefereedDesk) -> None:
        super().__init__({desk.package.package_sha256: desk.package.path})
        self.computed: list[str] = []
        self.began, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    async def answers(self, work: Work, body: bytes | None) -> dict[int, bytes]:
        self.computed.append(work.job)
        answers = await super().answers(work, body)
        self.began.set()
        await asyncio.to_thread(self.may_end.wait, PATIENCE_S)
        return answers


MakeDesk = Callable[..., RefereedDesk]


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[MakeDesk]:
    desks: list[RefereedDesk] = []

    def make(**more: object) -> RefereedDesk:
        desks.append(RefereedDesk(tmp_path / "dispatcher", **more))  # type: ignore[arg-type]  # the desk's own
        return desks[-1]

    yield make
    for desk in desks:
        assert desk.service.counts["crashed"] == 0
        desk.book.close()


@pytest.fixture
def desk(make_desk: MakeDesk) -> RefereedDesk:
    return make_desk()


def dispute(desk: RefereedDesk) -> str:
    """A job that an honest car did first, and one that lies a second time."""
    job = desk.add_numbers([1, 2, 3, 4, 5])
    assert desk.tensor_car("honest").work_once() is not None
    assert desk.tensor_car("liar", lie=1).work_once() is not None
    assert desk.book.copies.disputes() == [job]
    return job


def counted(desk: RefereedDesk) -> RefereeCounts:
    return referee_counts(desk.book.database)


def test_a_majority_of_liars_is_outvoted_by_computing(desk: RefereedDesk) -> None:
    dispute(desk)
    assert desk.tensor_car("accomplice", lie=1).ask() is None, "no third car is asked"
    assert counted(desk) == RefereeCounts(disputes_waiting=1)
    assert asyncio.run(desk.referee().step())
    assert [desk.record(unit) for unit in ("honest", "liar")] == [(1, 0), (0, 1)]
    assert {one.unit: one.forfeited_micro for one in accounts(desk.book.database)} == {"honest": 0, "liar": 5 * PRICE}
    assert counted(desk) == RefereeCounts(disputes_decided=1)
    with desk.viewing() as view:
        assert view.counts().referee == counted(desk)
    assert not asyncio.run(desk.referee().step()), "that is decided"


def test_without_a_referee_the_same_majority_wins(make_desk: MakeDesk) -> None:
    desk = make_desk(has_referee=False)
    dispute(desk)
    assert desk.tensor_car("accomplice", lie=1).work_once() is not None
    assert [desk.record(unit) for unit in ("honest", "liar")] == [(0, 1), (1, 0)], "this is what the referee is for"


def test_two_replicas_do_not_decide_twice(desk: RefereedDesk) -> None:
    dispute(desk)
    referee = CountingReferee(desk)
    database = RefereedDesk.open_database(desk.folder, desk._clock)
    second = Book(database, tolerances=desk.book.copies._checking.tolerances, has_referee=True)
    replicas = [desk.referee(referee), desk.referee(referee, on(second))]

    async def both() -> list[bool]:
        return list(await asyncio.gather(*(one.step() for one in replicas)))

    assert sorted(asyncio.run(both())) == [False, True]
    assert len(referee.computed) == 1
    assert [desk.record(unit) for unit in ("honest", "liar")] == [(1, 0), (0, 1)]
    second.close()


def test_of_two_that_found_a_task_at_the_same_moment_one_gets_it(desk: RefereedDesk) -> None:
    """In PostgreSQL both may have looked before either of them claimed."""
    job, tasks = dispute(desk), desk.book.referee_tasks
    found = (Task.DECIDE, job)
    first = tasks._claimed(*found, "first", desk.now_ms)
    assert first is not None
    assert tasks._claimed(*found, "second", desk.now_ms) is None
    assert tasks.finish(first)
    desk.now_ms += CLAIM_MS
    assert tasks._claimed(*found, "second", desk.now_ms) is None, "it is done"


def test_who_was_away_for_too_long_decides_nothing(desk: RefereedDesk) -> None:
    """A replica that was frozen while it computed finds that another has done it."""
    job = dispute(desk)
    frozen = CountingReferee(desk)
    frozen.may_end.clear()
    slow = desk.referee(frozen)
    stepping = threading.Thread(target=lambda: asyncio.run(slow.step()))
    with capture_logs() as logs:
        stepping.start()
        assert frozen.began.wait(PATIENCE_S)
        desk.now_ms += CLAIM_MS
        assert asyncio.run(desk.referee().step()), "the claim has run out"
        frozen.may_end.set()
        stepping.join()
    assert [one["event"] for one in logs] == ["dispute_decided", "referee_was_overtaken"]
    assert [desk.record(unit) for unit in ("honest", "liar")] == [(1, 0), (0, 1)]
    assert len(desk.book.database.rows("SELECT slice FROM known_answers WHERE job = :job", job=job)) == 3


def test_a_replica_that_is_killed_leaves_its_task_to_others(desk: RefereedDesk) -> None:
    dispute(desk)
    claimed = desk.book.referee_tasks.claim((desk.package.package_sha256,), "killed", desk.now_ms)
    assert claimed is not None
    assert claimed.task is Task.DECIDE
    assert not asyncio.run(desk.referee().step()), "it may still be at it"
    desk.now_ms += CLAIM_MS
    assert asyncio.run(desk.referee().step())
    assert not desk.book.referee_tasks.keep(claimed, desk.now_ms)
    assert counted(desk).disputes_decided == 1


def test_it_ends_in_the_middle_of_a_decision_and_the_next_begins_at_once(desk: RefereedDesk) -> None:
    dispute(desk)
    first = CountingReferee(desk)
    first.may_end.clear()
    running = desk.referee(first)
    running.start()
    assert first.began.wait(PATIENCE_S)
    closing = threading.Thread(target=running.close)
    closing.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while desk.book.database.rows("SELECT 1 AS it FROM referee_tasks WHERE claimed_by != ''"):
        assert time.monotonic() < deadline_s, "it lets go of the task"
        time.sleep(0.01)
    first.may_end.set()  # the thread that waits for it
    closing.join()
    assert counted(desk) == RefereeCounts(disputes_waiting=1)
    assert asyncio.run(desk.referee().step()), "it let go of the task"
    assert [desk.record(unit) for unit in ("honest", "liar")] == [(1, 0), (0, 1)]


def test_it_works_by_itself_until_it_is_closed(desk: RefereedDesk) -> None:
    referee = CountingReferee(desk)
    running = desk.referee(referee)
    job = dispute(desk)
    running.start()
    assert referee.began.wait(PATIENCE_S)
    running.close()
    assert referee.computed == [job]


class DyingRunner(PackageRunner):
    """Its worker is killed as soon as it is ready."""

    async def open(self) -> wire.Loaded:
        loaded = await super().open()
        os.kill(self.pid, signal.SIGKILL)
        return loaded


def test_a_worker_that_dies_is_told_of_once_and_tried_again_ever_later(
    desk: RefereedDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispute(desk)
    refereeing = desk.referee()
    with capture_logs() as logs:
        monkeypatch.setattr(referee_module, "PackageRunner", DyingRunner)
        assert not asyncio.run(refereeing.step())
        assert not asyncio.run(refereeing.step()), "it waits"
        desk.now_ms += BACK_OFF_MS
        assert not asyncio.run(refereeing.step())
        row = desk.book.database.row("SELECT tries, detail, not_before_ms FROM referee_tasks")
        assert row is not None
        assert (row["tries"], row["not_before_ms"]) == (2, desk.now_ms + 2 * BACK_OFF_MS)
        assert "lost" in row["detail"]
        assert counted(desk) == RefereeCounts(disputes_waiting=1, disputes_failing=1)
        monkeypatch.undo()
        desk.now_ms += 2 * BACK_OFF_MS
        assert asyncio.run(refereeing.step())
    events = [one["event"] for one in logs]
    assert [events.count(one) for one in ("referee_fails", "referee_works_again", "dispute_decided")] == [1, 1, 1]
    assert counted(desk) == RefereeCounts(disputes_decided=1)


def test_a_package_that_is_damaged_on_the_shelf_decides_nothing(desk: RefereedDesk) -> None:
    dispute(desk)
    (desk.package.path / desk.package.manifest.model).write_bytes(b"another model")
    with capture_logs() as logs:
        assert not asyncio.run(desk.referee().step())
    assert [one["event"] for one in logs] == ["referee_fails"]
    assert counted(desk).disputes_waiting == 1


def test_a_job_whose_input_is_gone_is_told_of_once_and_ages_out(make_desk: MakeDesk) -> None:
    desk = make_desk(hold_back=HoldBack(keep=0, age_ms=DAY_MS))
    job = dispute(desk)
    row = desk.book.leases.row(job)
    assert row is not None
    (desk.objects.folder / row["input_sha256"]).unlink()
    refereeing = desk.referee()
    with capture_logs() as logs:
        for _ in range(3):
            assert not asyncio.run(refereeing.step())
            desk.now_ms += DAY_MS // 4
    assert [one["event"] for one in logs] == ["dispute_not_decided"]
    desk.service.tick()
    assert {one.held_micro for one in accounts(desk.book.database)} == {5 * PRICE}, "pay waits as long"
    desk.now_ms += 2 * DAY_MS
    desk.service.tick()
    assert not asyncio.run(refereeing.step())
    assert counted(desk) == RefereeCounts()
    assert {one.released_micro for one in accounts(desk.book.database)} == {5 * PRICE}
    assert desk.book.database.rows("SELECT state FROM referee_tasks")[0]["state"] == "given up"


def test_what_is_not_on_the_shelf_is_decided_by_a_third_car(make_desk: MakeDesk) -> None:
    """Nobody knows how far apart its answers may be: the operator's own could not be compared either."""
    desk = make_desk(tolerances=lambda _sha256: None)
    cars = [desk.tensor_car(f"car-{number}", lie=int(number == 1)) for number in range(3)]
    for car in cars:  # by which it is known of which class each is
        desk.add_numbers([1, 2])
        assert car.work_once() is not None
    assert cars[1].work_once() is not None, "a copy"
    assert desk.book.copies.disputes()
    while cars[2].work_once() is not None:
        pass
    assert cars[2].ask() is None
    replicas = desk.book.database.row("SELECT max(replica) AS most FROM jobs")
    assert replicas is not None
    assert replicas["most"] == 2, "a third was asked"
    assert desk.record("car-1") == (0, 1)
