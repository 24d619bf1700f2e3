"""Work that measures this computer: a package in a worker of its own, again and again, or plain arithmetic.

Both begin at once and end at once. The worker is the daemon's own, so what heats the computer is what would run on it;
arithmetic on the CPU alone heats a computer with an accelerator less than its work will.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol

from agent.errors import DrivewayError
from agent.inference.runner import PackageRunner

BURN_ROUNDS = 20_000
"""Rounds of PBKDF2 between two looks at whether to end: about 10 ms, all of it outside the interpreter's lock."""


class Load(Protocol):
    """Something that keeps the computer busy between `start` and `stop`."""

    async def start(self) -> None:
        """Begin; raises DrivewayError when it cannot."""
        ...

    async def stop(self) -> None:
        """End now. May be called without a start, and again."""
        ...

    def fault(self) -> str:
        """Why it does not run although it was started; empty while all is well."""
        ...


class Burner:
    """Arithmetic on every core that this process may use."""

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    async def start(self) -> None:
        """Begin to burn."""
        self._ending.clear()
        cores = len(os.sched_getaffinity(0))
        self._threads = [threading.Thread(target=self._burn, name="burner", daemon=True) for _ in range(cores)]
        for thread in self._threads:
            thread.start()

    async def stop(self) -> None:
        """End, within some milliseconds."""
        self._ending.set()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._threads = []

    def fault(self) -> str:
        """Arithmetic does not fail."""
        return ""

    def _burn(self) -> None:
        while not self._ending.is_set():
            hashlib.pbkdf2_hmac("sha256", b"heat", b"salt", BURN_ROUNDS)


class PackageLoad:
    """A package that computes the same inputs again and again."""

    def __init__(self, runner: PackageRunner, items: Sequence[bytes]) -> None:
        self._runner, self._items = runner, items
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the package, prove it, and begin."""
        await self._runner.open()
        self._runner.give(self._items)
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Kill the worker."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, DrivewayError):
                await self._task
            self._task = None
        await self._runner.close()

    def fault(self) -> str:
        """What ended the work."""
        if self._task is None or not self._task.done():
            return ""
        return str(self._task.exception())

    async def _work(self) -> None:
        while True:
            await self._runner.compute()
