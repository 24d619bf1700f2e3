"""How the whole daemon ends: in order, whatever fails on the way, and also when its disk hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.awake import KeepAwakeWishes
from agent.config import Config, load
from agent.control_server import ControlServer
from agent.daemon import Daemon
from agent.fleet.desk import Desk
from agent.fleet.orders import Orders
from agent.hands import Hands
from agent.identity import establish
from agent.store import StoreThread
from agent.telemetry.limits import PowerLimits
from agent.trust.keys import FileSigner
from hil.car.sysfs import SensorTree

PATIENCE_S = 60.0
CONFIG = """
state_dir = "state"
control_socket = "control.sock"
[unit]
id = "unit-1"
[vehicle]
profiles = ["tesla-model3"]
[[vehicle.bus]]
name = "party"
interface = "unixgram"
channel = "party.sock"
[computer]
sysfs_root = "sysfs"
[fleet]
brokers = ["127.0.0.1:1"]
dispatcher_key = "key.pem"
[inference]
packages_dir = "packages"
publisher_key = "key.pem"
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


def configured(tmp_path: Path) -> Config:
    """What a daemon needs to begin: a car that is not there, a computer, and a broker that nobody answers for."""
    (tmp_path / "key.pem").write_text(FileSigner.open_or_create(tmp_path / "key").public_key_pem())
    (tmp_path / "packages").mkdir()
    SensorTree(tmp_path / "sysfs").write(50.0, 45.0, 20.0)
    path = tmp_path / "agent.toml"
    path.write_text(CONFIG)
    return load(path)


ORDER = (Hands, PowerLimits, KeepAwakeWishes, Desk, Orders, ControlServer, StoreThread)


@pytest.mark.parametrize("failing", [None, *ORDER])
def test_every_part_is_closed_in_order_although_one_fails(
    config: Config, monkeypatch: pytest.MonkeyPatch, failing: type | None
) -> None:
    """The worker ends first, then its power limit; the store closes when nobody writes any more."""
    done: list[type] = []

    def watch(kind: type) -> None:
        real = kind.close  # type: ignore[attr-defined]

        async def close(part: object) -> None:
            await real(part)
            done.append(kind)
            if kind is failing:
                raise ValueError("a bug")

        monkeypatch.setattr(kind, "close", close)

    for kind in ORDER:
        watch(kind)

    async def main() -> None:
        daemon = Daemon(config, await establish(config))
        asyncio.get_running_loop().call_later(0.2, daemon.stop)
        async with asyncio.timeout(PATIENCE_S):
            await daemon.run()

    with capture_logs() as logs:
        asyncio.run(main())
    assert tuple(done) == ORDER
    failed = [log["part"] for log in logs if log["event"] == "close_failed"]
    assert failed == ([] if failing is None else [failing.__name__])
    assert logs[-1]["event"] == "stopped"


HANGING_DISK = """
import sys, time
from pathlib import Path
from agent.cli.main import main
from agent.store import Store

def log(*_arguments):
    Path("hangs").touch()
    time.sleep(1000)

Store.log = log
sys.exit(main(["run", "--config", "agent.toml"]))
"""


@pytest.mark.long
@pytest.mark.usefixtures("config")
def test_a_daemon_whose_disk_hangs_ends_when_it_is_told_to(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", HANGING_DISK]
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(command, cwd=tmp_path, stderr=log, env=os.environ | {"PYTHONPATH": root})
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (tmp_path / "hangs").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    finally:
        daemon.kill()
        daemon.wait()
    said = (tmp_path / "log").read_text()
    assert "store_not_closed" in said
    assert "threads_stuck" in said
    assert not (tmp_path / "control.sock").exists()
