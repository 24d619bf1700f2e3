"""Bugs that would cost somebody money, planted one at a time: what the state machine asserts finds each of them.

The machine's steps are laid out in a story for each bug. Were they drawn at random, a search would miss a bug now and
then. Most bugs are a change to one of the dispatcher's statements, made on its way to SQLite, and have to be met there:
a bug that can no longer be planted fails its test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from agent.core.model import Verdict
from agent.fleet.messages import JobGrant, encode
from hil.dispatcher.book import Book
from hil.dispatcher.database import SqliteDatabase
from hil.dispatcher.handins import HandIns
from hil.dispatcher.leases import Leases
from hil.dispatcher.tickets import Tickets
from hil.dispatcher.view import View
from tests.hil.dispatching import LONG_S, TTL_S, OnSqlite
from tests.hil.honest_car import Car, Desk

FENCE = "WHERE job = :job AND epoch = :epoch AND holder = :unit AND settled_epoch < :epoch"
JUDGED = "LEFT JOIN handins ON handins.job = jobs.job AND handins.epoch = :epoch"
Patch = pytest.MonkeyPatch
Leased = tuple[Car, JobGrant]


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
    patch.setattr(HandIns, "_holds", lambda self, row, unit, key: True)


def settled_twice(sql: Rewriting, patch: Patch) -> None:
    """A hand-in that comes again is judged again, and no constraint minds."""
    patch.setattr(Tickets, "forget", lambda self, key: None)
    sql.plant(FENCE, "WHERE job = :job AND epoch = :epoch AND holder = :unit")
    sql.plant(JUDGED, f"{JUDGED} AND 1 = 0")
    sql.plant("WHERE keyid = :keyid AND counter = :counter", "WHERE 1 = 0 AND keyid = :keyid AND counter = :counter")
    sql.plant(":counter, :envelope)", ":counter, :envelope) ON CONFLICT DO NOTHING")
    sql.plant(":paid, :sha256, :body)", ":paid, :sha256, :body) ON CONFLICT DO NOTHING")
    patch.setattr(Leases, "missing", lambda self, job: tuple(range(-(-job["items"] // job["slice_items"]))))


def settles_after_it_was_granted_again(sql: Rewriting, patch: Patch) -> None:
    """A car's earlier lease of a job settles although the job is out again, to the same car."""
    sql.plant(FENCE, "WHERE job = :job AND holder = :unit AND settled_epoch < :epoch")
    patch.setattr(Tickets, "forget", lambda self, key: None)
    patch.setattr(HandIns, "_holds", lambda self, row, unit, key: row["holder"] == unit.unit)


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


def takes_a_lease_away(sql: Rewriting, patch: Patch) -> None:
    """A lease that an old request does not name is taken for lost."""
    patch.setattr(Leases, "_is_lost", lambda self, holding, rid, now_ms: True)


def no_bug(sql: Rewriting, patch: Patch) -> None:
    """Statements are run otherwise, and mean the same."""
    sql.plant("SELECT", "SELECT ")


def granted(machine: OnSqlite, car: int = 0) -> Leased:
    """The next lease of a car that names what it has; there is one."""
    lease = machine.ask(car=car, told=True)
    assert isinstance(lease, tuple)
    return lease


def granted_like(machine: OnSqlite, wanted: Callable[[JobGrant], bool]) -> Leased:
    """The first lease of this kind, whichever come before it."""
    while not wanted((lease := granted(machine))[1]):
        pass
    return lease


def everything_is_finished(machine: OnSqlite) -> None:
    """One car does whatever it is given."""
    while isinstance(lease := machine.ask(car=0, told=True), tuple):
        machine.finish(lease, deliveries=1)


def a_result_comes_late(machine: OnSqlite) -> None:
    """When the job was granted to another."""
    lease = granted(machine, car=0)
    machine.wait(seconds=TTL_S)
    assert granted(machine, car=1)[1].job == lease[1].job
    machine.finish(lease, deliveries=1)


