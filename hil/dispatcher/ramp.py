"""How many cars of a cell may start at once: those beyond get no job yet, and each its own time to ask again.

A region that comes back from an outage would otherwise have all its cars fetch, start and heat up in the same minute.
New leases of cars that were idle are let through by a token bucket. Its rate is the larger of `per_s` and twice what
was started lately (an average over `MEMORY_MS`): under load it grows about e-fold in `MEMORY_MS`, and in quiet it falls
back. So it does not matter what the outage was of (the dispatcher's start, its link, or the region itself, which looks
from here like silence), and a busy evening is not held up. A car that works on is not counted: its next grant comes
with a verdict. Nor is one whose grant got lost: it started once.

Who is turned away is given a place in a queue that moves on at the bucket's rate, so they come back spread out. A car
keeps its place however often it asks, so nobody's wait is longer because another is impatient.
Each replica has a bucket of its own, in memory: a replica that starts anew begins slowly, as it should.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

MEMORY_MS = 60_000
LONGEST_WAIT_S = 900
GROWTH = 2.0


@dataclass(slots=True)
class _Bucket:
    """`served` is how far the queue has moved on, `places` who stands where in it, in order."""

    at_ms: int
    tokens: float
    lately_per_s: float = 0.0
    served: float = 0.0
    tail: float = 0.0
    places: dict[str, float] = field(default_factory=dict)


class Ramp:
    """Buckets by cell. `per_s` is how many leases of idle cars a cell may always start a second; 0: any number.

    What was started counts at once; `keep` it when that is durable, `forget` it when it was undone.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._buckets: dict[str, _Bucket] = {}
        self._undecided: Counter[str] = Counter()

    def wait_s(self, cell: str, unit: str, now_ms: int) -> int:
        """0 when this car of the cell may start now; otherwise after how many seconds it should ask again."""
        if self._per_s <= 0:
            return 0
        bucket = self._at(cell, now_ms)
        if bucket.tokens >= 1.0:
            return 0
        rate = self._rate(bucket)
        place = bucket.places.get(unit)
        if place is None:
            place = max(bucket.tail, bucket.served) + 1.0
            if place - bucket.served < rate * LONGEST_WAIT_S:  # those beyond wait as long as anybody, without a place
                bucket.tail = bucket.places[unit] = place
        return min(LONGEST_WAIT_S, max(1, math.ceil((place - bucket.served) / rate)))

    def started(self, cell: str, now_ms: int) -> None:
        """A car of this cell is given a lease after it asked."""
        if self._per_s > 0:
            bucket = self._at(cell, now_ms)
            bucket.tokens -= 1.0
            bucket.lately_per_s += 1000.0 / MEMORY_MS
            self._undecided[cell] += 1

    def keep(self) -> None:
        """What was started is durable."""
        self._undecided.clear()

    def forget(self) -> None:
        """What was started since then was not started after all."""
        for cell, count in self._undecided.items():
            bucket = self._buckets[cell]
            bucket.tokens += count
            bucket.lately_per_s = max(0.0, bucket.lately_per_s - count * 1000.0 / MEMORY_MS)
        self._undecided.clear()

    def _at(self, cell: str, now_ms: int) -> _Bucket:
        """The cell's bucket, brought up to date. A second's worth of tokens is kept, at least one."""
        bucket = self._buckets.get(cell)
        if bucket is None:
            bucket = self._buckets[cell] = _Bucket(now_ms, max(1.0, self._per_s))
        passed_ms = max(0, now_ms - bucket.at_ms)
        rate = self._rate(bucket)
        bucket.at_ms = now_ms
        bucket.tokens = min(max(1.0, rate), bucket.tokens + rate * passed_ms / 1000.0)
        bucket.served += rate * passed_ms / 1000.0
        bucket.lately_per_s *= math.exp(-passed_ms / MEMORY_MS)
        while bucket.places and next(iter(bucket.places.values())) <= bucket.served:
            del bucket.places[next(iter(bucket.places))]
        return bucket

    def _rate(self, bucket: _Bucket) -> float:
        return max(self._per_s, GROWTH * bucket.lately_per_s)
