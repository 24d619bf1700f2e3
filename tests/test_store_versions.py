"""One store over versions: of an older agent, of a newer one, and written into by both in turn, as after a rollback."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import schema
from agent.control import Wishes
from agent.core.model import Grant, HandInKind, SliceOutcome, Spent, Verdict
from agent.errors import LedgerDamagedError, NotUnderstoodError
from agent.rows import Engine, HandInRow, StoredSlice
from agent.selftest import LEAVES_AT_ONCE
from agent.store import Store, StoreThread
from agent.trust.checkpoint import Checkpoint
from agent.trust.merkle import leaf_hash, tree_root
from tests.core.world import grant
from tests.old_store import OldStore

ENGINE = Engine("onnxruntime_cpu", "a" * 64, "b" * 64)
OUTCOME = msgspec.json.encode(SliceOutcome(0, 4, 0, "c" * 64, "d" * 64, 100))


def sound(store: Store) -> bool:
    """As the agent's self-test sees it."""
    head = store.ledger_head()
    return head == store.stored_head() and store.wrong_leaf(0, LEAVES_AT_ONCE) is None


def work(store: Store, one: Grant) -> list[int]:
    """A lease up to its hand-in, as this version does it: the slices that went into it."""
    assert store.open_lease(one, 1)
    store.keep_grant(one)
    store.add_slice(one.key, StoredSlice(SliceOutcome(0, 4, 0, "c" * 64, "d" * 64, 100), b"[]", ENGINE), Spent(5, 3))
    return finish(store, one)


def finish(store: Store, one: Grant) -> list[int]:
    seen: list[int] = []

    def build(counter: int, _log_index: int, slices: list[StoredSlice]) -> HandInRow:
        seen.extend(slice_.outcome.index for slice_ in slices)
        return HandInRow(
            HandInKind.RESULT, b"body", f"statement {counter}".encode(), "e" * 64, len(slices), referenced=(0,)
        )

    store.hand_in(one, why=None, spent=Spent(7, 3), wall_ms=2, build=build)
    return seen


def settle(store: Store, one: Grant) -> None:
    store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=5, envelope=f"verdict {one.epoch}".encode())


def old_work(store: OldStore, one: Grant) -> list[int]:
    store.open_lease(one)
    store.add_slice(one, 0, OUTCOME, msgspec.json.encode(ENGINE))
    return store.hand_in(one, f"old statement {one.epoch}".encode())


def numbered(number: int) -> Grant:
    """A grant of its own, whose epoch tells it."""
    return grant(number, epoch=number)


# --- a store of before, and the way back ----------------------------------------------------------------------------


def test_a_store_of_before_is_worked_on_by_this_version_and_by_the_old_one_again(tmp_path: Path) -> None:
    path = tmp_path / "driveway.db"
    one, two, three, four, five = (numbered(index) for index in range(5))
    old = OldStore(path)
    assert old_work(old, one) == [0]
    old.settle(one, b"old verdict")
    assert old_work(old, two) == [0]
    old.open_lease(three)
    old.add_slice(three, 0, OUTCOME, msgspec.json.encode(ENGINE))
    old.vacate_and_log()
    head = old.head
    old.close()

    store = Store(path)
    assert (store.ledger_head().size, store.ledger_head().root) == head
    assert sound(store)
    assert [row.key for row in store.outbox()] == [two.key], "what the old one had not handed in"
    (left,) = store.open_leases()
    assert (left.grant, left.done, left.spent) == (three, (0,), Spent(5, 3))
    assert finish(store, three) == [0], "and what it had computed"
    settle(store, two)
    work(store, four)
    store.vacate(1, "door", 2, 3)
    assert sound(store)
    new_head = store.ledger_head()
    store.close()

    old = OldStore(path)
    assert old.head == old.stored_head == (new_head.size, new_head.root)
    assert old.outbox() == [(one.job, one.epoch) for one in (three, four)], "what the new one had not handed in"
    old.settle(three, b"old verdict on three")
    old_work(old, five)
    old.vacate_and_log()
    head = old.head
    old.close()

    store = Store(path)
    assert (store.ledger_head().size, store.ledger_head().root) == head
    assert sound(store), "the tree that the old one knew nothing of was made anew"
    assert [row.key for row in store.outbox()] == [four.key, five.key]
    assert store.totals().paid_micro == 15
    assert len(store.consistency(new_head.size, head[0])) > 0
    store.close()


