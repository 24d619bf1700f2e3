"""How long work takes, measured: items of a package on a class of device, from statements that were settled.

A lease's time on the car's own clock counts, so whatever slows work down there (heat, pauses, fetching) is in it. What
a replica measures it keeps for a few seconds and then adds to the book in one go: every settled lease would change
the same few rows, and replicas would wait for each other. What a crash loses is an estimate.

The past fades: once a row has seen `FADE_ITEMS`, it is halved.
"""

from __future__ import annotations

from collections import Counter

from hil.dispatcher.database import Database

FLUSH_EVERY_MS = 5_000
FADE_ITEMS = 10_000


class Rates:
    """Part of the book; see there for threads and time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._items: Counter[tuple[str, str]] = Counter()
        self._took_ms: Counter[tuple[str, str]] = Counter()
        self._flushed_ms = 0

    def note(self, package_sha256: str, device_class: str, items: int, took_ms: int) -> None:
        """So many items took so long."""
        if items > 0:
            self._items[package_sha256, device_class] += items
            self._took_ms[package_sha256, device_class] += max(0, took_ms)

    def flush(self, now_ms: int) -> None:
        """Write down what was measured, when it is time."""
        if not self._items or 0 <= now_ms - self._flushed_ms < FLUSH_EVERY_MS:
            return
        with self._database.transaction():
            for (package_sha256, device_class), items in sorted(self._items.items()):
                self._database.execute(
                    "INSERT INTO rates (package_sha256, device_class, items, took_ms)"
                    " VALUES (:package, :device_class, :items, :took)"
                    " ON CONFLICT (package_sha256, device_class) DO UPDATE SET"
                    " items = CASE WHEN rates.items < :fade THEN rates.items ELSE rates.items / 2 END + excluded.items,"
                    " took_ms = CASE WHEN rates.items < :fade THEN rates.took_ms ELSE rates.took_ms / 2 END"
                    " + excluded.took_ms",
                    package=package_sha256,
                    device_class=device_class,
                    items=items,
                    took=self._took_ms[package_sha256, device_class],
                    fade=FADE_ITEMS,
                )
        self._items.clear()
        self._took_ms.clear()
        self._flushed_ms = now_ms
