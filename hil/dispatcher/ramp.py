"""How many cars of a cell may start at once: those beyond get no job yet, and each its own time to ask again.

A region that comes back from an outage would otherwise have all its cars fetch, start and heat up in the same minute.
New leases of cars that were idle are let through by a token bucket. Its rate is the larger of `per_s` and twice what
was started lately (an average over `MEMORY_MS`): under load it grows about e-fold in `MEMORY_MS`, and in quiet it falls
back. So it does not matter what the outage was of (the dispatcher's start, its link, or the region itself, which looks
from here like silence), and a busy evening is not held up. A car that works on is not counted: its next grant comes
with a verdict.

Who is turned away is given a place in a queue that moves on at the bucket's rate, so they come back spread out.
Each replica has a bucket of its own, in memory: a replica that starts anew begins slowly, as it should.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MEMORY_MS = 60_000
LONGEST_WAIT_S = 900
GROWTH = 2.0


@dataclass(slots=True)
class _Bucket:
    at_ms: int
    tokens: float
    lately_per_s: float = 0.0
    waiting: float = 0.0


class Ramp:
    """Buckets by cell. `per_s` is how many leases of idle cars a cell may always start a second; 0: any number."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._buckets: dict[str, _Bucket] = {}

    def wait_s(self, cell: str, now_ms: int) -> int:
        """0 when a car of this cell may start now; otherwise after how many seconds it should ask again."""
        if self._per_s <= 0:
            return 0
        bucket = self._at(cell, now_ms)
        if bucket.tokens >= 1.0:
            return 0
        bucket.waiting += 1.0
        return min(LONGEST_WAIT_S, max(1, math.ceil(bucket.waiting / self._rate(bucket))))

    def started(self, cell: str, now_ms: int) -> None:
        """A car of this cell was given a lease after it asked."""
        if self._per_s > 0:
            bucket = self._at(cell, now_ms)
            bucket.tokens -= 1.0
            bucket.lately_per_s += 1000.0 / MEMORY_MS

    def _at(self, cell: str, now_ms: int) -> _Bucket:
        """The cell's bucket, brought up to date. A second's worth of tokens is kept, at least one."""
        bucket = self._buckets.get(cell)
        if bucket is None:
            bucket = self._buckets[cell] = _Bucket(now_ms, max(1.0, self._per_s))
        passed_ms = max(0, now_ms - bucket.at_ms)
        rate = self._rate(bucket)
        bucket.at_ms = now_ms
        bucket.tokens = min(max(1.0, rate), bucket.tokens + rate * passed_ms / 1000.0)
        bucket.waiting = max(0.0, bucket.waiting - rate * passed_ms / 1000.0)
        bucket.lately_per_s *= math.exp(-passed_ms / MEMORY_MS)
        return bucket

    def _rate(self, bucket: _Bucket) -> float:
        return max(self._per_s, GROWTH * bucket.lately_per_s)
