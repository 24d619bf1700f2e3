"""Whatever the core asks for is answered, also by a disk that refuses, a key that fails, and bugs in the steps."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.core.effects import OpenLease, RunSlice, SendHandIn, SendRequest, SetPace, StartWorker
from agent.core.events import (
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    SliceStored,
    WorkerReady,
)
from agent.core.model import HandInKind, Spent, Verdict, YieldReason
from agent.core.policy import Policy
from agent.errors import FleetError, TrustError
from agent.fleet import messages
from agent.handin import policy_sha256
from agent.inference.shelf import Shelf
from agent.rows import OutboxRow
from agent.store import Store
from agent.trust import dsse, statement
from agent.trust.session import SessionKey
from tests.bench import bench, given_back, result, served, settled
from tests.inference.floor import stand_in
from tests.inference.test_shelf import put
from tests.test_handin import finished


def test_a_lease_from_its_grant_to_its_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(SendRequest(rid="r1", have=()), OpenLease(grant=one))
            assert here.desk.requests == [
                ("r1", messages.Capability(device_class="generic", executor="stand-in", packages=(here.package,)))
            ]
            assert here.only(LeaseOpened).key == one.key
            await here.do(StartWorker(grant=one))
            await here.heard(WorkerReady)
            here.hands.perform(SetPace(duty_permille=500))
            for index in one.slices:
                first, last = one.span(index)
                here.events.clear()
                here.hands.perform(RunSlice(key=one.key, index=index, first=first, last=last))
                kept = await here.heard(SliceStored)
                assert (kept.key, kept.outcome.index, kept.output_bytes) == (one.key, index, 2)
            (open_row,) = await here.store.call(Store.open_leases)
            assert (open_row.done, open_row.spent) == ((0, 1, 2), Spent(42, 13))
            here.events.clear()
            station: Any = here.hands._station
            assert station._input_of == one.key
            await here.do(result(one))
            assert station._input_of is None, "the worker, which stays warm, was told to forget it"
            stored = here.only(HandInStored)
            (row,) = await here.outbox()
            assert row == OutboxRow(one.key, HandInKind.RESULT, stored.statement_sha256, 3)
            await here.do(SendHandIn(key=one.key, credit=1, have=(one.key,)))
            ((verb, body),) = here.desk.hand_ins
            sent = messages.decode(body, messages.Result)
            assert (verb, sent.credit, sent.have, len(sent.outputs)) == ("result", 1, (one.key,), 3)
            await here.do(settled(one.key))
            assert here.only(HandInSettled).key == one.key
            assert await here.outbox() == []
            await here.do(SendHandIn(key=one.key, credit=1, have=()))
            assert len(here.desk.hand_ins) == 1, "what is settled is not sent again"

    served(monkeypatch)
    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_a_statement_names_the_policy_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's wishes are part of it, and of what is asked for."""

    async def story() -> None:
        async with bench(tmp_path) as here:
            digests = []
            for number, classes in enumerate(((), ("ocr",))):
                here.policy = Policy(workload_classes=classes)
                one = here.job(number)
                await here.do(SendRequest(rid="r1", have=()), OpenLease(grant=one))
                assert here.desk.requests[-1][1].classes == classes
                await here.store.call(Store.add_slice, one.key, finished(0), Spent(5, 1))
                await here.do(result(one))
                await here.do(SendHandIn(key=one.key, credit=0, have=()))
                sent = here.desk.hand_ins[-1][1]
                envelope = messages.decode(sent, messages.Result).statement
                said = statement.parse_statement(dsse.parse(msgspec.json.encode(envelope)).payload)
                assert said.gate.policy_sha256 == policy_sha256(here.policy)
                digests.append(said.gate.policy_sha256)
            assert len(set(digests)) == 2

    served(monkeypatch)
    asyncio.run(story())


