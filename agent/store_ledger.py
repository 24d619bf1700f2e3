"""The ledger's part of the store: leaves, the tree above them, sessions, checkpoints and their witnesses.

A leaf is a statement this car signed, a verdict it was given, or the certificate of a session key. The tree's nodes are
kept beside the leaves (`agent.trust.ledger`), so that a proof costs a few look-ups, and so that the bodies of old
leaves can go: their hashes stay, and with them every proof.

A witness's word is never written over: where it speaks of another past than the one kept here, that is remembered as a
fault, and nothing is healed (`take_witness`).
"""

from __future__ import annotations

import sqlite3

import msgspec

from agent import schema
from agent.core.model import JobKey
from agent.errors import LedgerDamagedError
from agent.rows import CheckpointRow, LedgerHead
from agent.store_memory import StoreMemory
from agent.trust import ledger
from agent.trust.checkpoint import Checkpoint
from agent.trust.merkle import leaf_hash

HEAD = "ledger_head"
FAULT = "ledger_fault"
WANTED = "witness_wanted"
LAST_SESSION = "last_session"
LEAVES_KEPT = 50_000
"""Bodies of leaves; of an older one that was witnessed, and is no session's certificate, only the hash is kept."""
HASH_BYTES = 32
_INSERT_CHECKPOINT = "INSERT OR REPLACE INTO checkpoints (size, root, envelope, wall_ms, witnessed)"
CHECKPOINTS_KEPT = 1_000


class KeptHead(msgspec.Struct, frozen=True):
    """The ledger's head as it was committed with its last leaf, and the version of the database that wrote that leaf.

    A version that was rolled back to may not know all that is kept beside the leaves; then it is made anew.
    """

    size: int
    root: str
    wrote: int = 0


class SessionNumber(msgspec.Struct, frozen=True):
    """The last number that was given to a session of a key epoch."""

    key_epoch: int
    number: int


class LedgerFault(msgspec.Struct, frozen=True):
    """What a witness holds against this ledger, in words for people."""

    detail: str


class WitnessWanted(msgspec.Struct, frozen=True):
    """Since when, by the wall clock, hand-ins wait for the ledger to be witnessed."""

    since_wall_ms: int


