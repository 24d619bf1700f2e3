"""`kill -9` at any point: a process that works through leases dies between two statements or in the middle of one.

What it had acknowledged is there, what it had not is there whole or not at all, and the ledger leads to its head. Then
the next process goes on with the same file, and dies.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.model import HandInKind, JobKey, Spent, Verdict
from agent.rows import HandInRow, LedgerHead, StoredSlice
from agent.store import Store
from agent.trust.checkpoint import Checkpoint
from agent.trust.merkle import Tree, leaf_hash
from tests.core.world import grant
from tests.test_store import stored

LEASES = 20
PAID_MICRO = 10


class Done(msgspec.Struct, frozen=True):
    """One line of what a process acknowledged."""

    what: str
    number: int
    index: int = -1


class Death(msgspec.Struct, frozen=True):
    """When a process dies: before statement `after`, or within one, after so many times a hundred instructions."""

    after: int
    within: bool


class DyingStore(Store):
    """A store whose process is killed when its time has come, also while it is opened."""

    def __init__(self, path: Path, death: Death) -> None:
        self._death, self._left = death, death.after
        super().__init__(path)

    def _connect(self, path: Path) -> sqlite3.Connection:
        db = super()._connect(path)
        if self._death.within:
            db.set_progress_handler(self._count, 100)
        else:
            db.set_trace_callback(lambda _statement: self._count() and None)
        return db

    def _count(self) -> int:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0


def work(path: Path, death: Death, told: int) -> None:
    """Open, compute, hand in and settle leases, one after the other, and say so only when the store has said so."""

    def tell(what: str, number: int, index: int = -1) -> None:
        os.write(told, msgspec.json.encode(Done(what, number, index)) + b"\n")

    def build(counter: int, _log_index: int, slices: list[StoredSlice]) -> HandInRow:
        return HandInRow(
            HandInKind.RESULT, b"body", f"statement {counter}".encode(), "e" * 64, len(slices), referenced=(0,)
        )

    store = DyingStore(path, death)
    for number in range(LEASES):
        one = grant(number)
        if not store.open_lease(one, 1):
            continue  # an earlier process handed it in
        tell("open", number)
        if number % 5 == 0:
            begin_session(store, tell)
        store.remember("last", Done("open", number))
        tell("remember", number)
        for index in range(number % 4):
            store.add_slice(one.key, stored(index), Spent(index, 1))
            tell("slice", number, index)
        store.hand_in(one, why=None, spent=Spent(7, 3), wall_ms=2, build=build)
        tell("hand_in", number)
        if number % 3:  # a verdict comes for most
            store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=PAID_MICRO, envelope=b"verdict")
            tell("settle", number)


def begin_session(store: Store, tell: Callable[[str, int], None]) -> None:
    """A session's certificate becomes a leaf, and the ledger so far is witnessed."""
    number = store.next_session(1)
    store.add_session(number, f"certificate {number}".encode())
    tell("session", number)
    head = store.ledger_head()
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
    store.add_checkpoint(checkpoint, b"signed", 1)
    assert store.take_witness(checkpoint, b"countersigned", 1) is None
    tell("witness", head.size)


def run(path: Path, death: Death) -> list[Done]:
    """A process that works until it dies, or is through; what it acknowledged."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(path, death, told)
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(heard, "rb") as lines:
        done = [msgspec.json.decode(line, type=Done) for line in lines if line.endswith(b"\n")]
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return done


def check(path: Path, acknowledged: list[Done]) -> None:
    """What the next process finds."""
    store = Store(path)
    try:
        states = {row.job: row for row in store.leases(10_000)}
        still_open = {row.grant.key: row for row in store.open_leases()}
        waiting = {row.key: row for row in store.outbox()}
        leaves = Counter((row.kind, row.job) for row in store.ledger(10_000))
        sessions = [row.leaf for row in store.ledger(10_000) if row.kind == "session"]
        assert len(set(sessions)) == len(sessions), "no session has the number of another"
        for done in acknowledged:
            key = JobKey(f"job{done.number}", 1)
            match done.what:
                case "open":
                    assert key.job in states
                case "slice":
                    assert key not in still_open or done.index in still_open[key].done
                case "hand_in":
                    assert states[key.job].state in {"handed_in", "closed"}
                case "remember":
                    last = store.recall("last", Done)
                    assert last is not None
                    assert last.number >= done.number
                case "session":
                    assert f"certificate {done.number}".encode() in sessions
                case "witness":
                    witnessed = store.checkpoint(witnessed=True)
                    assert witnessed is not None
                    assert witnessed.size >= done.number
                case "settle":
                    assert (states[key.job].state, states[key.job].paid_micro) == ("closed", PAID_MICRO)
        for job, row in states.items():
            key = JobKey(job, 1)
            assert (key in waiting) == (row.state == "handed_in"), "a lease that is handed in is in the outbox"
            assert leaves["statement", job] == (row.state != "open"), "its statement is one leaf"
            assert leaves["verdict", job] == (row.state == "closed"), "and so is its verdict"
        assert all(row.missing == (0,) for row in waiting.values())
        _check_sums(store)
    finally:
        store.close()


def _check_sums(store: Store) -> None:
    """The ledger leads to its head, no counter was used twice, and what is kept in memory is what the rows say."""
    statements = [row.leaf for row in store.ledger(10_000) if row.kind == "statement"]
    assert statements == [f"statement {counter}".encode() for counter in range(1, len(statements) + 1)]
    tree = Tree()
    for row in store.ledger(10_000):
        assert row.leaf is not None
        tree.append(leaf_hash(row.leaf))
    assert store.wrong_leaf(0, 10_000) is None
    assert store.stored_head() == store.ledger_head() == LedgerHead(tree.size, tree.root().hex())
    assert store.totals() == store._summed_up()
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


deaths = st.builds(Death, after=st.integers(0, 250), within=st.booleans())


@settings(max_examples=10, deadline=None)
@given(deaths=st.lists(deaths, min_size=1, max_size=4))
def test_nothing_acknowledged_is_lost_and_nothing_is_half_there(deaths: list[Death]) -> None:
    with TemporaryDirectory() as folder:
        path, acknowledged = Path(folder) / "driveway.db", list[Done]()
        for death in deaths:
            acknowledged += run(path, death)
            check(path, acknowledged)
        acknowledged += run(path, Death(10**9, within=False))
        check(path, acknowledged)
        assert sum(done.what == "hand_in" for done in acknowledged) >= LEASES - len(deaths), "all are worked through"


def test_the_check_can_fail(tmp_path: Path) -> None:
    """A store that acknowledges before it commits is found out."""
    path = tmp_path / "driveway.db"
    acknowledged = run(path, Death(120, within=False))
    assert any(done.what == "settle" for done in acknowledged)
    lost = max(done.number for done in acknowledged) + 5
    for what in ("open", "hand_in", "settle", "remember", "session", "witness"):
        done = Done(what, lost * 10)
        try:
            check(path, [*acknowledged, done])
        except (AssertionError, KeyError):
            continue
        raise AssertionError(f"{done} was not missed")
