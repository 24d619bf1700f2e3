"""Vehicles in a VM for tests: made once, copied for each. What is missing on this machine skips them, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hil.acl.guarded import GuardedMosquitto
from hil.vm.image import Image, build_image
from hil.vm.machine import PROGRAMS
from hil.vm.rootfs import build_rootfs
from tests.tools import lacking

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these need minutes and root: `make test-vm`, not `make test`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def image() -> Image:
    """The vehicle's image, built when it is not there yet."""
    if os.getuid():
        lacking("a vehicle's image is built by root only")
    if missing := [name for name in (*PROGRAMS, "mmdebstrap", "mke2fs") if shutil.which(name) is None]:
        lacking(f"not installed: {', '.join(missing)}")
    return build_image(build_rootfs())


@pytest.fixture(scope="session")
def package(request: pytest.FixtureRequest) -> Path:
    """The .deb that $DRIVEWAY_DEB names, or this very tree's."""
    if GuardedMosquitto.binary() is None or GuardedMosquitto.plugin() is None:
        lacking("mosquitto is not installed")
    return Path(given) if (given := os.environ.get("DRIVEWAY_DEB")) else request.getfixturevalue("built")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb of this very tree, made now: quickly, and so larger than the one of `make package`."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "systemd.package", "--no-bundle", "--compression", "gzip-1", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    (package,) = out.glob("*.deb")
    return package
