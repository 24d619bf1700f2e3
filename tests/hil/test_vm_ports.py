"""What the rig and the guest say to each other, without a VM: the real programs of both ends over real sockets."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import can
import pytest

from agent.config import load
from hil.vm.fleet import UNIT
from hil.vm.guest import sensors, shell
from hil.vm.image import GUEST
from hil.vm.machine import FLEET_ADDRESS
from hil.vm.ports import BUFFER_BYTES, BUSES, GuestMeter, PlayedBus, Port
from hil.vm.vehicle import BUS, CONFIG, POLICY, _profile, _toml


@pytest.fixture
def guest(tmp_path: Path) -> socket.socket:
    """The guest's end of a port: whoever connects is accepted by the test."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "port.sock"))
    listening.listen(1)
    return listening


def test_frames_arrive_as_lines_that_candump_would_write(guest: socket.socket, tmp_path: Path) -> None:
    port = Port(tmp_path / "port.sock")
    bus = PlayedBus(port, "vcan1")
    bus.send(can.Message(arbitration_id=0x102, is_extended_id=False, data=b"\x01\xff"))
    bus.send(can.Message(arbitration_id=0x1ABCDEF, is_extended_id=True, data=b""))
    taken, _ = guest.accept()
    with taken, guest:
        first, second = [line.split() for line in taken.recv(4096).decode().splitlines() if line]
    assert first[1:] == ["vcan1", "102#01FF"]
    assert second[1:] == ["vcan1", "01ABCDEF#"]
    assert float(first[0].strip("()")) > 1e9
    bus.shutdown()
    port.close()


def test_who_does_not_read_loses_lines_and_never_holds_up_the_car(guest: socket.socket, tmp_path: Path) -> None:
    port = Port(tmp_path / "port.sock")
    line = b"x" * 99 + b"\n"
    for _ in range(10_000):
        port.say(line)
    assert port.dropped > 9_000
    taken, _ = guest.accept()
    taken.settimeout(1.0)
    read = b""
    with taken, guest:
        while len(read) < BUFFER_BYTES:
            read += taken.recv(65_536)
            port.say(line)
    assert all(one in {b"", b"x" * 99} for one in read.split(b"\n")[:-1]), "lines are whole"
    port.close()


def test_a_port_that_nobody_serves_costs_nothing_and_is_found_again(tmp_path: Path) -> None:
    port = Port(tmp_path / "port.sock")
    port.say(b"lost\n")
    assert (port.dropped, port.hear()) == (1, b"")
    port.close()


def test_a_meter_counts_between_answers_and_starts_anew_with_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(Port):
        def __init__(self) -> None:
            super().__init__(Path("/nowhere"))
            self.next = b""

        def say(self, line: bytes) -> None:
            assert line == b"?\n"

        def hear(self) -> bytes:
            return self.next

    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    port = Answers()
    meter = GuestMeter(port, cores=2)
    for answer, share in ((b"5000000\n", 0.0), (b"6000000\n", 0.5), (b"", 0.5), (b"1000\n", 0.0), (b"10001000\n", 1.0)):
        now_s[0] += 1.0
        port.next = answer
        assert meter.measure() == pytest.approx(share)


def test_the_guests_shell_answers_what_it_is_asked_and_only_that(tmp_path: Path) -> None:
    def ask(**request: object) -> dict[str, object]:
        return shell.answer(json.dumps({"id": 7, **request}).encode())

    assert ask(sh="echo out; exit 3") == {"id": 7, "rc": 3, "out": "out\n", "err": ""}
    assert "too long" in str(ask(sh="sleep 20 & sleep 20", timeout_s=0.2)["err"])
    there = tmp_path / "file"
    for append, data in ((False, b"one"), (True, b"two")):
        assert ask(put=str(there), data=base64.b64encode(data).decode(), append=append)["rc"] == 0
    assert base64.b64decode(str(ask(get=str(there))["out"])) == b"onetwo"
    assert ask(get=str(tmp_path / "none"))["rc"] == -1
    assert ask(unix=str(tmp_path / "none"), line="x")["rc"] == -1
    for wrong in (b"", b"[]", b"{}", b'{"id": 1}', b'{"id": 1, "sh": ":", "get": "/"}', b"\xff"):
        assert shell.answer(wrong)["rc"] == -1


def test_sensors_are_written_in_their_tree_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "ROOT", tmp_path / "sysfs")
    sensors.write("a/b/temp", "45000")
    sensors.write("../outside", "1")
    sensors.write(str(tmp_path / "absolute"), "1")
    assert (tmp_path / "sysfs/a/b/temp").read_text() == "45000"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["temp"]


def test_the_workers_time_never_goes_back_though_their_groups_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "SLICE", tmp_path)
    usage = sensors.Usage()
    one, two = tmp_path / "driveway-worker@1", tmp_path / "driveway-worker@2"
    for group in (one, two):
        group.mkdir()
    (one / "cpu.stat").write_text("usage_usec 100\nuser_usec 1\n")
    assert usage.total_us() == 100
    (one / "cpu.stat").unlink()
    (two / "cpu.stat").write_text("usage_usec 30\n")
    assert usage.total_us() == 130
    (two / "cpu.stat").write_text("usage_usec 50\n")
    assert usage.total_us() == 150


def test_the_vehicles_configuration_is_one_that_the_agent_takes(tmp_path: Path) -> None:
    text = CONFIG.format(
        control="/run/driveway/control.sock",
        unit=UNIT,
        buses="".join(BUS.format(name=name, interface=interface) for name, interface in BUSES.items()),
        address=FLEET_ADDRESS,
        broker_port=8883,
        door_port=8443,
        enrol_code="code",
        policy="".join(f"{key} = {_toml(value)}\n" for key, value in POLICY.items()),
    )
    (tmp_path / "agent.toml").write_text(text)
    config = load(tmp_path / "agent.toml")
    assert config.policy.parked_for_s == 3
    assert config.policy.vacate_budget_ms == 60, "what bounds a vacate is a vehicle's own"
    assert [bus.channel for bus in config.vehicle.bus] == ["vcan0", "vcan1", "vcan2"]
    assert b"opendbc:" not in next(iter(_profile().values()))


def test_every_unit_of_the_guest_starts_a_program_that_is_there() -> None:
    for unit in (GUEST / "units").iterdir():
        command = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
        program = command.removeprefix("ExecStart=")
        if program.startswith("/usr/local/lib/hil/"):
            assert (GUEST / Path(program).name).stat().st_mode & 0o111, program
