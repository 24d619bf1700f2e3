"""One MQTT 5 connection, kept alive: paho-mqtt behind four methods, with its traps closed.

The broker is a lossy, duplicating, reordering pipe, so nothing is kept here: a message that cannot be handed over
now is refused (`publish` returns False) and the durable outbox offers it again. What follows from paho's measured
behaviour:

* A client lives for one connection. Its queue dies with it, so a reconnect never floods the broker, and packet
  identifiers never outlive their session.
* paho never reconnects by itself (its back-off has no jitter: a fleet would come back in step). We do, with full
  jitter, through the brokers in order.
* At most `MAX_IN_FLIGHT` publishes are inside the library, since it ignores the broker's Receive Maximum.
* Callbacks only hand values to the event loop; an exception there would kill the network thread for good. The
  thread's end, for whatever reason, is what 'the link is down' means.
* What arrives waits in a short inbox and is handed over one message a turn of the loop, so that a flood of messages
  delays no frame of the vehicle's bus.
* The link is up when the SUBACK granted every filter, not when the CONNACK came.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

MAX_IN_FLIGHT = 4
RECEIVE_MAXIMUM = 8
MAX_PACKET_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 60.0
UP_DEADLINE_S = 15.0
"""A broker that has not granted the subscriptions by then is left."""
SETTLED_S = 60.0
"""A link that was up for this long was good: the next attempt begins without back-off."""
INBOX_MESSAGES = 32
"""More than these wait for nobody: acknowledgements mean nothing, so what is dropped is sent again by its sender."""


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Mutual TLS: the private CA that signed the broker, and this unit's certificate and key (PEM files)."""

    ca: str
    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """A TLS 1.3 context; raises OSError or ssl.SSLError when a file is missing or wrong."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.certificate, self.key)
        return context


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where to connect, as whom, and what to hear. `will` is (topic, payload), sent by the broker when we vanish."""

    brokers: tuple[tuple[str, int], ...]
    client_id: str
    filters: tuple[str, ...]
    keepalive_s: int = 300
    will: tuple[str, bytes] | None = None
    tls: TlsFiles | None = None
    max_in_flight: int = MAX_IN_FLIGHT
    """Publishes inside the library at once, never more than the broker's Receive Maximum."""
    receive_maximum: int = RECEIVE_MAXIMUM
    inbox_messages: int = INBOX_MESSAGES


