"""Ends tasks that write: what they do is worth waiting for, though not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Collection


async def finished(tasks: Collection[asyncio.Task[None]], limit_s: float) -> None:
    """Wait until they are done, and cancel those that take longer. What they raise is theirs to tell."""
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=limit_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
