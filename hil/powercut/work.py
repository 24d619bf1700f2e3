"""The work whose power fails: leases through the real store on its thread, and a note of all that it acknowledged.

    python -m hil.powercut.work '{"folder": …, "transactions": 40, …}'     under the recorder (`hil.powercut.recorder`)

Leases are opened, get finished slices, are handed in and settled, some at once and some later; sessions begin,
checkpoints of the ledger are kept, values are remembered, vacates noted, and after all of it comes a log line, as in
the daemon. In the middle the store is closed and opened again. What a disk refuses is asked for again, as the core
does, until it is taken or `PATIENCE` is over. Each acknowledgement is noted when the store has given it, and only then.

What must be found out is planted here (`Plant`), and nowhere else.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, assert_never

import msgspec

from agent import schema, store_file
from agent.core.model import Grant, HandInKind, SliceOutcome, Spent, Verdict
from agent.errors import StoreError
from agent.rows import Engine, HandInRow, StoredSlice
from agent.store import Store, StoreThread
from agent.trust.checkpoint import Checkpoint
from hil.demo.story import quiet_logs
from hil.powercut.recorder import Control, Fault

DATABASE = "driveway.db"
PAID_MICRO = 10
PATIENCE = 20
MOST_BYTES = 9_000
"""Of a slice's answers: some take pages of their own."""
ENGINE = Engine("onnxruntime_cpu", "a" * 64, "b" * 64)

R = TypeVar("R")


class Plant(StrEnum):
    """A weaker store, which the same check has to find out."""

    NONE = "none"
    NORMAL = "synchronous=NORMAL"
    OFF = "synchronous=OFF"
    LOG_CHECKPOINTS = "checkpoints with a log line"
    GOES_ON = "goes on after a failed sync"
    READS_BACK = "reads back after a failed sync"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the work; a checkpoint is due with so many pages in the log (0: as shipped)."""

    folder: str
    seed: int
    transactions: int
    plant: Plant = Plant.NONE
    checkpoint_pages: int = 0
    fault: Fault | None = None


class Done(msgspec.Struct, frozen=True):
    """One acknowledgement: of which lease (or number), of which slice, and for leaves what they are to the byte."""

    what: str
    number: int
    index: int = -1
    sha256: str = ""


class Remembered(msgspec.Struct, frozen=True):
    """A value that the store remembers."""

    number: int


class Told(msgspec.Struct, frozen=True):
    """What came of a run: how often the store refused, why at first, and whether it was patient to the end."""

    transactions: int
    refusals: int
    first: str
    is_through: bool


def grant(number: int) -> Grant:
    """The grant of one lease."""
    return Grant(
        job=f"job{number}",
        epoch=1,
        nonce=f"{number:032x}",
        customer="acme",
        package="ocr",
        package_sha256="a" * 64,
        input_url="https://fleet.example/objects/x",
        input_sha256="b" * 64,
        input_bytes=10,
        items=12,
        slice_items=4,
        slices=(0, 1, 2),
        ttl_ms=60_000,
        price_micro_per_item=10,
        currency="USD",
    )


def settle(store: Store, number: int) -> None:
    """A verdict comes for a lease."""
    envelope = f"verdict {number}".encode()
    store.settle(grant(number).key, verdict=Verdict.SETTLED, reason="", paid_micro=PAID_MICRO, envelope=envelope)


def hand_in(store: Store, number: int, attempt: int) -> str:
    """A lease is handed in with what it has; the digest of its statement, which no other attempt would make."""

    def build(counter: int, log_index: int, slices: list[StoredSlice]) -> HandInRow:
        statement = f"{counter} {log_index} {number} {attempt}".encode()
        sha256 = hashlib.sha256(statement).hexdigest()
        return HandInRow(HandInKind.RESULT, b"body" * 100, statement, sha256, len(slices), referenced=(0,))

    return store.hand_in(grant(number), why=None, spent=Spent(7, 3), wall_ms=2, build=build).statement_sha256


class Work:
    """One run. `acknowledged` hears of what the store has said."""

    def __init__(self, wish: Wish, acknowledged: Callable[[Done], None]) -> None:
        self._wish, self._acknowledged = wish, acknowledged
        self._chance = random.Random(wish.seed)
        self._thread = StoreThread(Path(wish.folder) / DATABASE)
        self._waiting: list[int] = []
        self._done = self._refusals = 0
        self._first = ""

    async def run(self) -> Told:
        """Work to the end of the wish, or of patience."""
        try:
            await self._insist(lambda _attempt: self._thread.open())
            number, reopened = 0, False
            while self._done < self._wish.transactions:
                if not reopened and self._done * 2 > self._wish.transactions:
                    await self._thread.close()
                    self._thread, reopened = StoreThread(Path(self._wish.folder) / DATABASE), True
                    await self._insist(lambda _attempt: self._thread.open())
                await self._lease(number)
                number += 1
        except StoreError:
            return self._told(is_through=False)
        finally:
            await self._thread.close()
        return self._told(is_through=True)

    async def _lease(self, number: int) -> None:
        one, chance = grant(number), self._chance
        if number % 4 == 0:
            await self._session()
        await self._commit(Store.open_lease, one, 1)
        self._tell(Done("open", number))
        for index in range(chance.randrange(4)):
            outcome = SliceOutcome(index, 4, 0, "c" * 64, "d" * 64, 100)
            stored = StoredSlice(outcome, chance.randbytes(chance.choice((10, 500, MOST_BYTES))), ENGINE)
            await self._commit(Store.add_slice, one.key, stored, Spent(index, 1))
            self._tell(Done("slice", number, index))
        await self._insist(lambda _attempt: self._thread.call(Store.remember, "powercut", Remembered(number)))
        self._tell(Done("remember", number))
        sha256 = await self._insist(lambda attempt: self._thread.call(hand_in, number, attempt))
        self._tell(Done("hand_in", number, sha256=sha256))
        await self._log(number)
        self._waiting.append(number)
        if chance.random() < 0.3:
            await self._commit(Store.vacate, 1, "door_open", 1, 2)
        while self._waiting and chance.random() < 0.7:
            settled = self._waiting.pop(chance.randrange(len(self._waiting)))
            await self._commit(settle, settled)
            self._tell(Done("settle", settled))
            await self._log(settled)

    async def _session(self) -> None:
        number = await self._commit(Store.next_session, 1)
        certificate = f"certificate {number}".encode()
        await self._commit(Store.add_session, number, certificate)
        self._tell(Done("session", number, sha256=hashlib.sha256(certificate).hexdigest()))
        head = await self._commit(Store.ledger_head)
        checkpoint = Checkpoint(
            v=1,
            unit="car-0001",
            key_epoch=1,
            size=head.size,
            root=head.root,
            session=number,
            boot_id="4b" * 16,
            issued_boot_ms=1,
            issued_wall_ms=1,
        )
        await self._commit(Store.add_checkpoint, checkpoint, b"envelope" * 40, 1)
        await self._commit(Store.take_witness, checkpoint, b"witnessed" * 40, 1)
        self._tell(Done("witness", head.size))

    async def _log(self, number: int) -> None:
        """As the daemon's log, a line or several: whoever it fails for goes on."""
        for _ in range(self._chance.choice((1, 1, 2, 6))):
            try:
                await self._thread.call(Store.log, 1, "lease_closed", b'{"lease": %d}' % number)
            except StoreError as error:
                self._refused(error)

    async def _commit(self, method: Callable[..., R], *given: object) -> R:
        return await self._insist(lambda _attempt: self._thread.call(method, *given))

    async def _insist(self, ask: Callable[[int], Awaitable[R]]) -> R:
        """Ask until the store takes it; raises its StoreError when patience is over."""
        for attempt in range(PATIENCE):
            try:
                return await ask(attempt)
            except StoreError as error:
                self._refused(error)
                if attempt == PATIENCE - 1:
                    raise
        raise AssertionError

    def _refused(self, error: StoreError) -> None:
        self._refusals += 1
        self._first = self._first or str(error)

    def _tell(self, done: Done) -> None:
        self._done += 1
        self._acknowledged(done)

    def _told(self, *, is_through: bool) -> Told:
        return Told(self._done, self._refusals, self._first, is_through)