class StoreLedger(StoreMemory):
    """Part of `agent.store.Store`, and like it of the store's thread alone."""

    _db: sqlite3.Connection
    _size: int

    def ledger_head(self) -> LedgerHead:
        """The ledger's size and root."""
        return LedgerHead(self._size, ledger.root(self.node, self._size).hex())

    def stored_head(self) -> LedgerHead | None:
        """The ledger's size and root as they were committed with its last leaf."""
        head = self.recall(HEAD, KeptHead)
        return None if head is None else LedgerHead(head.size, head.root)

    def keep_head(self, head: LedgerHead) -> None:
        """Write down the ledger's size and root, within the caller's transaction."""
        self.remember(HEAD, KeptHead(head.size, head.root, schema.VERSION))

    def node(self, level: int, index: int) -> bytes:
        """The hash of one node of the tree (`agent.trust.ledger.NodeAt`); a leaf's own is kept with the leaf."""
        if level:
            found = self._db.execute("SELECT hash FROM nodes WHERE level = ? AND idx = ?", (level, index))
        else:
            found = self._db.execute("SELECT hash FROM ledger WHERE idx = ?", (index,))
        row = found.fetchone()
        if row is None or not is_hash(row[0]):
            raise LedgerDamagedError(f"its tree lacks node {level}/{index}")
        digest: bytes = row[0]
        return digest

    def append_leaf(self, kind: str, key: JobKey, leaf: bytes) -> int:
        """Write a leaf, its nodes and the new head, within the caller's transaction; the size after the commit."""
        index, digest = self._size, leaf_hash(leaf)
        row = (index, kind, key.job, key.epoch, leaf, digest)
        self._db.execute("INSERT INTO ledger (idx, kind, job, epoch, leaf, hash) VALUES (?, ?, ?, ?, ?, ?)", row)
        self._keep_nodes(index, digest)
        root = ledger.root(self.node, index + 1)
        self.keep_head(LedgerHead(index + 1, root.hex()))
        return index + 1

    def _keep_nodes(self, index: int, digest: bytes) -> None:
        for level, at, made in ledger.completed(index, digest, self.node):
            if level:
                self._db.execute("INSERT INTO nodes (level, idx, hash) VALUES (?, ?, ?)", (level, at, made))

    def grow_nodes(self) -> None:
        """Make the tree of a database from before it was kept; within the caller's transaction."""
        self._db.execute("DELETE FROM nodes")
        for index, digest in self._db.execute("SELECT idx, hash FROM ledger ORDER BY idx").fetchall():
            if not is_hash(digest):
                raise LedgerDamagedError(f"its tree lacks node 0/{index}")
            self._keep_nodes(index, digest)

    def wrong_leaf(self, first: int, count: int) -> int | None:
        """The first of `count` leaves from `first` on whose body, hash or nodes do not agree; None when all do.

        Every node is held against its children, which were held against theirs before. Raises LedgerDamagedError for a
        node that is not there.
        """
        query = "SELECT idx, leaf, hash FROM ledger WHERE idx >= ? ORDER BY idx LIMIT ?"
        rows = self._db.execute(query, (first, count)).fetchall()
        for expected, (index, leaf, digest) in enumerate(rows, first):
            if index != expected or not is_hash(digest) or not _is_body(leaf, digest):
                return expected
            if any(self.node(level, at) != made for level, at, made in ledger.completed(index, digest, self.node)):
                return expected
        seen = first + len(rows)
        return None if seen >= min(first + count, self._size) else seen

    # --- sessions -----------------------------------------------------------------------------------------------

    def next_session(self, key_epoch: int) -> int:
        """A number that no session of this key epoch had before; committed, whether or not it will be used."""
        last = self.recall(LAST_SESSION, SessionNumber)
        number = last.number + 1 if last is not None and last.key_epoch == key_epoch else 1
        self.remember(LAST_SESSION, SessionNumber(key_epoch, number))
        return number

    def last_session(self, key_epoch: int) -> int:
        """The last number that a session of this key epoch has; 0 where there is none."""
        last = self.recall(LAST_SESSION, SessionNumber)
        return last.number if last is not None and last.key_epoch == key_epoch else 0

    def add_session(self, number: int, certificate: bytes) -> None:
        """The certificate of a session key becomes a leaf, before anything that the key signs."""
        with schema.Transaction(self._db):
            size = self.append_leaf("session", JobKey("", number), certificate)
        self._size = size

    # --- checkpoints --------------------------------------------------------------------------------------------

    def add_checkpoint(self, checkpoint: Checkpoint, envelope: bytes, wall_ms: int) -> None:
        """Keep a checkpoint that the unit's key signed, and forget the oldest beyond the bound."""
        row = (checkpoint.size, checkpoint.root, envelope, wall_ms)
        with schema.Transaction(self._db):
            self._db.execute(f"{_INSERT_CHECKPOINT} VALUES (?, ?, ?, ?, 0)", row)
            self._db.execute(
                "DELETE FROM checkpoints WHERE size < (SELECT max(size) FROM checkpoints WHERE witnessed)"
                " AND size NOT IN (SELECT size FROM checkpoints ORDER BY size DESC LIMIT ?)",
                (CHECKPOINTS_KEPT,),
            )

    def checkpoint(self, *, witnessed: bool = False) -> CheckpointRow | None:
        """The newest checkpoint, or the newest that a witness has signed."""
        row = self._db.execute(
            "SELECT size, root, envelope, wall_ms, witnessed FROM checkpoints WHERE witnessed >= ?"
            " ORDER BY size DESC LIMIT 1",
            (int(witnessed),),
        ).fetchone()
        return None if row is None else CheckpointRow(row[0], row[1], bytes(row[2]), row[3], bool(row[4]))

    def root_at(self, size: int) -> str:
        """The root of the ledger's first `size` leaves, of which it has at least so many."""
        return ledger.root(self.node, size).hex()

    def consistency(self, size1: int, size2: int) -> tuple[bytes, ...]:
        """The proof that the ledger at `size2` leaves continues the one at `size1`; raises ProofError."""
        return tuple(ledger.consistency(self.node, size1, min(size2, self._size)))

    def take_witness(self, checkpoint: Checkpoint, envelope: bytes, wall_ms: int) -> LedgerFault | None:
        """Keep a countersigned checkpoint; a fault, which is remembered, where it is not of this ledger's past."""
        if checkpoint.size > self._size:
            detail = (
                f"{checkpoint.size} entries of this unit were witnessed, and there are {self._size}: "
                "the disk shows an older state"
            )
        elif ledger.root(self.node, checkpoint.size).hex() != checkpoint.root:
            detail = f"the first {checkpoint.size} entries are not those that were witnessed: there are two ledgers"
        else:
            row, before = (checkpoint.size, checkpoint.root, envelope, wall_ms), self.checkpoint(witnessed=True)
            with schema.Transaction(self._db):
                self._db.execute(f"{_INSERT_CHECKPOINT} VALUES (?, ?, ?, ?, 1)", row)
                self._prune(checkpoint.size)
                if before is None or before.size < checkpoint.size:
                    self.forget(WANTED)
            return None
        return self.hold_against(detail)

    def want_witness(self, wall_ms: int) -> bool:
        """The dispatcher judges no hand-in before more is witnessed; False when that was known already."""
        if self.witness_wanted() is not None:
            return False
        self.remember(WANTED, WitnessWanted(wall_ms))
        return True

    def witness_wanted(self) -> WitnessWanted | None:
        """Since when hand-ins wait for the ledger to be witnessed; None: none does."""
        return self.recall(WANTED, WitnessWanted)

    def hold_against(self, detail: str) -> LedgerFault:
        """Remember a fault of the ledger; the first one stands."""
        fault = self.ledger_fault() or LedgerFault(detail)
        self.remember(FAULT, fault)
        return fault

    def ledger_fault(self) -> LedgerFault | None:
        """What a witness holds against this ledger."""
        return self.recall(FAULT, LedgerFault)

    def _prune(self, witnessed: int) -> None:
        """Let go of the bodies of leaves that are old and witnessed: their hashes prove what is left.

        Certificates stay, one a parking: a statement that is kept may be of a session that began long before.
        """
        before = min(witnessed, self._size - LEAVES_KEPT)
        self._db.execute(
            "UPDATE ledger SET leaf = NULL WHERE leaf IS NOT NULL AND kind != 'session' AND idx < ?", (before,)
        )


def is_hash(value: object) -> bool:
    """Whether a column has what was written there: SQLite keeps any type in any column."""
    return isinstance(value, bytes) and len(value) == HASH_BYTES


def _is_body(leaf: object, digest: bytes) -> bool:
    """Whether a leaf's body is the one that was hashed, or was let go of."""
    return leaf is None or (isinstance(leaf, bytes) and leaf_hash(leaf) == digest)
