"""Looks after one worker by `agent.inference.watchdog`: the timer, on the event loop, that asks whether it hangs.

Being heard only puts off the verdict: no timer is set anew for a frame, so a worker that says Beat all night costs one
wake-up per patience. Before the verdict what it said while the daemon itself was busy is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.inference.watchdog import Doing, Watch


class Lookout:
    """`hear` reads whatever the worker has said; `hangs` is called with the verdict, once."""

    def __init__(self, hear: Callable[[], None], hangs: Callable[[str], None]) -> None:
        self._hear, self._hangs = hear, hangs
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watch = Watch(since_ms=self._now_ms(), heard_ms=self._now_ms())
        self._set()

    def does(self, doing: Doing) -> None:
        """The worker does something else from now on, that has another measure."""
        self._watch = self._watch.began(doing, self._now_ms())
        self._set()

    def heard(self) -> None:
        """The worker said something."""
        self._watch = self._watch.heard(self._now_ms())

    def paced(self, duty_permille: int) -> None:
        """The worker was told to compute for this share of the time."""
        self._watch = self._watch.paced(duty_permille, self._now_ms())

    def close(self) -> None:
        """Look no more: the worker was told to stop, or has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now_ms(self) -> int:
        """The loop's clock: it stands still while the computer sleeps."""
        return round(self._loop.time() * 1000)

    def _set(self) -> None:
        self.close()
        if self._watch.due_ms is not None:
            self._timer = self._loop.call_at(self._watch.due_ms / 1000, self._judge)

    def _judge(self) -> None:
        self._timer = None
        self._hear()
        if verdict := self._watch.verdict(self._now_ms()):
            self._hangs(verdict)
        else:
            self._set()
