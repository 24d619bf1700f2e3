"""The one SQLite connection, on a thread of its own: leases, finished slices, outbox, ledger, vacates and log.

WAL with `synchronous=FULL`, and exactly one connection (SQLite before 3.51.3 can corrupt a WAL database that two
connections reset at once). What is acknowledged has been committed first. Two transactions carry the promise that
nothing earned is lost and nothing is earned twice: a hand-in's statement, message and ledger leaf are committed
together, and so are a verdict, its leaf and the end of the outbox row. The ledger's size and root are committed with
each leaf, so that a leaf that was changed or lost shows (`agent.selftest`).

After an I/O error nothing is acknowledged any more on that connection: the file is written again where it has to be,
opened anew, and held against what had been acknowledged (`agent.store_file`, `StoreThread`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from agent import schema, store_file
from agent.core.model import Grant, HandInKind, JobKey, SliceOutcome, Spent, Verdict
from agent.errors import NotUnderstoodError, StoreError
from agent.log import logger
from agent.rows import (
    Engine,
    HandInRow,
    LedgerHead,
    OpenRow,
    OutboxRow,
    SliceToUpload,
    StoredSlice,
    Totals,
)
from agent.store_ledger import HEAD, KeptHead, StoreLedger

CLOSE_S = 2.0

P = ParamSpec("P")
R = TypeVar("R")


class Store(StoreLedger):
    """The database itself; every method runs on the store's thread (see StoreThread).

    What people are shown is in `StoreReader`, single values in `StoreMemory`, the ledger in `StoreLedger`.
    """

    def __init__(self, path: Path) -> None:
        self._db = self._connect(path)
        try:
            schema.check_known(self._db)
            self._bring_up()
        except NotUnderstoodError:
            self.let_go(path)  # closing would write: its log into the file
            raise
        except BaseException:
            self.close()  # at once: whoever keeps the error would keep a second connection
            raise

    def _bring_up(self) -> None:
        schema.bring_up(self._db)
        self.read_back()
        version, head = schema.version_of(self._db), self.recall(HEAD, KeptHead)
        if version < schema.VERSION or (head is not None and head.wrote < schema.VERSION):
            with schema.Transaction(self._db):  # new, from before, or an older version wrote the last leaf
                self.grow_nodes()
                self.keep_head(self.ledger_head() if head is None else LedgerHead(head.size, head.root))
                self._db.execute(f"PRAGMA user_version = {max(version, schema.VERSION)}")

    def read_back(self) -> None:
        """Read anew what is kept in memory: after an error only the file knows whether its commit came about."""
        self._size = self._one("SELECT count(*) FROM ledger")
        self._statements = self._one("SELECT count(*) FROM ledger WHERE kind = 'statement'")
        self._totals = self._summed_up()

    def _connect(self, path: Path) -> sqlite3.Connection:
        """The one connection: of this thread, and of none other."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        store_file.write_again(path)
        return sqlite3.connect(path, isolation_level=None, check_same_thread=True)

    def let_go(self, path: Path) -> None:
        """Close, and leave the files as they are; raises sqlite3.Error, and then it is still open."""
        store_file.let_go(self._db, path)

    def close(self) -> None:
        """Checkpoint and close."""
        self._db.close()

    def open_lease(self, grant: Grant, wall_ms: int) -> bool:
        """Make a lease durable; False when its nonce or token was used up before (a replayed grant).

        The same lease again, while it is open, changes nothing.
        """
        try:
            self._db.execute(
                "INSERT INTO leases (job, epoch, nonce, ticket, state, opened_wall_ms) VALUES (?, ?, ?, ?, 'open', ?)",
                (grant.job, grant.epoch, grant.nonce, msgspec.json.encode(grant), wall_ms),
            )
        except sqlite3.IntegrityError:
            query = "SELECT count(*) FROM leases WHERE job = ? AND epoch = ? AND nonce = ? AND state = 'open'"
            return self._one(query, grant.job, grant.epoch, grant.nonce) == 1
        return True

    def keep_grant(self, grant: Grant) -> None:
        """Remember a running lease's grant as it was renewed; of one that is over it changes nothing."""
        self._db.execute(
            "UPDATE leases SET ticket = ? WHERE job = ? AND epoch = ? AND state = 'open'",
            (msgspec.json.encode(grant), *key_row(grant.key)),
        )

    def add_slice(self, key: JobKey, stored: StoredSlice, spent: Spent) -> None:
        """Keep a finished slice with what the lease has spent until then; the same slice again changes nothing."""
        self._db.execute(
            "INSERT OR IGNORE INTO slices (job, epoch, idx, outcome, output, engine, energy_micro_wh, cost_micro) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *key_row(key),
                stored.outcome.index,
                msgspec.json.encode(stored.outcome),
                stored.output,
                msgspec.json.encode(stored.engine),
                spent.energy_micro_wh,
                spent.cost_micro,
            ),
        )

    def hand_in(
        self,
        grant: Grant,
        *,
        why: str | None,
        spent: Spent,
        wall_ms: int,
        build: Callable[[int, int, list[StoredSlice]], HandInRow],
    ) -> OutboxRow:
        """Close a lease: `build(counter, log_index, slices)` makes its message, and all of it is committed together.

        The counter rises with every statement; `log_index` is the place in the ledger that the statement will have. A
        lease that never came to be opened gets its row here. The grant is kept as it is now: a renewal may have named
        another place for answers. Returns what it became.
        """
        key = grant.key
        waiting = next((row for row in self.outbox() if row.key == key), None)
        if waiting is not None:  # it was committed, although the disk said that it was not
            return waiting
        with schema.Transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO leases (job, epoch, nonce, ticket, state, opened_wall_ms) "
                "VALUES (?, ?, ?, ?, 'open', ?)",
                (*key_row(key), grant.nonce, msgspec.json.encode(grant), wall_ms),
            )
            slices = self._slices(key)
            row = build(self._statements + 1, self._size, slices)
            closed = self._db.execute(
                "UPDATE leases SET state = 'handed_in', kind = ?, why = ?, slices_done = ?, energy_micro_wh = ?, "
                "cost_micro = ?, closed_wall_ms = ?, ticket = ? WHERE job = ? AND epoch = ? AND state = 'open'",
                (
                    row.kind.value,
                    why,
                    row.slices,
                    spent.energy_micro_wh,
                    spent.cost_micro,
                    wall_ms,
                    msgspec.json.encode(grant),
                    *key_row(key),
                ),
            )
            if closed.rowcount != 1:
                raise ValueError(f"the lease {key} is not open: it was handed in before")
            self._db.execute(
                "INSERT OR REPLACE INTO outbox (job, epoch, kind, body, statement_sha256) VALUES (?, ?, ?, ?, ?)",
                (*key_row(key), row.kind.value, row.body, row.statement_sha256),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO referenced (job, epoch, idx) VALUES (?, ?, ?)",
                [(*key_row(key), index) for index in row.referenced],
            )
            size = self._size if row.statement is None else self.append_leaf("statement", key, row.statement)
        self._size = size
        self._statements += row.statement is not None
        self._totals = self._totals.plus(Totals(spent.energy_micro_wh, 0, spent.cost_micro))
        return OutboxRow(key, row.kind, row.statement_sha256, row.slices, row.missing, row.referenced)

    def settle(self, key: JobKey, *, verdict: Verdict, reason: str, paid_micro: int, envelope: bytes) -> None:
        """Record a signed verdict as a leaf, and let go of the hand-in and of the customer's answers."""
        if not self._one("SELECT count(*) FROM outbox WHERE job = ? AND epoch = ?", *key_row(key)):
            return  # it was settled, although the disk said that it was not
        with schema.Transaction(self._db):
            closed = self._db.execute(
                "UPDATE leases SET state = 'closed', verdict = ?, reason = ?, paid_micro = ? "
                "WHERE job = ? AND epoch = ? AND state != 'closed'",
                (verdict.value, reason, paid_micro, *key_row(key)),
            )
            size = self.append_leaf("verdict", key, envelope)
            self._db.execute("DELETE FROM outbox WHERE job = ? AND epoch = ?", key_row(key))
            self._db.execute("DELETE FROM referenced WHERE job = ? AND epoch = ?", key_row(key))
            self._db.execute("DELETE FROM slices WHERE job = ? AND epoch = ?", key_row(key))
            schema.forget_old_tickets(self._db)
        self._size = size
        if closed.rowcount == 1:
            self._totals = self._totals.plus(Totals(0, paid_micro, 0))

    def outbox(self) -> list[OutboxRow]:
        """The hand-ins that await a verdict, oldest first.

        Which of the answers they only name have been uploaded is not kept: all count as missing, and the server knows.
        """
        rows = self._db.execute(
            "SELECT job, epoch, outbox.kind, statement_sha256, coalesce(slices_done, 0) FROM outbox "
            "LEFT JOIN leases USING (job, epoch) ORDER BY outbox.rowid"
        ).fetchall()
        missing = defaultdict[JobKey, list[int]](list)
        for job, epoch, index in self._db.execute("SELECT job, epoch, idx FROM referenced ORDER BY idx"):
            missing[JobKey(job, epoch)].append(index)
        return [
            OutboxRow(key, HandInKind(kind), sha256, slices, tuple(missing[key]), tuple(missing[key]))
            for key, kind, sha256, slices in ((JobKey(*row[:2]), *row[2:]) for row in rows)
        ]

    def to_upload(self, key: JobKey, index: int) -> SliceToUpload | None:
        """A slice's answers and where its lease's grant says that they go; None when they are not here any more."""
        row = self._db.execute(
            "SELECT output, ticket FROM slices JOIN leases USING (job, epoch) WHERE job = ? AND epoch = ? AND idx = ?",
            (*key_row(key), index),
        ).fetchone()
        if row is None or row[1] is None:
            return None
        grant = msgspec.json.decode(row[1], type=Grant)
        return SliceToUpload(bytes(row[0]), grant.upload_url, grant.upload_token)

    def outbox_message(self, key: JobKey) -> tuple[HandInKind, bytes] | None:
        """One hand-in's message, if the outbox still holds it."""
        row = self._db.execute("SELECT kind, body FROM outbox WHERE job = ? AND epoch = ?", key_row(key)).fetchone()
        return None if row is None else (HandInKind(row[0]), bytes(row[1]))

    def open_leases(self) -> list[OpenRow]:
        """Leases that were running when the daemon last ended."""
        rows = self._db.execute("SELECT job, epoch, ticket FROM leases WHERE state = 'open'").fetchall()
        found = []
        for job, epoch, ticket in rows:
            kept = self._db.execute(
                "SELECT idx, energy_micro_wh, cost_micro FROM slices WHERE job = ? AND epoch = ? ORDER BY idx",
                (job, epoch),
            ).fetchall()
            spent = Spent(*max((row[1:] for row in kept), default=(0, 0)))  # the energy rises, a cost may fall
            grant = msgspec.json.decode(ticket, type=Grant)
            found.append(OpenRow(grant, tuple(row[0] for row in kept), spent))
        return found

    def totals(self) -> Totals:
        """What all leases together drew, were paid and cost."""
        return self._totals

    def _summed_up(self) -> Totals:
        row = self._db.execute(
            "SELECT coalesce(sum(energy_micro_wh), 0), coalesce(sum(paid_micro), 0), coalesce(sum(cost_micro), 0) "
            "FROM leases"
        )
        return Totals(*row.fetchone())

    def vacate(self, wall_ms: int, cause: str, idle_ms: int, gone_ms: int) -> None:
        """Note one vacate, and forget the oldest beyond the bound."""
        query = "INSERT INTO vacates (at_wall_ms, cause, idle_ms, gone_ms) VALUES (?, ?, ?, ?)"
        self._db.execute(query, (wall_ms, cause, idle_ms, gone_ms))
        schema.forget_old_rows(self._db, "vacates", schema.VACATE_ROWS)

    def log(self, wall_ms: int, name: str, fields: bytes) -> None:
        """Keep one log event, and forget the oldest beyond the bound.

        It is not synced by itself: the next commit that is takes it to the disk too, since the WAL is written in order.
        So a power cut may take the last lines, and a lease's log costs no wait for the disk. Nor does it begin a
        checkpoint: SQLite says nothing of a sync that fails in one, and only here it would be of frames that need it.
        """
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA wal_autocheckpoint=0")
        try:
            self._db.execute("INSERT INTO log (at_wall_ms, name, fields) VALUES (?, ?, ?)", (wall_ms, name, fields))
            schema.forget_old_rows(self._db, "log", schema.LOG_ROWS)
        finally:
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={schema.CHECKPOINT_PAGES}")

    def probe(self) -> None:
        """Write and commit something small; raises sqlite3.Error while the disk takes no writes."""
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('probe', '')")

    def _slices(self, key: JobKey) -> list[StoredSlice]:
        rows = self._db.execute(
            "SELECT outcome, output, engine FROM slices WHERE job = ? AND epoch = ? ORDER BY idx", key_row(key)
        )
        return [
            StoredSlice(
                msgspec.json.decode(outcome, type=SliceOutcome),
                bytes(output),
                msgspec.json.decode(engine, type=Engine),
            )
            for outcome, output, engine in rows
        ]


