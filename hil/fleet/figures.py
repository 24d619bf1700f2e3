"""What is counted while a fleet runs: latencies, messages, bytes and moments, in forms that add up over processes.

A latency is kept in a histogram whose classes grow by five percent, so ten thousand cars fill a few hundred numbers and
a quantile is right to five percent, however many there were. Moments (a car came up, a car was answered) are counted
per tenth of a second of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

CLASS_GROWTH = 1.05
SMALLEST_MS = 0.05
BINS_PER_S = 10


class Histogram(msgspec.Struct):
    """Durations in milliseconds. `counts[k]` is how many fell below SMALLEST_MS * CLASS_GROWTH ** k."""

    counts: dict[int, int] = {}
    total: int = 0
    max_ms: float = 0.0

    def add(self, duration_ms: float) -> None:
        """One more duration; one that is not positive counts as the smallest."""
        number = 0
        if duration_ms > SMALLEST_MS:
            number = math.ceil(math.log(duration_ms / SMALLEST_MS, CLASS_GROWTH))
        self.counts[number] = self.counts.get(number, 0) + 1
        self.total += 1
        self.max_ms = max(self.max_ms, duration_ms)

    def merge(self, other: Histogram) -> None:
        """Take in what another process saw."""
        for number, count in other.counts.items():
            self.counts[number] = self.counts.get(number, 0) + count
        self.total += other.total
        self.max_ms = max(self.max_ms, other.max_ms)

    def quantile_ms(self, share: float) -> float | None:
        """The duration that this share of all did not exceed, to five percent; None where there is none."""
        if not self.total:
            return None
        rank, seen = math.ceil(share * self.total), 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= rank:
                return min(self.max_ms, SMALLEST_MS * CLASS_GROWTH**number)
        raise AssertionError("the counts are fewer than their total")


class Tally(msgspec.Struct):
    """What the cars of one process have seen since it was last emptied."""

    grant: Histogram = msgspec.field(default_factory=Histogram)
    """From a request to its answer that holds a grant."""
    no_work: Histogram = msgspec.field(default_factory=Histogram)
    """From a request to the answer that there is no work now."""
    verdict: Histogram = msgspec.field(default_factory=Histogram)
    """From the sending of a hand-in to its verdict."""
    renewal: Histogram = msgspec.field(default_factory=Histogram)
    """From a renewal to the new time."""
    connect: Histogram = msgspec.field(default_factory=Histogram)
    """From the beginning of an attempt to its granted subscriptions."""
    sent: dict[str, int] = {}
    """Publishes by verb, as the car hands them to the broker."""
    sent_bytes: dict[str, int] = {}
    """Their payloads, without topic and headers."""
    received: dict[str, int] = {}
    received_bytes: dict[str, int] = {}
    events: dict[str, int] = {}
    """What happened, by name: attempts, refused, dropped, granted, settled, …"""
    ups: dict[int, int] = {}
    """Links that came up, by tenth of a second of CLOCK_MONOTONIC."""
    downs: dict[int, int] = {}
    back: dict[int, int] = {}
    """Cars whose link came up for the first time since the mark."""
    served: dict[int, int] = {}
    """Cars that were answered for the first time since the mark."""

    def merge(self, other: Tally) -> None:
        """Take in what another process saw."""
        for mine, theirs in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True):
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            else:
                add_counts(mine, theirs)


def add_counts(mine: dict[str, int] | dict[int, int], theirs: Mapping[str, int] | Mapping[int, int]) -> None:
    """Add up two tables of counts, into the first."""
    for name, count in theirs.items():
        mine[name] = mine.get(name, 0) + count  # type: ignore[index,arg-type]


def merged(tallies: Iterable[Tally]) -> Tally:
    """The sum over processes."""
    whole = Tally()
    for one in tallies:
        whole.merge(one)
    return whole


def bin_of(monotonic_s: float) -> int:
    """The tenth of a second that a moment belongs to."""
    return int(monotonic_s * BINS_PER_S)


def per_second(moments: Mapping[int, int], start_s: float, seconds: int) -> list[int]:
    """Moments as counts in each of so many seconds from `start_s`."""
    counts: Counter[int] = Counter()
    first = bin_of(start_s)
    for number, count in moments.items():
        counts[(number - first) // BINS_PER_S] += count
    return [counts[second] for second in range(seconds)]


def time_to_share_s(moments: Mapping[int, int], start_s: float, cars: int, share: float) -> float | None:
    """Seconds from `start_s` until this share of the cars has had its moment; None when it never came to that.

    A moment is counted at the end of its tenth of a second, so the answer is never too good.
    """
    needed, seen = math.ceil(share * cars), 0
    for number in sorted(moments):
        seen += moments[number]
        if seen >= needed:
            return max(0.0, round((number + 1) / BINS_PER_S - start_s, 1))
    return None


def best_second(moments: Mapping[int, int]) -> int:
    """The most moments within any second."""
    if not moments:
        return 0
    best = window = 0
    first, last = min(moments), max(moments)
    for number in range(first, last + 1):
        window += moments.get(number, 0) - moments.get(number - BINS_PER_S, 0)
        best = max(best, window)
    return best