# --- what is planted ----------------------------------------------------------------------------------------------


def plant(wish: Wish) -> None:
    """Make the store of this process the one that is wished for."""
    if wish.checkpoint_pages:
        schema.CHECKPOINT_PAGES = wish.checkpoint_pages
    match wish.plant:
        case Plant.NONE:
            pass
        case Plant.GOES_ON:
            setattr(StoreThread, "_failed", _go_on)  # noqa: B010 - that is what planting is
        case Plant.READS_BACK:
            setattr(store_file, "write_again", lambda _path: None)  # noqa: B010 - as above
        case Plant.NORMAL | Plant.OFF:
            _weaken("synchronous=FULL", wish.plant.value)
        case Plant.LOG_CHECKPOINTS:
            _weaken("PRAGMA wal_autocheckpoint=0", "SELECT 1")
        case _:
            assert_never(wish.plant)


def _go_on(_thread: StoreThread, store: Store, _error: sqlite3.DatabaseError) -> None:
    store.read_back()


def _weaken(strong: str, weak: str) -> None:
    class Weaker(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            return super().execute(statement.replace(strong, weak), *values)  # type: ignore[arg-type]

    def connect(_store: Store, path: Path) -> sqlite3.Connection:
        store_file.write_again(path)
        return sqlite3.connect(path, isolation_level=None, factory=Weaker)

    setattr(Store, "_connect", connect)  # noqa: B010 - as above


def main(asked: str) -> None:
    """Do the work that is asked for, and say on standard output what came of it."""
    wish, control = msgspec.json.decode(asked, type=Wish), Control()
    quiet_logs()
    plant(wish)
    if wish.fault is not None:
        control.fail(wish.fault)
    told = asyncio.run(Work(wish, lambda done: control.note(msgspec.json.encode(done))).run())
    sys.stdout.buffer.write(msgspec.json.encode(told))


if __name__ == "__main__":
    main(sys.argv[1])
