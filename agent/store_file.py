"""What can still be believed of the store's files after a sync failed, or after a process that ended without a word.

On Linux a failed fsync may let go of what was to be written: the pages count as clean, stay readable, and the next
fsync succeeds without them. So neither trying again nor reading back proves anything, and SQLite, which goes on after
such an error, can build acknowledged commits on frames that a power cut takes away: those of log lines, which are
committed without a sync (`agent.store.Store.log`). Closing is no way out either: it would copy such frames into the
database, and a power cut in the middle would leave it torn.

What helps is to dirty the pages again: the write-ahead log is written over itself, byte for byte, and synced
(`write_again`). Whatever of it is readable is on the disk then, and a power cut in between finds each sector as it was
or as it was. A new connection recovers from it by its checksums, so that what was lost from memory too shows as a log
that ends early, and what was acknowledged before is looked for in it (`Earned`). The database's own file needs none of
this: a checkpoint whose sync failed leaves the log in force, and is done again from its beginning.

The same is done at each start, for a process that was killed in that state.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from agent.core.model import JobKey
from agent.errors import RESTORE, StoreError
from agent.rows import LedgerHead, OpenRow
from agent.trust import ledger

CHUNK_BYTES = 1024 * 1024
SHARED_BY_ALL_OPENERS = 128
"""The byte of the -shm file on which every connection to a database in WAL mode holds a shared lock: UNIX_SHM_DMS of
SQLite's os_unix.c."""


class Readable(Protocol):
    """What is asked of an open store (`agent.store.Store`)."""

    def ledger_head(self) -> LedgerHead:
        """Size and root of the ledger, by its nodes."""
        ...

    def stored_head(self) -> LedgerHead | None:
        """Size and root as they were committed."""
        ...

    def node(self, level: int, index: int) -> bytes:
        """A hash of the ledger's tree."""
        ...

    def open_leases(self) -> list[OpenRow]:
        """Leases that are open, with the slices they have."""
        ...

    def hold_against(self, detail: str) -> object:
        """Remember a fault of the ledger."""
        ...


class Earned(msgspec.Struct, frozen=True):
    """What a store had acknowledged: its ledger, and the finished slices that await their hand-in."""

    head: LedgerHead
    slices: frozenset[tuple[JobKey, int]]

    @classmethod
    def of(cls, store: Readable) -> Earned:
        """As the store says now; raises sqlite3.Error."""
        slices = {(row.grant.key, index) for row in store.open_leases() for index in row.done}
        return cls(store.ledger_head(), frozenset(slices))

    def look_for_in(self, store: Readable) -> None:
        """Raises StoreError when another reading of the file does not have all of it, and sqlite3.Error.

        A ledger that is shorter stays a fault of the ledger, over restarts: it is not healed in silence. There may be
        more than was acknowledged: a commit that was told of as failed may have come about.
        """
        found = store.ledger_head()
        if lost := self._lost_entries(store, found):
            store.hold_against(lost)
            raise StoreError(f"the disk failed and lost what it had acknowledged: {lost}", hint=RESTORE)
        still_open = Earned.of(store).slices
        if found.size == self.head.size and not self.slices <= still_open:
            lost = f"{len(self.slices - still_open)} finished slices"
            raise StoreError(f"the disk failed and lost what it had acknowledged: {lost}", hint="restart the agent")

    def _lost_entries(self, store: Readable, found: LedgerHead) -> str:
        if found != store.stored_head():
            return f"the ledger's {found.size} entries do not lead to the root that was written with them"
        if found.size < self.head.size:
            return f"{self.head.size} entries of the ledger were acknowledged, and {found.size} are there"
        if ledger.root(store.node, self.head.size).hex() != self.head.root:
            return f"the first {self.head.size} entries of the ledger are not those that were acknowledged"
        return ""


def kind_of(error: sqlite3.DatabaseError) -> int:
    """SQLite's primary result code; of an error that is not its own, that the database is damaged."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def wal_of(path: Path) -> Path:
    """The write-ahead log of a database."""
    return path.with_name(f"{path.name}-wal")


def let_go(db: sqlite3.Connection, path: Path) -> None:
    """Close the one connection without what closing does to the files: no checkpoint, and the log stays.

    A read-only connection stays open for a moment longer, so that it is the last one; and such a one changes nothing.
    Raises sqlite3.Error, and then the connection is as it was.
    """
    last = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        last.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.close()
    finally:
        last.close()


def write_again(path: Path) -> None:
    """Write the write-ahead log of a database over itself and sync it; nothing happens where there is none.

    No connection of this process may be open. Raises OSError when the disk does not take it, and when another
    process has the database open, whose log it is then.
    """
    wal = wal_of(path)
    if not wal.exists() or not wal.stat().st_size:
        return
    _check_nobody_has_it(path)
    file = os.open(wal, os.O_RDWR | os.O_CLOEXEC)
    try:
        at = 0
        while content := os.pread(file, CHUNK_BYTES, at):
            at += os.pwrite(file, content, at)
        os.fsync(file)
    finally:
        os.close(file)


def _check_nobody_has_it(path: Path) -> None:
    try:
        shared = os.open(path.with_name(f"{path.name}-shm"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.lockf(shared, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SHARED_BY_ALL_OPENERS)
    except (BlockingIOError, PermissionError):
        raise OSError(errno.EBUSY, "another process has it open", str(path)) from None
    finally:
        os.close(shared)
