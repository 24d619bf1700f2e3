"""The store's tables, how those of earlier versions are brought up, and what is not kept for ever.

A version that is rolled back finds what it knows: columns are only added with a default, newer facts get a table of
their own. Leaves of the ledger are never dropped. Of leases that are closed the row stays (its nonce must never be
used again, its sums are the owner's), and the ticket of the newest `DETAILED_LEASES`; of vacates and the log, the
newest rows. Slices go with their lease's verdict.
"""

from __future__ import annotations

import sqlite3

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

LOG_ROWS = 20_000
VACATE_ROWS = 10_000
DETAILED_LEASES = 2_000
CHECKPOINT_PAGES = 1_000
"""With so many pages in the write-ahead log it is copied into the database, after a commit."""
WAL_BYTES = 4 * 1024 * 1024
"""What the write-ahead log is cut back to after a large transaction."""


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
