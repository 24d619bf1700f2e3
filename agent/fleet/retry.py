"""When a transfer is tried again: soon, then ever later with full jitter, and not for ever.

Only what may pass (`TransientError`) is tried again. A server's Retry-After is honoured, up to a cap; where it is
longer than what is left, waiting is of no use. Progress begins the back-off anew: a link that breaks every minute still
brings a large object over, while a server that gives nothing is left after a few attempts.
"""

from __future__ import annotations

import random

import msgspec

from agent.clock import boot_s
from agent.fleet.channel import Cut, PausedError, TransientError


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """`for_s` is the time for everything, `fruitless` how many attempts in a row may bring nothing."""

    for_s: float
    fruitless: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    retry_after_s: float = 300.0
    """The longest that a server may have us wait."""


class Retry:
    """The attempts of one transfer. Time is CLOCK_BOOTTIME: a lease goes on ending while the car sleeps."""

    def __init__(self, patience: Patience, cut: Cut) -> None:
        self._patience, self._cut = patience, cut
        self._ends_s = boot_s() + patience.for_s
        self._best_bytes = 0
        self._fruitless = 0

    def reached(self, length_bytes: int) -> None:
        """So much of the object is there now; more than ever before is progress."""
        if length_bytes > self._best_bytes:
            self._best_bytes, self._fruitless = length_bytes, 0

    def wait(self, error: TransientError) -> None:
        """Wait until the next attempt; raises `error` when there is none, PausedError when cut meanwhile."""
        patience = self._patience
        self._fruitless += 1
        ceiling_s = min(patience.longest_s, patience.first_s * 2 ** (self._fruitless - 1))
        wait_s = min(error.retry_after_s, patience.retry_after_s) + random.uniform(0, ceiling_s)  # noqa: S311 - jitter
        if self._fruitless > patience.fruitless or boot_s() + wait_s >= self._ends_s:
            raise error
        if self._cut.wait(wait_s):
            raise PausedError("the transfer was paused")
