"""Where the dispatcher's rows are: SQLite for one machine, PostgreSQL for several, behind one small door.

Both speak the same SQL with named parameters (`:name`), and every statement of the dispatcher is written once; what
differs is here: how a row is locked for one replica only, how a list is looked through, whose clock counts.

* SQLite (the default): one file, WAL with `synchronous=FULL`, so that what was answered had been committed. Several
  processes of one machine may write; a transaction takes the write lock at once and waits for it. The clock is the
  process's, since there is only one machine.
* PostgreSQL (`hil.dispatcher.postgres`): any number of replicas. The clock is the database's, for all of them.

A database that does not answer is a `DatabaseLostError`: nothing was decided, the caller answers nobody, and cars say
it again. A constraint that held is a `ConflictError`: somebody else was first, and looking again shows what they did.
A value that the database does not take is an `UnfitValueError`: whoever sent it is at fault, and nobody else.

What must not be believed before it is durable (a count, a line in the log, a copy in memory) is left to `on_commit`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog

from agent.errors import StoreError
from hil.dispatcher import schema

FILE = "dispatcher.sqlite3"
BUSY_TIMEOUT_S = 5.0
STATEMENTS_KEPT = 256
LOST_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
}
"""Of the disk or of other processes: they may pass. The rest are mistakes in a statement, and are raised as such."""

LOCKED_CODES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

Row = Mapping[str, Any]
log = structlog.get_logger("dispatcher")


class DatabaseLostError(StoreError):
    """The database does not answer; nothing was decided, or nobody knows whether it was."""


class ConflictError(StoreError):
    """A constraint held, or another replica was first: look again."""


class UnfitValueError(StoreError):
    """A value that this database cannot hold, such as a text with a NUL in it: nothing was done."""


class Database(ABC):
    """Use from one thread at a time.

    Raises DatabaseLostError, ConflictError and UnfitValueError from every method but `close`, `on_commit` and `lost`.
    """

    lock_for_me = ""
    """Ends a SELECT of one job to be granted: the row is this replica's until the commit, others pass it over."""

    def __init__(self) -> None:
        self._depth = 0
        self._lost: bool | None = None
        self._now_ms_here: int | None = None
        self._on_commit: list[Callable[[], object]] = []

    @property
    def lost(self) -> bool:
        """Whether it did not answer the last time it was asked. Any thread may look."""
        return bool(self._lost)

    def in_use(self) -> None:
        """From now on the log tells when it is lost; until then, the exception that its opener is raised does."""
        if self._lost is None:
            self._lost = False

    def on_commit(self, call: Callable[[], object]) -> None:
        """Call this once what was done so far is durable: now, or at the end of the transaction; never if it fails."""
        if self._depth:
            self._on_commit.append(call)
        else:
            call()

    def execute(self, sql: str, **values: object) -> int:
        """Run a statement; how many rows it changed."""
        return self._run(sql, values)[0]

    def rows(self, sql: str, **values: object) -> list[Row]:
        """All rows of a query, or of what a statement returns."""
        return self._run(sql, values)[1]

    def row(self, sql: str, **values: object) -> Row | None:
        """The first row of a query, None when there is none."""
        found = self.rows(sql, **values)
        return found[0] if found else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable at the end. One inside another is part of it."""
        if self._depth:
            yield
            return
        self._begin()
        self._depth, self._now_ms_here = 1, None
        self._on_commit.clear()
        try:
            yield
            self._end("COMMIT")
        except BaseException:
            self._on_commit.clear()
            with contextlib.suppress(DatabaseLostError, ConflictError, UnfitValueError):
                self._end("ROLLBACK")
            raise
        finally:
            self._depth = 0
        calls, self._on_commit = self._on_commit, []
        for call in calls:
            call()

    @abstractmethod
    def many(self, sql: str, values: Iterable[Mapping[str, object]]) -> None:
        """Run a statement once for each of `values`."""

    @abstractmethod
    def among(self, column: str, name: str) -> str:
        """SQL: whether `column` is in the list (of text) that the parameter `name` is."""

    def now_ms(self) -> int:
        """The time by which leases are counted; within a transaction that of its first question."""
        if not self._depth:
            return self._clock_ms()
        if self._now_ms_here is None:
            self._now_ms_here = self._clock_ms()
        return self._now_ms_here

    @abstractmethod
    def close(self) -> None:
        """Let go of it; what was answered is in it already."""

    @abstractmethod
    def _clock_ms(self) -> int: ...

    @abstractmethod
    def _run(self, sql: str, values: Mapping[str, object]) -> tuple[int, list[Row]]:
        """Rows changed, and rows returned."""

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _end(self, word: str) -> None: ...

    def _note_lost(self, detail: str) -> None:
        if self._lost is False:
            self._lost = True
            log.warning("database_lost", detail=detail)

    def _note_back(self) -> None:
        if self._lost:
            self._lost = False
            log.info("database_back")


class SqliteDatabase(Database):
    """The file in a folder, made when there is none; raises StoreError, DatabaseLostError while others keep it locked.

    Nobody but its owner reads it: upload tokens and the name of the share group are in it.
    """

    def __init__(self, folder: Path, now_ms: Callable[[], int]) -> None:
        super().__init__()
        self._now_ms = now_ms
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep_private(folder)
            self._connection = connect(str(folder / FILE))
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            _check_age(self._connection)
            self._connection.executescript(schema.for_sqlite())
        except (OSError, sqlite3.Error) as error:
            locked = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in LOCKED_CODES
            kind = DatabaseLostError if locked else StoreError
            raise kind(f"cannot open the dispatcher's book in {folder}: {error}") from error
        check_version(self, str(folder / FILE))

    def many(self, sql: str, values: Iterable[Mapping[str, object]]) -> None:
        """See `Database`."""
        with self._failing():
            self._connection.executemany(sql, list(values))

    def among(self, column: str, name: str) -> str:
        """See `Database`: a list is a parameter in JSON."""
        return f"{column} IN (SELECT value FROM json_each(:{name}))"  # noqa: S608 - names of ours

    def close(self) -> None:
        """See `Database`."""
        self._connection.close()

    def _clock_ms(self) -> int:
        return self._now_ms()

    def _run(self, sql: str, values: Mapping[str, object]) -> tuple[int, list[Row]]:
        with self._failing():
            cursor = self._connection.execute(sql, {name: _plain(value) for name, value in values.items()})
            found = cast("list[Row]", cursor.fetchall())
            return cursor.rowcount, found

    def _begin(self) -> None:
        with self._failing():
            self._connection.execute("BEGIN IMMEDIATE")
        self._note_back()

    def _end(self, word: str) -> None:
        with self._failing():
            if self._connection.in_transaction:
                self._connection.execute(word)
            elif word == "COMMIT":  # an error that somebody passed over made SQLite roll back by itself
                raise DatabaseLostError("the transaction was rolled back")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise ConflictError(f"a constraint of the book held: {error}") from error
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in LOST_CODES:
                raise
            self._note_lost(str(error))
            raise DatabaseLostError(f"the dispatcher's book cannot be used now: {error}") from error


class SqliteReader(SqliteDatabase):
    """The file in a folder, for reading only, beside the processes that write it; raises StoreError when it is none."""

    def __init__(self, folder: Path) -> None:
        Database.__init__(self)
        try:
            self._connection = connect(f"{(folder / FILE).absolute().as_uri()}?mode=ro")
            self._connection.execute("SELECT count(*) FROM jobs").fetchone()
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the dispatcher's book in {folder}: {error}") from error


def check_version(database: Database, where: str) -> None:
    """Write down which tables these are, unless it is there; raises StoreError when they are another version's."""
    row = database.row("SELECT value FROM settings WHERE name = 'version'")
    if row is None:
        sql = "INSERT INTO settings (name, value) VALUES ('version', :version) ON CONFLICT DO NOTHING"
        database.execute(sql, version=schema.VERSION)
        row = database.row("SELECT value FROM settings WHERE name = 'version'")
    if row is None or row["value"] != schema.VERSION:
        raise _other_version(where)


def connect(name: str) -> sqlite3.Connection:
    """The thread that opens it need not be the one that uses it; the caller sees to it that there is one at a time."""
    connection = sqlite3.connect(
        name,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=STATEMENTS_KEPT,
        uri=name.startswith("file:"),
    )
    connection.row_factory = sqlite3.Row
    return connection


def _keep_private(folder: Path) -> None:
    """Make the file its owner's alone, whatever the umask; SQLite gives the files beside it the same mode.

    It is not opened where it is there: closing it again would end the locks that this process has on it.
    """
    for path in (folder / FILE, folder / f"{FILE}-wal", folder / f"{FILE}-shm"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _check_age(connection: sqlite3.Connection) -> None:
    tables = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "jobs" in tables and "settings" not in tables:
        raise _other_version("the book")


def _other_version(where: str) -> StoreError:
    return StoreError(f"{where} was made by another version of the dispatcher", hint="finish with that, or use another")


@functools.singledispatch
def _plain(value: object) -> object:
    """A parameter as SQLite takes it: a list as JSON."""
    return value


@_plain.register
def _(value: tuple) -> object:  # type: ignore[type-arg]
    return msgspec.json.encode(value).decode()
