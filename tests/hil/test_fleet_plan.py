"""What cannot be run is refused in one sentence, before anything starts."""

from __future__ import annotations

import resource

import msgspec
import pytest

from agent.errors import ConfigError
from hil.broker import Mosquitto
from hil.cli import main, parser
from hil.fleet import arguments, plan
from hil.fleet.plan import FleetPlan, check
from hil.postgres import PostgresServer

SMALL = FleetPlan(cars=20, broker="embedded")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cars": 0}, "--cars is 0; it must be at least 1"),
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"lease_s": 0.5}, "--lease-s is 0.5"),
        ({"dispatchers": 0}, "--dispatchers is 0"),
        ({"slice_items": 0}, "--slice-items is 0"),
        ({"steps": (5, 30)}, "--steps goes to 30 and --cars is 20"),
        ({"steps": (0, 20)}, "--steps"),
        ({"long_share": 1.5}, "--long-share is 1.5"),
        ({"ramp_per_s": -1.0}, "--ramp-per-s is -1"),
        ({"spread_s": 3601}, "--spread-s is 3601"),
        ({"cars": 901}, "the embedded broker takes 900 cars, not 901"),
        ({"tls": True}, "checks no certificates"),
    ],
)
def test_nonsense_is_refused_and_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(msgspec.structs.replace(SMALL, **changes))


def test_what_can_be_run_passes() -> None:
    check(SMALL)


def test_no_mosquitto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mosquitto, "binary", staticmethod(lambda: None))
    with pytest.raises(ConfigError, match="mosquitto is not installed; apt-get install mosquitto"):
        check(FleetPlan(cars=20))


def test_no_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgresServer, "programs", staticmethod(lambda: None))
    with pytest.raises(ConfigError, match="PostgreSQL is not installed"):
        check(msgspec.structs.replace(SMALL, database="postgresql"))


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mosquitto, "binary", staticmethod(lambda: "/usr/sbin/mosquitto"))
    monkeypatch.setattr(plan, "allow_descriptors", lambda _needed: 1024)
    with pytest.raises(ConfigError, match=r"2000 cars need 2200 file descriptors .* or use at most 824 cars"):
        check(FleetPlan(cars=2_000))


def test_too_few_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mosquitto, "binary", staticmethod(lambda: "/usr/sbin/mosquitto"))
    monkeypatch.setattr(plan, "allow_descriptors", lambda needed: needed)
    with pytest.raises(ConfigError, match="60000 cars need a local port each"):
        check(FleetPlan(cars=60_000))


def test_descriptors_are_raised_as_far_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (100, 400)

    def take(_which: int, wanted: tuple[int, int]) -> None:
        nonlocal limits
        if wanted[1] > 400 or wanted[0] > wanted[1]:
            raise ValueError("not allowed to raise maximum limit")
        limits = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _which: limits)
    monkeypatch.setattr(resource, "setrlimit", take)
    assert plan.allow_descriptors(300) == 300
    assert limits == (300, 400)
    assert plan.allow_descriptors(1_000) == 400


def test_sizes_and_processes() -> None:
    assert FleetPlan(cars=10_000).sizes == (100, 300, 1_000, 3_000, 10_000)
    assert FleetPlan(cars=500).sizes == (100, 300, 500)
    assert FleetPlan(cars=50).sizes == (50,)
    assert FleetPlan(cars=1_000, steps=(1_000, 10)).sizes == (10, 1_000)
    assert FleetPlan(cars=10_000).car_processes == 4
    assert FleetPlan(cars=20).car_processes == 1
    assert FleetPlan(cars=20, processes=3).car_processes == 3


def test_a_lease_is_cut_into_slices_and_compressed() -> None:
    asked = FleetPlan(lease_s=60.0, lease_items=10, slice_items=4)
    assert asked.slice_s == 20.0
    assert asked.compression == 10.0


def test_the_command_line_is_the_plan() -> None:
    line = "fleet --cars 300 --steps 100,300 --ramp-per-s 50 --seconds 5 --lease-s 2.5 --broker embedded --outage"
    options = parser().parse_args(line.split())
    wanted = FleetPlan(
        cars=300, steps=(100, 300), ramp_per_s=50.0, seconds=5.0, lease_s=2.5, broker="embedded", outage=True
    )
    assert arguments.plan_of(options) == wanted


def test_the_command_says_it_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "--cars", "0"]) == 1
    assert capsys.readouterr().err == "driveway-hil: --cars is 0; it must be at least 1\n"


def test_what_cannot_be_written_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "--cars", "20", "--figure", "plots.pdf"]) == 1
    assert "a picture is .svg or .png" in capsys.readouterr().err
    assert main(["fleet", "--cars", "20", "--json", "nowhere/at/all.json"]) == 1
    assert "there is no folder" in capsys.readouterr().err
