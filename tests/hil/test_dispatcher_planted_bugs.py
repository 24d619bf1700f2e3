"""Bugs that would cost somebody money, planted one at a time: the state machine finds each of them.

Most are a change to one of the dispatcher's statements, made on its way to SQLite, and have to be met there: a bug that
can no longer be planted fails its test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from agent.core.model import Verdict
from agent.fleet.messages import encode
from hil.dispatcher.book import Book
from hil.dispatcher.database import SqliteDatabase
from hil.dispatcher.leases import Leases
from hil.dispatcher.tickets import Tickets
from hil.dispatcher.view import View
from tests.hil.dispatching import OnSqlite
from tests.hil.honest_car import Car, Desk

SEARCHES = 8
"""Names and nonces differ from one search to the next, so one may miss a bug that is seldom met; not all of these."""
SEARCH = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
FENCE = "WHERE job = :job AND epoch = :epoch AND holder = :unit AND settled_epoch < :epoch"
JUDGED = "LEFT JOIN handins ON handins.job = jobs.job AND handins.epoch = :epoch"
Patch = pytest.MonkeyPatch


class Rewriting:
    """Statements are run otherwise on their way to SQLite; `unmet` are the texts that none of them had."""

    def __init__(self, patch: Patch) -> None:
        self._changes: dict[str, str] = {}
        self.unmet: set[str] = set()
        run, many = SqliteDatabase._run, SqliteDatabase.many
        patch.setattr(SqliteDatabase, "_run", lambda its, sql, values: run(its, self._changed(sql), values))
        patch.setattr(SqliteDatabase, "many", lambda its, sql, values: many(its, self._changed(sql), values))

    def plant(self, old: str, new: str) -> None:
        self._changes[old] = new
        self.unmet.add(old)

    def _changed(self, sql: str) -> str:
        for old, new in self._changes.items():
            if old in sql:
                self.unmet.discard(old)
                sql = sql.replace(old, new)
        return sql


def no_fence(sql: Rewriting, patch: Patch) -> None:
    """Whoever hands in is paid, whatever the job's epoch and holder are by now."""
    sql.plant(FENCE, "WHERE job = :job AND settled_epoch < epoch")
    patch.setattr(Tickets, "forget", lambda self, key: None)
    patch.setattr(Book, "_holds", lambda self, row, unit, key: True)


