"""Every mistake in a configuration names the key and, where it can, the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import Config, load
from agent.errors import ConfigError

GOOD = """
state_dir = "state"
control_socket = "control.sock"
[unit]
id = "car-0001"
[vehicle]
profiles = ["tesla-model3"]
[[vehicle.bus]]
name = "party"
interface = "socketcan"
channel = "can0"
[fleet]
brokers = ["127.0.0.1:1883"]
dispatcher_key = "dispatcher.pub"
[inference]
packages_dir = "packages"
publisher_key = "publisher.pub"
[policy]
parked_for_s = 60
"""


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "agent.toml"
    path.write_text(text, "utf-8")
    return load(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert config.path(config.state_dir) == tmp_path / "state"
    assert config.path("/var/lib/driveway") == Path("/var/lib/driveway")
    assert config.fleet.addresses() == (("127.0.0.1", 1883),)


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("parked_for_s", "parkt_for_s", "unknown key 'policy.parkt_for_s'; did you mean policy.parked_for_s?"),
        ("[fleet]", "[fleat]", "unknown key 'fleat'; did you mean fleet?"),
        ("channel", "chanel", "unknown key 'vehicle.bus.chanel'; did you mean vehicle.bus.channel?"),
        ("brokers", "hosts", "unknown key 'fleet.hosts'; known here:"),
        ("parked_for_s = 60", 'parked_for_s = "a minute"', "policy.parked_for_s: Expected `float`, got `str`"),
        ("parked_for_s = 60", "parked_for_s = -1", "policy.parked_for_s: Expected `float` >= 0.0"),
        ("parked_for_s = 60", "die_target_c = 99", "policy.die_target_c (99.0) is not below policy.die_limit_c (95.0)"),
        ("parked_for_s = 60", "power_idle_w = 80", "policy.power_idle_w (80.0) is not below power_max_w"),
        ('id = "car-0001"', 'id = "car 0001"', "unit.id: Expected `str` matching regex"),
        (
            'interface = "socketcan"',
            'interface = "socketcam"',
            "vehicle.bus[0].interface: Invalid enum value 'socketcam'; did you mean 'socketcan'?",
        ),
        ('state_dir = "state"', "", "Object missing required field `state_dir`"),
        ('state_dir = "state"', "state_dir = ", "is not TOML"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, wrong: str, right: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, GOOD.replace(wrong, right, 1))
    assert said in str(error.value)
    assert "agent.toml" in str(error.value)


def test_a_broker_without_a_port_is_named(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD.replace("127.0.0.1:1883", "broker.example"))
    with pytest.raises(ConfigError, match=r"'broker.example' is not host:port"):
        config.fleet.addresses()


def test_a_missing_file_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; give it with --config"):
        load(tmp_path / "agent.toml")
