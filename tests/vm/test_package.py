"""The package on a bare system: it installs from nothing but itself, runs in its sandbox, and leaves what it says."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.vm import nspawn, rootfs
from hil.vm.nspawn import Container
from tests.tools import lacking
from tests.vm.installed import SERVICE, SOCKET, configure, deb_in, next_version

READY_S, RESTART_S = 60.0, 60.0
NEXT = "99.0.0"
HOUSEKEEPING = (
    "/var/lib/dpkg/",
    "/var/log/",
    "/var/cache/",
    "/var/tmp/",
    "/var/lib/rig/",
    "/run/",
    "/tmp/",
    "/proc/",
    "/sys/",
    "/dev/",
)
"""What dpkg, the journal and we ourselves write: no trace of a package."""
LISTED = "find / -xdev -not -type d -newermt '2000-01-01' -print 2>/dev/null | sort"
PROBE = """
import ctypes, json, mmap, os, socket, subprocess
def tried(what):
    try:
        what()
    except BaseException as error:
        return type(error).__name__
    return "done"
def write(path):
    return lambda: open(path, "w").close()
def run_own():
    with open("/var/lib/driveway/program", "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod("/var/lib/driveway/program", 0o700)
    subprocess.run(["/var/lib/driveway/program"], check=True)
def no_such_call(*words):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(*words) == -1 and ctypes.get_errno() == 1:
        raise PermissionError
print(json.dumps({
    "state": tried(write("/var/lib/driveway/probe")),
    "run": tried(write("/run/driveway/probe")),
    "etc": tried(write("/etc/driveway/probe")),
    "opt": tried(write("/opt/driveway/current/bin/probe")),
    "usr": tried(write("/usr/probe")),
    "var": tried(write("/var/probe")),
    "shadow": tried(lambda: open("/etc/shadow").close()),
    "root": tried(lambda: os.listdir("/root")),
    "run_own": tried(run_own),
    "run_system": tried(lambda: subprocess.run(["/bin/true"], check=True)),
    "writable_code": tried(lambda: mmap.mmap(-1, 4096, prot=7)),
    "inet": tried(lambda: socket.socket(socket.AF_INET).close()),
    "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
    "setuid": tried(lambda: os.setuid(0)),
    "kill_init": tried(lambda: os.kill(1, 9)),
    "mount": tried(lambda: no_such_call(165, 0, 0, 0, 0, 0)),
    "unshare": tried(lambda: no_such_call(272, 0x10000000)),
    "ptrace": tried(lambda: no_such_call(101, 0, 0, 0, 0)),
    "others": sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()),
    "credential": tried(lambda: open(os.environ["CREDENTIALS_DIRECTORY"] + "/tls.key").read().index("secret")),
}))
"""
ALLOWED = {"state", "run", "run_system", "inet", "credential"}


@pytest.fixture(scope="module")
def tree() -> Path:
    if problem := nspawn.why_not() or (rootfs.why_not() and f"no root file system: {rootfs.why_not()}"):
        lacking(problem)
    return rootfs.build_rootfs()


@pytest.fixture(scope="module")
def bare(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A system on which one test installs, and removes what it installed."""
    with Container(tree, tmp_path_factory.mktemp("bare")) as container:
        yield container


