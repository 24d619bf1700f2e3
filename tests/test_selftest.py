"""The self test on real things: it passes where all is well, and names what is wrong and what to do where it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent import selftest
from agent.core.events import ComputeSeen, EventType, SelfTested
from agent.core.model import Verdict
from agent.notary import Notary, ThreadedKey
from agent.selftest import SelfTest
from agent.store import Store, StoreThread
from agent.trust.keys import FileSigner
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.test_store import hand_in

READING = ComputeSeen(at_ms=1, die_c=None, power_w=None, sensor="none")


class Ticking(FixedClock):
    """A clock that goes on by itself."""

    def boot_ms(self) -> int:
        self.now_ms += 7
        return self.now_ms


class OtherKey(FileSigner):
    """A token that signs with another key than the one it shows."""

    def sign(self, message: bytes) -> bytes:
        return FileSigner(generate_private_key(SECP256R1())).sign(message)


class GoneKey(FileSigner):
    """A token that was pulled out."""

    def sign(self, message: bytes) -> bytes:
        raise RuntimeError("CKR_TOKEN_NOT_PRESENT")


def key(kind: type[FileSigner] = FileSigner) -> FileSigner:
    return kind(generate_private_key(SECP256R1()))


def earned(folder: Path, statements: int = 3) -> None:
    """A ledger with as many statements and verdicts."""
    store = Store(folder / "driveway.db")
    for number in range(statements):
        one = grant(number)
        store.open_lease(one, 1)
        hand_in(store, one)
        store.settle(one.key, verdict=Verdict.SETTLED, reason="", paid_micro=1, envelope=f"verdict {number}".encode())
    store.close()


def problem(folder: Path, before: Callable[[Store], Any] | None = None, **changes: Any) -> str:
    """What the test says of a store in `folder`, once something was done to it."""

    async def run(store: StoreThread) -> str:
        if before is not None:
            await store.call(before)
        return await _test(store, **changes).test()

    return opened(folder, run)


def _test(store: StoreThread, **changes: Any) -> SelfTest:
    notary = Notary(
        unit="car-0001",
        key_epoch=1,
        boot="4b" * 16,
        key=ThreadedKey(changes.pop("signer", None) or key()),
        witnesses={},
        clock=Ticking(),
        store=store,
        send=lambda _message: False,
    )
    settings: dict[str, Any] = {
        "clock": Ticking(),
        "store": store,
        "begin_session": notary.begin,
        "reading": lambda: READING,
    }
    return SelfTest(**(settings | changes))


def opened(folder: Path, story: Callable[[StoreThread], Awaitable[str]]) -> str:
    async def run() -> str:
        store = StoreThread(folder / "driveway.db")
        await store.open()
        try:
            return await story(store)
        finally:
            await store.close()

    return asyncio.run(run())


def test_all_is_well_with_and_without_a_ledger(tmp_path: Path) -> None:
    assert problem(tmp_path) == ""
    earned(tmp_path)
    assert problem(tmp_path) == ""


def test_a_long_ledger_is_looked_at_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "LEAVES_AT_ONCE", 2)
    earned(tmp_path)
    assert problem(tmp_path) == ""
    assert "the ledger is damaged" in problem(tmp_path, lambda store: store._db.execute("DELETE FROM ledger"))


@pytest.mark.parametrize(
    ("broken", "said"),
    [(OtherKey, "no signature on the envelope"), (GoneKey, "CKR_TOKEN_NOT_PRESENT")],
)
def test_a_broken_key(tmp_path: Path, broken: type[FileSigner], said: str) -> None:
    found = problem(tmp_path, signer=key(broken))
    assert found.startswith("the signing key (file) does not work")
    assert said in found
    assert "restore the key, or enrol this unit with a new one" in found


TAMPERED = {
    "a leaf": "UPDATE ledger SET leaf = x'00' WHERE idx = 1",
    "a leaf and its hash": "UPDATE ledger SET leaf = x'00', hash = zeroblob(32) WHERE idx = 1",
    "a hash": "UPDATE ledger SET hash = zeroblob(32) WHERE idx = 2",
    "the last leaf gone": "DELETE FROM ledger WHERE idx = 5",
    "the first leaf gone": "DELETE FROM ledger WHERE idx = 0",
    "a leaf too many": "INSERT INTO ledger SELECT 6, kind, job, epoch, leaf, hash FROM ledger WHERE idx = 5",
    "two leaves swapped": "UPDATE ledger SET leaf = (SELECT leaf FROM ledger WHERE idx = 3) WHERE idx = 1",
    "a leaf as text": "UPDATE ledger SET leaf = CAST(leaf AS TEXT) WHERE idx = 1",
    "a leaf as a number": "UPDATE ledger SET leaf = 7 WHERE idx = 1",
    "a leaf's hash emptied": "UPDATE ledger SET hash = NULL WHERE idx = 2",
    "a leaf's hash as text": "UPDATE ledger SET hash = 'ab' WHERE idx = 0",
    "a node emptied": "UPDATE nodes SET hash = NULL WHERE level = 1 AND idx = 0",
    "a node as a number": "UPDATE nodes SET hash = 7 WHERE level = 2",
    "a node as text": "UPDATE nodes SET hash = 'ab' WHERE level = 1 AND idx = 1",
    "the head gone": "DELETE FROM meta WHERE key = 'ledger_head'",
    "the head moved": "UPDATE meta SET value = replace(value, '\"size\":6', '\"size\":5') WHERE key = 'ledger_head'",
}


def changed(found: str) -> bool:
    return "the ledger is damaged" in found and "restore driveway.db from a copy" in found


@pytest.mark.parametrize("sql", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_ledger(tmp_path: Path, sql: str) -> None:
    earned(tmp_path)
    store = Store(tmp_path / "driveway.db")
    assert store._db.execute(sql).rowcount == 1
    store.close()
    assert changed(problem(tmp_path))


@pytest.mark.parametrize("what", ["a leaf", "the last leaf gone", "two leaves swapped", "the head moved"])
def test_a_ledger_that_is_tampered_with_under_our_feet(tmp_path: Path, what: str) -> None:
    earned(tmp_path)
    assert changed(problem(tmp_path, lambda store: store._db.execute(TAMPERED[what])))


def test_a_ledger_from_before_its_head_was_kept_gets_one(tmp_path: Path) -> None:
    earned(tmp_path)
    store = Store(tmp_path / "driveway.db")
    store._db.execute("PRAGMA user_version = 0")
    store._db.execute("DELETE FROM meta WHERE key = 'ledger_head'")
    store.close()
    assert problem(tmp_path) == ""


def test_a_disk_that_takes_no_writes(tmp_path: Path) -> None:
    earned(tmp_path)
    found = problem(tmp_path, lambda store: store._db.execute("PRAGMA query_only = 1"))
    assert found == ("the disk refused: attempt to write a readonly database; free some space, or look at the disk")


def test_a_clock_that_stands_still_or_goes_back(tmp_path: Path) -> None:
    class Back(FixedClock):
        def boot_ms(self) -> int:
            self.now_ms -= 7
            return self.now_ms

    for clock in (FixedClock(), Back()):
        assert "boot time does not advance" in problem(tmp_path, clock=clock)


def test_a_reader_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "READING_S", 0.1)
    found = problem(tmp_path, reading=lambda: None)
    assert "the computer's reader said nothing" in found
    assert "check [computer] in the configuration" in found


def test_a_worker_that_could_not_start(tmp_path: Path) -> None:
    assert "cannot be executed" in problem(tmp_path, python=str(tmp_path / "python"))


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    found = problem(tmp_path, signer=key(GoneKey), clock=FixedClock())
    assert "signing key" in found
    assert ". Also: the signing key" in found


def test_a_failed_test_is_tried_again_until_it_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "RETRY_S", 0.001)
    said: list[EventType] = []

    async def story(store: StoreThread) -> str:
        await store.call(lambda one: one._db.execute("PRAGMA query_only = 1"))

        def emit(event: EventType) -> None:
            said.append(event)
            if len(said) == 2:
                mending.append(asyncio.create_task(store.call(lambda one: one._db.execute("PRAGMA query_only = 0"))))

        mending: list[asyncio.Task[Any]] = []
        await asyncio.wait_for(_test(store).run(emit), 20)
        await asyncio.gather(*mending)
        return ""

    opened(tmp_path, story)
    problems = [event.problem for event in said if isinstance(event, SelfTested)]
    assert len(problems) == len(said) >= 3
    assert all("the disk refused" in one for one in problems[:-1])
    assert problems[-1] == ""
