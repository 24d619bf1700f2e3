"""What the worker's systemd unit leaves to it, as `systemd-analyze security` judges it, and its list of devices."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from agent.worker.sandbox.places import devices

UNITS = Path(__file__).parents[1] / "systemd"
WORKER = UNITS / "driveway-worker@.service"
MOST_EXPOSED = 1.5
"""systemd's own scale reaches from 0 to 10; a unit without options has 9.6."""
DISPLAYS = ("dri/card*", "nvidia-modeset", "fb*", "nvidia-drm*")


def exposure(folder: Path) -> float:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = folder / WORKER.name
    said = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True, check=False
    )
    if "exposure level" not in said.stdout:
        pytest.skip(f"systemd-analyze cannot look at a unit offline here: {said.stderr.strip()[:200]}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said.stdout)
    assert found is not None
    return float(found.group(1))


def test_the_workers_unit_leaves_it_little() -> None:
    assert exposure(UNITS) <= MOST_EXPOSED


def test_the_measure_can_fail(tmp_path: Path) -> None:
    bare = re.sub(
        r"(?m)^(Private|Protect|Restrict|Capability|SystemCall|IPAddress|Device|NoNew)\w*=.*\n", "", WORKER.read_text()
    )
    (tmp_path / WORKER.name).write_text(bare)
    assert exposure(tmp_path) > MOST_EXPOSED


@pytest.mark.parametrize("drop_in", sorted(UNITS.glob("driveway-worker@.service.d/*.conf")), ids=lambda path: path.stem)
def test_a_device_list_names_what_the_cage_would_grant_and_no_display(drop_in: Path, tmp_path: Path) -> None:
    named = re.findall(r"(?m)^DeviceAllow=/dev/(\S+) rw$", drop_in.read_text())
    assert named
    for name in named:
        node = tmp_path / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        assert not any(fnmatch(name, display) for display in DISPLAYS)
    granted = set(devices(tmp_path))
    for name in named:
        assert any(node in granted for node in (tmp_path / name, *(tmp_path / name).parents)), f"{name} is not granted"


def test_nothing_of_the_units_reaches_the_daemons_secrets() -> None:
    text = WORKER.read_text()
    assert "TemporaryFileSystem=/var/lib/driveway" in text
    assert "PrivateNetwork=yes" in text
    assert "LoadCredential" not in text
