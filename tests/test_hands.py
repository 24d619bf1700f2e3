"""Whatever the core asks for is answered, also by a disk that refuses, a key that fails, and bugs in the steps."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from agent import hands as hands_module
from agent.core.events import (
    EffectType,
    EventType,
    HandIn,
    HandInFailed,
    HandInSettled,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    OpenLease,
    RecordVacate,
    Report,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    SettleHandIn,
    SliceFailed,
    SliceStored,
    StartWorker,
    StopWorker,
    StoreFailed,
    StoreRecovered,
    Unwritten,
    WorkerGone,
    WorkerReady,
)
from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, Verdict, YieldReason
from agent.errors import FleetError, StoreError, TrustError
from agent.fleet import messages
from agent.fleet.desk import Desk
from agent.fleet.objects import Web
from agent.hands import Hands
from agent.inference.shelf import Shelf
from agent.inference.station import Station, WorkerLimits
from agent.rows import OutboxRow
from agent.store import Store, StoreThread
from agent.trust.keys import FileSigner
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.inference.desk import PATIENCE_S, Kind
from tests.inference.test_shelf import TRUSTED, put
from tests.inference.test_station import BODY, stand_in
from tests.test_handin import UNIT, finished

FACTS = LeaseFacts(started_ms=1, finished_ms=2, energy_micro_wh=7, sensor="simulated", gate_state="open")
Fault = Callable[..., Any]


class ScriptedDesk:
    """The fleet's side: it takes everything, or raises."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, messages.Capability]] = []
        self.hand_ins: list[tuple[str, bytes]] = []
        self.fault: Exception | None = None

    def request(self, effect: SendRequest, capability: messages.Capability) -> bool:
        if self.fault is not None:
            raise self.fault
        self.requests.append((effect.rid, capability))
        return True

    def hand_in(self, verb: str, body: bytes) -> bool:
        if self.fault is not None:
            raise self.fault
        self.hand_ins.append((verb, body))
        return True


class Disk:
    """Stands between the hands and the real store: methods fail for as long as a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: dict[Fault, Exception] = {}
        self.failed: dict[Fault, asyncio.Event] = defaultdict(asyncio.Event)
        real = StoreThread.call

        async def call(thread: StoreThread, method: Fault, *args: Any, **kwargs: Any) -> Any:
            if method in self.faults:
                self.failed[method].set()
                raise self.faults[method]
            return await real(thread, method, *args, **kwargs)

        monkeypatch.setattr(StoreThread, "call", call)
        monkeypatch.setattr(hands_module, "STORE_RETRY_S", 0.001)

    def refuse(self, *methods: Fault) -> None:
        self.faults |= dict.fromkeys(methods, StoreError("the disk refused: disk I/O error"))


class Bench:
    """Real hands on a real store, with one package on the shelf; what they told the core is kept."""

    def __init__(self, folder: Path) -> None:
        put(folder / "packages", "good")
        self.shelf = Shelf(folder / "packages", TRUSTED)
        (self.package,) = self.shelf.packages
        self.store = StoreThread(folder / "driveway.db")
        self.desk = ScriptedDesk()
        self.signer = FileSigner(generate_private_key(SECP256R1()))
        self.events: list[EventType] = []
        self._news = asyncio.Event()
        self.hands = Hands(
            emit=self._heard,
            clock=FixedClock(),
            store=self.store,
            desk=cast("Desk", self.desk),
            shelf=self.shelf,
            signer=self.signer,
            unit=UNIT,
            limits=WorkerLimits(threads=1, memory_mb=256),
            executor="stand-in",
            web=Web(allow_loopback_http=True),
            lease_energy=lambda: 42,
        )

    def job(self, number: int = 1, **changes: Any) -> Grant:
        one = msgspec.structs.replace(
            grant(number), package="good", package_sha256=self.package, ticket_sha256="f" * 64
        )
        return msgspec.structs.replace(one, **changes)

    async def do(self, *effects: EffectType) -> None:
        """Carry these out, and wait until nothing is being done any more."""
        for effect in effects:
            self.hands.perform(effect)
        async with asyncio.timeout(PATIENCE_S):
            while self.hands._tasks:
                await asyncio.wait(self.hands._tasks)

    async def heard(self, kind: type[Kind], times: int = 1) -> Kind:
        """Wait until the core was told of this, so many times; the last of them."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.all(kind)) < times:
                self._news.clear()
                await self._news.wait()
        return found[-1]

    def all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def only(self, kind: type[Kind]) -> Kind:
        """The one thing the core was told since this was asked last."""
        (event,) = self.events
        self.events.clear()
        assert isinstance(event, kind)
        return event

    async def outbox(self) -> list[OutboxRow]:
        return await self.store.call(Store.outbox)

    def _heard(self, event: EventType) -> None:
        self.events.append(event)
        self._news.set()


@asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    made = Bench(folder)
    await made.store.open()
    try:
        yield made
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await made.hands.close()
        await made.store.close()


def served(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception = BODY) -> None:
    """What comes of fetching an input."""

    async def fetch(_web: Web, _url: str, _sha256: str, _length: int) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("agent.fleet.objects.fetch", fetch)


def result(one: Grant) -> HandIn:
    return HandIn(grant=one, kind=HandInKind.RESULT, why=None, detail="", facts=FACTS)


def given_back(one: Grant, why: YieldReason = YieldReason.DRIVER, detail: str = "door_open") -> HandIn:
    return HandIn(grant=one, kind=HandInKind.YIELD, why=why, detail=detail, facts=FACTS)


def settled(key: JobKey, verdict: Verdict = Verdict.SETTLED, paid_micro: int = 120) -> SettleHandIn:
    return SettleHandIn(key=key, verdict=verdict, reason="", paid_micro=paid_micro, envelope=b"signed")


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
            assert (open_row.done, open_row.energy_micro_wh) == ((0, 1, 2), 42)
            here.events.clear()
            await here.do(result(one))
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
    ("changes", "detail"),
    [
        ({"input_url": "http://127.0.0.1:1/objects/x"}, "GET http://127.0.0.1:1/objects/x failed: "),
        ({"input_url": "http://203.0.113.1/x"}, "will not fetch http://203.0.113.1/x"),
        ({"input_bytes": 2**40}, "is 1099511627776 bytes, more than"),
        ({"package_sha256": "5" * 64}, "this unit holds no package 5555555555555555…"),
    ],
)
def test_a_grant_that_cannot_be_worked_on_is_refused(tmp_path: Path, changes: dict[str, Any], detail: str) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            await here.do(OpenLease(grant=here.job(**changes)))
            assert detail in here.only(LeaseRefused).detail

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
            await here.store.call(Store.add_slice, one.key, finished(0), 5)
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
    def sign(_signer: FileSigner, _message: bytes) -> bytes:
        raise fault

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.store.call(Store.open_lease, one, 1)
            await here.store.call(Store.add_slice, one.key, finished(0), 5)
            with monkeypatch.context() as patch:
                patch.setattr(FileSigner, "sign", sign)
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
    def sign(_signer: FileSigner, _message: bytes) -> bytes:
        raise TrustError("the key is locked")

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.store.call(Store.open_lease, one, 1)
            await here.store.call(Store.add_slice, one.key, finished(0), 5)
            monkeypatch.setattr(FileSigner, "sign", sign)
            await here.do(result(one))
            stored = here.only(HandInStored)
            assert (stored.kind, stored.statement_sha256) == (HandInKind.YIELD, "")
            found = await here.store.call(Store.outbox_message, one.key)
            assert found is not None
            assert "the key is locked" in messages.decode(found[1], messages.Yield).detail

    asyncio.run(story())


# --- a disk that refuses ----------------------------------------------------------------------------------------

