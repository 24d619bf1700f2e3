"""A broker of a few lines of MQTT 5 by hand, which says byte by byte what a script wants, and a link that hears it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from agent.fleet.tls import TlsFiles

WAIT_S = 20.0
"""How long a test waits for what must come; only a broken link ever lets it pass."""

CONNECT, PUBLISH_QOS0, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ, DISCONNECT = 0x10, 0x30, 0x32, 0x40, 0x82, 0xC0, 0xE0
SUCCESS, NOT_AUTHORIZED, BUSY, GRANTED = 0x00, 0x87, 0x89, 0x01
TAKEN_OVER, RECEIVE_MAXIMUM_EXCEEDED, QUOTA = 0x8E, 0x93, 0x97
PINGRESP = b"\xd0\0"
NOWHERE = TlsFiles(ca="/nowhere/ca.pem", certificate="/nowhere/unit.pem", key="/nowhere/unit.key")


def packet(kind: int, body: bytes) -> bytes:
    """A control packet: its first byte, the length as a variable byte integer, the body."""
    length, rest = bytearray(), len(body)
    while rest >= 128:
        length.append(rest % 128 | 128)
        rest //= 128
    length.append(rest)
    return bytes([kind, *length]) + body


def connack(code: int = SUCCESS, properties: bytes = b"") -> bytes:
    return packet(0x20, bytes([0, code, len(properties)]) + properties)


def receive_maximum(count: int) -> bytes:
    return b"\x21" + count.to_bytes(2, "big")


def maximum_packet_size(count: int) -> bytes:
    return b"\x27" + count.to_bytes(4, "big")


def server_keep_alive(seconds: int) -> bytes:
    return b"\x13" + seconds.to_bytes(2, "big")


MAXIMUM_QOS_0, NO_RETAIN = b"\x24\0", b"\x25\0"


def reason_string(text: bytes) -> bytes:
    return b"\x1f" + len(text).to_bytes(2, "big") + text


def puback(identifier: int, code: int = SUCCESS) -> bytes:
    return packet(PUBACK, identifier.to_bytes(2, "big") + (bytes([code, 0]) if code else b""))


def disconnect(code: int) -> bytes:
    return packet(DISCONNECT, bytes([code, 0]))


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
        """Say these; raises ConnectionError when the link has left."""
        try:
            for one in packets:
                self._socket.sendall(one)
        except OSError as error:  # also of a socket that was closed here meanwhile, since the link had left
            raise ConnectionError from error

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

    def patience(self, seconds: float) -> None:
        """From now on this end leaves when it hears nothing for so long."""
        self._socket.settimeout(seconds)

    def message(self) -> tuple[int, bytes]:
        """The packet identifier and the topic of the next message with QoS 1."""
        body = self.expect(PUBLISH)
        end = 2 + int.from_bytes(body[:2], "big")
        return int.from_bytes(body[end : end + 2], "big"), body[2:end]

    def greet(self, properties: bytes = b"") -> bytes:
        """Take the CONNECT, allow it, and take the SUBSCRIBE."""
        self.expect(CONNECT)
        self.send(connack(properties=properties))
        return self.expect(SUBSCRIBE)

    def grant(self, properties: bytes = b"") -> None:
        """All there is to a good connection's beginning."""
        self.send(suback(self.greet(properties), GRANTED))

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

    def __init__(self, config: LinkConfig) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.states: list[tuple[bool, str, str]] = []
        self.undelivered: list[tuple[str, str, bool]] = []
        self.on_message: Callable[[str, bytes], None] = lambda topic, body: self.messages.append((topic, body))
        self.on_up: Callable[[], object] = lambda: None
        self._news = asyncio.Event()
        self.link = Link(config, on_message=self._message, on_state=self._state, on_undelivered=self._undelivered)

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait until what was told, or what the broker's thread has seen, is enough."""
        async with asyncio.timeout(WAIT_S):
            while not wanted():
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.02)

    async def up(self) -> str:
        """Wait for the link to come up; the broker it is up on."""
        await self.until(lambda: any(up for up, _, _ in self.states))
        return next(broker for up, broker, _ in self.states if up)

    def _message(self, topic: str, body: bytes) -> None:
        self.on_message(topic, body)
        self._news.set()

    def _undelivered(self, token: str, detail: str, poison: bool) -> None:
        self.undelivered.append((token, detail, poison))
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
    *brokers: tuple[str, int], filters: tuple[str, ...] = ("t/+",), **options: Any
) -> AsyncIterator[Heard]:
    heard = Heard(LinkConfig(brokers=brokers, client_id="car", filters=filters, **options))
    heard.link.start()
    try:
        yield heard
    finally:
        async with asyncio.timeout(WAIT_S):
            await heard.link.close()
    assert threads() == []
    assert not heard.link.connected
