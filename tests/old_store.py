"""The store's code of before the ledger's tree was kept, frozen: its tables and the statements it wrote with.

A version that a vehicle is rolled back to is such code over a newer store. Nothing of it may be brought up to date: it
is what is out there. It knows version 1 of the database: a head with the last leaf, no nodes, no checkpoints.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import msgspec

from agent.core.model import Grant
from agent.trust.merkle import leaf_hash, tree_root

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
CREATE TABLE IF NOT EXISTS vacates (at_wall_ms INTEGER, cause TEXT, idle_ms INTEGER, gone_ms INTEGER);
CREATE TABLE IF NOT EXISTS log (at_wall_ms INTEGER, name TEXT, fields BLOB);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE INDEX IF NOT EXISTS leases_in_detail ON leases (state) WHERE ticket IS NOT NULL;
"""


class OldStore:
    """What the daemon of then did with its database."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)
        self._db.execute(
            "DELETE FROM slices WHERE NOT EXISTS (SELECT 1 FROM leases WHERE leases.job = slices.job"
            " AND leases.epoch = slices.epoch AND leases.state != 'closed')"
        )
        self._hashes = [bytes(row[0]) for row in self._db.execute("SELECT hash FROM ledger ORDER BY idx")]
        if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
            self._keep_head()
            self._db.execute("PRAGMA user_version = 1")

    def close(self) -> None:
        self._db.close()

    @property
    def head(self) -> tuple[int, str]:
        return len(self._hashes), tree_root(self._hashes).hex()

    @property
    def stored_head(self) -> tuple[int, str]:
        (text,) = self._db.execute("SELECT value FROM meta WHERE key = 'ledger_head'").fetchone()
        said = json.loads(text)
        return said["size"], said["root"]

    def open_lease(self, grant: Grant) -> None:
        self._db.execute(
            "INSERT INTO leases (job, epoch, nonce, ticket, state, opened_wall_ms) VALUES (?, ?, ?, ?, 'open', ?)",
            (grant.job, grant.epoch, grant.nonce, msgspec.json.encode(grant), 1),
        )

    def add_slice(self, grant: Grant, index: int, outcome: bytes, engine: bytes) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO slices VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (grant.job, grant.epoch, index, outcome, b"[]", engine, 5, 3),
        )

    def hand_in(self, grant: Grant, statement: bytes) -> list[int]:
        """The slices that went into it."""
        self._db.execute("BEGIN IMMEDIATE")
        query = "SELECT idx FROM slices WHERE job = ? AND epoch = ? ORDER BY idx"
        slices = [row[0] for row in self._db.execute(query, (grant.job, grant.epoch))]
        closed = self._db.execute(
            "UPDATE leases SET state = 'handed_in', kind = ?, why = ?, slices_done = ?, energy_micro_wh = ?, "
            "cost_micro = ?, closed_wall_ms = ?, ticket = ? WHERE job = ? AND epoch = ? AND state = 'open'",
            ("result", None, len(slices), 7, 3, 2, msgspec.json.encode(grant), grant.job, grant.epoch),
        )
        assert closed.rowcount == 1
        self._db.execute(
            "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)",
            (grant.job, grant.epoch, "result", b"body", "e" * 64),
        )
        self._append("statement", grant, statement)
        self._db.execute("COMMIT")
        return slices

    def settle(self, grant: Grant, envelope: bytes) -> None:
        key = (grant.job, grant.epoch)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(
            "UPDATE leases SET state = 'closed', verdict = ?, reason = ?, paid_micro = ? "
            "WHERE job = ? AND epoch = ? AND state != 'closed'",
            ("settled", "", 5, *key),
        )
        self._append("verdict", grant, envelope)
        for table in ("outbox", "referenced", "slices"):
            self._db.execute(f"DELETE FROM {table} WHERE job = ? AND epoch = ?", key)
        self._db.execute("COMMIT")

    def vacate_and_log(self) -> None:
        self._db.execute("INSERT INTO vacates VALUES (?, ?, ?, ?)", (1, "door", 2, 3))
        self._db.execute("INSERT INTO log VALUES (?, ?, ?)", (1, "said", b"{}"))

    def outbox(self) -> list[tuple[str, int]]:
        return self._db.execute("SELECT job, epoch FROM outbox ORDER BY rowid").fetchall()

    def open_leases(self) -> list[tuple[str, int]]:
        return self._db.execute("SELECT job, epoch FROM leases WHERE state = 'open'").fetchall()

    def _append(self, kind: str, grant: Grant, leaf: bytes) -> None:
        index, digest = len(self._hashes), leaf_hash(leaf)
        row = (index, kind, grant.job, grant.epoch, leaf, digest)
        self._db.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", row)
        self._hashes.append(digest)
        self._keep_head()

    def _keep_head(self) -> None:
        size, root = self.head
        text = json.dumps({"size": size, "root": root}, separators=(",", ":"))
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", ("ledger_head", text))