def test_damage_is_not_taken_for_an_older_versions_work(tmp_path: Path) -> None:
    path = tmp_path / "driveway.db"
    store = Store(path)
    for index in range(4):
        work(store, numbered(index))
    store._db.execute("DELETE FROM nodes WHERE level = 1 AND idx = 1")
    store.close()
    store = Store(path)
    with pytest.raises(LedgerDamagedError, match="its tree lacks node 1/1"):
        sound(store)
    store.close()


@pytest.mark.parametrize("leaf_hashed", [False, True])
def test_what_was_changed_stays_found_when_an_older_version_worked_on_top(tmp_path: Path, leaf_hashed: bool) -> None:
    path = tmp_path / "driveway.db"
    store = Store(path)
    for index in range(4):
        work(store, numbered(index))
    store.close()
    changed = b"I did more"
    old = OldStore(path)
    old_work(old, numbered(8))
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE ledger SET leaf = ? WHERE idx = 2", (changed,))
        if leaf_hashed:
            db.execute("UPDATE ledger SET hash = ? WHERE idx = 2", (leaf_hash(changed),))
    old.close()
    store = Store(path)
    assert not sound(store)
    store.close()


class Both:
    """A store that two versions write into in turn, and all that was ever acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        self.leaves: list[bytes] = []
        self.owed: list[Grant] = []

    def turn(self, version: str, words: list[str]) -> None:
        """One run of one version's daemon."""
        store: Store | OldStore = Store(self._path) if version == "new" else OldStore(self._path)
        for word in words:
            if word == "work":
                self._work(store)
            elif self.owed:
                self._settle(store)
        store.close()

    def _work(self, store: Store | OldStore) -> None:
        one = numbered(self._number)
        self._number += 1
        if isinstance(store, Store):
            counted = 1 + sum(b"statement" in leaf for leaf in self.leaves)
            work(store, one)
            self.leaves.append(f"statement {counted}".encode())
        else:
            old_work(store, one)
            self.leaves.append(f"old statement {one.epoch}".encode())
        self.owed.append(one)

    def _settle(self, store: Store | OldStore) -> None:
        one = self.owed.pop(0)
        if isinstance(store, Store):
            settle(store, one)
        else:
            store.settle(one, f"verdict {one.epoch}".encode())
        self.leaves.append(f"verdict {one.epoch}".encode())

    def check(self) -> None:
        store = Store(self._path)
        assert sound(store)
        assert store.ledger_head().root == tree_root([leaf_hash(leaf) for leaf in self.leaves]).hex()
        assert [row.key for row in store.outbox()] == [one.key for one in self.owed]
        store.close()


turns = st.lists(
    st.tuples(st.sampled_from(["old", "new"]), st.lists(st.sampled_from(["work", "work", "settle"]), max_size=4)),
    max_size=6,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(turns)
def test_however_often_it_goes_forth_and_back_nothing_acknowledged_is_lost(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, list[str]]]
) -> None:
    both = Both(tmp_path_factory.mktemp("both") / "driveway.db")
    for version, words in script:
        both.turn(version, words)
        both.check()


# --- a store of the future --------------------------------------------------------------------------------------------


TABLES = ["leases", "slices", "outbox", "referenced", "ledger", "nodes", "checkpoints", "vacates", "log", "meta"]


def of_tomorrow(path: Path, *statements: str, version: int = schema.VERSION + 1) -> None:
    """A store of this version that a newer one brought up."""
    store = Store(path)
    work(store, numbered(0))
    store.close()
    db = sqlite3.connect(path, isolation_level=None)
    for statement in (*statements, f"PRAGMA user_version = {version}"):
        db.execute(statement)
    db.close()