KEY = JobKey("job1", 1)
STEPS: dict[Unwritten, tuple[Fault, Callable[[Grant], EffectType], JobKey | None, type[EventType]]] = {
    Unwritten.LEASE: (Store.open_lease, lambda one: OpenLease(grant=one), KEY, LeaseOpened),
    Unwritten.HAND_IN: (Store.hand_in, given_back, KEY, HandInStored),
    Unwritten.VERDICT: (Store.settle, lambda one: settled(one.key), KEY, HandInSettled),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_the_disk_refused_is_named_and_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Unwritten
) -> None:
    method, effect, key, answer = STEPS[step]

    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(method, Store.probe)
            here.hands.perform(effect(here.job()))
            failed = await here.heard(StoreFailed)
            assert (failed.step, failed.key, failed.index) == (step, key, None)
            assert "disk I/O error" in failed.detail
            disk.faults.clear()
            await here.heard(StoreRecovered)
            assert [type(event) for event in here.events] == [StoreFailed, StoreRecovered]
            here.events.clear()
            await here.do(effect(here.job()))
            here.only(answer)

    disk = Disk(monkeypatch)
    served(monkeypatch)
    asyncio.run(story())


@pytest.mark.parametrize(
    ("method", "effect", "key"),
    [
        (Store.vacate, RecordVacate(cause="door_open", idle_ms=5, gone_ms=9), None),
        (Store.outbox_message, SendHandIn(key=KEY, credit=0, have=()), KEY),
    ],
)
def test_a_note_that_the_disk_refused_stops_new_work_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Fault, effect: EffectType, key: JobKey | None
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(method)
            await here.do(effect)
            failed, recovered = here.events
            assert isinstance(failed, StoreFailed)
            assert (failed.step, failed.key) == (Unwritten.NOTE, key)
            assert isinstance(recovered, StoreRecovered)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_a_slice_that_the_disk_refused_is_named_and_can_be_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            run = RunSlice(key=one.key, index=2, first=8, last=12)
            await here.do(OpenLease(grant=one), StartWorker(grant=one))
            await here.heard(WorkerReady)
            disk.refuse(Store.add_slice)
            here.hands.perform(run)
            failed = await here.heard(StoreFailed)
            assert (failed.step, failed.key, failed.index) == (Unwritten.SLICE, one.key, 2)
            await here.heard(StoreRecovered)
            assert here.all(SliceStored) == []
            disk.faults.clear()
            here.hands.perform(run)
            assert (await here.heard(SliceStored)).outcome.index == 2

    disk = Disk(monkeypatch)
    served(monkeypatch)
    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_many_refusals_are_one_recovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.hand_in, Store.settle, Store.vacate, Store.probe)
            vacate = RecordVacate(cause="door_open", idle_ms=5, gone_ms=9)
            for effect in (given_back(here.job()), settled(KEY), vacate):
                here.hands.perform(effect)
            await here.heard(StoreFailed, times=3)
            disk.faults.clear()
            await here.do()
            assert len(here.all(StoreRecovered)) == 1
            disk.refuse(Store.vacate)
            await here.do(vacate)
            assert len(here.all(StoreRecovered)) == 2, "and the next refusal is followed up again"

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_a_log_that_cannot_be_written_is_no_news_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.log)
            await here.do(Report(name="gate_changed", fields={"state": "open"}))
            assert here.events == []
            await here.do(given_back(here.job()))
            here.only(HandInStored)
            await here.do(settled(KEY))
            here.only(HandInSettled)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_the_hands_can_be_closed_while_the_disk_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.hand_in, Store.probe)
            here.hands.perform(given_back(here.job()))
            await here.heard(StoreFailed)
            async with asyncio.timeout(PATIENCE_S):
                await here.hands.close()
            assert here.hands._tasks == set(), "nothing goes on trying"
            assert here.all(StoreRecovered) == []

    disk = Disk(monkeypatch)
    monkeypatch.setattr(hands_module, "CLOSE_S", 0.05)
    asyncio.run(story())


def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(given_back(here.job()))
            await here.hands.close()
            here.only(HandInStored)
            assert [row.key for row in await here.outbox()] == [KEY]

    asyncio.run(story())


def test_closing_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(StartWorker(grant=here.job()))
            pid = (await here.heard(WorkerReady)).pid
            await here.hands.close()
            gone = await here.heard(WorkerGone)
            assert (gone.pid, gone.expected) == (pid, True)

    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


