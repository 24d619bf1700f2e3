"""What the units leave to what they start, as `systemd-analyze security` judges it; that systemd understands them."""

from __future__ import annotations

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from agent.config import load
from agent.worker.sandbox.places import devices

UNITS = Path(__file__).parents[1] / "systemd"
KINDS = {".service", ".socket", ".slice", ".path", ".timer"}
WORKER = UNITS / "driveway-worker@.service"
MOST_EXPOSED = {
    "driveway.service": 2.0,
    "driveway-worker@.service": 1.5,
    "driveway-update.service": 2.0,
    "driveway-update-boot.service": 1.2,
}
"""systemd's own scale reaches from 0 to 10; a unit without options has 9.6. The daemon has a network, a worker none.
The update program is root, and becomes the daemon's user for its doctor."""
STABLE = UNITS / "stable.txt"
INTERFACES = (
    "Exec|Type=|NotifyAccess=|WatchdogSec=|LoadCredential|User=|Group=|SupplementaryGroups=|StateDirectory|RuntimeDir"
    "|Listen|Accept=|Socket|FileDescriptorName=|ConditionPath|ReadWritePaths=|BindReadOnlyPaths=|TemporaryFileSystem="
)
"""What a version has to know of its units, or its units of it."""
SANDBOX = r"(?m)^(Private|Protect|Restrict|Capability|SystemCall|IPAddress|Device|NoNew)\w*=.*\n"
DISPLAYS = ("dri/card*", "nvidia-modeset", "fb*", "nvidia-drm*")


def exposure(unit: Path) -> float:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    said = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True, check=False
    )
    if "exposure level" not in said.stdout:
        pytest.skip(f"systemd-analyze cannot look at a unit offline here: {said.stderr.strip()[:200]}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", said.stdout)
    assert found is not None
    return float(found.group(1))


def complaints(root: Path, folder: Path = UNITS) -> str:
    """What systemd says of the units as they lie on a vehicle, whose tree `root` becomes."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    units = root / "usr/lib/systemd/system"
    shutil.copytree(folder, units, ignore=shutil.ignore_patterns("package", "__pycache__", "*.py", "*.toml"))
    (root / "lib").symlink_to("usr/lib")
    for program in ("current/bin/driveway", "current/bin/python", "current/worker/bin/python", "good/bin/python"):
        path = root / "opt/driveway" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for target in ("sysinit", "basic", "shutdown", "multi-user", "sockets", "timers", "network"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=Debian's own\n")
    names = [path.name.replace("@.", "@1.") for path in units.glob("driveway*") if path.suffix in KINDS]
    said = subprocess.run(
        [analyze, "verify", "--man=no", f"--root={root}", *names], capture_output=True, text=True, check=False
    )
    return said.stderr


def test_every_service_leaves_little() -> None:
    services = {path.name: path for path in UNITS.glob("*.service")}
    assert set(services) == set(MOST_EXPOSED)
    for name, path in services.items():
        assert exposure(path) <= MOST_EXPOSED[name], name


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_the_measure_can_fail(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(re.sub(SANDBOX, "", (UNITS / name).read_text()))
    assert exposure(tmp_path / name) > MOST_EXPOSED[name]


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    assert complaints(tmp_path) == ""


def test_a_misspelt_option_would_be_found(tmp_path: Path) -> None:
    shutil.copytree(UNITS, tmp_path / "units", ignore=shutil.ignore_patterns("package", "__pycache__"))
    unit = tmp_path / "units/driveway.service"
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    assert "WatchdogSecs" in complaints(tmp_path / "root", tmp_path / "units")


def interfaces(folder: Path = UNITS) -> list[str]:
    """What the units and a version have to agree on, in the form of `stable.txt`."""
    wanted = re.compile(INTERFACES)
    return [
        f"{path.name}: {line}"
        for path in sorted(folder.iterdir())
        if path.suffix in KINDS
        for line in path.read_text("utf-8").splitlines()
        if wanted.match(line)
    ]


def test_the_units_fit_the_version_before() -> None:
    """They are replaced while that version runs on, and they stay when an update goes back."""
    listed = [line for line in STABLE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert interfaces() == listed, f"read {STABLE} before you change it"


@pytest.mark.parametrize(
    ("unit", "was", "becomes"),
    [
        ("driveway.service", "driveway run --config", "driveway daemon --config"),
        ("driveway.service", "Type=notify", "Type=exec"),
        ("driveway.service", "tls.key:driveway.tls.key", "key:driveway.tls.key"),
        ("driveway-worker@.service", "--fd 3", "--descriptor 3"),
        ("driveway-update.service", "agent.update run", "agent.update go"),
    ],
)
def test_a_unit_that_does_not_fit_the_version_before_is_found(
    tmp_path: Path, unit: str, was: str, becomes: str
) -> None:
    shutil.copytree(UNITS, tmp_path / "units", ignore=shutil.ignore_patterns("package", "__pycache__"))
    text = (tmp_path / "units" / unit).read_text("utf-8")
    assert was in text
    (tmp_path / "units" / unit).write_text(text.replace(was, becomes))
    assert interfaces(tmp_path / "units") != interfaces()


def test_the_update_program_starts_with_the_daemon_ordered_around_it() -> None:
    boot, life = ((UNITS / f"driveway-update{name}.service").read_text("utf-8") for name in ("-boot", ""))
    assert "\nBefore=driveway.service\n" in boot
    assert "\nAfter=driveway-update-boot.service driveway.service\n" in life
    for text in (boot, life):
        assert "ExecStart=/opt/driveway/good/bin/python -I -B -m agent.update " in text


def test_the_daemon_gets_no_accelerator_and_the_workers_socket_is_the_daemons_alone() -> None:
    daemon, socket = (UNITS / "driveway.service").read_text(), (UNITS / "driveway-worker.socket").read_text()
    assert re.findall(r"(?m)^DeviceAllow=(.*)$", daemon) == ["/dev/tpmrm0 rw"]
    assert "PrivateDevices" not in daemon
    assert {"SocketMode=0600", "SocketUser=driveway", "Accept=yes"} <= set(socket.splitlines())


def test_the_example_configuration_is_taken(tmp_path: Path) -> None:
    example = (UNITS / "agent.example.toml").read_text()
    (tmp_path / "agent.toml").write_text(example)
    config = load(tmp_path / "agent.toml")
    assert config.inference.worker_socket == "/run/driveway/worker.sock"
    assert config.inference.require_confinement


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


@pytest.mark.parametrize("unit", ["driveway.service", WORKER.name])
def test_what_holds_customers_data_is_neither_dumped_nor_swapped(unit: str) -> None:
    lines = (UNITS / unit).read_text("utf-8").splitlines()
    assert {"LimitCORE=0", "MemorySwapMax=0"} <= set(lines)
    drop_ins = (path.read_text("utf-8") for path in (UNITS / f"{unit}.d").glob("*.conf"))
    assert not any(one in text for text in drop_ins for one in ("LimitCORE", "MemorySwapMax")), "none loosens it"