class Link:
    """Use from one asyncio loop: both callbacks run on its thread.

    `on_message(topic, payload)` hands over what arrived; `on_state(connected, broker, detail)` says when the link
    came up or went down, and why.
    """

    def __init__(
        self,
        config: LinkConfig,
        *,
        on_message: Callable[[str, bytes], None],
        on_state: Callable[[bool, str, str], None],
        on_undelivered: Callable[[str, str, bool], None] | None = None,
    ) -> None:
        self._config = config
        self._on_message = on_message
        self._on_state, self._on_undelivered = on_state, on_undelivered
        self._spread_ms = 0
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def start(self) -> None:
        """Begin connecting; needs the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_connected(), name="mqtt-link")

    def spread(self, spread_ms: int) -> None:
        """From now on the first attempt after an outage comes within so long, at random."""
        self._spread_ms = spread_ms

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        expiry_s: int | None = None,
        token: str = "",  # noqa: ARG002
    ) -> bool:
        """Hand one message to the broker; False when it cannot be taken now. True proves nothing (see above)."""
        connection = self._connection
        return connection is not None and self.connected and connection.publish(topic, payload, qos, expiry_s)

    async def close(self) -> None:
        """Say goodbye (the will is not sent) and end the thread."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            host, port = self._config.brokers[attempt % len(self._config.brokers)]
            broker = f"{host}:{port}"
            up = asyncio.Event()
            began_s = asyncio.get_running_loop().time()
            try:
                self._connection = _Connection(self._config, host, port, self._on_message, up.set)
            except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                detail = f"the TLS files cannot be used: {error}"
            else:
                try:
                    detail = await self._one_connection(self._connection, broker, up)
                finally:
                    self.connected = False
                    await self._connection.end()
                    self._connection = None
            settled = up.is_set() and asyncio.get_running_loop().time() - began_s > SETTLED_S
            attempt = 1 if settled else attempt + 1
            self._on_state(False, broker, detail)
            ceiling_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(attempt, 16))
            await asyncio.sleep(random.uniform(0, ceiling_s))  # noqa: S311 - jitter, not a secret

    async def _one_connection(self, connection: _Connection, broker: str, up: asyncio.Event) -> str:
        """Wait for the link to come up, then for its end; what ended it, in words."""
        over = connection.start()
        waiting = asyncio.create_task(up.wait())
        try:
            pending: set[asyncio.Future[Any]] = {over, waiting}
            await asyncio.wait(pending, timeout=UP_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
            if not up.is_set() and not over.done():
                return f"the broker at {broker} did not grant the subscriptions in {UP_DEADLINE_S:.0f} s"
            if up.is_set() and not over.done():
                self.connected = True
                self._on_state(True, broker, "")
            return await asyncio.shield(over)
        finally:
            waiting.cancel()


class _Connection:
    """One paho client on one thread, from CONNECT to the end of its loop."""

    def __init__(
        self,
        config: LinkConfig,
        host: str,
        port: int,
        on_message: Callable[[str, bytes], None],
        on_up: Callable[[], object],
    ) -> None:
        self._config = config
        self._host, self._port = host, port
        self._deliver, self._on_up = on_message, on_up
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[str] = self._loop.create_future()
        self._in_flight: set[int] = set()
        self._inbox: deque[tuple[str, bytes]] = deque(maxlen=config.inbox_messages)
        self._delivering = False
        self._ended = False
        self._socket: socket.socket | None = None
        self._detail = ""
        self._client = self._build()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def start(self) -> asyncio.Future[str]:
        """Connect on a thread of its own; the future ends, with the reason, when the connection is over."""
        self._thread.start()
        return self._over

    def publish(self, topic: str, payload: bytes, qos: int, expiry_s: int | None) -> bool:
        if len(self._in_flight) >= self._config.max_in_flight:
            return False
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, expiry_s)
        info = self._client.publish(topic, payload, qos, properties=properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        if qos:
            self._in_flight.add(info.mid)
        return True

    async def end(self) -> None:
        """Disconnect if that is still to be done, and wait for the thread."""
        self._ended = True
        if self._thread.is_alive():
            self._client.disconnect()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._over), CONNECT_TIMEOUT_S + 1)
        if self._over.done():
            self._thread.join()  # it has said its last word

    def _build(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._config.client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._acknowledged
        client.on_socket_open = self._opened
        if self._config.will is not None:
            client.will_set(self._config.will[0], self._config.will[1], qos=1)
        if self._config.tls is not None:
            client.tls_set_context(self._config.tls.context())
        return client

    def _run(self) -> None:
        """The thread: connect, loop, and report the end whatever it was."""
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 0
        properties.ReceiveMaximum = self._config.receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        try:
            self._client.connect(
                self._host, self._port, self._config.keepalive_s, clean_start=True, properties=properties
            )
            if self._ended:  # paho forgets a disconnect() that comes before its socket is there
                self._client.disconnect()
            code = self._client.loop_forever(retry_first_connection=False)
            detail = self._detail or mqtt.error_string(code)
        except (OSError, ValueError) as error:
            detail = f"cannot reach the broker at {self._host}:{self._port}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever paho raises ends this connection, not the daemon
            detail = f"the MQTT client failed: {error!r}"
        if self._socket is not None:
            self._socket.close()  # paho leaves it open when its loop raises
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._finish, detail)

    def _finish(self, detail: str) -> None:
        if not self._over.done():
            self._over.set_result(detail)

    def _tell(self, call: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    # paho's callbacks, on its thread: they hand over and return.

    def _opened(self, _c: mqtt.Client, _u: Any, sock: Any) -> None:
        """Keep the socket to close it, and without Nagle's delay, which would add 40 to 90 ms to every round trip."""
        self._socket = sock
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connected(self, client: mqtt.Client, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        if code.is_failure:
            self._detail = f"the broker refused the connection: {code}"
            return
        client.subscribe([(one, SubscribeOptions(qos=1)) for one in self._config.filters])

    def _subscribed(
        self, client: mqtt.Client, _u: Any, _mid: int, codes: list[ReasonCode], _p: Properties | None
    ) -> None:
        granted = [one for one, code in zip(self._config.filters, codes, strict=False) if not code.is_failure]
        refused = [one for one in self._config.filters if one not in granted]
        if refused:
            self._detail = f"the broker refused the subscription to {', '.join(refused)}"
            client.disconnect()
        else:
            self._tell(self._on_up)

    def _disconnected(self, _c: mqtt.Client, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        self._detail = self._detail or f"disconnected: {code}"

    def _received(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        # Only the newest wait; and of what is larger than any message of ours no more is kept than shows that it is.
        self._inbox.append((message.topic, bytes(message.payload[:MAX_PACKET_BYTES])))
        if len(self._inbox) == 1:
            self._tell(self._wake)

    def _wake(self) -> None:
        if not self._delivering:
            self._delivering = True
            self._hand_over()

    def _hand_over(self) -> None:
        """One message, then a turn of the loop for everybody else."""
        if not self._inbox:
            self._delivering = False
            return
        self._loop.call_soon(self._hand_over)
        self._deliver(*self._inbox.popleft())

    def _acknowledged(self, _c: mqtt.Client, _u: Any, mid: int, _code: ReasonCode, _p: Properties | None) -> None:
        self._tell(self._in_flight.discard, mid)