@pytest.fixture(scope="module")
def vehicle(tree: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A system with the agent installed, configured and running."""
    with Container(tree, tmp_path_factory.mktemp("vehicle")) as container:
        container.check("dpkg", "-i", deb_in(container, built))
        configure(container)
        container.check("systemctl", "start", SERVICE, timeout_s=READY_S)
        yield container


def doctor(vehicle: Container) -> dict[str, str]:
    """What each check found."""
    said = json.loads(vehicle.run("driveway", "doctor", "--json").stdout)
    return {check["name"]: check["result"] for check in said["checks"]}


def files(container: Container) -> set[str]:
    listed = container.check("sh", "-c", LISTED).splitlines()
    return {path for path in listed if not path.startswith(HOUSEKEEPING)}


def test_it_comes_from_nothing_but_itself_and_goes_leaving_what_it_says(bare: Container, built: Path) -> None:
    before, accounts = files(bare), bare.check("getent", "passwd")
    bare.check("dpkg", "-i", deb_in(bare, built))
    assert bare.show(SERVICE, "ActiveState", "UnitFileState") == {"ActiveState": "inactive", "UnitFileState": "enabled"}
    assert bare.show(SOCKET, "ActiveState", "UnitFileState") == {"ActiveState": "active", "UnitFileState": "enabled"}
    assert bare.check("dpkg", "--verify", "driveway") == ""
    bare.check("sh", "-c", "cd /opt/driveway/current && sha256sum --quiet --check SHA256SUMS")
    assert bare.check("stat", "-c", "%U:%G %a", "/var/lib/driveway", "/etc/driveway").split("\n")[:2] == [
        "driveway:driveway 750",
        "root:driveway 750",
    ]
    configure(bare)
    bare.check("systemctl", "start", SERVICE, timeout_s=READY_S)

    said = bare.check("dpkg", "--remove", "driveway")
    assert "kept /etc/driveway /var/lib/driveway" in said
    assert bare.run("systemctl", "is-active", SERVICE).stdout.strip() == "inactive"
    assert bare.run("test", "-e", "/opt/driveway").returncode == 1
    assert bare.run("pgrep", "-u", "driveway").stdout == ""
    bare.check("test", "-s", "/var/lib/driveway/driveway.db")

    bare.check("dpkg", "--purge", "driveway")
    after = files(bare)
    assert {path for path in after - before if not path.endswith(("-", ".lock"))} == set()
    assert before - after == set()
    assert bare.check("getent", "passwd") == accounts


def test_the_service_says_ready_and_starts_its_workers_in_units_of_their_own(vehicle: Container) -> None:
    shown = vehicle.show(SERVICE, "ActiveState", "StatusText", "NRestarts", "User")
    assert (shown["ActiveState"], shown["NRestarts"], shown["User"]) == ("active", "0", "driveway")
    assert shown["StatusText"].startswith("blocked: ")
    deadline_s = time.monotonic() + READY_S
    while (found := doctor(vehicle)).get("daemon.accelerator") != "ok" and time.monotonic() < deadline_s:
        time.sleep(0.5)
    assert [name for name, result in found.items() if result == "fail"] == []
    assert {"daemon.accelerator", "daemon.self_test", "units.driveway.service", "units.driveway-worker.socket"} <= {
        name for name, result in found.items() if result == "ok"
    }
    began = vehicle.check("journalctl", "-o", "cat", "-u", "driveway-worker@*")
    assert "Started driveway-worker@" in began


def test_its_sandbox_holds(vehicle: Container) -> None:
    """The unit's own settings around a program that tries: what the daemon needs is allowed, the rest refused."""
    vehicle.run("mkdir", "-p", "/etc/credstore.encrypted")
    seal = "printf secret | systemd-creds encrypt --with-key=host --name=tls.key - "
    seal += "/etc/credstore.encrypted/driveway.tls.key"
    vehicle.check("sh", "-c", seal)
    (vehicle.root / "opt/probe.py").write_text(PROBE)
    drop_in = vehicle.root / "etc/systemd/system/driveway.service.d/probe.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart=/usr/bin/python3 -I /opt/probe.py\n")
    vehicle.check("systemctl", "daemon-reload")
    try:
        vehicle.check("systemctl", "restart", SERVICE)
        lines = vehicle.check("journalctl", "-b", "-o", "cat", "-u", SERVICE, "_COMM=python3").splitlines()
    finally:
        drop_in.unlink()
        vehicle.check("systemctl", "daemon-reload")
        vehicle.check("systemctl", "start", SERVICE, timeout_s=READY_S)
    found = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    assert found.pop("others") == []
    assert {name for name, came in found.items() if came == "done"} == ALLOWED


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_daemon_that_dies_or_hangs_is_started_anew(vehicle: Container, blow: signal.Signals) -> None:
    pid, restarts = (vehicle.show(SERVICE, "MainPID", "NRestarts")[name] for name in ("MainPID", "NRestarts"))
    vehicle.check("kill", f"-{blow.value}", pid)
    vehicle.until(SERVICE, "NRestarts", str(int(restarts) + 1), RESTART_S)
    vehicle.until(SERVICE, "ActiveState", "active", RESTART_S)
    assert vehicle.show(SERVICE, "MainPID")["MainPID"] != pid


def test_an_upgrade_is_staged_and_the_running_version_stays_whole(
    vehicle: Container, built: Path, tmp_path: Path
) -> None:
    pid = vehicle.show(SERVICE, "MainPID")["MainPID"]
    running = (vehicle.root / "opt/driveway/current").readlink()
    said = vehicle.check("dpkg", "-i", deb_in(vehicle, next_version(built, tmp_path, NEXT)))
    assert f"{NEXT} is staged; {running} runs on" in said
    assert vehicle.show(SERVICE, "MainPID", "ActiveState") == {"MainPID": pid, "ActiveState": "active"}
    assert (vehicle.root / "opt/driveway/current").readlink() == running
    for version in (running, NEXT):
        vehicle.check("sh", "-c", f"cd /opt/driveway/{version} && sha256sum --quiet --check SHA256SUMS")

    # What the update program does, in short.
    vehicle.check("ln", "-sfn", NEXT, "/opt/driveway/current")
    vehicle.check("systemctl", "restart", SERVICE, timeout_s=READY_S)
    assert f"/opt/driveway/{NEXT}/bin/python" in vehicle.check("ps", "-o", "args=", "-C", "driveway")
    assert doctor(vehicle)["daemon.reachable"] == "ok"


def test_another_build_of_the_version_that_runs_is_refused(vehicle: Container, built: Path, tmp_path: Path) -> None:
    version = str((vehicle.root / "opt/driveway/current").readlink())
    other = next_version(built, tmp_path, version)
    vehicle.check("dpkg", "-i", deb_in(vehicle, other))  # the same bytes: nothing to refuse
    changed = vehicle.root / "opt/driveway" / version / "SHA256SUMS"
    changed.write_text(changed.read_text() + "0" * 64 + "  other\n")
    done = vehicle.run("dpkg", "-i", deb_in(vehicle, other))
    assert done.returncode != 0
    assert "a version never changes" in done.stderr
    assert vehicle.show(SERVICE, "ActiveState")["ActiveState"] == "active"
