"""Twenty cars, a real broker, a real dispatcher: a few seconds of what `driveway-hil fleet` does for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.core.findings import GateState
from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from hil.broker import EmbeddedBroker, free_port
from hil.cli import main
from hil.dispatcher.book import Book
from hil.fleet import prefill
from hil.fleet.accounts import balance, doubled_slices, settled_rows
from hil.fleet.connection import LoopConnection
from hil.fleet.keys import CELL, signer, unit_name
from hil.fleet.outage import Outages
from hil.fleet.park import Park
from hil.fleet.parked import parked_state
from hil.fleet.plan import FleetPlan
from hil.fleet.region import Region

pytestmark = pytest.mark.long


def test_a_small_fleet_end_to_end(tmp_path: Path) -> None:
    figures, picture = tmp_path / "fleet.json", tmp_path / "fleet.svg"
    line = "fleet --cars 20 --steps 5,20 --ramp-per-s 0 --seconds 3 --lease-s 1 --long-share 0 --broker embedded"
    status = main([*line.split(), "--json", str(figures), "--figure", str(picture), "--dir", str(tmp_path / "run")])
    report = json.loads(figures.read_bytes())
    books, last = report["books"], report["steps"][-1]
    assert status == 0, report
    assert (books["lost"], books["doubled"], books["owed"]) == (0, 0, 0)
    assert books["made"] == books["settled"] + books["duplicate"] > 20
    assert books["paid_micro"] == books["book_paid_micro"] > 0
    assert [one["cars"] for one in report["steps"]] == [5, 20]
    assert last["connected"] == 20
    assert last["jobs"] > 0
    assert 1.5 < last["publishes_up_per_job"] + last["publishes_down_per_job"] < 3.5
    assert last["verdict_p50_ms"] > 0
    assert last["broker_bytes_per_job"] is None  # the embedded broker counts nothing
    assert picture.stat().st_size > 10_000


def test_the_broker_dies_and_nothing_is_lost(tmp_path: Path) -> None:
    plan = FleetPlan(cars=8, ramp_per_s=0, lease_s=1.0, long_share=0.0, broker="embedded", outage_s=1.0)
    with contextlib.ExitStack() as closing:
        region = closing.enter_context(Region(tmp_path, plan))
        book: Book = region.open_book(SystemClock().wall_ms)
        closing.callback(book.close)
        cell = prefill.enrol(book, plan, "seed")
        prefill.add_jobs(book, plan, 2_000)
        region.start()
        park = closing.enter_context(Park(plan, region, folder=tmp_path, cell=cell, seed="seed"))
        park.grow(plan.cars)
        park.wait(lambda now: now.made >= plan.cars, 30)
        before = park.look().made
        outage = Outages(plan, region, park, book, cell).broker(paced=False)
        park.wait(lambda now: now.made >= before + plan.cars, 30)
        park.stop()
        end = park.wait(lambda now: not now.owed and not now.working, 30)
        books = balance(end.made, end.owed, park.ledger(), settled_rows(book), twice_paid=doubled_slices(book))
    assert (books.lost, books.doubled, books.owed, books.bad) == (0, 0, 0, 0)
    assert books.settled + books.duplicate > before
    assert outage.cars == 8
    assert sum(outage.connects) >= 8
    assert outage.back_p99_s is not None
    assert outage.served_p99_s is not None


def test_a_parked_car_opens_its_gate() -> None:
    assert parked_state(SystemClock()).gates.state is GateState.OPEN


def test_names_fall_into_one_cell_and_keys_follow_from_the_seed() -> None:
    assert len({unit_name(number) for number in range(50)}) == 50
    assert signer("a", 1).keyid == signer("a", 1).keyid
    assert len({signer(seed, number).keyid for seed in "ab" for number in (1, 2)}) == 4
    assert CELL == "00"


@pytest.fixture
def broker(tmp_path: Path) -> EmbeddedBroker:
    return EmbeddedBroker(tmp_path / "broker", free_port())


def test_many_links_share_one_loop_and_leave_no_thread_each(broker: EmbeddedBroker) -> None:
    """Links on the loop carry messages like links on threads, say that the broker is gone, and come back."""
    heard: list[tuple[str, bytes]] = []
    states: list[bool] = []
    came_up: list[float] = []

    def link(number: int) -> Link:
        return Link(
            LinkConfig(brokers=(("127.0.0.1", broker.port),), client_id=f"c{number}", filters=(f"to/{number}",)),
            on_message=lambda topic, body: heard.append((topic, body)),
            on_state=lambda connected, _broker, _detail: states.append(connected),
            connection=lambda *arguments, **keywords: LoopConnection(*arguments, on_up=came_up.append, **keywords),
        )

    async def until(so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not so():  # noqa: ASYNC110 - what is waited for is told by callbacks of several links
                await asyncio.sleep(0.02)

    async def talk() -> None:
        links = [link(number) for number in range(12)]
        for one in links:
            one.start()
        await until(lambda: all(one.connected for one in links))
        for number, one in enumerate(links):
            assert one.publish(f"to/{(number + 1) % 12}", b"x" * 9_000)
        await until(lambda: len(heard) == 12)
        await asyncio.to_thread(broker.kill)
        await until(lambda: not any(one.connected for one in links))
        assert not links[0].publish("to/1", b"nobody is there")
        await asyncio.to_thread(broker.start)
        await until(lambda: all(one.connected for one in links))
        await asyncio.gather(*(one.close() for one in links))
        assert not any(one.connected for one in links)

    with broker:
        asyncio.run(talk())
    assert {topic for topic, _ in heard} == {f"to/{number}" for number in range(12)}
    assert all(body == b"x" * 9_000 for _, body in heard)
    assert states.count(True) == 24
    assert states.count(False) == 12
    assert len(came_up) == 24
