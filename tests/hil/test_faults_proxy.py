"""The fault proxy does to a connection what it says, and never to a byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from hil.faults.proxy import BOTH, FAIR, HOST, Direction, FaultyLink, Weather

GOOD = Weather()
WAIT_S = 10.0
SOON_S = 0.2
"""Long enough for what could come at once to have come; nothing here fails because a machine is slow."""

Story = Callable[[FaultyLink, "Broker"], Awaitable[None]]


class Broker:
    """Echoes what it is sent, and remembers it."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.pieces: list[int] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.heard += data
                self.pieces.append(len(data))
                writer.write(data)
                await writer.drain()
        self.ended.set()
        writer.close()


def tell(story: Story, weather: Weather = GOOD) -> None:
    async def told() -> None:
        broker = Broker()
        server = await asyncio.start_server(broker.serve, HOST, 0)
        async with FaultyLink("car", server.sockets[0].getsockname()[1], seed=1) as link:
            link.weather = weather
            await asyncio.wait_for(story(link, broker), WAIT_S)
        server.close()

    asyncio.run(told())


@contextlib.asynccontextmanager
async def client(link: FaultyLink) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, link.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def silent(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), SOON_S)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize(
    "weather",
    [
        GOOD,
        Weather(split_bytes=7),
        Weather(gather_ms=5),
        Weather(delay_ms=(0, 2), split_bytes=900, gather_ms=3),
        Weather(bytes_per_s=2_000_000),
    ],
)
def test_every_byte_arrives_once_and_in_order_whatever_the_weather(weather: Weather) -> None:
    body = random.Random(1).randbytes(20_000)

    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            for first in range(0, len(body), 3_000):
                writer.write(body[first : first + 3_000])
                await asyncio.sleep(0)
            assert await reader.readexactly(len(body)) == body
        assert bytes(broker.heard) == body
        if weather.split_bytes == 7:
            assert link.passed_bytes == 2 * len(body)

    tell(story, weather)


def test_a_partition_delivers_late_and_nothing_is_lost() -> None:
    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            link.hold(*BOTH)
            writer.write(b"two")
            assert await silent(reader)
            assert bytes(broker.heard) == b"one"
            link.release()
            assert await reader.readexactly(3) == b"two"

    tell(story)


def test_one_direction_may_be_held_alone() -> None:
    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            link.hold(Direction.DOWN)
            writer.write(b"up")
            assert await silent(reader)
            assert bytes(broker.heard) == b"up"
            link.release()
            assert await reader.readexactly(2) == b"up"

    tell(story)


def test_a_half_open_connection_says_nothing_for_good_and_a_new_one_is_fine() -> None:
    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            writer.write(b"one")
            await reader.readexactly(3)
            link.half_open(*BOTH)
            writer.write(b"lost")
            assert await silent(reader)
            async with client(link) as (other, to_other):
                to_other.write(b"new")
                assert await other.readexactly(3) == b"new"
            assert bytes(broker.heard) == b"onenew"

    tell(story)


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_is_cut_in_the_middle_of_a_message(reset: bool) -> None:
    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            writer.write(b"ok")
            await reader.readexactly(2)
            link.cut(after_bytes=5, reset=reset)
            writer.write(b"0123456789")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await broker.ended.wait()
        assert b"ok01234".startswith(bytes(broker.heard)), "RST may overtake what was still on its way"
        assert reset or bytes(broker.heard) == b"ok01234"

    tell(story)


def test_new_connections_are_refused_and_taken_again_on_the_same_port() -> None:
    async def story(link: FaultyLink, _broker: Broker) -> None:
        port = link.port
        await link.refuse(refused=True)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, port)
        await link.refuse(refused=False)
        assert link.port == port
        async with client(link) as (reader, writer):
            writer.write(b"back")
            assert await reader.readexactly(4) == b"back"

    tell(story)


def test_a_broker_that_is_not_there_is_a_reset() -> None:
    async def story() -> None:
        async with FaultyLink("car", 1, seed=1) as link:
            reader, writer = await asyncio.open_connection(HOST, link.port)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(reader.readexactly(1), WAIT_S)
            writer.close()

    asyncio.run(story())


def test_a_client_that_hangs_up_ends_the_connection_to_the_broker() -> None:
    async def story(link: FaultyLink, broker: Broker) -> None:
        async with client(link) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
        await broker.ended.wait()
        for _ in range(1000):
            if not link.connections:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the link keeps a connection that nobody has")

    tell(story)


def test_the_ordinary_day_has_a_delay() -> None:
    assert FAIR.delay_ms[0] > 0
