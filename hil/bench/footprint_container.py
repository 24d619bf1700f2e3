"""The footprint of the installed package under systemd, in a container: its units, its sandbox, its own Python.

The newest package of `dist/` is installed into the tree that the VM boots (`hil.vm.rootfs`, `hil.vm.nspawn`), given a
configuration whose buses and broker are silent, and watched: a car asleep. What systemd accounts for by control group
is told beside what /proc says, where this machine has control groups of the second kind; else it is null. How long the
unit takes to start is by systemd's own clock.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from agent.trust.keys import FileSigner
from hil.bench.footprint_starts import PACKAGES
from hil.car.sysfs import SensorTree
from hil.vm import nspawn, rootfs
from hil.vm.footprint import Footprint, watch
from hil.vm.nspawn import Container

SERVICE = "driveway.service"
STARTED = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
SETTLE_S, START_S = 10.0, 90.0
CONFIG = """\
state_dir = "/var/lib/driveway"
control_socket = "/run/driveway/control.sock"
[unit]
id = "unit-1"
[vehicle]
profiles = ["tesla-model3", "driveway-energy"]
{buses}
[computer]
sysfs_root = "/var/lib/rig/sysfs"
[fleet]
brokers = ["127.0.0.1:1"]
dispatcher_key = "/etc/driveway/key.pem"
[inference]
packages_dir = "/var/lib/driveway/packages"
publisher_key = "/etc/driveway/key.pem"
worker_socket = "/run/driveway/worker.sock"
"""
BUS = '[[vehicle.bus]]\nname = "{name}"\ninterface = "unixgram"\nchannel = "/run/driveway/{name}.sock"\n'


class Contained(msgspec.Struct, frozen=True, kw_only=True):
    """The unit, asleep; `update_resident`: whether the update program lies in memory when there is nothing to do."""

    package: str
    start_to_ready_s: float
    daemon: Footprint
    update_resident: bool


def contained(seconds: float) -> tuple[Contained | None, str | None]:
    """(the figures, or why there are none). Raises DrivewayError where the unit does not start."""
    package = max(PACKAGES.glob("driveway_*.deb"), key=lambda path: path.stat().st_mtime, default=None)
    if package is None:
        return None, "there is no package: make package"
    if why := nspawn.why_not() or rootfs.why_not():
        return None, why
    with (
        tempfile.TemporaryDirectory(prefix="driveway-container-") as folder,
        Container(rootfs.build_rootfs(), Path(folder)) as container,
    ):
        return _watched(container, package, seconds), None


def _watched(container: Container, package: Path, seconds: float) -> Contained:
    inside = container.root / "root" / package.name
    inside.write_bytes(package.read_bytes())
    container.check("dpkg", "-i", f"/root/{package.name}")
    _configure(container)
    container.check("systemctl", "start", SERVICE, timeout_s=START_S)
    said = container.show(SERVICE, *STARTED)
    began_us, ready_us = (int(said[name]) for name in STARTED)
    time.sleep(SETTLE_S)
    daemon = watch(lambda command: container.check("sh", "-c", command), seconds)
    # The unit may be of a package that has no update program.
    update = container.run("systemctl", "is-active", "driveway-update.service").stdout.strip()
    if ready_us <= began_us:
        raise DrivewayError(f"{SERVICE} did not become ready: {said}")
    return Contained(
        package=package.name,
        start_to_ready_s=round((ready_us - began_us) / 1e6, 2),
        daemon=daemon,
        update_resident=update == "active",
    )


def _configure(container: Container) -> None:
    """What whoever provisions a vehicle writes."""
    folder = container.root / "etc/driveway"
    SensorTree(container.root / "var/lib/rig/sysfs").write(50.0, 45.0, 20.0)
    buses = "".join(BUS.format(name=name) for name in ("party", "vehicle", "energy"))
    (folder / "agent.toml").write_text(CONFIG.format(buses=buses), "utf-8")
    key = FileSigner.open_or_create(container.root / "var/lib/rig/key").public_key_pem()
    (folder / "key.pem").write_text(key, "ascii")
    container.check("chgrp", "-R", "driveway", "/etc/driveway")
