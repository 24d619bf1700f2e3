"""The bad network between the daemon and its broker: `hil.faults.proxy` on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from hil.faults.proxy import BOTH, FaultyLink, Weather

CALL_S = 5.0
CLEAR = Weather()
"""Nothing is late: on this rig only what a scenario says is wrong with the network."""


class LinkThread:
    """A context manager; `port` is where the daemon dials."""

    def __init__(self, target: int, *, seed: int) -> None:
        self._link = FaultyLink("agent", target, seed=seed)
        self._link.weather = CLEAR
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._wait(self._link.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._link.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._link.port

    def hold(self) -> None:
        """Nothing passes, and nobody is told."""
        self._do(lambda: self._link.hold(*BOTH))

    def release(self) -> None:
        """What was held goes on."""
        self._do(self._link.release)

    def weather(self, weather: Weather) -> None:
        """How bytes travel from now on."""
        self._do(lambda: setattr(self._link, "weather", weather))

    def _do(self, action: Callable[[], None]) -> None:
        async def act() -> None:
            action()

        self._wait(act())

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_S)