# --- bugs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        (Unwritten.LEASE, LeaseRefused),
        (Unwritten.HAND_IN, HandInFailed),
        pytest.param(
            Unwritten.VERDICT,
            StoreFailed,
        ),
    ],
)
def test_a_bug_in_a_step_that_the_core_waits_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Unwritten, answer: type[EventType]
) -> None:
    method, effect, key, _ = STEPS[step]

    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.faults[method] = RuntimeError("a bug")
            await here.do(effect(here.job()))
            told = next((event for event in here.events if isinstance(event, answer)), None)
            assert told is not None
            assert cast("Any", told).key == key
            assert "a bug" in cast("Any", told).detail

    disk = Disk(monkeypatch)
    served(monkeypatch)
    asyncio.run(story())


def test_a_bug_in_keeping_a_slice_is_a_failed_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = here.job()
            await here.do(OpenLease(grant=one), StartWorker(grant=one))
            await here.heard(WorkerReady)
            disk.faults[Store.add_slice] = RuntimeError("a bug")
            here.hands.perform(RunSlice(key=one.key, index=1, first=4, last=8))
            failed = await here.heard(SliceFailed)
            assert (failed.key, failed.index) == (one.key, 1)
            assert "a bug" in failed.detail

    disk = Disk(monkeypatch)
    served(monkeypatch)
    stand_in(monkeypatch, tmp_path)
    asyncio.run(story())


def test_a_bug_in_the_log_does_not_hide_a_hand_in_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.faults[Store.log] = MemoryError()
            await here.do(given_back(here.job()))
            here.only(HandInStored)

    disk = Disk(monkeypatch)
    asyncio.run(story())


def test_the_disk_is_probed_until_it_answers_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            disk.refuse(Store.vacate)
            disk.faults[Store.probe] = MemoryError()
            here.hands.perform(RecordVacate(cause="door_open", idle_ms=5, gone_ms=9))
            await asyncio.wait_for(disk.failed[Store.probe].wait(), PATIENCE_S)
            disk.faults.clear()
            await here.do()
            assert len(here.all(StoreRecovered)) == 1

    disk = Disk(monkeypatch)
    asyncio.run(story())


EFFECTS: tuple[EffectType, ...] = (
    StopWorker(budget_ms=0, why="door_open"),
    SetPace(duty_permille=500),
    SendRequest(rid="r1", have=()),
    SendHandIn(key=JobKey("job2", 1), credit=0, have=()),
    RunSlice(key=KEY, index=0, first=0, last=4),
    Report(name="gate_changed", fields={}),
)


def test_no_effect_raises_whatever_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async def story() -> None:
        async with bench(tmp_path) as here:
            await here.do(OpenLease(grant=here.job(1)), given_back(here.job(2)))
            here.events.clear()
            here.desk.fault = RuntimeError("a bug")
            with monkeypatch.context() as patch:
                for name in ("stop", "run", "pace", "start"):
                    patch.setattr(Station, name, broken)
                patch.setattr(Store, "log", broken)
                await here.do(*EFFECTS)
                assert here.events == []
                await here.do(StartWorker(grant=here.job()))
                gone = here.only(WorkerGone)
                assert (gone.pid, gone.expected) == (0, False)
                assert "a bug" in gone.detail
            here.desk.fault = None
            await here.do(*EFFECTS)
            assert len(here.desk.requests) == len(here.desk.hand_ins) == 1, "and the next is done"

    served(monkeypatch)
    asyncio.run(story())


def test_a_worker_whose_start_failed_halfway_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            here.hands.perform(StartWorker(grant=here.job()))
            gone = await here.heard(WorkerGone)
            assert here.hands._station._process is None
            assert gone.pid != 0
            assert here.all(WorkerGone) == [gone]

    def load(*_: object, **__: object) -> None:
        raise UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed")

    stand_in(monkeypatch, tmp_path)
    monkeypatch.setattr("agent.inference.launcher.WorkerProcess.load", load)
    asyncio.run(story())


def test_a_slice_whose_input_is_gone_is_a_failed_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            run = RunSlice(key=KEY, index=1, first=4, last=8)
            await here.do(run)
            failed = here.only(SliceFailed)
            assert (failed.key, failed.index, failed.detail) == (KEY, 1, "its input is gone")
            await here.do(OpenLease(grant=here.job()), given_back(here.job()))
            here.events.clear()
            await here.do(run)
            assert here.only(SliceFailed).detail == "its input is gone", "it goes with the lease"

    served(monkeypatch)
    asyncio.run(story())