def test_new_packages_are_looked_for_beside_the_loop_and_by_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests go out while the disk hangs; what it brings in the end is offered by the next."""
    real, answers, looks = Shelf.changed, threading.Event(), list[threading.Thread]()

    def changed(shelf: Shelf) -> bool:
        looks.append(threading.current_thread())
        assert answers.wait(20)
        return real(shelf)

    async def story() -> None:
        async with bench(tmp_path) as here:
            put(tmp_path / "made", "second").rename(tmp_path / "packages" / "second")
            monkeypatch.setattr(Shelf, "changed", changed)
            for number in range(3):
                here.hands.perform(SendRequest(rid=f"r{number}", have=()))
                await asyncio.sleep(0)
            assert len(here.desk.requests) == 3
            answers.set()
            await here.do()
            assert len(looks) == 1
            assert looks != [threading.main_thread()]
            await here.do(SendRequest(rid="r3", have=()))
            assert [len(capability.packages) for _, capability in here.desk.requests] == [1, 1, 1, 2]

    asyncio.run(story())


# --- leases that cannot be opened -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        FleetError("the object is not the 10 bytes long that were promised"),
        OSError(24, "Too many open files"),
        ValueError("Port could not be cast to integer value"),
        RuntimeError("cannot schedule new futures after shutdown"),
        MemoryError("64 MiB"),
        KeyError("whatever"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_an_input_that_cannot_be_fetched_is_a_refused_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(OpenLease(grant=one))
            refused = here.only(LeaseRefused)
            assert refused.key == one.key
            assert str(fault.args[-1]) in refused.detail
            await here.do(given_back(one, YieldReason.REFUSED, refused.detail))
            assert here.only(HandInStored).kind is HandInKind.YIELD, "and can be given back"

    served(monkeypatch, fault)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("changes", "detail", "transient"),
    [
        ({"input_url": "http://127.0.0.1:1/objects/x"}, "GET http://127.0.0.1:1/objects/x failed: ", True),
        ({"input_url": "http://203.0.113.1/x"}, "will not fetch http://203.0.113.1/x", False),
        ({"input_bytes": 2**40}, "is 1099511627776 bytes, more than", False),
        ({"package_sha256": "5" * 64}, "this unit holds no package 5555555555555555…", False),
    ],
)
def test_a_grant_that_cannot_be_worked_on_is_refused(
    tmp_path: Path, changes: dict[str, Any], detail: str, *, transient: bool
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            await here.do(OpenLease(grant=here.job(**changes)))
            refused = here.only(LeaseRefused)
            assert detail in refused.detail
            assert refused.transient is transient

    asyncio.run(story())


def test_a_replayed_grant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job(1)
            await here.do(OpenLease(grant=one), result(one))
            here.events.clear()
            for replayed in (one, here.job(2, nonce=one.nonce), here.job(1, nonce="5" * 32)):
                await here.do(OpenLease(grant=replayed))
                refused = here.only(LeaseRefused)
                assert refused.key == replayed.key
                assert "a replayed grant" in refused.detail
                assert refused.replayed

    served(monkeypatch)
    asyncio.run(story())


def test_a_replayed_grant_does_not_take_back_what_was_earned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(OpenLease(grant=one))
            await here.store.call(Store.add_slice, one.key, finished(0), Spent(5, 1))
            await here.do(result(one))
            await here.do(settled(one.key))
            before = (await here.store.call(Store.totals), await here.store.call(Store.leases, 9))
            assert before[0].paid_micro == 120
            again = msgspec.structs.replace(one, nonce="5" * 32)
            await here.do(OpenLease(grant=again))
            await here.do(given_back(again, YieldReason.REFUSED, "a replayed grant"))
            await here.do(settled(one.key, Verdict.STALE, 0))
            after = (await here.store.call(Store.totals), await here.store.call(Store.leases, 9))
            assert after == before

    served(monkeypatch)
    asyncio.run(story())


# --- hand-ins ---------------------------------------------------------------------------------------------------


def test_a_lease_that_never_came_to_be_opened_is_given_back(tmp_path: Path) -> None:
    """The grant came after the gate shut."""

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(given_back(one))
            stored = here.only(HandInStored)
            assert (stored.key, stored.kind, stored.statement_sha256) == (one.key, HandInKind.YIELD, "")
            assert await here.outbox() == [OutboxRow(one.key, HandInKind.YIELD, "", 0)]
            assert await here.store.call(Store.open_leases) == []
            await here.do(SendHandIn(key=one.key, credit=0, have=()))
            ((verb, body),) = here.desk.hand_ins
            sent = messages.decode(body, messages.Yield)
            assert (verb, sent.job, sent.why, sent.detail) == ("yield", "job1", YieldReason.DRIVER, "door_open")
            await here.do(OpenLease(grant=one))
            assert here.only(LeaseRefused).key == one.key, "and its nonce is used up"

    asyncio.run(story())


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        (RuntimeError("the token was pulled out"), "the token was pulled out"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError(), "MemoryError"),
        (TypeError("unexpected"), "unexpected"),
    ],
)
def test_a_key_that_fails_is_a_failed_hand_in_that_can_be_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, detail: str
) -> None:
    def sign(_signer: SessionKey, _message: bytes) -> bytes:
        raise fault

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.store.call(Store.open_lease, one, 1)
            await here.store.call(Store.add_slice, one.key, finished(0), Spent(5, 1))
            with monkeypatch.context() as patch:
                patch.setattr(SessionKey, "sign", sign)
                await here.do(given_back(one))
            failed = here.only(HandInFailed)
            assert failed.key == one.key
            assert detail in failed.detail
            assert await here.outbox() == []
            (left,) = await here.store.call(Store.open_leases)
            assert (left.grant, left.done) == (one, (0,)), "what it finished is not lost"
            await here.do(given_back(one))
            assert here.only(HandInStored).statement_sha256 != ""

    asyncio.run(story())


def test_a_key_that_refuses_gives_the_lease_back_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign(_signer: SessionKey, _message: bytes) -> bytes:
        raise TrustError("the key is locked")

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.store.call(Store.open_lease, one, 1)
            await here.store.call(Store.add_slice, one.key, finished(0), Spent(5, 1))
            monkeypatch.setattr(SessionKey, "sign", sign)
            await here.do(result(one))
            stored = here.only(HandInStored)
            assert (stored.kind, stored.statement_sha256) == (HandInKind.YIELD, "")
            found = await here.store.call(Store.outbox_message, one.key)
            assert found is not None
            assert "the key is locked" in messages.decode(found[1], messages.Yield).detail

    asyncio.run(story())
