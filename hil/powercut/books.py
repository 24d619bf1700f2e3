"""What the next process finds in the folder, held against what had been acknowledged: the real store, opened anew.

First it is only looked at: SQLite's own check, the agent's self-test of the ledger, every acknowledgement, every leaf
and every counter. Then it goes on: what is settled is settled again, which must change nothing; what is open or waits
is brought to its end; and a last look finds all counters used once.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from agent.core.model import JobKey
from agent.errors import StoreError
from agent.selftest import SelfTest
from agent.store import Store, StoreThread
from hil.powercut.work import DATABASE, PAID_MICRO, Done, Remembered, hand_in, settle

MANY = 1_000_000


class Finding(StrEnum):
    """What a folder turned out to be."""

    OK = "ok"
    LOST = "lost"
    TORN = "torn"
    TWICE = "twice"


class Judgement(msgspec.Struct, frozen=True):
    """A finding, and what shows it ("" when all is well)."""

    finding: Finding
    detail: str = ""


class _FoundError(Exception):
    def __init__(self, finding: Finding, detail: str) -> None:
        super().__init__(detail)
        self.judgement = Judgement(finding, detail)


async def judge(folder: Path, acknowledged: Sequence[Done]) -> Judgement:
    """Open what is in `folder` and judge it. The files are changed by that."""
    thread = StoreThread(folder / DATABASE)
    try:
        await thread.open()
        test = SelfTest(clock=_NoClock(), store=thread, begin_session=_nothing, reading=lambda: None)
        await test.ledger_holds()
        await thread.call(_look, acknowledged)
        await thread.call(_go_on)
        await test.ledger_holds()
        await thread.call(_counters)
    except _FoundError as found:
        return found.judgement
    except Exception as error:  # noqa: BLE001 - a torn database may break anything
        return Judgement(Finding.TORN, str(error) if isinstance(error, StoreError) else repr(error))
    finally:
        await thread.close()
    return _integrity(folder / DATABASE)


class _NoClock:
    """The step of the self-test that is taken here asks for no time."""

    def boot_ms(self) -> int:
        raise AssertionError

    def wall_ms(self) -> int:
        raise AssertionError


async def _nothing() -> None:
    return


def _integrity(path: Path) -> Judgement:
    with contextlib.closing(sqlite3.connect(path)) as db:
        try:
            (said,) = db.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.Error as error:
            said = str(error)
    return Judgement(Finding.OK) if said == "ok" else Judgement(Finding.TORN, said)


def _look(store: Store, acknowledged: Sequence[Done]) -> None:
    """Every acknowledgement is kept, and nothing is half there."""
    states = {row.job: row for row in store.leases(MANY)}
    still_open = {row.grant.key.job: set(row.done) for row in store.open_leases()}
    waiting = {row.key.job for row in store.outbox()}
    leaves = {(row.kind, hashlib.sha256(row.leaf).hexdigest()) for row in store.ledger(MANY) if row.leaf is not None}
    remembered = store.recall("powercut", Remembered)
    witnessed = store.checkpoint(witnessed=True)
    for done in acknowledged:
        job = f"job{done.number}"
        state = states[job].state if job in states else ""
        kept = {
            "open": bool(state),
            "slice": (state == "open" and done.index in still_open[job]) or state in {"handed_in", "closed"},
            "hand_in": state in {"handed_in", "closed"} and ("statement", done.sha256) in leaves,
            "settle": state == "closed" and states[job].paid_micro == PAID_MICRO,
            "remember": remembered is not None and remembered.number >= done.number,
            "session": ("session", done.sha256) in leaves,
            "witness": witnessed is not None and witnessed.size >= done.number,
        }[done.what]
        if not kept:
            raise _FoundError(Finding.LOST, f"{done.what} {done.number} was acknowledged and is not there")
    per_job = Counter((row.kind, row.job) for row in store.ledger(MANY))
    for job, row in states.items():
        has = (per_job["statement", job], per_job["verdict", job], job in waiting)
        should = (int(row.state != "open"), int(row.state == "closed"), row.state == "handed_in")
        if has != should:
            raise _FoundError(Finding.TWICE if max(has[:2]) > 1 else Finding.TORN, f"{job}, {row.state}: {has}")
    _sums(store)
    _counters(store)


def _sums(store: Store) -> None:
    closed = [row for row in store.leases(MANY) if row.state == "closed"]
    if (paid := store.totals().paid_micro) != PAID_MICRO * len(closed):
        raise _FoundError(Finding.TWICE, f"{len(closed)} leases are settled, and {paid} was paid")


def _counters(store: Store) -> None:
    """The n-th statement has the counter n and stands where it says that it stands."""
    statements = [row for row in store.ledger(MANY) if row.kind == "statement"]
    for counter, row in enumerate(statements, 1):
        said, log_index, _rest = (row.leaf or b"").split(b" ", 2)
        if (int(said), int(log_index)) != (counter, row.index):
            raise _FoundError(Finding.TWICE, f"statement {counter} at {row.index} says {row.leaf!r}")


def _go_on(store: Store) -> None:
    """The next process works on: a verdict that comes again pays nothing, and what is not over ends as it should."""
    before = (store.ledger_head(), store.totals())
    for row in store.leases(3):
        if row.state == "closed":
            settle(store, int(row.job.removeprefix("job")))
    if (store.ledger_head(), store.totals()) != before:
        raise _FoundError(Finding.TWICE, "a verdict that came again was entered again")
    for open_row in store.open_leases():
        hand_in(store, _number(open_row.grant.key), 99)
    for waiting in store.outbox()[-2:]:
        settle(store, _number(waiting.key))
    number = store.next_session(1)
    certificate = f"certificate {number}".encode()
    if certificate in {row.leaf for row in store.ledger(MANY)}:
        raise _FoundError(Finding.TWICE, f"session {number} began before")
    store.add_session(number, certificate)
    _sums(store)


def _number(key: JobKey) -> int:
    return int(key.job.removeprefix("job"))