def test_a_newer_store_with_more_in_it_is_worked_on_in_all_its_tables(tmp_path: Path) -> None:
    path = tmp_path / "driveway.db"
    more = [f"ALTER TABLE {table} ADD COLUMN tomorrow TEXT NOT NULL DEFAULT 'said'" for table in TABLES]
    of_tomorrow(path, *more, "CREATE TABLE forecasts (at INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    store = Store(path)
    one = numbered(1)
    assert work(store, one) == [0]
    assert [row.key for row in store.outbox()] == [numbered(0).key, one.key]
    settle(store, one)
    store.vacate(1, "door", 2, 3)
    store.log(1, "said", b"{}")
    store.probe()
    store.add_session(store.next_session(1), b"certificate")
    head = store.ledger_head()
    checkpoint = Checkpoint(
        v=1,
        unit="u",
        key_epoch=1,
        size=head.size,
        root=head.root,
        session=1,
        boot_id="b",
        issued_boot_ms=1,
        issued_wall_ms=1,
    )
    store.add_checkpoint(checkpoint, b"envelope", 1)
    assert store.take_witness(checkpoint, b"countersigned", 2) is None
    assert sound(store)
    assert [lease.state for lease in store.leases(5)] == ["closed", "handed_in"]
    assert schema.version_of(store._db) == schema.VERSION + 1, "still the newer one's"
    for table in TABLES:
        said = {row[0] for row in store._db.execute(f"SELECT tomorrow FROM {table}")}
        assert said == {"said"} or table in {"slices", "referenced"}, table
    store.close()


def parts(column: str) -> tuple[str, str]:
    """A table that was made anew, with one column more."""
    return "DROP TABLE referenced", f"CREATE TABLE referenced (job TEXT, epoch INTEGER, idx INTEGER, {column})"


@pytest.mark.parametrize(
    ("statements", "version", "says"),
    [
        ((), schema.NOT_KNOWN_FROM, "older ones must not open it"),
        (("ALTER TABLE log RENAME COLUMN fields TO body",), 3, "log.fields is another there"),
        (("DROP TABLE vacates", "CREATE TABLE vacates (at_wall_ms TEXT)"), 3, "vacates.at_wall_ms is another there"),
        (("DROP TABLE vacates",), 3, "vacates.at_wall_ms is another there"),
        (parts("part INTEGER NOT NULL, PRIMARY KEY (job, epoch, idx)"), 3, "referenced.part needs a value"),
        (parts("part INTEGER, PRIMARY KEY (job, epoch, idx, part)"), 3, "referenced.part needs a value"),
    ],
)
def test_a_newer_store_that_this_version_cannot_write_into_is_refused_as_it_is(
    tmp_path: Path, statements: tuple[str, ...], version: int, says: str
) -> None:
    path = tmp_path / "driveway.db"
    of_tomorrow(path, *statements, version=version)
    before = {file.name: file.read_bytes() for file in content(tmp_path)}
    with pytest.raises(NotUnderstoodError, match=says) as refused:
        Store(path)
    assert f"of version {version}, and this agent knows {schema.VERSION}" in refused.value.what
    assert "install the newer version" in refused.value.hint
    assert {file.name: file.read_bytes() for file in content(tmp_path)} == before

    async def daemon() -> None:
        thread = StoreThread(path)
        with pytest.raises(NotUnderstoodError, match=says):
            await thread.open()
        await thread.close()

    asyncio.run(daemon())


def test_a_newer_store_whose_words_are_still_in_its_log_is_refused_as_it_is(tmp_path: Path) -> None:
    """The newer daemon was killed: what it wrote last is in the write-ahead log alone, and stays there."""
    path = tmp_path / "driveway.db"
    of_tomorrow(path)
    newer = Store(path)
    newer._db.execute(f"PRAGMA user_version = {schema.NOT_KNOWN_FROM}")
    work(newer, numbered(7))
    newer.let_go(path)
    before = {file.name: file.read_bytes() for file in content(tmp_path)}
    assert before["driveway.db-wal"]
    with pytest.raises(NotUnderstoodError):
        Store(path)
    assert {file.name: file.read_bytes() for file in content(tmp_path)} == before


def content(folder: Path) -> list[Path]:
    """The files that count; -shm is an index that every opening makes anew, and an empty log is none."""
    return [one for one in folder.iterdir() if not one.name.endswith("-shm") and one.stat().st_size]


def test_a_wish_that_the_owner_does_not_use_is_not_written_down(tmp_path: Path) -> None:
    """An older version takes no wish that it does not know: it would not start."""
    store = Store(tmp_path / "driveway.db")
    store.remember("wishes", Wishes(classes=("ocr",)))
    ((row,),) = store._db.execute("SELECT value FROM meta WHERE key = 'wishes'")
    assert row == '{"classes":["ocr"]}'
    assert store.recall("wishes", Wishes) == Wishes(classes=("ocr",))
    store.close()


def test_what_is_remembered_by_a_newer_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    class Newer(msgspec.Struct, frozen=True):
        key_epoch: int
        number: int
        why: str

    store = Store(tmp_path / "driveway.db")
    store.remember("last_session", Newer(1, 7, "a field that came later"))
    assert store.next_session(1) == 8
    store._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('last_session', '[]')")
    with pytest.raises(NotUnderstoodError, match="'last_session' is not understood"):
        store.next_session(1)
    store.close()
