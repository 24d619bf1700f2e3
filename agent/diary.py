"""What the core reports, written down twice: to the log, and to the bounded table of the store, which outlives it.

The log holds back what comes in storms and tells how much that was (`agent.log`). The store is spared the same way: a
row is a commit, and so a write to the flash; what it does not take is counted by the log alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import msgspec

from agent.log import logger
from agent.log_storms import Storms
from agent.ports import Clock
from agent.store import Store, StoreThread


class Diary:
    """Writes the reports of one run."""

    def __init__(self, store: StoreThread, clock: Clock) -> None:
        self._store, self._clock, self._storms = store, clock, Storms()

    async def write(self, name: str, fields: Mapping[str, str | int | float | bool]) -> None:
        """One log event, to standard error and to the bounded log in the store. Never raises."""
        logger().info(name, **fields)
        if self._storms.admit(name, self._clock.boot_ms() / 1000) is None:
            return
        with contextlib.suppress(Exception):  # a full disk is told of as the storage gate, and a log may never hurt
            await self._store.call(Store.log, self._clock.wall_ms(), name, msgspec.json.encode(fields))
