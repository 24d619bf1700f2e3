"""MQTT brokers for rigs, each its own process on the loopback interface.

* `EmbeddedBroker`: iotcore (rumqttd in a wheel), so that a laptop needs nothing installed. It checks no certificates
  and has no access lists: loopback only, demos and tests only. Its default payload limit is 20,480 bytes, after which
  it disconnects; ours is 256 KiB, so that the limit under test is the protocol's own.
* `Mosquitto`: the reference broker of the integration tests, when it is installed.

Both start when entered and are gone when left; `kill`, `stop` and `start` let a test crash and restart them. Neither
keeps anything over a restart: nothing may rely on a broker's memory.

    python -m hil.broker --dir DIR --port 1883
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from agent.errors import FleetError

HOST = "127.0.0.1"
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02

IOTCORE_TOML = """\
id = 0
[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 262144
max_inflight_count = 100
dynamic_filters = true
"""

MOSQUITTO_CONF = """\
listener {port} {host}
allow_anonymous true
set_tcp_nodelay true
persistence false
message_size_limit 262144
"""


class BrokerProcess(ABC):
    """A broker in a child process. `start` returns when it accepts connections; leaving the context stops it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The broker's process, None while it is down."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections; raises FleetError with its log when it does not."""
        assert self._process is None, "already started"
        if _accepts(self.port):
            raise FleetError(f"port {self.port} of {HOST} is taken", hint="choose another port")
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "broker.log"
        with log.open("ab") as stream:
            # Its stdin is a pipe of ours: it sees the end of it when we vanish, however we do.
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise FleetError(f"the broker did not start: {log.read_text('utf-8', 'replace')[-500:]}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it politely, and not so politely after five seconds; a second call does nothing."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._reap()

    def kill(self) -> None:
        """Crash it."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    @abstractmethod
    def command(self) -> list[str]:
        """Write what the broker needs into the folder; the command line that runs it."""

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedBroker(BrokerProcess):
    """iotcore in a child process."""

    def command(self) -> list[str]:
        """This module, which writes its own configuration and ends when our end of its stdin closes."""
        port = str(self.port)
        return [sys.executable, "-m", "hil.broker", "--dir", str(self._folder), "--port", port, "--exit-with-stdin"]


class Mosquitto(BrokerProcess):
    """Eclipse Mosquitto in a child process."""

    @staticmethod
    def binary() -> str | None:
        """Where Mosquitto is installed, None when it is not."""
        return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

    def command(self) -> list[str]:
        """Write mosquitto.conf; raises FleetError when Mosquitto is not installed."""
        binary = self.binary()
        if binary is None:
            raise FleetError("mosquitto is not installed", hint="apt-get install mosquitto, or use the embedded broker")
        config = self._folder / "mosquitto.conf"
        config.write_text(MOSQUITTO_CONF.format(host=HOST, port=self.port), "ascii")
        return [binary, "-c", str(config)]


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Run the embedded broker in this process until it is told to end."""
    parser = argparse.ArgumentParser(
        prog="python -m hil.broker", description="An MQTT 5 broker on the loopback interface."
    )
    parser.add_argument("--dir", type=Path, required=True, help="where its configuration is written")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input is closed")
    arguments = parser.parse_args()
    import iotcore  # noqa: PLC0415 - a native library that only this process needs

    arguments.dir.mkdir(parents=True, exist_ok=True)
    config = arguments.dir / "iotcore.toml"
    config.write_text(IOTCORE_TOML.format(host=HOST, port=arguments.port), "ascii")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the native loop does not look at Python's signal flag
    if arguments.exit_with_stdin:
        threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    iotcore.IotCoreBroker(config_path=str(config)).run_forever()


def _exit_when_stdin_closes() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=0.2):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
