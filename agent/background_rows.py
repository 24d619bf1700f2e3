"""Rows that are written to the store in the background: what is in them counts already, and a later run shall know it.

Where the disk does not take one, it is told of and nothing else comes of it: each is written again when it changes.
"""

from __future__ import annotations

import asyncio

import msgspec

from agent.errors import StoreError
from agent.log import logger
from agent.store import Store, StoreThread
from agent.tasks import finished


class BackgroundRows:
    """Use from the event loop's thread. `event` is the log's name for a row that the disk did not take."""

    def __init__(self, store: StoreThread, event: str) -> None:
        self._store, self._event = store, event
        self.tasks: set[asyncio.Task[None]] = set()
        """What is being written now."""

    def keep(self, row: str, value: msgspec.Struct) -> None:
        """Begin to write it."""
        task = asyncio.get_running_loop().create_task(self.write(row, value))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def write(self, row: str, value: msgspec.Struct) -> None:
        """Write it, and wait for that."""
        try:
            await self._store.call(Store.remember, row, value)
        except StoreError as error:
            logger().warning(self._event, row=row, error=str(error))

    async def finished(self, limit_s: float) -> None:
        """Wait until all are written, and cancel those that take longer."""
        await finished(self.tasks, limit_s)
