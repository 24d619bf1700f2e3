"""How the daemon leaves: every part is closed whatever the others do, and no thread that hangs keeps the process.

A disk or a sensor may hang for ever, and a thread that waits for one cannot be ended: Python would wait for it, and a
service manager would have to kill what has long finished. So each part gets its time, and at the end the process exits
past the threads that are stuck. Nothing is lost by it: what was acknowledged is on the disk, and the worker is dead.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from agent.log import logger

CLOSE_S = 5.0
"""The most that closing one part may take; each has a shorter limit of its own where it can wait for something."""
STUCK_S = 1.0
"""How long threads may take to end after everything is closed."""
POLL_S = 0.01

Result = TypeVar("Result")


class Part(Protocol):
    """Something that was begun and is closed."""

    async def close(self) -> None:
        """End it."""
        ...


async def closed(part: Part) -> None:
    """Close one part. Never raises: what fails or hangs is told, and the next part is closed."""
    try:
        await asyncio.wait_for(part.close(), CLOSE_S)
    except Exception as error:  # noqa: BLE001 - as the docstring says
        detail = f"not within {CLOSE_S:.0f} s" if isinstance(error, TimeoutError) else repr(error)
        logger().error("close_failed", part=type(part).__name__, detail=detail)


def run_and_leave(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work` on an event loop of its own. Exits the process when it is over and a thread that it began is stuck."""
    before = set(threading.enumerate())

    async def main() -> Result:
        pool = ThreadPoolExecutor(thread_name_prefix="beside")
        asyncio.get_running_loop().set_default_executor(pool)
        try:
            return await work()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            await _past_stuck_threads(before)

    return asyncio.run(main())


async def _past_stuck_threads(before: set[threading.Thread]) -> None:
    """Return when no new thread is left that Python would wait for; exit when some do not end."""
    for _ in range(round(STUCK_S / POLL_S)):
        if not _held_up_by(before):
            return
        await asyncio.sleep(POLL_S)
    error = sys.exc_info()[1]
    logger().error("threads_stuck", threads=_held_up_by(before), error="" if error is None else repr(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if error is None else 1)


def _held_up_by(before: set[threading.Thread]) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread not in before and not thread.daemon]
