"""The hands' bulk data, to and from the real dispatcher's server: inputs that go on after a pause, answers brought."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import traffic
from agent.core.effects import HandIn, OpenLease, PauseTransfers, SendHandIn, UploadSlice
from agent.core.events import (
    BytesMoved,
    EventType,
    HandInStored,
    LeaseOpened,
    LeaseRefused,
    SliceUploaded,
    StoreFailed,
    TransferFailed,
)
from agent.core.model import Grant, HandInKind, Spent
from agent.fleet import messages
from agent.fleet.channel import Channel, Moved
from agent.fleet.partials import Partials
from agent.fleet.retry import Patience
from agent.sealed import InputMemory
from agent.store import Store
from agent.traffic import TrafficMeter
from agent.transfers import input_patience
from hil.dispatcher.objects import Objects
from hil.dispatcher.web import WebServer
from tests.bench import FACTS, Bench, Disk, bench, settled
from tests.conftest import FixedClock
from tests.core.world import grant
from tests.fleet.cutter import Cutter
from tests.hil.uploading import brought, upload_lease
from tests.test_handin import finished

INPUT = b"picture " * 60_000
SHA256 = hashlib.sha256(INPUT).hexdigest()
TOKEN = "t" * 32
ANSWERS = [b'["' + bytes([65 + index]) * 7_000 + b'"]' for index in range(3)]


class Office:
    """The real dispatcher's server, with one input."""

    def __init__(self, folder: Path) -> None:
        self.objects = Objects(folder)
        self.objects.put(INPUT)
        self.web = WebServer(0, self.objects, lambda body: body, may_upload={TOKEN: upload_lease()}.get)
        self.web.start()

    def grant(
        self, here: Bench, url: str = "", *, number: int = 1, input_length: int = len(INPUT), **changes: Any
    ) -> Grant:
        return here.job(
            number,
            input_url=f"{url or self.web.url}/objects/{SHA256}",
            input_sha256=SHA256,
            input_bytes=input_length,
            upload_url=f"{self.web.url}/uploads",
            upload_token=TOKEN,
            **changes,
        )

    def has(self, answers: bytes) -> bool:
        return brought(self.objects, answers)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "objects")
    yield office
    office.web.close()


def upload(one: Grant, index: int, url: str | None = None) -> UploadSlice:
    return UploadSlice(key=one.key, index=index, url=one.upload_url if url is None else url, token=one.upload_token)


async def computed(here: Bench, one: Grant) -> None:
    """Its lease is open, and its slices are stored."""
    assert await here.store.call(Store.open_lease, one, 1)
    for index, answers in enumerate(ANSWERS):
        await here.store.call(Store.add_slice, one.key, finished(index, answers), Spent(1, 1))


# --- inputs -------------------------------------------------------------------------------------------------------


def test_an_input_that_broke_off_goes_on_when_the_lease_is_opened_again(tmp_path: Path, office: Office) -> None:
    async def story() -> None:
        cutter = Cutter(office.web.url, "down", [300_000])
        try:
            async with bench(tmp_path) as here:
                here.transfers.partials = Partials(tmp_path / "transfers", reserve_bytes=0, worth_bytes=1)
                one = office.grant(here, cutter.url)
                await here.do(OpenLease(grant=one))
                assert "bytes long that were promised" in here.only(LeaseRefused).detail
                before = here.transfers.moved.total()[1]
                assert before > 250_000
                await here.do(OpenLease(grant=one))
                here.only(LeaseOpened)
                assert here.transfers.moved.total()[1] < len(INPUT) + 2_000
                given = here.hands._bulk.input_of(one.key)
                assert given is not None
                assert given.memory.read() == INPUT
        finally:
            cutter.close()

    asyncio.run(story())


