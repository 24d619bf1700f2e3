"""The dispatchers' side of the counter: the real book over one database in memory, and the real service around it.

Each replica has its own way to the database (`ReplicasDatabase`), which stops at every step where its process may die:
before a transaction, between any two statements of it, and after its commit. A transaction that is not committed when
the process dies is rolled back, as SQLite and PostgreSQL do.

What is random in the book is not here: nonces and tokens are replaced by seeded ones on their way into the rows.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from agent.fleet.messages import JobGrant
from hil.dispatcher import schema
from hil.dispatcher.book import Book
from hil.dispatcher.database import Database, Row, SqliteDatabase, check_version
from hil.dispatcher.leases import Places
from hil.dispatcher.objects import Objects
from hil.dispatcher.service import Dispatcher
from hil.dispatcher.staging import Staging
from hil.dispatcher.uploads import Uploads
from hil.sim.protocol.clocks import DatabaseClock
from hil.sim.protocol.keys import SeededSigner

RETRY_S = 90
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps files in memory; the folder in it is private


class Process(Protocol):
    """What uses a database, and may die over it."""

    def boundary(self, name: str) -> None:
        """It may die here; raises then."""
        ...

    def committed(self) -> None:
        """A transaction is durable."""
        ...


class ReplicasDatabase(SqliteDatabase):
    """One replica's connection to the database that all share."""

    def __init__(
        self, connection: sqlite3.Connection, clock: DatabaseClock, chance: random.Random, process: Process | None
    ) -> None:
        Database.__init__(self)
        self._connection, self._now_ms, self._chance, self._process = connection, clock.now_ms, chance, process

    def _begin(self) -> None:
        if self._process is not None:
            self._process.boundary("before a transaction")
        super()._begin()

    def _run(self, sql: str, values: Mapping[str, object]) -> tuple[int, list[Row]]:
        if self._process is not None:
            self._process.boundary("before a statement")
        if "nonce" in values:
            seeded = {
                "nonce": f"{self._chance.getrandbits(128):032x}",
                "token": f"{self._chance.getrandbits(192):048x}",
            }
            values = {**values, **seeded}
        done = super()._run(sql, values)
        if not self._depth:
            self._durable()
        return done

    def _end(self, word: str) -> None:
        super()._end(word)
        if word == "COMMIT":
            self._durable()

    def _durable(self) -> None:
        if self._process is not None:
            self._process.committed()
            self._process.boundary("after a commit")


class Counterpart:
    """One database for all replicas, and where uploaded answers lie."""

    def __init__(self, clock: DatabaseClock, key: SeededSigner, chance: random.Random) -> None:
        self._clock, self._key, self._chance = clock, key, chance
        self._small: dict[str, bytes] = {}
        self._places = Places(
            object_url=lambda name: f"https://objects/{name}",
            upload_url="https://objects/uploads",
            small=self._small.get,
        )
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.executescript(schema.for_sqlite())
        self._quiet = Book(self._database(None))
        check_version(self._quiet.database, "the book of the simulation")
        in_memory = IN_MEMORY if IN_MEMORY.is_dir() else None
        self._folder = tempfile.TemporaryDirectory(prefix="driveway-sim-", dir=in_memory)
        self._staging = Staging(Objects(Path(self._folder.name)), lambda: clock.now_ms() / 1000)
        self.uploads = Uploads(self._staging, self._quiet.upload_rights.of)

    def service(self, publish: Callable[..., bool], process: Process | None) -> Dispatcher:
        """The service of one life of a replica."""
        book = Book(self._database(process))
        return Dispatcher(
            book,
            self._key,
            publish=publish,
            places=self._places,
            retry_s=RETRY_S,
            brought=self._staging,
            unwitnessed=None,
        )

    def admit(self, code: str) -> None:
        """Let one unit enrol."""
        self._quiet.units.add_code(code)

    def put_up(self, job: JobGrant, inline: bytes | None) -> None:
        """A new job; its input goes with its grants where it is `inline`."""
        if inline is not None:
            self._small[job.input.sha256] = inline
        self._quiet.add_job(job)

    def leased_jobs(self) -> list[str]:
        """The jobs of which a lease runs."""
        rows = self.connection.execute("SELECT job FROM jobs WHERE state = 'leased' ORDER BY seq").fetchall()
        return [row["job"] for row in rows]

    def close(self) -> None:
        """Let go of it."""
        self.connection.close()
        self._folder.cleanup()

    def _database(self, process: Process | None) -> ReplicasDatabase:
        return ReplicasDatabase(self.connection, self._clock, self._chance, process)
