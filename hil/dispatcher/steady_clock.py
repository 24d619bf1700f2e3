"""The clock of a book in SQLite: boot time, with an offset that all processes of the machine have agreed on.

The wall clock is set now and then, and a lease that was held for an hour must not turn into one of minutes. So the
offset to the wall clock is fixed by whoever opens the book first after a boot, and kept in it. After the next boot it
is fixed anew, at a time no earlier than any in the book: the clock never goes back, whatever the wall clock does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from agent.clock import SystemClock, boot_id
from agent.ports import Clock
from hil.dispatcher.database import Database, SqliteDatabase

NAME = "clock"


def open_steady(folder: Path, clocks: Clock | None = None, boot: Callable[[], str] = boot_id) -> SqliteDatabase:
    """The book in `folder` under a clock that cannot be set; raises what `SqliteDatabase` does."""
    ticking = clocks or SystemClock()
    offset_ms = 0
    database = SqliteDatabase(folder, lambda: ticking.boot_ms() + offset_ms)
    with contextlib.ExitStack() as undo:
        undo.callback(database.close)
        with database.transaction():
            offset_ms = _agreed_offset_ms(database, ticking, boot())
        undo.pop_all()
    return database


def _agreed_offset_ms(database: Database, clocks: Clock, boot: str) -> int:
    row = database.row("SELECT value FROM settings WHERE name = :name", name=NAME)
    known, _, offset = ("", "", "") if row is None else str(row["value"]).partition(" ")
    if boot and known == boot:
        return int(offset)
    offset_ms = max(clocks.wall_ms(), _newest_ms(database)) - clocks.boot_ms()
    database.execute(
        "INSERT INTO settings (name, value) VALUES (:name, :value)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        name=NAME,
        value=f"{boot} {offset_ms}",
    )
    return offset_ms


def _newest_ms(database: Database) -> int:
    """The newest time that the book tells of; asked once a boot, so that it looks at whole tables does not matter."""
    row = database.row(
        "SELECT max((SELECT coalesce(max(granted_ms), 0) FROM jobs), (SELECT coalesce(max(seen_ms), 0) FROM units),"
        " (SELECT coalesce(max(at_ms), 0) FROM handins)) AS newest"
    )
    return 0 if row is None else int(row["newest"])
