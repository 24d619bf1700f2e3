"""The whole daemon as systemd sees it, and as `driveway doctor` does: real process, real sockets, no systemd."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.cli.main import main
from tests.daemon.test_shutdown import configured

PATIENCE_S = 60.0
WATCHDOG_S = 2
ONE_BUS = """profiles = ["tesla-model3"]
[[vehicle.bus]]
name = "party"
interface = "unixgram"
channel = "party.sock"
"""
ALL_BUSES = 'profiles = ["tesla-model3", "driveway-energy"]\n' + "".join(
    f'[[vehicle.bus]]\nname = "{name}"\ninterface = "unixgram"\nchannel = "{name}.sock"\n'
    for name in ("party", "vehicle", "energy")
)


class Supervised:
    """A daemon under a service manager that only listens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        configured(folder)
        path = folder / "agent.toml"
        path.write_text(path.read_text().replace(ONE_BUS, ALL_BUSES))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self.said: list[str] = []
        self.log = folder / "log"
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000),
        }
        command = [sys.executable, "-m", "agent", "run", "--config", "agent.toml"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stderr=log, env=environment)

    def hear(self, wanted: str) -> str:
        """The next word that begins so."""
        self._socket.settimeout(PATIENCE_S)
        while True:
            word = self._socket.recv(4096).decode()
            self.said.append(word)
            if word.startswith(wanted):
                return word

    def hears_nothing(self, wanted: str, for_s: float) -> bool:
        """Whether that word does not come for so long."""
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._socket.settimeout(left_s)
            try:
                if self._socket.recv(4096).decode().startswith(wanted):
                    return False
            except TimeoutError:
                pass
        return True

    def doctor(self, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
        code = main(["doctor", "--json", "--config", str(self.folder / "agent.toml"), *options])
        return code, json.loads(capsys.readouterr().out)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    one = Supervised(tmp_path)
    yield one
    one.close()


def named(checks: list[dict[str, str]]) -> dict[str, str]:
    return {one["name"]: one["result"] for one in checks}


def test_it_says_ready_when_it_decides_and_stopping_when_it_ends(
    supervised: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    supervised.hear("READY=1")
    assert (supervised.folder / "control.sock").is_socket(), "it can be asked by then"
    assert '"self_test_passed"' in supervised.log.read_text()
    supervised.hear("WATCHDOG=1")
    supervised.hear("WATCHDOG=1")
    assert any(word.startswith("STATUS=blocked: ") for word in supervised.said)

    code, said = supervised.doctor(capsys)
    checks = named(said["checks"])
    assert (said["v"], said["exit_code"], said["result"]) == (1, code, "degraded")
    assert code == 4, said
    expected = {
        "config": "ok",
        "keys.fleet.dispatcher_key": "ok",
        "keys.unit": "warn",  # it is in a file
        "keys.tls": "missing",
        "engine.bindings": "ok",
        "daemon.reachable": "ok",
        "daemon.gate": "ok",  # it is shut, as it should be: nobody hears the car
        "daemon.link": "warn",
        "daemon.sources": "warn",
        "daemon.store": "ok",
        "daemon.ledger": "ok",
        "daemon.key": "ok",
        "daemon.packages": "warn",
        "daemon.self_test": "ok",
        "daemon.golden": "missing",
    }
    assert {name: checks[name] for name in expected} == expected

    supervised.process.send_signal(signal.SIGTERM)
    supervised.hear("STOPPING=1")
    assert supervised.process.wait(PATIENCE_S) == 0
    code, said = supervised.doctor(capsys)
    assert (code, said["result"]) == (3, "unreachable")
    assert named(said["checks"])["daemon.reachable"] == "warn"
    code, said = supervised.doctor(capsys, "--offline")
    assert code == 4
    assert "daemon.reachable" not in named(said["checks"])


def test_a_daemon_that_is_stuck_starves_its_watchdog(supervised: Supervised) -> None:
    supervised.hear("READY=1")
    supervised.hear("WATCHDOG=1")
    supervised.process.send_signal(signal.SIGSTOP)
    supervised.hears_nothing("", 0.2)
    assert supervised.hears_nothing("WATCHDOG=1", WATCHDOG_S)
    supervised.process.send_signal(signal.SIGCONT)
    supervised.hear("WATCHDOG=1")
