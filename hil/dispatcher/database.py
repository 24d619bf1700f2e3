"""The dispatcher's SQLite file: its tables, and the one connection that writes them.

WAL with `synchronous=FULL`: what was answered had been committed. One process writes through one connection; others
(a live view, a test) open it read-only. Rows are the only truth about a lease, so every rule that must never break is a
constraint here: a slice has one result, a lease has one hand-in, a key uses a counter once.

Times are milliseconds of the dispatcher's clock, money millionths of the currency unit.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from agent.errors import StoreError

FILE = "dispatcher.sqlite3"
BUSY_TIMEOUT_S = 5.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job TEXT PRIMARY KEY, customer TEXT NOT NULL, package TEXT NOT NULL, package_sha256 TEXT NOT NULL,
    input_sha256 TEXT NOT NULL, input_bytes INTEGER NOT NULL, items INTEGER NOT NULL, slice_items INTEGER NOT NULL,
    price_micro_per_item INTEGER NOT NULL, currency TEXT NOT NULL, ttl_s INTEGER NOT NULL,
    workload_class TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'leased', 'done')),
    epoch INTEGER NOT NULL DEFAULT 0, holder TEXT, nonce TEXT, granted_ms INTEGER, expires_ms INTEGER
) STRICT;
-- The SHA-256 of every signed payload that carried a grant: what a statement may name as its ticket.
CREATE TABLE IF NOT EXISTS tickets (
    job TEXT NOT NULL REFERENCES jobs, epoch INTEGER NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (job, epoch, sha256)
) STRICT, WITHOUT ROWID;
-- One row for each lease that ended with a signed statement; the envelope is kept so that anybody can verify it.
CREATE TABLE IF NOT EXISTS handins (
    job TEXT NOT NULL REFERENCES jobs, epoch INTEGER NOT NULL, unit TEXT NOT NULL REFERENCES units,
    verdict TEXT NOT NULL CHECK (verdict IN ('settled', 'bad')), reason TEXT NOT NULL DEFAULT '',
    paid_micro INTEGER NOT NULL DEFAULT 0, micro_wh INTEGER NOT NULL DEFAULT 0, at_ms INTEGER NOT NULL,
    statement_sha256 TEXT NOT NULL, keyid TEXT, counter INTEGER, envelope BLOB,
    PRIMARY KEY (job, epoch), UNIQUE (keyid, counter)
) STRICT;
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL, slice INTEGER NOT NULL, epoch INTEGER NOT NULL, items INTEGER NOT NULL,
    failed_items INTEGER NOT NULL, paid_micro INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (job, slice), FOREIGN KEY (job, epoch) REFERENCES handins
) STRICT;
CREATE TABLE IF NOT EXISTS units (
    unit TEXT PRIMARY KEY, cell TEXT NOT NULL, keyid TEXT NOT NULL UNIQUE, public_key_pem TEXT NOT NULL,
    key_protection TEXT NOT NULL, device_class TEXT NOT NULL DEFAULT '', executor TEXT NOT NULL DEFAULT '',
    packages TEXT NOT NULL DEFAULT '[]', classes TEXT NOT NULL DEFAULT '[]',
    link TEXT NOT NULL DEFAULT '', boot TEXT NOT NULL DEFAULT '',
    conn INTEGER NOT NULL DEFAULT 0, seen_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS refusals (
    unit TEXT NOT NULL REFERENCES units, package_sha256 TEXT NOT NULL, until_ms INTEGER NOT NULL,
    PRIMARY KEY (unit, package_sha256)
) STRICT, WITHOUT ROWID;
-- The newest order of each kind to each unit, sent again whenever its link comes up.
CREATE TABLE IF NOT EXISTS orders (
    unit TEXT NOT NULL REFERENCES units, kind TEXT NOT NULL CHECK (kind IN ('prices', 'demand')),
    issued_ms INTEGER NOT NULL, ends_ms INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (unit, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS enrolment_codes (
    code_sha256 TEXT PRIMARY KEY, used_by TEXT REFERENCES units
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_holder ON jobs (holder, state);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, epoch);
"""


def open_for_writing(folder: Path) -> sqlite3.Connection:
    """The database in `folder`, made when there is none; raises StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(folder / FILE, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.executescript(SCHEMA)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open the dispatcher's book in {folder}: {error}") from error
    return database


def open_for_reading(folder: Path) -> sqlite3.Connection:
    """A read-only connection for another process; raises StoreError when there is no book yet."""
    try:
        database = sqlite3.connect(f"{(folder / FILE).absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        database.row_factory = sqlite3.Row
        database.execute("SELECT count(*) FROM jobs").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"cannot read the dispatcher's book in {folder}: {error}") from error
    return database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, so that what was read stays true until the commit."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
