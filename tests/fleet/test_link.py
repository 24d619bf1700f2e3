"""The link on real brokers: it comes up, carries messages, and comes back by itself when the broker does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.fleet.link import Link
from agent.fleet.link_config import MAX_IN_FLIGHT, LinkConfig
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from tests.tools import lacking

WAIT_S = 20.0


@pytest.fixture(params=[EmbeddedBroker, Mosquitto])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    kind: type[BrokerProcess] = request.param
    if kind is Mosquitto and Mosquitto.binary() is None:
        lacking("mosquitto is not installed")
    with kind(tmp_path / "broker", free_port()) as running:
        yield running


class Ends:
    """What one link heard."""

    def __init__(self, port: int) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.states: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        self.link = Link(
            LinkConfig(brokers=(("127.0.0.1", port),), client_id=f"test-{port}", filters=("t/+",)),
            on_message=lambda topic, body: self.messages.put_nowait((topic, body)),
            on_state=lambda up, _broker, detail: self.states.put_nowait((up, detail)),
        )

    async def until(self, *, up: bool) -> str:
        """Wait for the link to be up or down; what was said about it."""
        while True:
            state, detail = await asyncio.wait_for(self.states.get(), WAIT_S)
            if state is up:
                return detail


@asynccontextmanager
async def linked(port: int) -> AsyncIterator[Ends]:
    ends = Ends(port)
    ends.link.start()
    try:
        yield ends
    finally:
        await ends.link.close()


def test_messages_cross_and_the_link_survives_the_brokers_death(broker: BrokerProcess) -> None:
    async def story() -> None:
        async with linked(broker.port) as ends:
            await ends.until(up=True)
            assert ends.link.publish("t/1", b"one", expiry_s=30)
            assert await asyncio.wait_for(ends.messages.get(), WAIT_S) == ("t/1", b"one")
            broker.kill()
            assert "disconnected" in await ends.until(up=False)
            assert not ends.link.publish("t/1", b"lost"), "nothing is taken while the link is down"
            broker.start()
            await ends.until(up=True)
            assert ends.link.publish("t/2", b"two")
            assert await asyncio.wait_for(ends.messages.get(), WAIT_S) == ("t/2", b"two"), "and nothing was queued"

    before = threading.active_count()
    asyncio.run(story())
    assert threading.active_count() == before, "no thread is left behind"


def test_no_more_than_a_handful_of_messages_is_inside_the_library(broker: BrokerProcess) -> None:
    async def story() -> None:
        async with linked(broker.port) as ends:
            await ends.until(up=True)
            taken = [ends.link.publish("t/1", b"x") for _ in range(10)]
            assert taken == [True] * MAX_IN_FLIGHT + [False] * (10 - MAX_IN_FLIGHT)
            for _ in range(MAX_IN_FLIGHT):
                await asyncio.wait_for(ends.messages.get(), WAIT_S)

    asyncio.run(story())


def test_no_broker_is_a_state_with_a_reason_not_an_error() -> None:
    async def story() -> None:
        async with linked(free_port()) as ends:
            assert "cannot reach the broker at 127.0.0.1" in await ends.until(up=False)
            assert not ends.link.publish("t/1", b"x")

    asyncio.run(story())
