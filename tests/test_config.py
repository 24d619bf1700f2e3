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
        (
            "parked_for_s = 60",
            'parked_for_s = "a minute"',
            "policy.parked_for_s: a number is wanted, not a text; write a number of seconds",
        ),
        (
            "parked_for_s = 60",
            "parked_for_s = -1",
            "agent.toml:19: policy.parked_for_s: -1 is not at least 0; it is in seconds",
        ),
        ("parked_for_s = 60", "die_target_c = 99", "policy.die_target_c (99.0) is not below policy.die_limit_c (95.0)"),
        ("parked_for_s = 60", "power_max_w = 350", "leaves the heatsink -20 C, below ambient_stop_c (60 C)"),
        ("parked_for_s = 60", "power_idle_w = 80", "policy.power_idle_w (80.0) is not below power_max_w"),
        (
            "parked_for_s = 60",
            'time_zone = "Europe/Berln"',
            "policy.time_zone: the time zone 'Europe/Berln' is not known; did",
        ),
        (
            "parked_for_s = 60",
            "pack_min_c = 41",
            "policy.pack_min_c (41.0) is not below policy.pack_start_max_c (40.0)",
        ),
        ("parked_for_s = 60", "pack_stop_c = 39", "policy.pack_start_max_c (40.0) is above policy.pack_stop_c (39.0)"),
        (
            "parked_for_s = 60",
            "ambient_stop_c = 49",
            "policy.ambient_start_max_c (50.0) is above policy.ambient_stop_c",
        ),
        ("parked_for_s = 60", "reserve_start_margin_percent = 1", "policy.reserve_stop_margin_percent (2.0) is above"),
        ("parked_for_s = 60", "reserve_percent = 95", "policy.reserve_percent and its margin ask for more than 100 %"),
        ("parked_for_s = 60", "net_drain_percent = 0", "policy.net_drain_percent is 0"),
        ("parked_for_s = 60", "work_hours_per_stay = 0", "policy.work_hours_per_stay is 0"),
        (
            "parked_for_s = 60",
            "payout_micro_per_kwh = 5\nprice_floor_micro_per_kwh = 5",
            "policy.price_floor_micro_per_kwh (5) leaves nothing of the payout (5)",
        ),
        (
            "parked_for_s = 60",
            "keep_awake = true\nkeep_awake_budget_wakes = 0",
            "policy.keep_awake is on and policy.keep_awake_budget_wakes is 0",
        ),
        ("parked_for_s = 60", "schedule = [{ days = [] }]", "policy.schedule: an entry is for no day at all"),
        (
            "parked_for_s = 60",
            'schedule = [{ start = "24:00" }]',
            "policy.schedule[0].start: Expected `str` matching regex",
        ),
        ("parked_for_s = 60", 'departures = [{ at = "07:00" }]', "policy.departures[0]: Object missing required field"),
        (
            "parked_for_s = 60",
            "tariff_zones = [{ price = 1 }]",
            "unknown key 'policy.tariff_zones.price'; known here: days, start, end, price_micro_per_kwh",
        ),
        ('id = "car-0001"', 'id = "car 0001"', "unit.id: Expected `str` matching regex"),
        (
            'interface = "socketcan"',
            'interface = "socketcam"',
            "vehicle.bus[0].interface: Invalid enum value 'socketcam'; did you mean 'socketcan'?",
        ),
        (
            "[inference]",
            '[inference]\nrequire_confinement = ["landlock_file"]',
            "inference.require_confinement[0]: Invalid enum value 'landlock_file'; did you mean 'landlock_files'?",
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


def test_the_network_and_the_update_flag_have_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    assert (config.network.metered, config.network.metered_interfaces) == ("auto", ("wwan*", "rmnet*", "usb*"))
    assert config.update_flag_path == config.path(config.state_dir) / "update-pending"
    said = read(tmp_path, f'update_flag = "/run/ota"\n{GOOD}\n[network]\nmetered = "yes"\n')
    assert (said.network.metered, said.update_flag_path) == ("yes", Path("/run/ota"))
    with pytest.raises(ConfigError, match=r"network\.metered: Invalid enum value 'maybe'"):
        read(tmp_path, f'{GOOD}\n[network]\nmetered = "maybe"\n')


def test_a_broker_without_a_port_is_named(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD.replace("127.0.0.1:1883", "broker.example"))
    with pytest.raises(ConfigError, match=r"'broker.example' is not host:port"):
        config.fleet.addresses()


def test_a_missing_file_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; give it with --config"):
        load(tmp_path / "agent.toml")


UNIT_WORKERS = GOOD.replace(
    'packages_dir = "packages"', 'packages_dir = "{packages}"\nworker_socket = "/run/worker.sock"'
)


def test_packages_that_the_workers_unit_cannot_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not inside /var/lib/driveway/packages, which the workers' unit can read"):
        read(tmp_path, UNIT_WORKERS.format(packages="packages"))
    read(tmp_path, UNIT_WORKERS.format(packages="/var/lib/driveway/packages"))
    read(tmp_path, UNIT_WORKERS.format(packages="/var/lib/driveway/packages/ocr"))
    with pytest.raises(ConfigError, match="is not inside"):
        read(tmp_path, UNIT_WORKERS.format(packages="/var/lib/driveway/packages/../state"))
    here = UNIT_WORKERS.format(packages="packages").replace("[policy]", f'worker_reads = "{tmp_path}"\n[policy]')
    assert read(tmp_path, here).inference.worker_reads == str(tmp_path)


@pytest.mark.parametrize("key", ["worker_python", "library_path"])
def test_what_is_the_units_to_say_is_refused(tmp_path: Path, key: str) -> None:
    text = UNIT_WORKERS.format(packages="/var/lib/driveway/packages").replace("[policy]", f'{key} = "/x"\n[policy]')
    with pytest.raises(ConfigError, match=f"inference.{key} has no effect with inference.worker_socket"):
        read(tmp_path, text)
