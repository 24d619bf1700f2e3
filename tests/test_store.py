"""The store: what is acknowledged is there after a kill, statements and verdicts become leaves, and disks refuse."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent import schema
from agent.core.model import Grant, HandInKind, JobKey, SliceOutcome, Spent, Verdict
from agent.errors import LedgerDamagedError, StoreError
from agent.rows import Engine, HandInRow, StoredSlice, Totals
from agent.store import Store, StoreThread
from agent.trust.merkle import leaf_hash, tree_root
from tests.core.world import grant

ENGINE = Engine("onnxruntime_cpu", "a" * 64, "b" * 64)


def stored(index: int) -> StoredSlice:
    return StoredSlice(SliceOutcome(index, 4, 0, "c" * 64, "d" * 64, 100), b"[]", ENGINE)


def hand_in(store: Store, one: Grant) -> list[int]:
    """Close a lease; the slices that went into it."""
    seen: list[int] = []

    def build(counter: int, _log_index: int, slices: list[StoredSlice]) -> HandInRow:
        seen.extend(one.outcome.index for one in slices)
        return HandInRow(HandInKind.RESULT, b"body", f"statement {counter}".encode(), "e" * 64, len(slices))

    store.hand_in(one, why=None, spent=Spent(7, 3), wall_ms=2, build=build)
    return seen


def settle(store: Store, one: Grant) -> None:
    store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=5, envelope=b"verdict")


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a generator fixture
    opened = Store(tmp_path / "driveway.db")
    yield opened
    opened.close()


def test_a_lease_from_its_opening_to_its_verdict(store: Store) -> None:
    one = grant(1)
    assert store.open_lease(one, 1)
    store.add_slice(one.key, stored(1), Spent(5, 3))
    store.add_slice(one.key, stored(0), Spent(6, -2))
    store.add_slice(one.key, stored(0), Spent(6, -2))
    (left,) = store.open_leases()
    assert (left.grant, left.done, left.spent) == (one, (0, 1), Spent(6, -2))
    assert hand_in(store, one) == [0, 1]
    (row,) = store.outbox()
    assert (row.key, row.kind, row.statement_sha256, row.slices) == (one.key, HandInKind.RESULT, "e" * 64, 2)
    assert store.open_leases() == []
    store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=80, envelope=b"verdict")
    assert store.outbox() == []
    assert store.outbox_message(one.key) is None
    (lease,) = store.leases(10)
    assert (lease.state, lease.slices_done, lease.slices_wanted, lease.paid_micro) == ("closed", 2, 3, 80)
    assert store.totals().paid_micro == 80
    assert [leaf.leaf for leaf in store.ledger(10)] == [b"statement 1", b"verdict"]
    head = store.ledger_head()
    assert (head.size, head.root) == (2, tree_root([leaf_hash(b"statement 1"), leaf_hash(b"verdict")]).hex())


def test_a_replayed_grant_is_refused_and_the_open_one_is_not(store: Store) -> None:
    one = grant(1)
    assert store.open_lease(one, 1)
    assert store.open_lease(one, 2), "the same lease while it is open"
    hand_in(store, one)
    assert not store.open_lease(one, 3), "its nonce is used up"
    assert not store.open_lease(grant(1, epoch=1, slices=(0,)), 4)


def test_a_hand_in_that_cannot_be_built_changes_nothing(store: Store) -> None:
    one = grant(1)
    store.open_lease(one, 1)
    store.add_slice(one.key, stored(0), Spent(5, 3))

    def build(_counter: int, _log_index: int, _slices: list[StoredSlice]) -> HandInRow:
        raise RuntimeError("the key does not answer")

    with pytest.raises(RuntimeError):
        store.hand_in(one, why=None, spent=Spent(1, 1), wall_ms=1, build=build)
    assert store.outbox() == []
    assert store.ledger_head().size == 0
    assert hand_in(store, one) == [0]


def test_counters_rise_and_survive_a_restart(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        store = Store(tmp_path / "driveway.db")
        store.open_lease(grant(number), 1)
        hand_in(store, grant(number))
        store.close()
    store = Store(tmp_path / "driveway.db")
    assert [leaf.leaf for leaf in store.ledger(10)] == [b"statement 1", b"statement 2", b"statement 3"]
    assert store.ledger_head().size == 3
    store.close()


def test_vacates_are_summed_up_by_nearest_rank(store: Store) -> None:
    assert store.vacate_stats().count == 0
    for gone_ms in range(1, 201):
        store.vacate(0, "door_open", 1, gone_ms)
    stats = store.vacate_stats()
    assert (stats.count, stats.p50_ms, stats.p99_ms, stats.max_ms) == (200, 100, 198, 200)


# --- answers that go by digest ------------------------------------------------------------------------------------


def test_what_a_hand_in_only_names_is_missing_until_its_verdict(tmp_path: Path) -> None:
    def build(_counter: int, _log_index: int, slices: list[StoredSlice]) -> HandInRow:
        return HandInRow(HandInKind.RESULT, b"body", b"statement", "e" * 64, len(slices), (0, 2), (2,))

    one = msgspec.structs.replace(grant(1), upload_url="https://fleet.example/uploads", upload_token="t" * 32)
    store = Store(tmp_path / "driveway.db")
    store.open_lease(one, 1)
    for index in (0, 1, 2):
        store.add_slice(one.key, stored(index), Spent(5, 3))
    said = store.hand_in(one, why=None, spent=Spent(7, 3), wall_ms=2, build=build)
    assert said.missing == (2,), "slice 0 was brought already"
    assert said.referenced == (0, 2)
    hand_in(store, grant(2))
    store.close()
    store = Store(tmp_path / "driveway.db")
    assert [(row.key.job, row.missing) for row in store.outbox()] == [("job1", (0, 2)), ("job2", ())]
    assert all(row.referenced == row.missing for row in store.outbox())
    found = store.to_upload(one.key, 2)
    assert found is not None
    assert (found.output, found.url, found.token) == (b"[]", "https://fleet.example/uploads", "t" * 32)
    assert store.to_upload(one.key, 3) is None
    store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=80, envelope=b"verdict")
    assert store.to_upload(one.key, 2) is None
    assert [(row.key.job, row.missing) for row in store.outbox()] == [("job2", ())]
    assert store._one("SELECT count(*) FROM referenced") == 0
    store.close()


LATER_URL, LATER_TOKEN = "https://fleet.example/later", "n" * 32


def place_after_a_restart(path: Path, key: JobKey) -> tuple[str, str]:
    store = Store(path)
    found = store.to_upload(key, 0)
    store.close()
    assert found is not None
    return found.url, found.token


@pytest.mark.parametrize("when", ["renewed", "handed in"])
def test_the_place_for_answers_that_a_renewal_named_outlives_a_restart(tmp_path: Path, when: str) -> None:
    first = msgspec.structs.replace(grant(1), upload_url="https://fleet.example/uploads", upload_token="t" * 32)
    renewed = msgspec.structs.replace(first, upload_url=LATER_URL, upload_token=LATER_TOKEN)
    store = Store(tmp_path / "driveway.db")
    store.open_lease(first, 1)
    store.add_slice(first.key, stored(0), Spent(5, 3))
    if when == "renewed":
        store.keep_grant(renewed)
        assert store.open_leases()[0].grant == renewed
    else:
        hand_in(store, renewed)
    store.close()
    assert place_after_a_restart(tmp_path / "driveway.db", first.key) == (LATER_URL, LATER_TOKEN)


def test_a_renewal_that_comes_after_the_hand_in_changes_nothing(tmp_path: Path) -> None:
    first = msgspec.structs.replace(grant(1), upload_url="https://fleet.example/uploads", upload_token="t" * 32)
    store = Store(tmp_path / "driveway.db")
    store.open_lease(first, 1)
    store.add_slice(first.key, stored(0), Spent(5, 3))
    hand_in(store, first)
    store.keep_grant(msgspec.structs.replace(first, upload_url=LATER_URL, upload_token=LATER_TOKEN))
    store.close()
    assert place_after_a_restart(tmp_path / "driveway.db", first.key)[1] == "t" * 32


# --- what is not kept for ever ------------------------------------------------------------------------------------


def closed(store: Store, number: int) -> None:
    store.open_lease(grant(number), number)
    hand_in(store, grant(number))
    store.settle(grant(number).key, verdict=Verdict.SETTLED, reason="", paid_micro=10, envelope=b"verdict")


def test_old_leases_keep_their_sums_and_their_nonce_and_lose_their_ticket(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "DETAILED_LEASES", 3)
    store.open_lease(grant(0), 0)
    hand_in(store, grant(0))
    for number in range(1, 8):
        closed(store, number)
    rows = store.leases(10)
    assert [row.job for row in rows if row.package] == ["job7", "job6", "job5", "job0"], "job0 awaits its verdict"
    old = rows[4]
    assert (old.job, old.state, old.paid_micro, old.energy_micro_wh) == ("job3", "closed", 10, 7)
    assert (old.customer, old.currency, old.items) == ("", "", 0)
    assert not store.open_lease(msgspec.structs.replace(grant(99), nonce=grant(1).nonce), 1), "its nonce is used up"
    assert (store.totals().paid_micro, store.totals().energy_micro_wh) == (70, 56)


def test_finding_the_old_tickets_looks_at_no_others(store: Store) -> None:
    """Each verdict does it: it must not take longer with every lease that ever was."""
    plan = store._db.execute(
        "EXPLAIN QUERY PLAN UPDATE leases SET ticket = NULL WHERE ticket IS NOT NULL AND state = 'closed'"
        " AND rowid <= (SELECT max(rowid) FROM leases) - 5"
    ).fetchall()
    assert "leases_in_detail" in plan[0][3]


def test_vacates_are_bounded_and_all_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "VACATE_ROWS", 40)
    for gone_ms in range(1, 121):
        store.vacate(0, "door_open", 1, gone_ms)
    stats = store.vacate_stats()
    assert (stats.count, stats.p50_ms, stats.p99_ms, stats.max_ms) == (120, 100, 120, 120)
    assert store._one("SELECT count(*) FROM vacates") == 40


def test_a_slice_that_came_after_its_verdict_goes_with_the_next_start(tmp_path: Path) -> None:
    store = Store(tmp_path / "driveway.db")
    closed(store, 1)
    store.add_slice(grant(1).key, stored(0), Spent(1, 1))
    store.open_lease(grant(2), 1)
    store.add_slice(grant(2).key, stored(0), Spent(1, 1))
    store.open_lease(grant(3), 1)
    store.add_slice(grant(3).key, stored(0), Spent(1, 1))
    hand_in(store, grant(3))
    store.close()
    store = Store(tmp_path / "driveway.db")
    assert [row[0] for row in store._db.execute("SELECT job FROM slices ORDER BY job")] == ["job2", "job3"]
    store.close()


def test_sums_and_counters_are_those_of_the_rows_whoever_wrote_them(tmp_path: Path) -> None:
    """Another version, to which the agent was rolled back for a while, keeps no sums."""
    path = tmp_path / "driveway.db"
    store = Store(path)
    closed(store, 1)
    closed(store, 2)
    store.settle(grant(2).key, verdict=Verdict.SETTLED, reason="", paid_micro=10, envelope=b"again")
    assert store.totals() == store._summed_up() == Totals(14, 20, 6)
    store._db.execute("UPDATE leases SET paid_micro = 500 WHERE job = 'job1'")
    store.close()
    store = Store(path)
    assert store.totals() == Totals(14, 510, 6)
    closed(store, 3)
    assert [row.leaf for row in store.ledger(9) if row.kind == "statement"][-1] == b"statement 3"
    store.close()


def test_a_version_from_before_can_go_on_with_the_file(tmp_path: Path) -> None:
    """It writes these rows, and reads what it knows; see `agent.schema`."""
    store = Store(tmp_path / "driveway.db")
    store._db.execute("INSERT OR REPLACE INTO outbox VALUES ('job9', 1, 'result', 'body', '')")
    store._db.execute("INSERT OR IGNORE INTO slices VALUES ('job9', 1, 0, '', '', '', 1, 1)")
    store._db.execute("INSERT INTO vacates VALUES (1, 'door_open', 1, 1)")
    assert [row.key.job for row in store.outbox()] == ["job9"]
    store.close()


WRITER = """
import sys
from pathlib import Path
from agent.store import Store
from agent.core.model import Spent
from tests.core.world import grant
from tests.test_store import stored
store = Store(Path(sys.argv[1]))
store.open_lease(grant(1), 1)
for index in range(100_000):
    store.add_slice(grant(1).key, stored(index), Spent(1, 1))
    print(index, flush=True)
