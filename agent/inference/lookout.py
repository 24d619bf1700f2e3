"""Looks after one worker by `agent.inference.watchdog`: the timer, on the event loop, that asks whether it hangs.

Being heard mostly puts off the verdict, and then no timer is set anew for it, so a worker that says Beat all night
costs one wake-up per patience. Before the verdict what it said while the daemon itself was busy is heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.inference.watchdog import Loading, Serving, Unbounded, Watch


class Lookout:
    """`hear` reads whatever the worker has said; `hangs` is called with the verdict, once."""

    def __init__(self, hear: Callable[[], None], hangs: Callable[[str], None]) -> None:
        self._hear, self._hangs = hear, hangs
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._watch = Watch(since_ms=self._now_ms(), heard_ms=self._now_ms())
        self._set()

    def does(self, doing: Loading | Serving | Unbounded) -> None:
        """The worker does something else from now on (or once it is up), that has another measure."""
        self._watch = self._watch.began(doing, self._now_ms())
        self._set()

    def is_up(self) -> None:
        """The worker said Hello."""
        self._watch = self._watch.is_up(self._now_ms())
        self._set()

    def heard(self) -> None:
        """The worker said something, and be it half a message."""
        self._watch = self._watch.heard(self._now_ms())
        due_ms = self._watch.due_ms
        if self._timer is not None and due_ms is not None and due_ms / 1000 < self._timer.when():
            self._set()  # it was slow when the timer was set

    def paced(self, duty_permille: int) -> None:
        """The worker was told to compute for this share of the time."""
        self._watch = self._watch.paced(duty_permille)

    def close(self) -> None:
        """Look no more: the worker was told to stop, or has ended."""
        self._closed = True
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now_ms(self) -> int:
        """The loop's clock: it stands still while the computer sleeps."""
        return round(self._loop.time() * 1000)

    def _set(self) -> None:
        self._cancel()
        if self._watch.due_ms is not None and not self._closed:
            self._timer = self._loop.call_at(self._watch.due_ms / 1000, self._judge)

    def _judge(self) -> None:
        self._timer = None
        self._hear()
        if verdict := self._watch.verdict(self._now_ms()):
            self._hangs(verdict)
        else:
            self._set()
