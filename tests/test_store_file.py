"""A store after an I/O error: in doubt until what can be read is on the disk, and what was acknowledged is in it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import schema, store_file
from agent.core.model import JobKey, Spent
from agent.errors import StoreError
from agent.store import Store, StoreThread
from tests.core.world import grant
from tests.test_store import hand_in, settle, stored

FRAME_BYTES = 24 + 4096


def opened(folder: Path, story: Callable[[StoreThread], Awaitable[None]]) -> None:
    async def run() -> None:
        thread = StoreThread(folder / "driveway.db")
        await thread.open()
        try:
            await story(thread)
        finally:
            await thread.close()

    asyncio.run(run())


def sync_fails(_store: Store) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    raise error


async def fails(thread: StoreThread) -> None:
    with pytest.raises(StoreError, match="the disk refused: disk I/O error"):
        await thread.call(sync_fails)


async def earn(thread: StoreThread) -> None:
    """A lease that is settled, one that is handed in, and one that is open with a slice."""
    for number in (1, 2, 3):
        await thread.call(Store.open_lease, grant(number), 1)
        await thread.call(Store.add_slice, grant(number).key, stored(0), Spent(5, 3))
    for number in (1, 2):
        await thread.call(hand_in, grant(number))
    await thread.call(settle, grant(1))


def shorten_wal(folder: Path, frames: int) -> None:
    """The last frames are not what they were: as when they fell out of memory before they came to the disk."""
    wal = store_file.wal_of(folder / "driveway.db")
    with wal.open("r+b") as file:
        file.seek(-frames * FRAME_BYTES, os.SEEK_END)
        file.write(bytes(frames * FRAME_BYTES))


def test_a_store_in_doubt_is_opened_anew_and_says_so_once(tmp_path: Path) -> None:
    async def story(thread: StoreThread) -> None:
        await earn(thread)
        head, before = await thread.call(Store.ledger_head), thread._store
        with capture_logs() as said:
            await fails(thread)
            assert await thread.call(Store.ledger_head) == head
            await thread.call(settle, grant(2))
        assert [line["event"] for line in said] == ["store_in_doubt", "store_mended"]
        assert thread._store is not before
        assert (await thread.call(Store.totals)).paid_micro == 10

    opened(tmp_path, story)


def test_nothing_is_acknowledged_while_the_file_cannot_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_sync(_file: int) -> None:
        raise OSError(5, "Input/output error")

    async def story(thread: StoreThread) -> None:
        await earn(thread)
        await fails(thread)
        with capture_logs() as said, monkeypatch.context() as broken:
            broken.setattr(os, "fsync", no_sync)
            for _ in range(3):
                with pytest.raises(StoreError, match=r"cannot be opened anew: .*Input/output error"):
                    await thread.call(settle, grant(2))
        assert said == [], "it was said when it began"
        await thread.call(settle, grant(2))
        assert (await thread.call(Store.totals)).paid_micro == 10

    opened(tmp_path, story)


def test_what_was_not_acknowledged_may_be_gone(tmp_path: Path) -> None:
    async def story(thread: StoreThread) -> None:
        await earn(thread)
        head = await thread.call(Store.ledger_head)
        await thread.call(Store.log, 1, "said", b"{}")
        await fails(thread)
        await asyncio.to_thread(shorten_wal, tmp_path, 1)
        assert await thread.call(Store.ledger_head) == head
        assert await thread.call(lambda store: store._one("SELECT count(*) FROM log")) == 0

    opened(tmp_path, story)


def test_an_acknowledged_leaf_that_is_gone_is_a_fault_that_stays(tmp_path: Path) -> None:
    async def story(thread: StoreThread) -> None:
        await earn(thread)
        await fails(thread)
        await asyncio.to_thread(shorten_wal, tmp_path, 3)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"lost what it had acknowledged: 3 entries .* and 2 are there"):
                await thread.call(settle, grant(2))

    opened(tmp_path, story)
    store = Store(tmp_path / "driveway.db")
    fault = store.ledger_fault()
    store.close()
    assert fault is not None
    assert "3 entries of the ledger were acknowledged" in fault.detail


def test_an_acknowledged_slice_that_is_gone_is_told(tmp_path: Path) -> None:
    async def story(thread: StoreThread) -> None:
        await earn(thread)
        await thread.call(Store.add_slice, grant(3).key, stored(1), Spent(6, 3))
        await fails(thread)
        await asyncio.to_thread(shorten_wal, tmp_path, 1)
        with pytest.raises(StoreError, match="lost what it had acknowledged: 1 finished slices"):
            await thread.call(Store.open_leases)

    opened(tmp_path, story)


def test_a_commit_that_came_about_although_it_failed_is_no_loss(tmp_path: Path) -> None:
    """The hand-in of the lease took its slice along: nothing is missing."""

    async def story(thread: StoreThread) -> None:
        await earn(thread)
        earned = await thread.call(store_file.Earned.of)
        assert earned.slices == {(JobKey("job3", 1), 0)}
        await thread.call(hand_in, grant(3))
        await thread.call(earned.look_for_in)

    opened(tmp_path, story)


def test_letting_go_leaves_the_log_to_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path / "driveway.db")
    assert store.open_lease(grant(1), 1)
    wal = store_file.wal_of(tmp_path / "driveway.db")
    before = wal.read_bytes(), (tmp_path / "driveway.db").read_bytes()
    store.let_go(tmp_path / "driveway.db")
    assert (wal.read_bytes(), (tmp_path / "driveway.db").read_bytes()) == before
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        store.outbox()
    store = Store(tmp_path / "driveway.db")
    assert [row.job for row in store.leases(9)] == ["job1"]
    store.close()
    assert not wal.exists()


def test_a_store_in_doubt_is_closed_without_a_checkpoint(tmp_path: Path) -> None:
    async def story(thread: StoreThread) -> None:
        await earn(thread)
        await fails(thread)

    opened(tmp_path, story)
    assert store_file.wal_of(tmp_path / "driveway.db").stat().st_size > 0


HOLDER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("SELECT count(*) FROM leases").fetchone()
print("here", flush=True)
sys.stdin.read()
"""


def test_a_log_that_another_process_has_open_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "driveway.db")
    store.open_lease(grant(1), 1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "driveway.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"here\n"
        store.let_go(tmp_path / "driveway.db")

        async def story() -> None:
            thread = StoreThread(tmp_path / "driveway.db")
            with pytest.raises(StoreError, match="another process has it open"):
                await thread.open()
            await thread.close()

        asyncio.run(story())
        holder.kill()


def test_a_log_line_begins_no_checkpoint_and_promises_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "CHECKPOINT_PAGES", 10)
    store = Store(tmp_path / "driveway.db")
    database = tmp_path / "driveway.db"
    before = database.read_bytes()
    for number in range(20):
        store.log(number, "said", b"{}")
    assert database.read_bytes() == before
    store.open_lease(grant(1), 1)
    assert database.read_bytes() != before
    store.close()
