"""The wheels of a vehicle: its lock file, what pip fetches by it, and our own.

Every wheel is taken by its hash in `.ci/requirements-vehicle.txt`, when it is fetched and again when it is unpacked.
They are kept in `build/package/wheels-<digest>`, so a second build needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from systemd.package.target import BuildError, Target

LOCK = Path(".ci/requirements-vehicle.txt")
WORKER_LOCK = Path(".ci/requirements-worker.txt")
"""For workers that run on another Python than the daemon."""
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?:\s*;\s*(?P<marker>[^\\]+?))?\s*\\?$")
GLIBC = re.compile(r"manylinux_2_(\d+)_")
LEGACY_GLIBC = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}


@dataclass(frozen=True)
class Pin:
    """One line of a lock file; without a hash it is none."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def read_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock file; raises BuildError for a line that is no pin, and for a pin without hashes."""
    pins: list[Pin] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip().startswith("--hash=") and pins:
            digest = line.strip().rstrip(" \\").removeprefix("--hash=")
            pins[-1] = Pin(pins[-1].name, pins[-1].version, pins[-1].marker, (*pins[-1].hashes, digest))
        elif (found := PIN.match(line)) is not None:
            pins.append(Pin(found["name"], found["version"], found["marker"] or "", ()))
        elif line.strip() and not line.startswith("#"):
            raise BuildError(f"line {number} of the lock file is no pin: {line!r}")
    for pin in pins:
        if not pin.hashes or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in pin.hashes):
            raise BuildError(f"{pin.name} has no SHA-256 in the lock file; run `make lock`")
    return tuple(pins)


def fetch(target: Target, lock: Path, python: str, cache: Path) -> Path:
    """The folder with every wheel of a lock for this target. Raises BuildError with what pip said."""
    digest = hashlib.sha256(lock.read_bytes() + f"{target} {python}".encode()).hexdigest()[:16]
    folder = cache / f"wheels-{target.arch}-{digest}"
    if folder.is_dir():
        return folder
    read_lock(lock.read_text("utf-8"))
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    pip("download", "--require-hashes", "-r", str(lock), "-d", str(part), *_for(target, python))
    if not folder.is_dir():
        part.rename(folder)
    return folder


def install(target: Target, lock: Path, python: str, wheels: Path, site: Path) -> None:
    """Unpack a lock's wheels into `site`. Their console scripts are left out: the launcher is ours."""
    options = ("--no-index", "--require-hashes", "--find-links", str(wheels), "-r", str(lock))
    pip("install", *options, *_into(site), *_for(target, python))
    shutil.rmtree(site / "bin", ignore_errors=True)


def install_own(target: Target, own: Path, site: Path) -> None:
    """Unpack our own wheel beside them."""
    name = own.name.split("-")
    options = ("--no-index", "--find-links", str(own.parent), f"{name[0]}=={name[1]}")
    pip("install", *options, *_into(site), *_for(target, target.python))
    shutil.rmtree(site / "bin", ignore_errors=True)


def build_own(out: Path) -> Path:
    """Our own wheel, agent and kernels; SOURCE_DATE_EPOCH decides every time in it."""
    out.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    made = list(out.glob("*.whl"))
    if done.returncode or len(made) != 1:
        raise BuildError(f"our own wheel was not built: {done.stderr.strip()[-400:]}")
    return made[0]


def glibc_minor(wheels: Sequence[Path]) -> int:
    """The newest C library, 2.x, that one of the wheels asks for. Each asks for the oldest that it names."""
    needs = [5]
    for wheel in wheels:
        named = [int(minor) for minor in GLIBC.findall(wheel.name)]
        named += [minor for legacy, minor in LEGACY_GLIBC.items() if f"{legacy}_" in wheel.name]
        needs += [min(named)] if named else []
    return max(needs)


def pip(*arguments: str) -> None:
    """Run pip as it is configured here; raises BuildError with its last words."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    command, *rest = arguments
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *quiet, *rest],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"pip {command} failed: {done.stderr.strip()[-800:]}")


def _into(site: Path) -> tuple[str, ...]:
    return ("--no-compile", "--no-warn-script-location", "--target", str(site))


def _for(target: Target, python: str) -> list[str]:
    platforms = [option for tag in target.platforms for option in ("--platform", tag)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
