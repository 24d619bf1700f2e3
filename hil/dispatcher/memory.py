"""A book in memory, for plays and benchmarks: the same SQL, nothing on a disk, gone when it is closed."""

from __future__ import annotations

from collections.abc import Callable

from hil.dispatcher import schema
from hil.dispatcher.database import Database, SqliteDatabase, check_version, connect


class MemoryDatabase(SqliteDatabase):
    """See `SqliteDatabase`; `now_ms` is its clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        Database.__init__(self)
        self._now_ms = now_ms
        self._connection = connect(":memory:")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(schema.for_sqlite())
        check_version(self, "memory")
