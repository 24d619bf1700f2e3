"""A broker of a few lines of MQTT 5 by hand, which says byte by byte what a script wants, and a link that hears it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

from agent.fleet.link import Link, LinkConfig, TlsFiles

WAIT_S = 20.0
"""How long a test waits for what must come; only a broken link ever lets it pass."""

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 0x10, 0x32, 0x40, 0x82, 0xE0
SUCCESS, NOT_AUTHORIZED, BUSY, GRANTED = 0x00, 0x87, 0x89, 0x01
NOWHERE = TlsFiles(ca="/nowhere/ca.pem", certificate="/nowhere/unit.pem", key="/nowhere/unit.key")


def packet(kind: int, body: bytes) -> bytes:
    """A control packet: its first byte, the length as a variable byte integer, the body."""
    length, rest = bytearray(), len(body)
    while rest >= 128:
        length.append(rest % 128 | 128)
        rest //= 128
    length.append(rest)
    return bytes([kind, *length]) + body


def connack(code: int = SUCCESS) -> bytes:
    return packet(0x20, bytes([0, code, 0]))


def suback(subscribe: bytes, *codes: int) -> bytes:
    """The answer to this SUBSCRIBE, which begins with the packet identifier."""
    return packet(0x90, subscribe[:2] + bytes([0, *codes]))


def publish(topic: bytes, payload: bytes, identifier: int | None = None) -> bytes:
    """QoS 0; QoS 1 with an identifier."""
    head = len(topic).to_bytes(2, "big") + topic
    if identifier is None:
        return packet(0x30, head + b"\0" + payload)
    return packet(0x32, head + identifier.to_bytes(2, "big") + b"\0" + payload)


class Peer:
    """The broker's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, *packets: bytes) -> None:
        for one in packets:
            self._socket.sendall(one)

    def expect(self, kind: int) -> bytes:
        """The body of the next packet of this kind; raises ConnectionError when none comes any more."""
        while True:
            (found,) = self._read(1)
            length = shift = 0
            while True:
                (digit,) = self._read(1)
                length |= (digit & 0x7F) << shift
                shift += 7
                if digit < 0x80:
                    break
            body = self._read(length)
            if found == kind:
                return body

    def greet(self) -> bytes:
        """Take the CONNECT, allow it, and take the SUBSCRIBE."""
        self.expect(CONNECT)
        self.send(connack())
        return self.expect(SUBSCRIBE)

    def grant(self) -> None:
        """All there is to a good connection's beginning."""
        self.send(suback(self.greet(), GRANTED))

    def until_it_leaves(self) -> None:
        """Read and say nothing more."""
        with contextlib.suppress(ConnectionError):
            self.expect(-1)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, count: int) -> bytes:
        body = b""
        while len(body) < count:
            try:
                more = self._socket.recv(count - len(body))
            except OSError as error:
                raise ConnectionError(str(error)) from error
            if not more:
                raise ConnectionError("the client closed the connection")
            body += more
        return body


Script = Callable[[Peer], None]


class ScriptedBroker:
    """Plays its script for each connection, one after the other, on a thread of its own."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._peer: Peer | None = None
        self.address: tuple[str, int] = ("127.0.0.1", self._listener.getsockname()[1])
        self.name = f"127.0.0.1:{self.address[1]}"
        self.connections = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._peer is not None:
            self._peer.close()
        self._thread.join(WAIT_S)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # the test is over
            self.connections += 1
            self._peer = Peer(connection)
            with contextlib.suppress(ConnectionError):
                self._script(self._peer)
            self._peer.close()


class Heard:
    """A link, and what it told."""

    def __init__(self, brokers: tuple[tuple[str, int], ...], tls: TlsFiles | None, filters: tuple[str, ...]) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.states: list[tuple[bool, str, str]] = []
        self.on_message: Callable[[str, bytes], None] = lambda topic, body: self.messages.append((topic, body))
        self.on_up: Callable[[], object] = lambda: None
        self._news = asyncio.Event()
        self.link = Link(
            LinkConfig(brokers=brokers, client_id="car", filters=filters, tls=tls),
            on_message=self._message,
            on_state=self._state,
        )

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait until what was told is enough."""
        async with asyncio.timeout(WAIT_S):
            while not wanted():
                self._news.clear()
                await self._news.wait()

    async def up(self) -> str:
        """Wait for the link to come up; the broker it is up on."""
        await self.until(lambda: any(up for up, _, _ in self.states))
        return next(broker for up, broker, _ in self.states if up)

    def _message(self, topic: str, body: bytes) -> None:
        self.on_message(topic, body)
        self._news.set()

    def _state(self, up: bool, broker: str, detail: str) -> None:
        self.states.append((up, broker, detail))
        if up:
            self.on_up()
        self._news.set()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mqtt"]


@asynccontextmanager
async def linked(
    *brokers: tuple[str, int], tls: TlsFiles | None = None, filters: tuple[str, ...] = ("t/+",)
) -> AsyncIterator[Heard]:
    heard = Heard(brokers, tls, filters)
    heard.link.start()
    try:
        yield heard
    finally:
        async with asyncio.timeout(WAIT_S):
            await heard.link.close()
    assert threads() == []
    assert not heard.link.connected
