"""A lease's input is in memory once, sealed, filled beside the event loop, and given back on every path."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.effects import OpenLease, PauseTransfers, RunSlice, StartWorker
from agent.core.events import LeaseOpened, LeaseRefused, SliceStored, StoreFailed, WorkerGone, WorkerReady
from agent.core.model import Grant
from agent.errors import WorkerError
from agent.fleet import objects
from agent.fleet.channel import Cut, PausedError
from agent.fleet.https import CHUNK_BYTES
from agent.sealed import InputMemory
from agent.store import Store
from tests.bench import Bench, Disk, bench, given_back, served
from tests.fleet.cutter import Cutter
from tests.inference.floor import BODY, killed, stand_in
from tests.test_transfers import INPUT, Office

Story = Callable[[Bench], Any]


class Kept:
    """Every memory that was made: held here, so that none is closed by being forgotten."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[InputMemory] = []
        self.adds: list[tuple[str, int]] = []
        real_init, real_add = InputMemory.__init__, InputMemory.add

        def init(memory: InputMemory) -> None:
            real_init(memory)
            self.made.append(memory)

        def add(memory: InputMemory, data: bytes | memoryview) -> None:
            self.adds.append((threading.current_thread().name, len(data)))
            real_add(memory, data)

        monkeypatch.setattr(InputMemory, "__init__", init)
        monkeypatch.setattr(InputMemory, "add", add)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "objects")
    yield office
    office.web.close()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    kept = Kept(monkeypatch)
    assert descriptors() == 0
    yield kept
    left = descriptors()
    for memory in kept.made:
        memory.close()
    assert left == 0, "the daemon has ended"


def descriptors() -> int:
    """How many inputs this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += "driveway-bulk" in str(link.readlink())
        except FileNotFoundError:
            continue  # that of the listing itself
    return count


def tell(tmp_path: Path, story: Story) -> None:
    async def main() -> None:
        async with bench(tmp_path) as here:
            await story(here)

    asyncio.run(main())


# --- what it is ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept")
def test_what_is_sealed_cannot_be_changed_and_what_is_closed_not_used() -> None:
    memory = InputMemory()
    memory.add(b"spoiled")
    memory.restart()
    memory.add(b"an input" * CHUNK_BYTES)
    memory.seal()
    assert memory.read() == b"an input" * CHUNK_BYTES
    assert memory.length == 8 * CHUNK_BYTES == os.fstat(memory.descriptor).st_size
    for change in (lambda: os.pwrite(memory.descriptor, b"x", 0), lambda: os.ftruncate(memory.descriptor, 0)):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(WorkerError, match="no memory for a job's input or a plan: Operation not permitted"):
        memory.add(b"x")
    memory.close()
    memory.close()
    for use in (memory.read, memory.seal, lambda: memory.add(b"x"), lambda: memory.descriptor):
        with pytest.raises(WorkerError, match="gone"):
            use()


def test_one_that_nobody_holds_is_closed() -> None:
    memory = InputMemory.holding(b"an input")
    assert descriptors() == 1
    del memory
    assert descriptors() == 0


# --- given back on every path -------------------------------------------------------------------------------------


def test_it_is_filled_beside_the_loop_piece_by_piece_and_goes_with_its_lease(
    tmp_path: Path, office: Office, kept: Kept
) -> None:
    async def story(here: Bench) -> None:
        one = office.grant(here)
        await here.do(OpenLease(grant=one))
        here.only(LeaseOpened)
        assert descriptors() == 1
        assert sum(size for _, size in kept.adds) == len(INPUT) > CHUNK_BYTES
        assert max(size for _, size in kept.adds) <= CHUNK_BYTES
        assert "MainThread" not in {name for name, _ in kept.adds}
        await here.do(given_back(one))
        assert descriptors() == 0

    tell(tmp_path, story)


def test_another_lease_takes_its_place_and_the_end_of_the_daemon_the_last(
    tmp_path: Path, office: Office, kept: Kept
) -> None:
    async def story(here: Bench) -> None:
        for number in (1, 2, 3):
            await here.do(OpenLease(grant=office.grant(here, number=number)))
            here.only(LeaseOpened)
            assert descriptors() == 1
        await here.hands.close()
        assert descriptors() == 0

    tell(tmp_path, story)
    assert len(kept.made) == 3


@pytest.mark.parametrize("fault", ["another digest", "another length", "nobody", "broken off", "replayed", "disk"])
def test_a_refused_lease_leaves_none(
    tmp_path: Path, office: Office, kept: Kept, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    async def story(here: Bench) -> None:
        one = office.grant(here)
        match fault:
            case "another digest":
                other = office.objects.put(b"x" * len(INPUT))
                path = office.objects.path(one.input_sha256)
                there = office.objects.path(other)
                assert path is not None
                assert there is not None
                path.write_bytes(there.read_bytes())
            case "another length":
                one = office.grant(here, input_length=len(INPUT) + 1)
            case "nobody":
                one = office.grant(here, url="http://127.0.0.1:1")
            case "broken off":
                one = office.grant(here, url=cutter.url)
            case "replayed":
                await here.do(given_back(one))
            case _:
                Disk(monkeypatch).refuse(Store.open_lease)
        here.events.clear()
        here.hands.perform(OpenLease(grant=one))
        await (here.heard(StoreFailed) if fault == "disk" else here.heard(LeaseRefused))
        assert descriptors() == 0

    cutter = Cutter(office.web.url, "down", [300_000])
    try:
        tell(tmp_path, story)
    finally:
        cutter.close()
    assert len(kept.made) == (0 if fault in {"replayed", "disk"} else 1)


def test_a_paused_fetch_leaves_none(tmp_path: Path, office: Office, kept: Kept) -> None:
    """Cut in the middle of the object."""

    async def story(here: Bench) -> None:
        here.hands.perform(OpenLease(grant=office.grant(here)))
        while not kept.adds:  # noqa: ASYNC110 - another thread's list
            await asyncio.sleep(0)
        here.hands.perform(PauseTransfers())
        await here.do()
        assert len(here.all(LeaseRefused)) + len(here.all(LeaseOpened)) == 1
        assert descriptors() == len(here.all(LeaseOpened)), "none, but where all of it had come already"

    tell(tmp_path, story)


def test_an_input_that_comes_too_late_is_not_kept(tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease was handed in meanwhile, or the next one is at work: that one keeps its own."""

    async def fetch(*_: object) -> InputMemory:
        gate = gates.pop(0)
        await gate.wait()
        return InputMemory.holding(BODY)

    async def story(here: Bench) -> None:
        late, next_one = here.job(1), here.job(2)
        first, second = gates
        here.hands.perform(OpenLease(grant=late))
        while len(gates) == 2:  # noqa: ASYNC110 - until it is being fetched
            await asyncio.sleep(0)
        here.hands.perform(given_back(late))
        here.hands.perform(OpenLease(grant=next_one))
        second.set()
        opened = await here.heard(LeaseOpened)
        assert opened.key == next_one.key
        first.set()
        await here.do()
        assert here.hands._bulk.input_of(next_one.key) is not None
        assert here.hands._bulk.input_of(late.key) is None
        assert descriptors() == 1

    gates = [asyncio.Event(), asyncio.Event()]
    monkeypatch.setattr("agent.transfers.fetch", fetch)
    tell(tmp_path, story)
    assert len(kept.made) == 2