"""


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "driveway.db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
    ) as writer:
        assert writer.stdout is not None
        acknowledged = -1
        while acknowledged < 200:
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
    store = Store(path)
    (left,) = store.open_leases()
    store.close()
    assert set(range(acknowledged + 1)) <= set(left.done)


def test_a_disk_that_refuses_is_a_store_error_and_a_bug_is_not(tmp_path: Path) -> None:
    def fill(store: Store) -> None:
        store._db.execute("PRAGMA max_page_count = 1")
        store.open_lease(grant(1), 1)
        for index in range(1000):
            store.add_slice(grant(1).key, stored(index), Spent(1, 1))

    async def story() -> None:
        thread = StoreThread(tmp_path / "driveway.db")
        await thread.open()
        with pytest.raises(StoreError, match="the disk refused: database or disk is full"):
            await thread.call(fill)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await thread.call(lambda store: store._db.execute("SELECT * FROM nonsense"))
        await thread.close()

    asyncio.run(story())


def test_a_store_that_cannot_be_opened_says_where(tmp_path: Path) -> None:
    (tmp_path / "driveway.db").write_bytes(b"this is not a database, whatever its name says" * 100)

    async def story() -> None:
        thread = StoreThread(tmp_path / "driveway.db")
        with pytest.raises(StoreError, match=r"driveway\.db: file is not a database"):
            await thread.open()
        await thread.close()

    asyncio.run(story())


def test_a_database_from_before_the_costs_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "driveway.db"
    store = Store(path)
    store.open_lease(grant(1), 1)
    store.add_slice(grant(1).key, stored(0), Spent(5, 3))
    hand_in(store, grant(1))
    for table in ("leases", "slices"):
        store._db.execute(f"ALTER TABLE {table} DROP COLUMN cost_micro")
    store.close()
    store = Store(path)
    (lease,) = store.leases(10)
    assert (lease.energy_micro_wh, lease.cost_micro) == (7, 0)
    store.open_lease(grant(2), 1)
    store.add_slice(grant(2).key, stored(0), Spent(5, -3))
    (left,) = store.open_leases()
    assert left.spent == Spent(5, -3)
    hand_in(store, grant(2))
    assert (store.totals().energy_micro_wh, store.totals().cost_micro) == (14, 3)
    store.close()


def test_a_log_line_waits_for_no_disk_and_promises_do(store: Store) -> None:
    statements: list[str] = []
    store._db.set_trace_callback(statements.append)
    store.log(1, "said", b"{}")
    store.probe()
    order = [word for one in statements for word in ("NORMAL", "INTO log", "FULL", "'probe'") if word in one]
    assert order == ["NORMAL", "INTO log", "FULL", "'probe'"]


def test_promises_wait_for_the_disk_after_a_log_line_that_failed(store: Store) -> None:
    store._db.execute("DROP TABLE log")
    with pytest.raises(sqlite3.OperationalError):
        store.log(1, "said", b"{}")
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_commit_that_came_about_although_it_failed_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is believed, not the error: else the next leaf would take a place that is taken, for ever."""
    end = schema.Transaction.__exit__

    def fails_late(transaction: schema.Transaction, *said: object) -> None:
        end(transaction, *said)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    async def story() -> None:
        thread = StoreThread(tmp_path / "driveway.db")
        await thread.open()
        one, other = grant(1), grant(2)
        for lease in (one, other):
            await thread.call(Store.open_lease, lease, 1)
            await thread.call(Store.add_slice, lease.key, stored(0), Spent(1, 1))
        with monkeypatch.context() as broken:
            broken.setattr(schema.Transaction, "__exit__", fails_late)
            with pytest.raises(StoreError, match="disk I/O error"):
                await thread.call(hand_in, one)
        assert await thread.call(hand_in, one) == [], "it is in the outbox already"
        assert await thread.call(hand_in, other) == [0]
        await thread.call(settle, one)
        head = await thread.call(Store.ledger_head)
        await thread.call(settle, one)
        assert await thread.call(Store.ledger_head) == await thread.call(Store.stored_head) == head
        assert (await thread.call(Store.totals)).paid_micro == 5
        await thread.close()

    asyncio.run(story())


def test_the_ledger_is_asked_by_lease_and_session_through_an_index(store: Store) -> None:
    """However long it grew: no question here reads the whole table."""
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    store.leaf_of("statement", grant(1).key)
    store.leaf_of("session", JobKey("", 1), before=7)
    store.newest_session()
    store._prune(5)
    store._db.set_trace_callback(None)
    assert len(asked) == 4
    for query in asked:
        plan = [row[3] for row in store._db.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert all("USING" in step and "ledger_" in step for step in plan), plan


def test_nothing_is_earned_on_top_of_a_damaged_ledger(store: Store) -> None:
    for number in range(3):
        store.open_lease(grant(number), 1)
        hand_in(store, grant(number))
    store._db.execute("UPDATE nodes SET hash = NULL WHERE level = 1")
    one = grant(3)
    store.open_lease(one, 1)
    with pytest.raises(LedgerDamagedError, match="its tree lacks node 1/0"):
        hand_in(store, one)
    assert [row.grant for row in store.open_leases()] == [one], "what was computed is kept"
