"""The spent budgets through the real hands and the real store, over restarts and reboots, and from a broken row."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from agent import budgets
from agent.core.effects import KeepBudgets
from agent.core.kept import everything_spent
from agent.core.model import Kept
from agent.core.policy import Policy
from agent.store import StoreThread
from tests.bench import bench
from tests.test_handin import UNIT

POLICY = Policy()
KEPT = Kept(
    at_ms=50_000,
    wall_ms=1_780_000_000_000,
    taken_wh=12.25,
    highest_percent=80.5,
    awake_day_ms=10_000,
    awake_used_ms=7_000,
    awake_used_wh=1.5,
    awake_wakes=2,
    stay_begins_ms=1_779_999_000_000,
    stay_ends_ms=1_780_009_000_000,
    stay_used_ms=3_600_000,
    stay_slots=((1_779_999_000_000, 1_780_000_000_000, -20_000),),
    rests=2,
    rests_until_ms=60_000,
    allowed_w=21.5,
    metered_day_ms=20_000,
    metered_used_bytes=131_072,
)


def recalled(folder: Path, boot: str, now_ms: int) -> Kept | None:
    async def story() -> Kept | None:
        store = StoreThread(folder / "driveway.db")
        await store.open()
        try:
            return await budgets.recall(store, boot, now_ms, POLICY)
        finally:
            await store.close()

    return asyncio.run(story())


def written(folder: Path, *kept: Kept) -> None:
    async def story() -> None:
        async with bench(folder) as here:
            for one in kept:
                await here.do(KeepBudgets(kept=one))
            assert here.events == []

    asyncio.run(story())


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    assert recalled(tmp_path, UNIT.boot, 0) is None
    written(tmp_path, msgspec.structs.replace(KEPT, taken_wh=1.0), KEPT)
    assert recalled(tmp_path, UNIT.boot, 51_000) == KEPT


@pytest.mark.parametrize(("boot", "now_ms"), [("another", 3_000), ("", 3_000), (UNIT.boot, 3_000)])
def test_after_a_reboot_boot_times_are_those_of_the_new_boot(tmp_path: Path, boot: str, now_ms: int) -> None:
    written(tmp_path, KEPT)
    moved = msgspec.structs.replace(
        KEPT, at_ms=3_000, awake_day_ms=-37_000, rests_until_ms=13_000, metered_day_ms=-27_000
    )
    assert recalled(tmp_path, boot, now_ms) == moved


@pytest.mark.parametrize(
    "row",
    ["", "{", "null", '{"boot":"b","kept":{"taken_wh":-5}}', '{"boot":"b","kept":{"taken_wh":null}}', '{"boot":3}'],
)
def test_a_row_that_cannot_be_read_counts_as_spent_and_is_told_of_once(tmp_path: Path, row: str) -> None:
    written(tmp_path, KEPT)
    with sqlite3.connect(tmp_path / "driveway.db") as db:
        changed = db.execute("UPDATE meta SET value = ? WHERE key = ?", (row, budgets.BUDGETS_ROW)).rowcount
    db.close()
    assert changed == 1
    with capture_logs() as logs:
        assert recalled(tmp_path, UNIT.boot, 70_000) == everything_spent(POLICY, 70_000)
        assert recalled(tmp_path, UNIT.boot, 71_000) == everything_spent(POLICY, 70_000)
    assert [entry["event"] for entry in logs] == ["budgets_unreadable"]
