"""A vehicle in a container with the package installed and configured; its buses are sockets that nobody writes to."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent.trust.keys import FileSigner
from hil.car.sysfs import SensorTree
from hil.vm.nspawn import Container
from systemd.package.tree import sums

SERVICE, SOCKET = "driveway.service", "driveway-worker.socket"
CONFIG = """\
state_dir = "/var/lib/driveway"
control_socket = "/run/driveway/control.sock"
[unit]
id = "unit-1"
[vehicle]
profiles = ["tesla-model3", "driveway-energy"]
[[vehicle.bus]]
name = "party"
interface = "unixgram"
channel = "/run/driveway/party.sock"
[[vehicle.bus]]
name = "vehicle"
interface = "unixgram"
channel = "/run/driveway/vehicle.sock"
[[vehicle.bus]]
name = "energy"
interface = "unixgram"
channel = "/run/driveway/energy.sock"
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


def configure(container: Container) -> None:
    """Write what whoever provisions a vehicle writes."""
    folder = container.root / "etc/driveway"
    SensorTree(container.root / "var/lib/rig/sysfs").write(50.0, 45.0, 20.0)
    (folder / "agent.toml").write_text(CONFIG)
    (folder / "key.pem").write_text(FileSigner.open_or_create(container.root / "var/lib/rig/key").public_key_pem())
    container.check("chgrp", "-R", "driveway", "/etc/driveway")


def deb_in(container: Container, package: Path) -> str:
    """Where a package lies in the container; copied there."""
    there = container.root / "var/tmp" / package.name
    there.write_bytes(package.read_bytes())
    return f"/var/tmp/{package.name}"


def next_version(package: Path, folder: Path, version: str) -> Path:
    """The same package under another version: what an upgrade is tried with."""
    root = folder / "root"
    subprocess.run(["dpkg-deb", "-R", str(package), str(root)], check=True)
    home = root / "usr/lib/driveway"
    (old,) = (path.name for path in home.iterdir())
    (home / old).rename(home / version)
    tree = home / version
    for path in (tree / "bin/driveway", *tree.glob("worker/lib/*/site-packages/driveway.pth")):
        path.write_text(path.read_text().replace(f"/opt/driveway/{old}", f"/opt/driveway/{version}"))
    (tree / "SHA256SUMS").write_text(sums(tree))
    for path in (root / "DEBIAN/control", root / "DEBIAN/postinst"):
        path.write_text(path.read_text().replace(old, version))
    made = folder / f"driveway_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(made)], check=True)
    return made
