"""The broker under a fleet: Mosquitto with room for it and with its own counters, or the embedded one for small fleets.

Cars may come over TLS with one test authority and one client certificate that they all share (what is measured is the
handshake, not the access list); dispatchers and this program come over a plain listener of the loopback interface.
"""

from __future__ import annotations

import os
import pwd
import threading
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from agent.fleet.tls import TlsFiles
from hil.broker import HOST, BrokerProcess, EmbeddedBroker, Mosquitto
from hil.certificates import Authority

SYS_INTERVAL_S = 1

FLEET_CONF = """\
user {user}
listener {port} {host}
allow_anonymous true
{tls}
set_tcp_nodelay true
persistence false
message_size_limit 262144
max_connections -1
sys_interval {sys_interval_s}
"""
TLS_CONF = """\
listener {port} {host}
allow_anonymous true
cafile {ca}
certfile {certificate}
keyfile {key}
require_certificate true
tls_version tlsv1.3
"""


class FleetMosquitto(Mosquitto):
    """Mosquitto for many connections; with `tls_port` and `tls`, cars come there."""

    def __init__(self, folder: Path, port: int, *, tls_port: int = 0, tls: TlsFiles | None = None) -> None:
        super().__init__(folder, port)
        self._tls_port, self._tls = tls_port, tls

    def command(self) -> list[str]:
        """Write mosquitto.conf; raises FleetError when Mosquitto is not installed."""
        command = super().command()
        tls = ""
        if self._tls is not None:
            tls = TLS_CONF.format(
                port=self._tls_port, host=HOST, ca=self._tls.ca, certificate=self._tls.certificate, key=self._tls.key
            )
        user = pwd.getpwuid(os.geteuid()).pw_name  # else root's Mosquitto becomes another, who may not read the keys
        text = FLEET_CONF.format(user=user, port=self.port, host=HOST, tls=tls, sys_interval_s=SYS_INTERVAL_S)
        Path(command[-1]).write_text(text, "utf-8")
        return command


def broker(kind: str, folder: Path, port: int, *, tls_port: int = 0, tls: TlsFiles | None = None) -> BrokerProcess:
    """The broker by its name on the command line."""
    if kind == "embedded":
        return EmbeddedBroker(folder, port)
    return FleetMosquitto(folder, port, tls_port=tls_port, tls=tls)


# --- certificates -------------------------------------------------------------------------------------------------


def make_authority(folder: Path) -> tuple[TlsFiles, TlsFiles]:
    """A test authority with a certificate for the broker and one for all cars; both as (ca, certificate, key) files."""
    authority = Authority(folder, "Driveway fleet test CA")
    return authority.issue("broker"), authority.issue("cars")


# --- Mosquitto's own counters -------------------------------------------------------------------------------------


class BrokerCounts(msgspec.Struct, frozen=True):
    """What Mosquitto says of itself, since it was started."""

    publishes_received: int = 0
    publishes_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    publishes_dropped: int = 0

    def since(self, before: BrokerCounts) -> BrokerCounts:
        """What was added since then."""
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(before)
        return BrokerCounts(*(a - b for a, b in zip(mine, theirs, strict=True)))


SYS_TOPICS = {
    "$SYS/broker/publish/messages/received": "publishes_received",
    "$SYS/broker/publish/messages/sent": "publishes_sent",
    "$SYS/broker/bytes/received": "bytes_received",
    "$SYS/broker/bytes/sent": "bytes_sent",
    "$SYS/broker/publish/messages/dropped": "publishes_dropped",
}


class SysTopics:
    """Listens to Mosquitto's `$SYS` topics, on a thread of its own; until it speaks every count is zero."""

    def __init__(self, port: int) -> None:
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fleet-sys", protocol=mqtt.MQTTv5)
        self._client.on_connect = self._connected
        self._client.on_message = self._received
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async(HOST, port)
        self._client.loop_start()

    def counts(self) -> BrokerCounts:
        """As of the broker's last word, which it gives every second."""
        with self._lock:
            return BrokerCounts(**self._counts)

    def close(self) -> None:
        """Disconnect, and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _connected(self, client: mqtt.Client, _u: Any, _f: Any, _code: ReasonCode, _p: Any) -> None:
        client.subscribe([(topic, 0) for topic in SYS_TOPICS])

    def _received(self, _c: mqtt.Client, _u: Any, message: mqtt.MQTTMessage) -> None:
        name = SYS_TOPICS.get(message.topic)
        if name is not None and message.payload.isdigit():
            with self._lock:
                self._counts[name] = int(message.payload)