def key_row(key: JobKey) -> tuple[str, int]:
    """A token as the two columns that hold it."""
    return key.job, key.epoch


class StoreThread:
    """The store behind its thread: `await thread.call(Store.leases, 20)`.

    An I/O error leaves it in doubt (`agent.store_file`): each call begins with an attempt to mend it, and fails until
    that succeeds. Both are logged once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store: Store | None = None
        self._closed = False
        self._doubt = ""
        self._earned: store_file.Earned | None = None

    async def open(self) -> None:
        """Open the database; raises StoreError when it cannot be."""
        try:
            self._store = await asyncio.get_running_loop().run_in_executor(self._pool, Store, self._path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"cannot open the store {self._path}: {error}", hint="check the disk and its owner"
            ) from error

    async def call(self, method: Callable[Concatenate[Store, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one method on the store's thread; raises StoreError when the disk refuses."""
        if self._closed or (self._store is None and not self._doubt):
            raise StoreError("the store is not open")

        def run() -> R:
            store = self._sound_store()
            try:
                return method(store, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                self._failed(store, error)
                raise

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except sqlite3.DatabaseError as error:
            if store_file.kind_of(error) == sqlite3.SQLITE_ERROR:
                raise  # a wrong statement is a bug, not a disk
            raise StoreError(f"the disk refused: {error}", hint="free some space, or look at the disk") from error

    async def close(self) -> None:
        """Close the database and end the thread. A disk that hangs is not waited for: what it acknowledged is on it."""
        if not self._closed:
            self._closed = True
            try:
                await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self._pool, self._end), CLOSE_S)
            except TimeoutError:
                logger().error("store_not_closed", file=str(self._path), detail="the disk hangs")
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- on the store's thread ------------------------------------------------------------------------------------

    def _failed(self, store: Store, error: sqlite3.DatabaseError) -> None:
        """An I/O error leaves the store in doubt; after any other it reads anew what it keeps in memory."""
        with contextlib.suppress(sqlite3.Error):  # a disk that does not even read is told of by the error
            if store_file.kind_of(error) != sqlite3.SQLITE_IOERR:
                store.read_back()
                return
            self._doubt = str(error)
            logger().error("store_in_doubt", file=str(self._path), detail=str(error), code=error.sqlite_errorcode)
            self._earned = store_file.Earned.of(store)

    def _sound_store(self) -> Store:
        """The open store; one that is in doubt is opened anew first. Raises StoreError while that fails."""
        if self._store is not None and not self._doubt:
            return self._store
        try:
            if self._store is not None:
                self._store.let_go(self._path)
                self._store = None
            self._store = Store(self._path)
            if self._earned is not None:
                self._earned.look_for_in(self._store)
        except (sqlite3.Error, OSError) as error:
            what = f"the disk failed ({self._doubt}), and the store cannot be opened anew: {error}"
            raise StoreError(what, hint="free some space, or look at the disk") from error
        self._doubt, self._earned = "", None
        logger().info("store_mended", file=str(self._path))
        return self._store

    def _end(self) -> None:
        store, self._store = self._store, None
        if store is not None and self._doubt:
            with contextlib.suppress(sqlite3.Error):  # the next start mends it
                store.let_go(self._path)
        elif store is not None:
            store.close()