def settled_twice(sql: Rewriting, patch: Patch) -> None:
    """A hand-in that comes again is judged again, and no constraint minds."""
    patch.setattr(Tickets, "forget", lambda self, key: None)
    sql.plant(FENCE, "WHERE job = :job AND epoch = :epoch AND holder = :unit")
    sql.plant(JUDGED, f"{JUDGED} AND 1 = 0")
    sql.plant("WHERE keyid = :keyid AND counter = :counter", "WHERE 1 = 0 AND keyid = :keyid AND counter = :counter")
    sql.plant(":keyid, :counter, :envelope)", ":keyid, :counter, :envelope) ON CONFLICT DO NOTHING")
    sql.plant(":paid, :sha256, :body)", ":paid, :sha256, :body) ON CONFLICT DO NOTHING")
    patch.setattr(Leases, "missing", lambda self, job: tuple(range(-(-job["items"] // job["slice_items"]))))


def settles_after_it_was_granted_again(sql: Rewriting, patch: Patch) -> None:
    """A car's earlier lease of a job settles although the job is out again, to the same car."""
    sql.plant(FENCE, "WHERE job = :job AND holder = :unit AND settled_epoch < :epoch")
    patch.setattr(Tickets, "forget", lambda self, key: None)
    patch.setattr(Book, "_holds", lambda self, row, unit, key: row["holder"] == unit.unit)


def ticket_not_recorded(sql: Rewriting, patch: Patch) -> None:
    """A grant leaves before its digest is in the book."""
    patch.setattr(Book, "record_ticket", lambda self, key, sha256: None)


def copy_to_the_same_unit(sql: Rewriting, patch: Patch) -> None:
    """A unit may check its own work."""
    patch.setattr(Leases, "_not_its_own", staticmethod(lambda: "1 = 1"))


def granted_while_it_runs(sql: Rewriting, patch: Patch) -> None:
    """A job is given to another although its lease runs."""
    sql.plant("WHERE state = 'free' AND", "WHERE state IN ('free', 'leased') AND")
    sql.plant("WHERE job = :job AND epoch = :epoch AND state = 'free'", "WHERE job = :job AND epoch = :epoch")


def renewed_for_nothing(sql: Rewriting, patch: Patch) -> None:
    """A renewal is answered, and the lease ends when it would have ended anyway."""
    sql.plant("UPDATE jobs SET expires_ms = :now + 1000 * ttl_s", "UPDATE jobs SET expires_ms = expires_ms + 0 * :now")


def paid_for_what_failed(sql: Rewriting, patch: Patch) -> None:
    """Items without an answer are taken for answered."""
    sql.plant("(:job, :slice, :epoch, :items, :failed,", "(:job, :slice, :epoch, :items, 0 * :failed,")


def half_a_job_is_done(sql: Rewriting, patch: Patch) -> None:
    """A job is done when any of it is."""
    sql.plant("CASE WHEN :state = 'done' THEN", "CASE WHEN :progress = 1 THEN")


def withdrawn_and_sent_again(sql: Rewriting, patch: Patch) -> None:
    """A lease that the unit does not name is sent again, whatever became of its job."""
    sql.plant("SELECT job, epoch, state, expires_ms", "SELECT job, epoch, 'leased' AS state, expires_ms")
    sql.plant("workload_class, cancel_why, cancel_ends_ms", "workload_class, NULL AS cancel_why, cancel_ends_ms")


BUGS: dict[Callable[[Rewriting, Patch], None], str] = {
    no_fence: "nonce|granted again|paid twice",
    settled_twice: "settled twice|is in the book|paid once",
    settles_after_it_was_granted_again: "nonce|granted again",
    ticket_not_recorded: "ticketSha256",
    copy_to_the_same_unit: "worked on the original",
    granted_while_it_runs: "while it ran",
    renewed_for_nothing: "time anew",
    paid_for_what_failed: "items that failed",
    withdrawn_and_sent_again: "withdrawn job was granted",
    half_a_job_is_done: "done when all of it is|in the end",
}


def search() -> None:
    """Let the machine run until it has found something, or has looked for long."""
    for _ in range(SEARCHES):
        run_state_machine_as_test(OnSqlite, settings=SEARCH)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_the_machine_finds(bug: Callable[[Rewriting, Patch], None], monkeypatch: Patch) -> None:
    sql = Rewriting(monkeypatch)
    bug(sql, monkeypatch)
    with pytest.raises(AssertionError, match=BUGS[bug]):
        search()
    assert sql.unmet == set(), "the dispatcher says it otherwise now: plant the bug anew"


@pytest.mark.parametrize("planted", [False, True])
def test_the_machine_minds_an_old_request_that_takes_a_lease_away(planted: bool, monkeypatch: Patch) -> None:
    """It is seldom met by chance, so the way there is laid out."""
    if planted:
        monkeypatch.setattr(Leases, "_is_lost", lambda self, holding, rid, now_ms: True)
    machine = OnSqlite()
    machine.put_jobs_up()
    machine.ask(car=0, told=False)
    machine.wait(seconds=51)
    with pytest.raises(AssertionError, match="while it ran") if planted else contextlib.nullcontext():
        machine.an_old_request_comes_again(car=0)
    machine.teardown()


def test_without_a_bug_it_finds_nothing(monkeypatch: Patch) -> None:
    sql = Rewriting(monkeypatch)
    sql.plant("SELECT", "SELECT ")
    run_state_machine_as_test(OnSqlite, settings=settings(SEARCH, max_examples=5))


def test_the_tables_alone_prevent_a_second_payment(desk: Desk, car: Car, monkeypatch: Patch) -> None:
    """Were every check in the program wrong, the constraints would still hold."""
    desk.add_job()
    result = car.result(car.must_request())
    paid_micro = car.hand_in(result).paid_micro
    sql = Rewriting(monkeypatch)
    sql.plant(FENCE, "WHERE job = :job AND epoch = :epoch AND holder = :unit")
    sql.plant(JUDGED, f"{JUDGED} AND 1 = 0")
    sql.plant("WHERE keyid = :keyid AND counter = :counter", "WHERE 1 = 0 AND keyid = :keyid AND counter = :counter")
    monkeypatch.setattr(Leases, "missing", lambda self, job: tuple(range(-(-job["items"] // job["slice_items"]))))
    car.say("result", encode(result))
    assert desk.sent == [], "nobody is answered"
    assert desk.service.counts["conflicts"] > 0
    monkeypatch.undo()
    with View(desk.folder) as view:
        assert [payout.paid_micro for payout in view.payouts()] == [paid_micro]
    assert car.hand_in(result).verdict is Verdict.DUPLICATE
