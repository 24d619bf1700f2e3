"""One MQTT client that comes, does something, looks what it hears, and goes: for tools that try a broker out.

Blocking, on paho's own thread. A broker that refuses the connection or a subscription is an answer here, not an error.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.fleet.tls import TlsFiles

PATIENCE_S = 3.0
POLL_S = 0.01


class Visitor:
    """Connects when entered, whatever comes of it (`connected`, `refusal`), and is gone when left."""

    def __init__(
        self,
        host: str,
        port: int,
        name: str,
        tls: TlsFiles | ssl.SSLContext | None,
        *,
        will: tuple[str, bytes] | None = None,
        old_protocol: bool = False,
    ) -> None:
        self.name, self._host, self._port = name, host, port
        self.heard: set[bytes] = set()
        self.topics: set[str] = set()
        self.connected = False
        self.refusal = ""
        self._answered = threading.Event()
        self._granted: dict[int, list[bool]] = {}
        protocol = mqtt.MQTTv311 if old_protocol else mqtt.MQTTv5
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, protocol=protocol, reconnect_on_failure=False
        )
        self._client.connect_timeout = PATIENCE_S
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        if tls is not None:
            self._client.tls_set_context(tls.context() if isinstance(tls, TlsFiles) else tls)
        if will is not None:
            self._client.will_set(will[0], will[1], qos=1)

    def __enter__(self) -> Self:
        try:
            self._client.connect(self._host, self._port, keepalive=60)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self.refusal = f"refused: {error}"
            return self
        self._client.loop_start()
        self._answered.wait(PATIENCE_S)
        if not self.connected:
            self.refusal = self.refusal or "refused: no answer to CONNECT"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, *filters: str) -> bool:
        """Ask for these; whether the SUBACK granted all of them, which proves nothing."""
        _, mid = self._client.subscribe([(one, 1) for one in filters])
        if mid is None or not self._wait(lambda: mid in self._granted, PATIENCE_S):
            return False
        return all(self._granted[mid])

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send one message, QoS 1, and wait until the broker has dealt with it; what it says is not looked at.

        False when the connection was gone before it was sent.
        """
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        if sent.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        self._wait(lambda: sent.is_published() or not self.connected, PATIENCE_S)
        return True

    def hears(self, payload: bytes, *, patience_s: float = PATIENCE_S) -> bool:
        """Whether this arrives."""
        return self._wait(lambda: payload in self.heard, patience_s)

    def vanish(self) -> None:
        """Drop the connection without a word, so that the broker publishes the will."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):  # linger 0: a reset, at once
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RDWR)

    def _wait(self, until: Callable[[], bool], patience_s: float) -> bool:
        deadline_s = time.monotonic() + patience_s
        while not until():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
        return True

    # paho's callbacks, on its thread

    def _on_connect(self, _c: mqtt.Client, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        self.connected = not code.is_failure
        self.refusal = f"refused: {code}" if code.is_failure else ""
        self._answered.set()

    def _on_disconnect(self, _c: mqtt.Client, _u: Any, _f: Any, code: ReasonCode, _p: Properties | None) -> None:
        self.connected = False
        self.refusal = self.refusal or f"disconnected: {code}"
        self._answered.set()

    def _on_subscribe(self, _c: mqtt.Client, _u: Any, mid: int, codes: list[ReasonCode], _p: Properties | None) -> None:
        self._granted[mid] = [not code.is_failure for code in codes]

    def _on_message(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        self.topics.add(message.topic)
        self.heard.add(bytes(message.payload))
