"""Vehicles that have been prepared once: booted, or with a package installed; a test goes on from there in a second.

Each lies in `build/vm/<state>-<digest>` with its snapshot in the disk's overlay. The digest is of the image, of QEMU
and the machine's devices (a snapshot fits one build of it), and of the package. A test works on a copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.errors import DrivewayError
from hil.vm.image import BUILDS, Image
from hil.vm.machine import Machine, Options, devices_digest
from hil.vm.vehicle import install

BOOTED, INSTALLED = "booted", "installed"
READY_S = 120.0
KEPT = 2
"""Prepared vehicles of a kind that are left when another is made: each is most of a gigabyte."""


def booted(image: Image) -> Path:
    """A vehicle that is up, with nothing of ours in it; its snapshot is `booted`."""

    def prepare(machine: Machine) -> None:
        machine.start()
        deadline_s = time.monotonic() + READY_S
        while "HIL-READY" not in machine.serial_log():
            if time.monotonic() > deadline_s:
                raise DrivewayError(f"the vehicle is not ready {READY_S:.0f} s after its shell: {machine.serial_log()}")
            time.sleep(0.2)

    return _prepared(image, BOOTED, "", prepare)


def installed(image: Image, package: Path) -> Path:
    """The same with this .deb installed and nothing configured; its snapshot is `installed`."""
    before = booted(image)

    def prepare(machine: Machine) -> None:
        _copy(before, machine.folder)
        machine.start(BOOTED)
        install(machine.shell, package)

    return _prepared(image, INSTALLED, hashlib.sha256(package.read_bytes()).hexdigest(), prepare)


def take(prepared: Path, folder: Path) -> Path:
    """A copy to work on, in `folder` (made when missing); `folder`."""
    _copy(prepared, folder)
    return folder


def _prepared(image: Image, state: str, more: str, prepare: Callable[[Machine], None]) -> Path:
    digest = hashlib.sha256(f"{image.digest} {devices_digest()} {more}".encode()).hexdigest()[:16]
    home = BUILDS / f"{state}-{digest}"
    with (BUILDS / f".{state}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if home.exists():
            home.touch()
            return home
        with tempfile.TemporaryDirectory(dir=BUILDS, prefix=f".{state}-") as scratch:
            folder = Path(scratch) / "vehicle"
            folder.mkdir()
            with Machine(image, folder, Options()) as machine:
                prepare(machine)
                machine.save(state)
            folder.rename(home)
        others = sorted(BUILDS.glob(f"{state}-*"), key=lambda path: path.stat().st_mtime)
        for old in others[:-KEPT]:
            shutil.rmtree(old)
    return home


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    command = ["cp", "-a", "--reflink=auto", "--sparse=always", f"{source}/.", str(target)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise DrivewayError(f"a prepared vehicle cannot be copied: {done.stderr.decode('utf-8', 'replace').strip()}")
