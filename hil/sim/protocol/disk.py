"""A car's disk: one database in memory that outlives the agent. What was committed stays; the rest goes with the power.

The store is the real one, and so is the thread's object around it; only the thread is not there: each call takes a
little virtual time, one after the other, and the power may fail before it and after it. A full disk is SQLite's own:
the write that needs another page fails, in the middle of a transaction where that is where it is met.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from agent.errors import StoreError
from agent.rows import LedgerHead
from agent.store import Store, StoreThread

NOWHERE = Path(":memory:")
PAGES_MAX = 2**30
COMMIT_MS = 12.0
"""A commit on a vehicle's flash."""


class Disk:
    """The database of one car."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)

    def fill(self, *, refuses_all: bool) -> None:
        """From now on there is no room for another page; or no write is taken at all."""
        (pages,) = self.database.execute("PRAGMA page_count").fetchone()
        self.database.execute(f"PRAGMA max_page_count = {pages}")
        self.database.execute(f"PRAGMA query_only = {'ON' if refuses_all else 'OFF'}")

    def free(self) -> None:
        """There is room again."""
        self.database.execute(f"PRAGMA max_page_count = {PAGES_MAX}")
        self.database.execute("PRAGMA query_only = OFF")

    def lose_power(self) -> None:
        """What was not committed is gone."""
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")

    def close(self) -> None:
        """The car is scrapped."""
        self.database.close()


class StoreOnDisk(Store):
    """The store, on a database that is there already."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        super().__init__(NOWHERE)

    def _connect(self, _path: Path) -> sqlite3.Connection:
        return self._disk.database

    def close(self) -> None:
        """The database outlives it."""


class Power(Protocol):
    """What may fail between two steps."""

    def boundary(self, name: str) -> None:
        """The power may fail here; raises then."""
        ...

    async def wait(self, delay_ms: float) -> None:
        """Until so much later; for ever, if the power fails meanwhile."""
        ...


class SimulatedStoreThread(StoreThread):
    """The store behind a thread that is not there. `committed` is called after every call."""

    def __init__(self, disk: Disk, power: Power, now_ms: Callable[[], float], committed: Callable[[], None]) -> None:
        super().__init__(NOWHERE)
        self._disk, self._power, self._now_ms, self._committed = disk, power, now_ms, committed
        self._free_ms = 0.0

    async def open(self) -> None:
        """Open what is on the disk; raises StoreError while that takes no writes."""
        try:
            self._store = StoreOnDisk(self._disk)
        except sqlite3.Error as error:
            raise StoreError(f"cannot open the store: {error}") from error

    @property
    def head(self) -> tuple[LedgerHead, LedgerHead | None] | None:
        """The ledger as the store knows it, and as it is on the disk; None before it is open."""
        return None if self._store is None else (self._store.ledger_head(), self._store.stored_head())

    async def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One method after the other, each in its time."""
        self._free_ms = max(self._free_ms, self._now_ms()) + COMMIT_MS
        await self._power.wait(self._free_ms - self._now_ms())
        self._power.boundary("before a commit")
        result = await super().call(method, *args, **kwargs)
        self._committed()
        self._power.boundary("after a commit")
        return result
