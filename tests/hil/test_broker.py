"""The rigs' brokers: real processes that start, carry MQTT 5, crash, restart and end with us."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from paho.mqtt import publish as paho_publish
from paho.mqtt import subscribe as paho_subscribe
from paho.mqtt.client import MQTTv5

from agent.errors import FleetError
from hil.broker import BrokerProcess, EmbeddedBroker, Mosquitto, free_port
from tests.tools import lacking


@pytest.fixture(params=[EmbeddedBroker, Mosquitto])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    if request.param is Mosquitto and Mosquitto.binary() is None:
        lacking("mosquitto is not installed")
    with request.param(tmp_path / "broker", free_port()) as running:
        yield running


def exchange(port: int, payload: bytes) -> bytes:
    """Publish retained, then read it back, over MQTT 5."""
    paho_publish.single("t/x", payload, qos=1, retain=True, hostname="127.0.0.1", port=port, protocol=MQTTv5)
    message: Any = paho_subscribe.simple("t/x", qos=1, hostname="127.0.0.1", port=port, protocol=MQTTv5)
    return bytes(message.payload)


def test_carries_mqtt5_with_the_largest_payload(broker: BrokerProcess) -> None:
    payload = bytes(range(256)) * 256  # 64 KiB
    assert exchange(broker.port, payload) == payload


def test_crash_and_restart_on_the_same_port(broker: BrokerProcess) -> None:
    first = psutil.Process(broker.pid)
    broker.kill()
    assert not first.is_running()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
        exchange(broker.port, b"x")
    broker.start()
    assert broker.pid != first.pid
    assert exchange(broker.port, b"again") == b"again"
    broker.stop()
    broker.stop()
    assert broker.pid is None


def test_listens_on_loopback_only(broker: BrokerProcess) -> None:
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(broker.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_taken_port_is_said(broker: BrokerProcess, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="taken"), EmbeddedBroker(tmp_path / "other", broker.port):
        pass


def test_the_embedded_broker_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent killed outright cannot stop its broker; the broker notices by itself."""
    program = (
        "import sys; from pathlib import Path; from hil.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker(Path(sys.argv[1]), int(sys.argv[2])); broker.start()\n"
        "print(broker.pid, flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(free_port())]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(10)
    assert not child.is_running()
