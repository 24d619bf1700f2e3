"""One paho client from CONNECT to the end of its socket: what runs on the network thread, and nothing else.

paho is used without its own loop and from this thread alone. Its loop polls once a second, and `publish` from another
thread would write to the socket (and, with TLS, into OpenSSL) while this one reads from it. Here the thread sleeps in
`poll` until the network, the event loop or the keep-alive wants something. What is to be sent waits in `Outgoing`
until paho has written what it has; what cannot be sent stops what is read, so acknowledgements never pile up in memory.

Callbacks raise nothing away: an exception in one ends the conversation, as everything does that is not in order, with
an `Ending` that says why. Before it sleeps, the thread says until when it will be heard of again (`alive_until_s`), so
that a thread that is stuck shows without being woken to prove that it is not.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.fleet.broker_limits import BrokerLimits
from agent.fleet.flood import FloodGate, ReadingPace
from agent.fleet.link_config import MAX_PACKET_BYTES, LinkConfig
from agent.fleet.metered_socket import MeteredSocket, plain
from agent.fleet.tls import TlsClient, TlsFilesError
from agent.printable import printable

CONNECT_TIMEOUT_S = 10.0
ACKNOWLEDGED_S = 60.0
"""A message that the broker has not acknowledged by then shows that something is wrong with one of them."""
WRITTEN_S = 60.0
"""A broker that takes no bytes for so long is gone."""
STUCK_S = 30.0
"""How far the thread may be behind its own word."""
LONGEST_REST_S = 60.0
SHORTEST_REST_S = 0.2
FRAMES_PER_MESSAGE = 2.0
"""So many packets of any kind are read for each message that may come: each of ours is answered by one, too."""
FRAME_UNIT_BYTES = 4096
"""A packet costs one unit of reading, and another for each of these."""
UNREAD_S = 0.05
"""Beyond that nothing is read for so long at least: the broker's queue fills, not this computer's time."""
BROKER_KEEPALIVE_S = (60, 1200)
"""How far a broker may have us ping more or less often than we would, which costs data or hides that it is gone."""
REDIRECT_CODES = frozenset({0x9C, 0x9D})
BLAMELESS_CODES = frozenset({0x88, 0x89, 0x8B, 0x8D, 0x8E, 0x97, 0x98, 0x9C, 0x9D, 0x9F})
"""Reasons of a DISCONNECT that no message of ours brings about."""
SAID_CHARACTERS = 200


@dataclass(eq=False, slots=True)
class Outgoing:
    """One message on its way; `token` is how its sender knows it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties
    token: str
    sent_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection is over, for people; `code` is an MQTT reason code if the broker gave one.

    `blames`: what was in flight may have brought it about. `bug`: an exception that nobody expected, to be logged.
    """

    detail: str
    code: int | None = None
    blames: bool = False
    bug: bool = False


class Listener(Protocol):
    """Who is told what happens, on the network thread."""

    def subscribed(self, limits: BrokerLimits) -> None:
        """Every filter is granted."""
        ...

    def received(self, topic: str, payload: bytes) -> None:
        """A message came that may pass."""
        ...

    def acknowledged(self, message: Outgoing, refusal: str) -> None:
        """The broker took a message, or refused it and says why."""
        ...


class _Client(mqtt.Client):
    """paho, on a socket that is made for it: it has no other hook for one."""

    def __init__(self, config: LinkConfig, made: MeteredSocket) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        self._made = made

    def _create_socket(self) -> MeteredSocket:
        return self._made

    def ping_every(self, keepalive_s: int) -> None:
        """Paho believes whatever the broker says, and lets nobody change it while it is connected."""
        self._keepalive = keepalive_s


@dataclass(eq=False)
class Conversation:
    """`run` is the thread; `send` and `leave` may be called from any."""

    config: LinkConfig
    address: tuple[str, int]
    tls: TlsClient | None
    gate: FloodGate
    listener: Listener
    alive_until_s: float = field(default_factory=lambda: time.monotonic() + STUCK_S)
    unsent: deque[Outgoing] = field(default_factory=deque)
    socket: MeteredSocket | None = None

    def __post_init__(self) -> None:
        self._open_waker()
        self._will = None if self.config.will is None else self.config.will()
        self._leaving = False
        self._ending: Ending | None = None
        self._secured: ssl.SSLSocket | None = None
        self._limits: BrokerLimits | None = None
        self._subscribe_id: int | None = None
        self._keepalive_s, self._acknowledgements = self.config.keepalive_s, 0
        self._in_flight: dict[int, Outgoing] = {}
        self._written_at_s = time.monotonic()

    def _open_waker(self) -> None:
        """What wakes the thread out of its sleep."""
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def send(self, message: Outgoing) -> None:
        """Send it when there is room."""
        self.unsent.append(message)
        self._wake()

    def leave(self) -> None:
        """Send what waits, say goodbye (so that the will is not sent), and end."""
        self._leaving = True
        self._wake()

    def cut(self) -> None:
        """End without a word, whatever it waits for."""
        self._leaving = True
        if self.socket is not None:
            self.socket.cut()
        self._wake()

    def close_waker(self) -> None:
        """The other end of the conversation has nothing more to say."""
        self._waker.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it is over
            self._waker.send(b"\0")

    def run(self) -> Ending:
        """Connect and talk until it is over. Raises nothing."""
        try:
            return self._connect() or self._talk()
        except Exception as error:  # noqa: BLE001 - whatever it is ends this conversation, and is told, not the daemon
            return Ending(f"the MQTT client failed: {error!r}", blames=True, bug=True)
        finally:
            if self.socket is not None:
                self.socket.close()
            self._woken.close()

    # --- the connection -----------------------------------------------------------------------------------------

    def _connect(self) -> Ending | None:
        """Everything up to the CONNECT that is sent; why not, if it cannot be."""
        where = f"{self.address[0]}:{self.address[1]}"
        try:
            context = None if self.tls is None else self.tls.context()
            raw: socket.socket | ssl.SSLSocket = socket.create_connection(self.address, CONNECT_TIMEOUT_S)
            if self._leaving:  # nobody waits for this any more, and another thread may use the TLS client now
                raw.close()
                return Ending("closed while it connected")
            if self.tls is not None and context is not None:
                raw = self._secured = self.tls.wrap(context, raw, self.address, CONNECT_TIMEOUT_S)
        except TlsFilesError as error:
            return Ending(str(error))
        except (OSError, ValueError) as error:  # ValueError: a host that is no name
            return Ending(f"cannot reach the broker at {where}: {plain(error)}")
        self.socket = MeteredSocket(raw, MAX_PACKET_BYTES)
        self._client = self._build(self.socket)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = self.config.receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        self._client.connect(*self.address, self.config.keepalive_s, clean_start=True, properties=properties)
        return None

    def _build(self, made: MeteredSocket) -> mqtt.Client:
        client = _Client(self.config, made)
        client.max_inflight_messages_set(self.config.max_in_flight)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._acknowledged
        if self._will is not None:
            client.will_set(*self._will, qos=1)
        return client

    def _talk(self) -> Ending:
        client, made, poll = self._client, self.socket, select.poll()
        assert made is not None
        network, woken = made.fileno(), self._woken.fileno()
        poll.register(woken, select.POLLIN)
        unread_until_s, pace = 0.0, self._reading_pace()
        while client.socket() is not None and self._ending is None:
            now_s = time.monotonic()
            backlog, unread = client.want_write(), now_s < unread_until_s
            poll.register(network, select.POLLOUT if backlog else 0 if unread else select.POLLIN)
            waiting = made.pending() > 0 and not backlog and not unread
            rest_s = 0.0 if waiting else UNREAD_S if unread else self._rest_s()
            self.alive_until_s = now_s + rest_s + STUCK_S
            ready = dict(poll.poll(rest_s * 1000))
            self.alive_until_s = time.monotonic() + STUCK_S
            if woken in ready:
                self._woken.recv(4096)
            if backlog and network in ready:
                client.loop_write()
            elif waiting or network in ready:
                unread_until_s = self._read(made, pace)
            self._send_what_waits()
            client.loop_misc()
            self._ending = self._ending or self._overdue()
        if client.want_write():  # a DISCONNECT that was asked for in a callback
            client.loop_write()
        return self._ending or Ending(made.fault or "the connection ended", blames=bool(made.fault))

    def _reading_pace(self) -> ReadingPace:
        config = self.config
        per_s, burst = FRAMES_PER_MESSAGE * config.messages_per_s, FRAMES_PER_MESSAGE * config.message_burst
        return ReadingPace(per_s, burst, time.monotonic())

    def _read(self, made: MeteredSocket, pace: ReadingPace) -> float:
        """Have paho read a packet or some; until when nothing more is read."""
        frames, read_bytes = made.guard.frames, made.read_bytes
        self._client.loop_read()
        now_s = time.monotonic()
        rest_s = pace.rest_s(now_s, made.guard.frames - frames + (made.read_bytes - read_bytes) / FRAME_UNIT_BYTES)
        if made.guard.pubacks != self._acknowledgements:
            self._ending = self._ending or Ending("the broker acknowledged a message that it was not sent")
        if rest_s <= 0:
            return 0.0
        self.gate.slowed(now_s)
        return now_s + max(rest_s, UNREAD_S)

    def _rest_s(self) -> float:
        """How long the thread may sleep: the keep-alive may be late by a sixth, which brokers forgive by half."""
        rest_s = self._keepalive_s / 6 if self._keepalive_s else LONGEST_REST_S
        if self._in_flight or self._client.want_write():
            rest_s = min(rest_s, ACKNOWLEDGED_S / 6)
        return min(max(rest_s, SHORTEST_REST_S), LONGEST_REST_S)

    def _send_what_waits(self) -> None:
        """Hand paho one message after the other, each when the one before it has left."""
        client = self._client
        if not client.want_write():
            self._written_at_s = time.monotonic()
        while self._limits is not None and self.unsent and not client.want_write():
            message = self.unsent.popleft()
            message.sent_at_s = time.monotonic()
            info = client.publish(message.topic, message.payload, message.qos, message.retain, message.properties)
            if message.qos:
                self._in_flight[info.mid] = message
        if self._leaving and not self.unsent and not client.want_write():
            self._ending = self._ending or Ending("closed")
            client.disconnect()

    def _overdue(self) -> Ending | None:
        """What should have happened by now."""
        assert self.socket is not None
        now_s, heard_s = time.monotonic(), self.socket.heard_at_s
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None and oldest.sent_at_s is not None and now_s - oldest.sent_at_s > ACKNOWLEDGED_S:
            detail = f"the broker did not acknowledge a message within {ACKNOWLEDGED_S:.0f} s"
            return Ending(detail, blames=heard_s > oldest.sent_at_s)
        if self._client.want_write() and now_s - self._written_at_s > WRITTEN_S:
            return Ending(f"the broker took nothing for {WRITTEN_S:.0f} s")
        if self._keepalive_s and now_s - heard_s > 2 * self._keepalive_s + self._rest_s():
            return Ending(f"nothing was heard of the broker for {now_s - heard_s:.0f} s")
        return None

    # --- paho's callbacks ---------------------------------------------------------------------------------------

    def _connected(self, client: mqtt.Client, _u: Any, _f: Any, code: ReasonCode, told: Properties | None) -> None:
        if code.is_failure:
            self._ending = Ending(f"the broker refused the connection: {code}{_said(told)}", code.value)
            return
        if self._limits is not None:
            self._ending = Ending("the broker accepted the connection a second time")
            return
        self._limits = BrokerLimits.of(told)
        self._keepalive_s = self._bounded(client.keepalive)
        assert isinstance(client, _Client)
        client.ping_every(self._keepalive_s)
        _, self._subscribe_id = client.subscribe([(one, SubscribeOptions(qos=1)) for one in self.config.filters])

    def _bounded(self, keepalive_s: int) -> int:
        """The keep-alive that counts, of what the broker said; 0 would mean that a dead link is never noticed."""
        own_s, (least_s, most_s) = self.config.keepalive_s, BROKER_KEEPALIVE_S
        return min(max(keepalive_s, min(least_s, own_s)), max(most_s, own_s)) if keepalive_s else own_s

    def _subscribed(self, _c: mqtt.Client, _u: Any, mid: int, codes: list[ReasonCode], told: Properties | None) -> None:
        if mid != self._subscribe_id or self._limits is None:
            self._ending = Ending("the broker answered a subscription that it was not asked for")
            return
        self._subscribe_id = None
        granted = [one for one, code in zip(self.config.filters, codes, strict=False) if not code.is_failure]
        refused = [one for one in self.config.filters if one not in granted]
        if refused:
            self._ending = Ending(f"the broker refused the subscription to {', '.join(refused)}{_said(told)}")
            self._client.disconnect()
            return
        if self.tls is not None and self._secured is not None:
            self.tls.keep_session(self._secured, self.address)  # its tickets came with the CONNACK
        self.listener.subscribed(self._limits)

    def _disconnected(self, _c: mqtt.Client, _u: Any, flags: Any, code: ReasonCode, told: Properties | None) -> None:
        if self._ending is not None:
            return
        fault = "" if self.socket is None else self.socket.fault
        if flags.is_disconnect_packet_from_server:
            blames = code.value not in BLAMELESS_CODES
            self._ending = Ending(f"disconnected by the broker: {code}{_said(told)}", code.value, blames)
        elif fault:
            self._ending = Ending(f"disconnected: {fault}", blames=True)
        else:
            self._ending = Ending(f"disconnected: {code}", blames=code != "Keep alive timeout")

    def _received(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        if not self.gate.admits(time.monotonic()):
            return
        try:
            topic = message.topic
        except UnicodeDecodeError as error:
            self._ending = Ending(f"the broker sent a topic that is no text: {error}")
            return
        self.listener.received(topic, bytes(message.payload))

    def _acknowledged(self, _c: mqtt.Client, _u: Any, mid: int, code: ReasonCode, told: Properties | None) -> None:
        message = self._in_flight.pop(mid, None)
        if message is not None:
            self._acknowledgements += 1
            self.listener.acknowledged(message, f"{code}{_said(told)}" if code.is_failure else "")


def _said(told: Properties | None) -> str:
    """The broker's own words, and where it would send us; neither is obeyed."""
    properties: dict[str, object] = {} if told is None else vars(told)
    words = [str(properties[name]) for name in ("ReasonString", "ServerReference") if name in properties]
    return f" ({printable('; '.join(words))[:SAID_CHARACTERS]})" if words else ""