def a_result_comes_late_from_who_has_the_job_again(machine: OnSqlite) -> None:
    lease = granted(machine)
    machine.wait(seconds=TTL_S)
    assert granted(machine)[1].job == lease[1].job
    machine.finish(lease, deliveries=1)


def a_result_comes(machine: OnSqlite) -> None:
    machine.finish(granted(machine), deliveries=1)


def a_result_comes_twice(machine: OnSqlite) -> None:
    machine.finish(granted(machine), deliveries=2)


def two_cars_ask(machine: OnSqlite) -> None:
    granted(machine, car=0)
    granted(machine, car=1)


def a_lease_is_renewed(machine: OnSqlite) -> None:
    lease = granted_like(machine, lambda grant: grant.ttl_s == LONG_S)
    machine.wait(seconds=LONG_S // 3)
    machine.renew(lease)


def a_job_is_withdrawn_from_a_car_that_forgot_it(machine: OnSqlite) -> None:
    _, grant = granted(machine)
    machine.withdraw(job=list(machine.jobs).index(grant.job), grace_s=30)
    machine.ask(car=0, told=False)


def some_of_a_job_comes_back(machine: OnSqlite) -> None:
    car, grant = granted_like(machine, lambda grant: len(grant.slices) > 1)
    machine.deliver((car, car.yielded(grant, grant.slices[:1])), lost=False)


def an_old_request_comes_late(machine: OnSqlite) -> None:
    """When the lease that it got is too old to be sent again."""
    granted(machine)
    machine.wait(seconds=TTL_S // 2 + 1)
    machine.an_old_request_comes_again(car=0)


Bug = Callable[[Rewriting, Patch], None]
Story = Callable[[OnSqlite], None]
BUGS: list[tuple[Bug, Story, str]] = [
    (no_fence, a_result_comes_late, "^nonce is"),
    (settled_twice, a_result_comes_twice, "a hand-in was settled twice"),
    (settles_after_it_was_granted_again, a_result_comes_late_from_who_has_the_job_again, "^nonce is"),
    (ticket_not_recorded, a_result_comes, "^ticketSha256 is not"),
    (copy_to_the_same_unit, everything_is_finished, "a copy was granted to a unit that worked on the original"),
    (granted_while_it_runs, two_cars_ask, "given to another while it ran"),
    (renewed_for_nothing, a_lease_is_renewed, "a renewal gives the time anew"),
    (paid_for_what_failed, everything_is_finished, "items that failed are not paid"),
    (half_a_job_is_done, some_of_a_job_comes_back, "a job is done when all of it is"),
    (withdrawn_and_sent_again, a_job_is_withdrawn_from_a_car_that_forgot_it, "a withdrawn job was granted"),
    (takes_a_lease_away, an_old_request_comes_late, "given to another while it ran"),
]
STORIES = list(dict.fromkeys(story for _, story, _ in BUGS))


def tell(story: Story) -> None:
    """Let it happen, hold the books to it, and finish what there is; nothing stays open when something is found."""
    machine = OnSqlite()
    with contextlib.closing(machine):
        machine.put_jobs_up()
        story(machine)
        machine.the_books_balance()
        machine.teardown()


@pytest.mark.parametrize(("bug", "story", "found"), BUGS, ids=[bug.__name__ for bug, _, _ in BUGS])
def test_the_machine_finds(bug: Bug, story: Story, found: str, monkeypatch: Patch) -> None:
    sql = Rewriting(monkeypatch)
    bug(sql, monkeypatch)
    with pytest.raises(AssertionError, match=found):
        tell(story)
    assert sql.unmet == set(), "the dispatcher says it otherwise now: plant the bug anew"


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_without_a_bug_it_finds_nothing(story: Story, monkeypatch: Patch) -> None:
    sql = Rewriting(monkeypatch)
    no_bug(sql, monkeypatch)
    tell(story)
    assert sql.unmet == set()


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
