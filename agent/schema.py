"""The store's tables, how those of earlier versions are brought up, and what is not kept for ever.

A version that is rolled back finds what it knows: columns are only added, with a default, newer facts get a table of
their own, and every row is written by the names of its columns. So an older version opens a newer store and works in
it. What it knows nothing of it does not keep up (`agent.store_ledger.KeptHead`), and where that would not do, the store
says so by the thousands of its version: then it is refused before anything is written (`check_known`).

Leaves of the ledger are never dropped. Of leases that are closed the row stays (its nonce must never be
used again, its sums are the owner's), and the ticket of the newest `DETAILED_LEASES`; of vacates and the log, the
newest rows. Slices go with their lease's verdict.
"""

from __future__ import annotations

import contextlib
import sqlite3

from agent.errors import NotUnderstoodError

SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (
  job TEXT, epoch INTEGER, nonce TEXT UNIQUE, ticket BLOB, state TEXT,
  opened_wall_ms INTEGER, closed_wall_ms INTEGER, kind TEXT, why TEXT, slices_done INTEGER,
  energy_micro_wh INTEGER DEFAULT 0, verdict TEXT, reason TEXT, paid_micro INTEGER DEFAULT 0,
  cost_micro INTEGER DEFAULT 0,
  PRIMARY KEY (job, epoch));
CREATE TABLE IF NOT EXISTS slices (
  job TEXT, epoch INTEGER, idx INTEGER,
  outcome BLOB, output BLOB, engine BLOB, energy_micro_wh INTEGER, cost_micro INTEGER DEFAULT 0,
  PRIMARY KEY (job, epoch, idx));
CREATE TABLE IF NOT EXISTS outbox (
  job TEXT, epoch INTEGER, kind TEXT, body BLOB, statement_sha256 TEXT, PRIMARY KEY (job, epoch));
CREATE TABLE IF NOT EXISTS referenced (job TEXT, epoch INTEGER, idx INTEGER, PRIMARY KEY (job, epoch, idx));
CREATE TABLE IF NOT EXISTS ledger (idx INTEGER PRIMARY KEY, kind TEXT, job TEXT, epoch INTEGER, leaf BLOB, hash BLOB);
CREATE TABLE IF NOT EXISTS nodes (level INTEGER, idx INTEGER, hash BLOB, PRIMARY KEY (level, idx)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (
  size INTEGER PRIMARY KEY, root TEXT, envelope BLOB, wall_ms INTEGER, witnessed INTEGER);
CREATE TABLE IF NOT EXISTS vacates (at_wall_ms INTEGER, cause TEXT, idle_ms INTEGER, gone_ms INTEGER);
CREATE TABLE IF NOT EXISTS log (at_wall_ms INTEGER, name TEXT, fields BLOB);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE INDEX IF NOT EXISTS ledger_bodies_kept ON ledger (idx) WHERE leaf IS NOT NULL AND kind != 'session';
CREATE INDEX IF NOT EXISTS ledger_by_lease ON ledger (job, epoch, kind);
CREATE INDEX IF NOT EXISTS ledger_sessions ON ledger (idx) WHERE kind = 'session';
DROP INDEX IF EXISTS ledger_bodies;
CREATE INDEX IF NOT EXISTS leases_in_detail ON leases (state) WHERE ticket IS NOT NULL;
"""
COLUMNS_SINCE = (("leases", "cost_micro"), ("slices", "cost_micro"))
"""Columns that databases of earlier versions lack: added on opening, 0 in the rows that are there."""

VERSION = 2
"""Of the database: 1 keeps the ledger's head, 2 the nodes of its tree."""
NOT_KNOWN_FROM = 1_000
"""From this version on a store is not opened. A release that raises the thousands of `VERSION` comes after one that
raised this number, and knows what to do with both: else there would be no way back from it."""

LOG_ROWS = 20_000
VACATE_ROWS = 10_000
DETAILED_LEASES = 2_000
CHECKPOINT_PAGES = 1_000
"""With so many pages in the write-ahead log it is copied into the database, after a commit."""
WAL_BYTES = 4 * 1024 * 1024
"""What the write-ahead log is cut back to after a large transaction."""


def version_of(db: sqlite3.Connection) -> int:
    """The version that brought the database up last, or a newer one before it; 0 for a new file."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def check_known(db: sqlite3.Connection) -> None:
    """Raise NotUnderstoodError for a store of a newer version that this one must not write into. Writes nothing."""
    version = version_of(db)
    if version <= VERSION:
        return
    problem = "older ones must not open it" if version >= NOT_KNOWN_FROM else _misfit(db)
    if problem:
        raise NotUnderstoodError(
            f"the store is of version {version}, and this agent knows {VERSION}: {problem}",
            hint="install the newer version of the agent again; nothing was changed",
        )


def _misfit(db: sqlite3.Connection) -> str:
    """What of our tables is not as we know it: a column that is gone, or one that has to be given a value."""
    with contextlib.closing(sqlite3.connect(":memory:")) as ours:
        ours.executescript(SCHEMA)
        tables = [row[0] for row in ours.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        known = {table: _columns(ours, table) for table in tables}
    for table, wanted in known.items():
        found = _columns(db, table)
        for name, (kind, key, _) in wanted.items():
            if name not in found or found[name][:2] != (kind, key):
                return f"{table}.{name} is another there"
        for name, (_, key, needed) in found.items():
            if name not in wanted and (key or needed):
                return f"{table}.{name} needs a value that is not known here"
    return ""


def _columns(db: sqlite3.Connection, table: str) -> dict[str, tuple[str, int, bool]]:
    """Of each column its type, its place in the primary key (0: none), and whether every row has to give it."""
    rows = db.execute(f"PRAGMA table_info({table})")
    return {name: (kind, key, bool(needed) and default is None) for _, name, kind, needed, default, key in rows}


def bring_up(db: sqlite3.Connection) -> None:
    """Durable settings, all tables with all columns, and nothing that belongs to nobody; raises sqlite3.Error."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")
    db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
    db.executescript(SCHEMA)
    for table, column in COLUMNS_SINCE:
        if column not in {row[1] for row in db.execute(f"PRAGMA table_info({table})")}:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER DEFAULT 0")
    db.execute(  # a slice that was stored after its lease was closed
        "DELETE FROM slices WHERE NOT EXISTS (SELECT 1 FROM leases WHERE leases.job = slices.job"
        " AND leases.epoch = slices.epoch AND leases.state != 'closed')"
    )


def forget_old_tickets(db: sqlite3.Connection) -> None:
    """Drop the details of closed leases beyond the newest; within the caller's transaction."""
    db.execute(
        "UPDATE leases SET ticket = NULL WHERE ticket IS NOT NULL AND state = 'closed'"
        " AND rowid <= (SELECT max(rowid) FROM leases) - ?",
        (DETAILED_LEASES,),
    )


def forget_old_rows(db: sqlite3.Connection, table: str, keep: int) -> None:
    """Drop the oldest rows of a table of notes, so that it never fills the disk."""
    query = f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?"  # noqa: S608 - a name of ours
    db.execute(query, (keep,))


class Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the body raises."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_rest: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # a full disk may have rolled back by itself
                self._db.execute("ROLLBACK")