@pytest.mark.usefixtures("kept")
def test_two_workers_after_each_other_get_the_same_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(here: Bench) -> None:
        one = here.job()
        await here.do(OpenLease(grant=one))
        for index in (0, 1):
            here.events.clear()
            await here.do(StartWorker(grant=one))
            pid = (await here.heard(WorkerReady)).pid
            first, last = one.span(index)
            here.hands.perform(RunSlice(key=one.key, index=index, first=first, last=last))
            await here.heard(SliceStored)
            assert descriptors() == 1, "what crossed is the worker's own"
            killed(pid)
            await here.heard(WorkerGone)

    served(monkeypatch)
    stand_in(monkeypatch, tmp_path, on_run="say(done(order)) if given else sys.exit('run without an input')")
    tell(tmp_path, story)


@pytest.mark.parametrize("where", ["made", "filled", "sealed"])
def test_no_memory_is_a_lease_that_may_go_well_elsewhere(
    tmp_path: Path, office: Office, kept: Kept, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async def story(here: Bench) -> None:
        one: Grant = office.grant(here)
        with monkeypatch.context() as patch:
            match where:
                case "made":
                    patch.setattr("agent.sealed.os.memfd_create", fail)
                case "filled":
                    patch.setattr(InputMemory, "add", lambda *_: no_room())
                case _:
                    patch.setattr("agent.sealed.fcntl.fcntl", fail)
            await here.do(OpenLease(grant=one))
        refused = here.only(LeaseRefused)
        assert refused.transient
        assert "no memory" in refused.detail
        assert descriptors() == 0
        await here.do(OpenLease(grant=one))
        here.only(LeaseOpened)

    def no_room() -> None:
        raise WorkerError("no memory for a job's input: No space left on device")

    tell(tmp_path, story)


def test_a_thread_that_was_given_up_leaves_none_when_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hung (a name was being resolved, say), was not waited for, and brought its object after all."""
    released, begun = threading.Event(), threading.Event()

    def hang() -> InputMemory:
        begun.set()
        released.wait(20)
        return InputMemory.holding(b"late")

    async def main() -> None:
        cut = Cut()
        task = asyncio.ensure_future(objects.on_thread(cut, hang))
        await asyncio.to_thread(begun.wait)
        cut.now()
        with pytest.raises(PausedError):
            await task
        released.set()

    monkeypatch.setattr(objects, "LINGER_S", 0.01)
    asyncio.run(main())  # which waits for its threads
    assert descriptors() == 0
