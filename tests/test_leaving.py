"""The end of the daemon: every part is closed whatever the others do, and no stuck thread keeps the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import leaving
from agent import store as store_module
from agent.fleet import orders as orders_module
from agent.fleet.operator_messages import DemandMessage
from agent.fleet.orders import Orders
from agent.leaving import closed
from agent.store import Store, StoreThread
from tests.conftest import FixedClock


class Failing:
    async def close(self) -> None:
        raise ValueError("a bug")


class Hanging:
    async def close(self) -> None:
        await asyncio.sleep(60)


def test_a_part_that_fails_or_hangs_on_closing_is_told_and_the_end_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "CLOSE_S", 0.01)

    async def main() -> None:
        await closed(Failing())
        await closed(Hanging())

    with capture_logs() as logs:
        asyncio.run(main())
    assert [(log["event"], log["part"]) for log in logs] == [("close_failed", "Failing"), ("close_failed", "Hanging")]
    assert "a bug" in logs[0]["detail"]
    assert "not within" in logs[1]["detail"]


def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CLOSE_S", 0.02)
    monkeypatch.setattr(orders_module, "CLOSE_S", 0.02)
    hangs, goes_on = threading.Event(), threading.Event()

    async def main() -> None:
        store = StoreThread(tmp_path / "driveway.db")
        await store.open()
        orders = Orders(store, FixedClock(), "boot-1", lambda: True)

        def hang(_store: Store) -> None:
            hangs.set()
            goes_on.wait()

        stuck = asyncio.create_task(store.call(hang))
        await asyncio.to_thread(hangs.wait)
        orders.demand(DemandMessage(unit="u", issued_wall_ms=1, stop_for_s=5))
        async with asyncio.timeout(5):
            await orders.close()
            await store.close()
        assert not stuck.done()
        stuck.cancel()

    with capture_logs() as logs:
        asyncio.run(main())
    goes_on.set()
    assert [log["event"] for log in logs] == ["store_not_closed"]


FINE = """
import asyncio
from agent.leaving import run_and_leave

async def good():
    return await asyncio.to_thread(lambda: 7)

async def bad():
    raise ValueError("no")

print(run_and_leave(good))
try:
    run_and_leave(bad)
except ValueError as error:
    print(error)
"""


def test_what_the_work_returns_and_raises() -> None:
    """In a process of its own: what goes wrong here would end the tests as a success."""
    run = subprocess.run([sys.executable, "-c", FINE], capture_output=True, text=True, timeout=60, check=True)
    assert (run.stdout, run.stderr) == ("7\nno\n", "")


STUCK = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from agent import log
from agent.leaving import run_and_leave
from agent.telemetry.reader import ReaderSource
from agent.clock import SystemClock

class Sensor:
    def read(self, at_ms):
        time.sleep(100)
    def close(self):
        pass

async def main():
    reading = asyncio.create_task(ReaderSource(Sensor(), 500, SystemClock()).run(lambda event: None))
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 100)
    await asyncio.sleep(0.05)
    reading.cancel()
    print("served")
    {end}

log.configure()
run_and_leave(main)
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise ValueError('the loss')", 1)])
def test_threads_that_are_stuck_keep_no_process(end: str, code: int) -> None:
    command = [sys.executable, "-c", STUCK.replace("{end}", end)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (code, "served\n")
    assert "threads_stuck" in run.stderr
    assert ("the loss" in run.stderr) is bool(code)