def test_a_pause_refuses_the_lease_at_once(tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch(channel: Channel, *_: object) -> InputMemory:
        begun.set()
        while not channel.cut.done:  # noqa: ASYNC110 - a thread's event
            await asyncio.sleep(0.001)
        return await real(channel, *_)  # type: ignore[arg-type]

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            here.hands.perform(OpenLease(grant=one))
            await begun.wait()
            here.hands.perform(PauseTransfers())
            refused = await here.heard(LeaseRefused)
            assert (refused.key, refused.replayed) == (one.key, False)
            assert "was paused" in refused.detail
            here.events.clear()
            monkeypatch.setattr("agent.transfers.fetch", real)
            await here.do(OpenLease(grant=one))
            here.only(LeaseOpened)

    from agent.fleet.objects import fetch as real  # noqa: PLC0415 - before it is replaced

    begun = asyncio.Event()
    monkeypatch.setattr("agent.transfers.fetch", fetch)
    asyncio.run(story())


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_pause_before_the_fetch_began_refuses_the_lease_too(tmp_path: Path, office: Office, turns: int) -> None:
    """The driver comes while the lease is still being written down: nothing may begin to be fetched then."""

    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            here.hands.perform(OpenLease(grant=one))
            for _ in range(turns):
                await asyncio.sleep(0)
            here.hands.perform(PauseTransfers())
            await here.do()
            refused = here.only(LeaseRefused)
            assert (refused.key, refused.replayed, refused.transient) == (one.key, False, True)
            assert "was paused" in refused.detail
            assert here.transfers.moved.total() == (0, 0)
            await here.do(OpenLease(grant=one))
            here.only(LeaseOpened)

    asyncio.run(story())


def test_a_paused_fetch_takes_nothing_from_the_disk_either(tmp_path: Path, office: Office) -> None:
    """All of it lies there: to read and to check 64 MiB is work too."""

    async def story() -> None:
        async with bench(tmp_path) as here:
            here.transfers.partials = Partials(tmp_path / "transfers", reserve_bytes=0, worth_bytes=1)
            (tmp_path / "transfers").mkdir()
            (tmp_path / "transfers" / f"{SHA256}.part").write_bytes(INPUT)
            here.hands.perform(OpenLease(grant=office.grant(here)))
            here.hands.perform(PauseTransfers())
            await here.do()
            assert here.only(LeaseRefused).transient
            assert (tmp_path / "transfers" / f"{SHA256}.part").read_bytes() == INPUT

    asyncio.run(story())


def test_an_input_has_the_time_that_the_lease_can_spare() -> None:
    one = grant(1, ttl_ms=900_000)
    assert input_patience(one).for_s == 450
    assert input_patience(msgspec.structs.replace(one, expected_ms=800_000)).for_s == 100
    assert input_patience(msgspec.structs.replace(one, expected_ms=1_000_000)).for_s == 0


# --- answers ------------------------------------------------------------------------------------------------------


def test_answers_are_brought_while_the_lease_runs_and_later_from_the_outbox(tmp_path: Path, office: Office) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            await computed(here, one)
            await here.do(upload(one, 1))
            done = here.only(SliceUploaded)
            assert (done.key, done.index) == (one.key, 1)
            await here.do(
                HandIn(grant=one, kind=HandInKind.RESULT, why=None, detail="", facts=FACTS, uploaded=(done.index,))
            )
            stored = here.only(HandInStored)
            assert stored.kind is HandInKind.RESULT
            assert stored.missing == (0,), "that is enough to make it fit"
            (row,) = await here.outbox()
            assert row.missing == (0, 1), "after a restart nobody knows what was brought"
            await here.do(upload(one, 0, url=""))
            assert here.only(SliceUploaded).index == 0, "to where the stored grant says"
            assert [office.has(answers) for answers in ANSWERS] == [True, True, False]
            await here.do(SendHandIn(key=one.key, credit=0, have=()))
            sent = messages.decode(here.desk.hand_ins[0][1], messages.Result)
            assert [output.uploaded is None for output in sent.outputs] == [False, False, True]
            await here.do(settled(one.key))
            here.events.clear()
            await here.do(upload(one, 0))
            assert here.only(TransferFailed).detail == "the slice's answers are gone"

    asyncio.run(story())


def test_a_pause_fails_every_upload_as_paused_and_the_next_goes_on(tmp_path: Path, office: Office) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            await computed(here, one)
            async with here.transfers._uploading:  # another upload is under way
                for index in range(3):
                    here.hands.perform(upload(one, index))
                while len(here.transfers._uploading._waiters or ()) < 3:  # noqa: ASYNC110 - its own queue
                    await asyncio.sleep(0.001)
                here.hands.perform(PauseTransfers())
            await here.do()
            failed = here.all(TransferFailed)
            assert [(one.index, one.paused) for one in failed] == [(0, True), (1, True), (2, True)]
            here.events.clear()
            await here.do(upload(one, 2))
            assert here.only(SliceUploaded).index == 2

    asyncio.run(story())


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_pause_before_the_upload_began_fails_it_as_paused(tmp_path: Path, office: Office, turns: int) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            await computed(here, one)
            here.hands.perform(upload(one, 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            here.hands.perform(PauseTransfers())
            await here.do()
            failed = here.only(TransferFailed)
            assert (failed.key, failed.index, failed.paused) == (one.key, 0, True)
            assert not office.has(ANSWERS[0])
            await here.do(upload(one, 0))
            here.only(SliceUploaded)

    asyncio.run(story())


def test_an_upload_that_is_refused_is_told_without_its_token(tmp_path: Path, office: Office) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            await computed(here, one)
            await here.do(msgspec.structs.replace(upload(one, 0), token="x" * 32))
            failed = here.only(TransferFailed)
            assert (failed.key, failed.index, failed.paused) == (one.key, 0, False)
            assert "was answered 403" in failed.detail
            assert "x" * 32 not in failed.detail

    asyncio.run(story())


def test_a_disk_that_cannot_be_read_fails_the_upload_too(
    tmp_path: Path, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            one = office.grant(here)
            for fault in (None, RuntimeError("a bug")):
                here.events.clear()
                if fault is None:
                    disk.refuse(Store.to_upload)
                else:
                    disk.faults[Store.to_upload] = fault
                await here.do(upload(one, 0))
                assert here.all(TransferFailed)[0].key == one.key
                assert bool(here.all(StoreFailed)) == (fault is None)

    disk = Disk(monkeypatch)
    asyncio.run(story())


# --- what it cost -------------------------------------------------------------------------------------------------


def test_bytes_are_told_when_they_moved_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        def told() -> list[tuple[int, int]]:
            found = [(one.sent, one.received) for one in heard if isinstance(one, BytesMoved)]
            heard.clear()
            return found

        heard: list[EventType] = []
        moved, messages_moved = Moved(), [0, 0]
        meter = TrafficMeter(FixedClock(), moved, lambda: (messages_moved[0], messages_moved[1]))
        moved.add(10, 20)
        meter.tell()
        assert told() == [], "nobody listens yet"
        task = asyncio.ensure_future(meter.run(heard.append))
        await asyncio.sleep(0)
        assert told() == [(10, 20)]
        meter.tell()
        assert told() == []
        moved.add(received=5)
        messages_moved[:] = [3, 0]
        meter.tell()
        assert told() == [(3, 5)]
        messages_moved[:] = [1, 0]  # another link, which counts anew
        meter.tell()
        assert told() == []
        moved.add(sent=7)
        while not heard:  # noqa: ASYNC110 - the meter's own round
            await asyncio.sleep(0.001)
        assert told() == [(7, 0)]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    monkeypatch.setattr(traffic, "TELL_EVERY_S", 0.005)
    asyncio.run(story())


def test_each_transfer_is_told_of_when_it_ends(tmp_path: Path, office: Office) -> None:
    async def story() -> None:
        async with bench(tmp_path) as here:
            ends: list[tuple[int, int]] = []
            here.transfers.on_end = lambda: ends.append(here.transfers.moved.total())
            here.transfers.upload_patience = Patience(for_s=0)
            one = office.grant(here)
            await computed(here, one)
            await here.do(upload(one, 0))
            await here.do(upload(one, 1, url="http://127.0.0.1:1/nobody"))
            assert len(ends) == 2
            assert ends[0][0] > len(ANSWERS[0])

    asyncio.run(story())
