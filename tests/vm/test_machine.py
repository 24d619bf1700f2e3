"""The machine by itself: it boots, its ports and devices work, snapshots hold, and power goes when it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import DrivewayError
from hil.vm import snapshots
from hil.vm.image import Image
from hil.vm.machine import Machine, Options


@pytest.fixture(scope="module")
def machine(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One that was booted before; tests leave it running."""
    folder = snapshots.take(snapshots.booted(image), tmp_path_factory.mktemp("vehicle"))
    with Machine(image, folder) as machine:
        machine.start(snapshots.BOOTED)
        yield machine


def test_everything_of_a_vehicle_is_up_and_nothing_failed(machine: Machine) -> None:
    assert machine.shell.check("systemctl is-system-running --wait").strip() == "running"
    assert "HIL-READY" in machine.shell.check("journalctl -b -u hil-ready -o cat; echo HIL-READY")
    links = machine.shell.check("ip -br link show up type vcan")
    assert [line.split()[0] for line in links.splitlines()] == ["vcan0", "vcan1", "vcan2"]
    assert machine.shell.check("ls /dev/tpmrm0 /dev/watchdog0").split() == ["/dev/tpmrm0", "/dev/watchdog0"]


def test_a_command_says_what_came_of_it_and_is_ended_when_it_takes_too_long(machine: Machine) -> None:
    done = machine.shell.run("echo out; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")
    assert "it took too long" in machine.shell.run("sleep 60 & sleep 60", timeout_s=0.5).err
    with pytest.raises(DrivewayError, match="'false' failed with status 1"):
        machine.shell.check("false")


def test_files_go_in_and_come_out_as_they_are(machine: Machine) -> None:
    content = bytes(range(256)) * 1024 * 3
    machine.shell.put(content, "/run/there", mode=0o600)
    assert machine.shell.get("/run/there") == content
    machine.shell.put(b"less", "/run/there")
    assert machine.shell.check("cat /run/there; stat -c %a /run/there") == "less600\n"


def test_a_snapshot_brings_back_memory_and_disk_and_another_random_state(machine: Machine) -> None:
    machine.shell.check("echo before >/run/memory; echo before >/root/disk; sync")
    machine.save("here")
    machine.shell.check("echo after >/run/memory; echo after >/root/disk; sync")
    seen = set()
    for _ in range(2):
        machine.power_cut()
        machine.start("here")
        assert machine.shell.check("cat /run/memory /root/disk") == "before\nbefore\n"
        seen.add(machine.shell.check("head -c 16 /dev/urandom | base64"))
    assert len(seen) == 2, "two vehicles from one snapshot must not make the same keys"


def test_the_network_reaches_what_is_forwarded_and_nothing_else(machine: Machine) -> None:
    said = machine.shell.run("timeout 5 python3 -c 'import socket; socket.create_connection((\"10.0.2.2\", 22), 3)'")
    assert said.status != 0
    assert any(word in said.err for word in ("refused", "unreachable", "timed out")), said.err


def test_a_pulled_cable_leaves_the_shell(machine: Machine) -> None:
    carrier = "cat /sys/class/net/enp0s3/carrier"
    machine.set_link(up=False)
    assert machine.shell.check(carrier).strip() == "0"
    machine.set_link(up=True)
    assert machine.shell.check(carrier).strip() == "1"


def test_two_can_controllers_hear_each_other(machine: Machine) -> None:
    machine.shell.check("for bus in can0 can1; do ip link set $bus type can bitrate 500000; ip link set $bus up; done")
    said = machine.shell.check("(sleep 1; cansend can0 123#C0FFEE) & timeout 10 candump -n 1 can1")
    assert "C0 FF EE" in said


def test_a_sensor_on_the_i2c_bus_is_a_sensor_of_the_kernel(machine: Machine) -> None:
    machine.shell.check(
        "modprobe i2c-stub chip_addr=0x48 && modprobe lm75 && bus=$(i2cdetect -l | awk '/stub/{print $1}') "
        "&& echo lm75 0x48 >/sys/bus/i2c/devices/$bus/new_device && i2cset -f -y ${bus#i2c-} 0x48 0 0x0055 w"
    )
    assert machine.shell.check("cat /sys/bus/i2c/devices/*-0048/hwmon/hwmon*/temp1_input").strip() == "85000"


def test_a_suspend_stops_the_monotonic_clock_and_not_the_boot_clock(machine: Machine) -> None:
    clocks = "python3 -c 'import time; print(time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))'"
    monotonic_s, boot_s = map(float, machine.shell.check(clocks).split())
    machine.suspend()
    with pytest.raises(DrivewayError, match="did not answer"):
        machine.shell._ask({"sh": ":", "timeout_s": 1}, 3.0)
    machine.wake()
    later_monotonic_s, later_boot_s = map(float, machine.shell.check(clocks).split())
    assert (later_boot_s - boot_s) - (later_monotonic_s - monotonic_s) > 2.0, "it slept for three seconds at least"


def test_a_power_cut_loses_what_was_not_synced_and_nothing_else(image: Image, tmp_path: Path) -> None:
    with Machine(image, snapshots.take(snapshots.booted(image), tmp_path / "vehicle")) as machine:
        machine.start(snapshots.BOOTED)
        machine.shell.check("echo kept >/root/kept; sync; echo lost >/root/lost")
        machine.power_cut()
        assert not machine.is_on
        machine.start()
        assert machine.shell.check("cat /root/kept; cat /root/lost 2>/dev/null; true").split() in (
            ["kept"],
            ["kept", ""],
        )
        assert machine.shell.check("cat /proc/sys/kernel/random/boot_id")
        machine.power_down()
        assert not machine.is_on


def test_a_hung_kernel_is_reset_by_the_hardware_watchdog(image: Image, tmp_path: Path) -> None:
    with Machine(image, snapshots.take(snapshots.booted(image), tmp_path / "vehicle")) as machine:
        machine.start(snapshots.BOOTED)
        boot_id = machine.shell.check("cat /proc/sys/kernel/random/boot_id")
        machine.shell.check(
            "name=$(grep -l i6300 /sys/class/watchdog/*/identity | head -1 | cut -d/ -f5); "
            'systemd-run --collect python3 -c "import fcntl, os, struct, time; '
            "fd = os.open('/dev/'+'$name', os.O_WRONLY); "
            "fcntl.ioctl(fd, 0xC0045706, struct.pack('i', 3)); time.sleep(600)\""
        )
        machine.qmp.wait_for("WATCHDOG", 60.0)
        machine.shell.wait_until_it_answers(240.0)
        assert machine.shell.check("cat /proc/sys/kernel/random/boot_id") != boot_id


def test_time_leaps_over_idle_minutes_in_a_time_warp(image: Image, tmp_path: Path) -> None:
    with Machine(image, tmp_path / "vehicle", Options(time_warp=True)) as machine:
        machine.start()
        before_s = float(machine.shell.check("cut -d' ' -f1 /proc/uptime"))
        machine.shell.check("sleep 600", timeout_s=1200)
        assert float(machine.shell.check("cut -d' ' -f1 /proc/uptime")) - before_s >= 600
