"""Blocking calls beside the event loop that may hang for ever, and then keep nobody from going on, or from ending.

A pool's threads are waited for when the interpreter ends, so one sensor on a bus that hangs would keep a process that
has long finished. A daemon thread is not. One costs some tens of microseconds: for what is rare, not for hot paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Beside:
    """Runs calls one at a time, each on a daemon thread; one that takes too long is left behind."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    async def run(self, call: Callable[[], Result], limit_s: float) -> Result:
        """What `call` returns or raises; TimeoutError when it, and what hangs before it, take longer than `limit_s`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: Exception | None) -> None:
            if answer.done():
                return  # nobody waits any more
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # None only where Result is None

        def work() -> None:
            result, failure = None, None
            with self._turn:
                try:
                    result = call()
                except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                    failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, result, failure)

        threading.Thread(target=work, name="beside", daemon=True).start()
        return await asyncio.wait_for(answer, limit_s)
