"""A TCP proxy that is as bad as networks are: one `FaultyLink` in front of a broker for every client.

What a link can do to its connections, alone or together, at any moment, and per direction where it says so:

* delay each chunk, and let no more than so many bytes a second through (`Weather`);
* split what was written at odd places, or gather small writes into one;
* hold one or both directions (a partition: TCP keeps the bytes, and they arrive when it heals);
* lose one or both directions of the connections there are (`half_open`: a middlebox forgot them; nothing arrives any
  more and nobody is told; new connections are fine);
* cut after so many bytes more, so in the middle of a packet, with FIN or RST;
* refuse new connections.

Bytes are never altered, lost in between or reordered: TCP does not do that, and TLS would end the connection. Chance
(delays, where to split) comes from one generator a link, seeded with the run's seed and the link's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
from typing import Self

import msgspec

HOST = "127.0.0.1"
CHUNK_BYTES = 16 * 1024
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST and throws away what is still unsent."""


class Direction(enum.StrEnum):
    """Which way bytes go: `UP` from the client to the broker."""

    UP = "up"
    DOWN = "down"


BOTH = (Direction.UP, Direction.DOWN)


class Weather(msgspec.Struct, frozen=True, kw_only=True):
    """How bytes travel. Each chunk takes `delay_ms` (least, most); 0 bytes a second is no limit.

    `split_bytes`: no write is longer than a random length up to this (0: as it comes). `gather_ms`: small writes wait
    so long for others to go with them.
    """

    delay_ms: tuple[float, float] = (0.0, 0.0)
    bytes_per_s: int = 0
    split_bytes: int = 0
    gather_ms: float = 0.0


FAIR = Weather(delay_ms=(30, 150))
"""A mobile network on an ordinary day: without it a lease would be over before a fault finds it."""


class FaultyLink:
    """Listens on a port of its own and passes connections on to `target`. Use as an async context manager."""

    def __init__(self, name: str, target: int, *, seed: int) -> None:
        self.name, self.port, self.weather = name, 0, FAIR
        self._target = target
        self._chance = random.Random(f"{seed}/{name}")
        self._flowing = {direction: asyncio.Event() for direction in Direction}
        for event in self._flowing.values():
            event.set()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self.accepted = 0
        self.passed_bytes = 0

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.end(reset=True)
        await asyncio.gather(*(connection.over() for connection in tuple(self._connections)))

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    # --- faults -------------------------------------------------------------------------------------------------

    def hold(self, *directions: Direction) -> None:
        """A partition: nothing goes these ways until `release`."""
        for direction in directions:
            self._flowing[direction].clear()

    def release(self) -> None:
        """The partition is over: what was held goes on."""
        for event in self._flowing.values():
            event.set()

    def half_open(self, *directions: Direction) -> None:
        """The connections there are lose these directions for good, and are told nothing."""
        for connection in self._connections:
            connection.lost |= set(directions)

    def cut(self, *, after_bytes: int = 0, reset: bool = False) -> None:
        """End the connections there are, once so many bytes more have passed (either way)."""
        for connection in tuple(self._connections):
            connection.cut(after_bytes, reset=reset)

    async def refuse(self, *, refused: bool) -> None:
        """Refuse new connections (ECONNREFUSED), or take them again."""
        if refused:
            self._stop_listening()
        elif self._server is None:
            await self._listen()

    # --- passing on ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            there = await asyncio.open_connection(HOST, self._target)
        except OSError:
            _close(writer, reset=True)
            return
        connection = _Connection((reader, writer), there)
        self._connections.add(connection)
        try:
            pumps = (
                self._pump(connection, Direction.UP, reader, there[1]),
                self._pump(connection, Direction.DOWN, there[0], writer),
            )
            tasks = [asyncio.create_task(pump) for pump in pumps]
            connection.pumps = tasks
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the loop is closing
            connection.end(reset=True)
        finally:
            connection.end(reset=connection.reset)
            self._connections.discard(connection)
            connection.done.set()

    async def _pump(
        self,
        connection: _Connection,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on until either side ends, or the connection is to be cut."""
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(CHUNK_BYTES):
                if self.weather.gather_ms:
                    data += await _more(reader, self.weather.gather_ms / 1000)
                for chunk in self._chunks(data):
                    await self._flowing[direction].wait()
                    if direction in connection.lost:
                        continue
                    await self._travel(len(chunk))
                    writer.write(connection.take(chunk))
                    await writer.drain()
                    self.passed_bytes += len(chunk)
                    if connection.is_cut:
                        return
            if direction in connection.lost:  # who hangs up on a half-open connection is not heard either
                await asyncio.Event().wait()
            await self._flowing[direction].wait()

    def _chunks(self, data: bytes) -> list[bytes]:
        if not self.weather.split_bytes:
            return [data]
        chunks = []
        while data:
            length = self._chance.randint(1, self.weather.split_bytes)
            chunks.append(data[:length])
            data = data[length:]
        return chunks

    async def _travel(self, length: int) -> None:
        weather = self.weather
        takes_s = self._chance.uniform(*weather.delay_ms) / 1000
        if weather.bytes_per_s:
            takes_s += length / weather.bytes_per_s
        if takes_s:
            await asyncio.sleep(takes_s)


class _Connection:
    """One client's connection and ours to the broker, ended together."""

    def __init__(
        self,
        here: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._writers = (here[1], there[1])
        self.lost: set[Direction] = set()
        self.pumps: list[asyncio.Task[None]] = []
        self.done = asyncio.Event()
        self.reset = False
        self._left: int | None = None

    @property
    def is_cut(self) -> bool:
        """All the bytes that were still to pass have passed."""
        return self._left == 0

    def cut(self, after_bytes: int, *, reset: bool) -> None:
        """End after so many bytes more."""
        self._left, self.reset = after_bytes, reset
        if not after_bytes:
            self.end(reset=reset)

    def take(self, chunk: bytes) -> bytes:
        """What of this chunk may still pass."""
        if self._left is None:
            return chunk
        passed = chunk[: self._left]
        self._left -= len(passed)
        return passed

    def end(self, *, reset: bool) -> None:
        """Close both sides; what was held is lost."""
        for writer in self._writers:
            _close(writer, reset=reset)
        for task in self.pumps:
            task.cancel()

    async def over(self) -> None:
        """Wait for the end."""
        await self.done.wait()


async def _more(reader: asyncio.StreamReader, wait_s: float) -> bytes:
    """What else comes within this time."""
    await asyncio.sleep(wait_s)
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(reader.read(CHUNK_BYTES), 0.001)
    return b""


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    sock: socket.socket | None = writer.get_extra_info("socket")
    if reset and sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()
