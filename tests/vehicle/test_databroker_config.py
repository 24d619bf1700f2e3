"""The `[vehicle.databroker]` table: what is refused before anything is asked, and what is imported only then."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.clock import SystemClock
from agent.config import load
from agent.core.signals import HOOD
from agent.errors import ConfigError
from agent.vehicle.databroker import DatabrokerConfig, ProviderConfig, build_databroker

CONFIG = """
state_dir = "state"
control_socket = "control.sock"
[unit]
id = "unit-1"
[fleet]
brokers = ["127.0.0.1:1883"]
dispatcher_key = "dispatcher.pem"
[inference]
packages_dir = "packages"
publisher_key = "publisher.pem"
[vehicle]
"""


def write(folder: Path, vehicle: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(CONFIG + vehicle)
    return path


def test_a_databroker_is_enough_to_read_a_vehicle(tmp_path: Path) -> None:
    table = """[vehicle.databroker]
    address = "127.0.0.1:55555"
    absent = ["Vehicle.Body.Hood.IsOpen"]
    [[vehicle.databroker.provider]]
    name = "body"
    leaves = ["Vehicle.Cabin"]
    """
    databroker = load(write(tmp_path, table)).vehicle.databroker
    assert databroker is not None
    assert databroker.poll_ms == 250
    assert databroker.absent == (HOOD,)
    assert databroker.provider[0].owns("Vehicle.Cabin.Door.Row1.DriverSide.IsOpen")
    assert not databroker.provider[0].owns("Vehicle.CabinX")


@pytest.mark.parametrize(
    ("vehicle", "message"),
    [
        ("", "nothing to read the vehicle from"),
        (
            '[[vehicle.bus]]\nname = "party"\ninterface = "virtual"\nchannel = "x"\n',
            "needs the profile that explains it",
        ),
        ('[vehicle.databroker]\naddress = "here"\n', "neither host:port nor unix:/path"),
        ('[vehicle.databroker]\naddress = "unix:relative.sock"\n', "absolute path"),
        ('[vehicle.databroker]\naddress = "a:1"\npoll_ms = 1000\n', "vehicle.databroker.poll_ms"),
        ('[vehicle.databroker]\naddress = "a:1"\npol_ms = 100\n', "did you mean vehicle.databroker.poll_ms?"),
        ('[vehicle.databroker]\naddress = "a:1"\ntoken_file = "t"\n', "cross the network in clear"),
        ('[vehicle.databroker]\naddress = "a:1"\nabsent = ["Vehicle.Speed"]\n', "no car is without Vehicle.Speed"),
        ('[vehicle.databroker]\naddress = "a:1"\nabsent = ["Vehicle.Sped"]\n', "did you mean 'Vehicle.Speed'?"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(tmp_path: Path, vehicle: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        load(write(tmp_path, vehicle))


@pytest.mark.parametrize(
    "private",
    ["Vehicle.CurrentLocation.Timestamp", "Vehicle.VehicleIdentification.VIN", "Vehicle.Driver.Identifier.Subject"],
)
def test_a_heartbeat_cannot_be_a_private_leaf(private: str) -> None:
    for table, kind in (({"address": "a:1"}, DatabrokerConfig), ({"name": "x", "leaves": ["Vehicle"]}, ProviderConfig)):
        good: dict[str, Any] = {**table, "heartbeat": "Vehicle.Driveway.Beat"}
        assert msgspec.convert(good, kind)
        with pytest.raises(msgspec.ValidationError, match="heartbeat"):
            msgspec.convert(good | {"heartbeat": private}, kind)


def test_keeping_awake_needs_a_way_to_the_platform(tmp_path: Path) -> None:
    table = '[vehicle.databroker]\naddress = "unix:/broker"\n'
    with pytest.raises(ConfigError, match=r"set vehicle\.databroker\.keep_awake"):
        load(write(tmp_path, table + "[policy]\nkeep_awake = true\n"))
    assert load(write(tmp_path, table + "keep_awake = true\n[policy]\nkeep_awake = true\n")).policy.keep_awake


def test_without_the_extra_the_configuration_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kuksa.val.v2", None)
    for name in [name for name in sys.modules if name.startswith("agent.vehicle.kuksa")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"driveway-agent\[kuksa\]"):
        build_databroker(DatabrokerConfig(address="unix:/broker"), SystemClock(), Path)


def test_a_daemon_without_a_databroker_loads_none_of_its_libraries() -> None:
    script = "import sys, agent.daemon; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"grpc", "google", "kuksa", "kuksa_client"} & set(loaded)


def test_of_the_databrokers_client_only_the_stubs_are_used() -> None:
    script = "import sys, agent.vehicle.kuksa, agent.vehicle.kuksa_awake; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("kuksa")}
    stubs = {"types_pb2", "val_pb2", "val_pb2_grpc"}
    assert ours == {"kuksa", "kuksa.val", "kuksa.val.v2", *(f"kuksa.val.v2.{stub}" for stub in stubs)}


def test_every_key_is_documented_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "databroker.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S*) ?\|", page, re.MULTILINE))
    defaults = msgspec.json.decode(msgspec.json.encode(DatabrokerConfig(address="unix:/broker")))
    said = {key: {"none": None, "": "unix:/broker"}.get(text, text) for key, text in rows.items()}
    shown = {key: value if value in (None, "unix:/broker") else json.dumps(value) for key, value in defaults.items()}
    assert said == shown
