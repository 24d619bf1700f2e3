"""How long work takes, measured: items of a package on a class of device, from statements that were settled.

What counts is the time in which slices were computed, not the lease's: a car that slept in the middle, or fetched over
a slow link, says nothing of its class. One unit's word is worth only so much: a lease that is off what is known by more
than `OUTLIER` is taken for off by that. Known is what was measured before; before that what the job's customer expects
(customers are careful: only slower is off), and without that the median of what came in together.

What a replica measures it keeps for a few seconds and then adds to the book in one go: every settled lease would change
the same few rows, and replicas would wait for each other. What a crash loses is an estimate.

The past fades: once a row has seen `FADE_ITEMS`, it is halved. And nothing is too slow for ever: see `may_try`.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec

from hil.dispatcher.database import Database

FLUSH_EVERY_MS = 5_000
FADE_ITEMS = 10_000
OUTLIER = 4
SAMPLES_KEPT = 1_000
"""Of one package and class between two flushes; more would say the same."""
TRY_EVERY_MS = 3_600_000


class Measured(msgspec.Struct, frozen=True):
    """So many items took so long; `estimate_us_per_item` is what the customer expects, 0: nothing."""

    items: int
    took_ms: int
    estimate_us_per_item: int

    @property
    def us_per_item(self) -> int:
        """How long one took, at least a microsecond."""
        return max(1, 1000 * self.took_ms // self.items)


class Rates:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._measured: defaultdict[tuple[str, str], list[Measured]] = defaultdict(list)
        self._flushed_ms = 0

    def note(
        self, package_sha256: str, device_class: str, items: int, took_ms: int, estimate_us_per_item: int = 0
    ) -> None:
        """So many items took so long."""
        samples = self._measured[package_sha256, device_class]
        if items > 0 and len(samples) < SAMPLES_KEPT:
            samples.append(Measured(items, max(0, took_ms), estimate_us_per_item))

    def may_try(self, package_sha256: str, device_class: str, now_ms: int) -> bool:
        """Whether one slice is to be granted although it should not fit; then the next may be in an hour.

        Whoever cannot be given anything measures nothing, so a wrong rate would stay.
        """
        tried = self._database.execute(
            "UPDATE rates SET tried_ms = :now WHERE package_sha256 = :package AND device_class = :device_class"
            " AND (tried_ms <= :before OR tried_ms > :now)",
            package=package_sha256,
            device_class=device_class,
            now=now_ms,
            before=now_ms - TRY_EVERY_MS,
        )
        return tried == 1

    def flush(self, now_ms: int) -> None:
        """Write down what was measured, when it is time."""
        if not self._measured or 0 <= now_ms - self._flushed_ms < FLUSH_EVERY_MS:
            return
        with self._database.transaction():
            for (package_sha256, device_class), samples in sorted(self._measured.items()):
                if samples:
                    self._add(package_sha256, device_class, samples, now_ms)
        self._measured.clear()
        self._flushed_ms = now_ms

    def _add(self, package_sha256: str, device_class: str, samples: list[Measured], now_ms: int) -> None:
        row = self._database.row(
            "SELECT 1000 * took_ms / items AS us_per_item FROM rates"
            " WHERE package_sha256 = :package AND device_class = :device_class AND items > 0",
            package=package_sha256,
            device_class=device_class,
        )
        self._database.execute(
            "INSERT INTO rates (package_sha256, device_class, items, took_ms, tried_ms)"
            " VALUES (:package, :device_class, :items, :took, :now)"
            " ON CONFLICT (package_sha256, device_class) DO UPDATE SET"
            " items = CASE WHEN rates.items < :fade THEN rates.items ELSE rates.items / 2 END + excluded.items,"
            " took_ms = CASE WHEN rates.items < :fade THEN rates.took_ms ELSE rates.took_ms / 2 END"
            " + excluded.took_ms",
            package=package_sha256,
            device_class=device_class,
            items=sum(one.items for one in samples),
            took=believed_ms(samples, 0 if row is None else row["us_per_item"]),
            fade=FADE_ITEMS,
            now=now_ms,
        )


def believed_ms(samples: list[Measured], known_us_per_item: int) -> int:
    """How long all of these took, none of them more than `OUTLIER` off what is known (0: nothing) or expected."""
    median = sorted(one.us_per_item for one in samples)[len(samples) // 2]
    took_us = 0
    for one in samples:
        most = OUTLIER * (known_us_per_item or one.estimate_us_per_item or median)
        took_us += one.items * min(most, max((known_us_per_item or median) // OUTLIER, one.us_per_item))
    return -(-took_us // 1000)
