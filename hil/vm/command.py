"""`driveway-hil vm`: prepare a vehicle, keep one up, talk to it, and measure it."""

from __future__ import annotations

import argparse
import contextlib
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent import __version__
from agent.errors import ConfigError, DrivewayError
from hil.output import check_writable
from hil.vm import snapshots
from hil.vm.car import CarProcess
from hil.vm.fleet import HostFleet, until
from hil.vm.footprint import Footprint, footprint
from hil.vm.image import Image, build_image
from hil.vm.machine import Machine, Options
from hil.vm.rootfs import build_rootfs
from hil.vm.shell import GuestShell
from hil.vm.vehicle import SLOWER, Vehicle, newest_package

SOCKET = "shell.path"
"""In the folder of `up`: where the vehicle's shell is."""
LEASE_S, GATE_S, OBSERVED_S = 240.0, 120.0, 60.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What `measure` found. Times in the guest are of an emulated processor; the vacates' are by its kernel's clock."""

    versions: dict[str, str]
    slower: dict[str, str]
    package_bytes: int
    restore_s: float
    configure_s: float
    start_to_ready_s: float
    lease_s: float
    vacate_ms: tuple[float, ...]
    vacate_median_ms: float
    idle: Footprint


def vm(options: argparse.Namespace) -> int:
    """Run one of the verbs; the process's exit code. Raises DrivewayError."""
    match options.what:
        case "build":
            image = build_image(build_rootfs())
            print(f"image {image.digest}, booted: {snapshots.booted(image)}")
            if (package := newest_package()) is not None:
                print(f"{package.name} installed: {snapshots.installed(image, package)}")
        case "up":
            _up(options.dir)
        case "shell":
            return _shell(options.dir, " ".join(options.command) or "driveway status --config /etc/driveway/agent.toml")
        case _:
            check_writable(options.json)
            figures = measure(options.rounds)
            text = msgspec.json.format(msgspec.json.encode(figures))
            print(text.decode())
            if options.json is not None:
                options.json.write_bytes(text + b"\n")
    return 0


@contextmanager
def _vehicle(folder: Path) -> Iterator[tuple[Vehicle, Image, Path]]:
    """A vehicle that was installed, restored in this folder; nothing is configured, and the agent does not run."""
    package = newest_package()
    if package is None:
        raise ConfigError("there is no package to install", hint="make package")
    image = build_image(build_rootfs())
    base = snapshots.take(snapshots.installed(image, package), folder / "vehicle")
    with HostFleet(folder / "fleet") as fleet, Machine(image, base, Options(forwards=fleet.forwards)) as machine:
        yield Vehicle(machine, fleet), image, package


def _up(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with _vehicle(folder) as (vehicle, _, _):
        vehicle.machine.start(snapshots.INSTALLED)
        (folder / SOCKET).write_text(str(vehicle.machine.port("shell")), "utf-8")
        vehicle.set_clock()
        vehicle.configure()
        with CarProcess(folder / "car", vehicle.machine.sockets):
            vehicle.start()
            print(f"up; Ctrl-C ends it. The car: {folder}/car/control.sock. The vehicle:")
            print(f"    driveway-hil vm shell --dir {folder} 'COMMAND'")
            with contextlib.suppress(KeyboardInterrupt):
                while vehicle.machine.is_on:
                    time.sleep(1.0)


def _shell(folder: Path, command: str) -> int:
    try:
        path = Path((folder / SOCKET).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"no vehicle is up in {folder}", hint="driveway-hil vm up") from error
    done = GuestShell(path).run(command, timeout_s=600.0)
    print(done.out, end="")
    if done.err:
        print(done.err, end="")
    return min(abs(done.status), 255)


def measure(rounds: int) -> Figures:
    """One vehicle from its snapshot to its last vacate; raises DrivewayError when it does not come that far."""
    if rounds < 1:
        raise ConfigError(f"{rounds} rounds measure nothing")
    with (
        tempfile.TemporaryDirectory(prefix="driveway-vm-") as scratch,
        _vehicle(Path(scratch)) as (vehicle, image, deb),
    ):
        restore_s = vehicle.machine.start(snapshots.INSTALLED)
        vehicle.set_clock()
        configure_s = _timed(vehicle.configure)
        with CarProcess(Path(scratch) / "car", vehicle.machine.sockets) as car:
            ready_s = _timed(vehicle.start)
            job = vehicle.fleet.order(8)
            lease_s = _timed(lambda: until("a lease is settled", lambda: vehicle.fleet.done(job), LEASE_S))
            idle = footprint(vehicle, OBSERVED_S)
            vacates_ms = tuple(_vacate(vehicle, car) for _ in range(rounds))
        if findings := vehicle.fleet.audit(vehicle.book(Path(scratch))):
            raise DrivewayError(f"the books do not agree: {findings[0]}")
        return Figures(
            versions={
                "driveway": __version__,
                "qemu": vehicle.machine.qemu_version,
                "image": image.digest,
                "host": platform.platform(),
            },
            slower=SLOWER,
            package_bytes=deb.stat().st_size,
            restore_s=restore_s,
            configure_s=configure_s,
            start_to_ready_s=ready_s,
            lease_s=lease_s,
            vacate_ms=vacates_ms,
            vacate_median_ms=statistics.median(vacates_ms),
            idle=idle,
        )


def _vacate(vehicle: Vehicle, car: CarProcess) -> float:
    vehicle.until_status("the gate is open", "gate", "open", GATE_S)
    vehicle.fleet.order(400)
    latency_ms = vehicle.vacate(vehicle.until_computing(LEASE_S), lambda: car.do("driver_returns"))
    car.do("driver_leaves")
    return latency_ms


def _timed(action: Callable[[], object]) -> float:
    began_s = time.monotonic()
    action()
    return time.monotonic() - began_s
