"""A vehicle's life in the VM, as its operator and its driver see it: install the package, configure, enrol, work.

Everything is as on a vehicle but for time: Python is 12 to 28 times slower in the VM, so `SLOWER` lists what is given
longer, and what the agent decides is the same. The unit's key is made in the TPM, the TLS key is sealed to it by
systemd-creds and never lies on the disk in the clear.
"""

from __future__ import annotations

import json
import os
import shlex
import tarfile
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from agent.errors import DrivewayError
from agent.vehicle.profile import OPENDBC_PREFIX, dbc_path, load_profile
from hil.faults.books import AgentBook, read_agent
from hil.vm.fleet import BROKER_PORT, DOOR_PORT, UNIT, HostFleet, until
from hil.vm.machine import FLEET_ADDRESS, Machine
from hil.vm.ports import BUSES
from hil.vm.shell import GuestShell

SERVICE, CONTROL = "driveway.service", "/run/driveway/control.sock"
DOOR_BUS, DOOR_FRAME = BUSES["vehicle"], "102"
"""Where the driver's door and its handle show (VCLEFT_doorStatus)."""
SEALED_KEY = "/etc/credstore.encrypted/driveway.tls.key"
"""Where the service's unit expects it."""
PROBE_S = 90.0
DIST = Path(__file__).parent.parent.parent / "dist"
PROFILES = "etc/driveway/profiles"
INSTALL_S, READY_S, ASK_S = 300.0, 240.0, 30.0
SLOWER = {
    "policy.worker_start_timeout_ms": "60000 (30000): the engine's libraries load in half a minute",
    "policy.request_timeout_ms": "30000 (10000): a grant is verified in Python",
    "policy.parked_for_s": "3 (60): tests need not wait for it",
    "fleet.keepalive_s, reconnect_max_s": "10 (300), 5 (900): cut links are found out within a test",
    "WatchdogSec=, TimeoutStartSec=": "60 s, 300 s: a start takes as long as on a computer that is 20 times slower",
}
"""What the VM's profile relaxes, and why; what it is on a vehicle in brackets."""

CONFIG = """\
# Written by the rig, for a vehicle in a VM.
state_dir = "/var/lib/driveway"
control_socket = "{control}"

[unit]
id = "{unit}"
device_class = "rig-vm"

[vehicle]
profiles = ["/etc/driveway/profiles/tesla-model3.toml", "driveway-energy"]
{buses}
[computer]
reader = "jetson"
sysfs_root = "/run/vehicle/sysfs"
interval_ms = 1000

[network]
metered = "no"

[fleet]
brokers = ["{address}:{broker_port}"]
dispatcher_key = "dispatcher.pub"
enrol_url = "https://{address}:{door_port}/enrol"
enrol_code = "{enrol_code}"
keepalive_s = 10
reconnect_max_s = 5

[fleet.tls]
ca = "tls/ca.pem"
certificate = "tls/unit.pem"
key = "credential:tls.key"

[inference]
packages_dir = "/var/lib/driveway/packages"
publisher_key = "publisher.pub"
worker_socket = "/run/driveway/worker.sock"
threads = 1

[trust.key]
backend = "tpm"

[policy]
{policy}"""
POLICY: dict[str, object] = {
    "parked_for_s": 3,
    "reserve_percent": 40,
    "request_timeout_ms": 30_000,
    "worker_start_timeout_ms": 60_000,
}
BUS = """
[[vehicle.bus]]
name = "{name}"
interface = "socketcan"
channel = "{interface}"
"""
DROP_IN = """\
# Written by the rig: a vehicle in a VM is 12 to 28 times slower.
[Service]
WatchdogSec=60s
TimeoutStartSec=300s
"""


def install(shell: GuestShell, package: Path) -> None:
    """Install a .deb with dpkg and nothing else. Raises DrivewayError with what dpkg complained of."""
    there = f"/var/tmp/{package.name}"  # noqa: S108 - in the guest, which has no other users
    shell.put(package.read_bytes(), there)
    shell.check(f"dpkg -i {shlex.quote(there)} && rm {shlex.quote(there)}", timeout_s=INSTALL_S)


class Vehicle:
    """One machine with the agent in it, or about to be."""

    def __init__(self, machine: Machine, fleet: HostFleet) -> None:
        self.machine, self.fleet = machine, fleet
        self.shell = machine.shell

    # --- configuring --------------------------------------------------------------------------------------------

    def configure(self, policy: Mapping[str, object] | None = None) -> None:
        """Configuration, certificates, the sealed TLS key, and the signed inference package; in place of any before.

        `policy` is what a scenario says of it, in place of what the VM's profile relaxes.
        """
        tls, package = self.fleet.unit_tls, self.fleet.package()
        buses = "".join(BUS.format(name=name, interface=interface) for name, interface in BUSES.items())
        config = CONFIG.format(
            control=CONTROL,
            unit=UNIT,
            buses=buses,
            address=FLEET_ADDRESS,
            broker_port=BROKER_PORT,
            door_port=DOOR_PORT,
            enrol_code=self.fleet.enrol_code,
            policy="".join(f"{key} = {_toml(value)}\n" for key, value in {**POLICY, **(policy or {})}.items()),
        )
        files = {
            "etc/driveway/agent.toml": config.encode(),
            "etc/driveway/dispatcher.pub": self.fleet.dispatcher_key_pem.encode(),
            "etc/driveway/publisher.pub": (self.fleet.folder / "publisher.pub").read_bytes(),
            "etc/driveway/tls/ca.pem": Path(tls.ca).read_bytes(),
            "etc/driveway/tls/unit.pem": Path(tls.certificate).read_bytes(),
            "run/rig/tls.key": Path(tls.key).read_bytes(),
            f"etc/systemd/system/{SERVICE}.d/50-rig.conf": DROP_IN.encode(),
        }
        packages = {
            f"var/lib/driveway/packages/{package.path.name}/{file.relative_to(package.path)}": file.read_bytes()
            for file in package.path.rglob("*")
            if file.is_file()
        }
        self.shell.check("/usr/local/lib/hil/provision_tpm.py")
        self.shell.put(_archive(files | _profile() | packages), "/run/rig.tar")
        self.shell.check(
            "tar -C / -xf /run/rig.tar && rm /run/rig.tar && mkdir -p /etc/credstore.encrypted "
            f"&& systemd-creds encrypt --with-key=tpm2 --name=tls.key /run/rig/tls.key {SEALED_KEY} "
            "&& rm -r /run/rig && chown -R driveway:driveway /var/lib/driveway && chgrp -R driveway /etc/driveway "
            "&& systemctl daemon-reload && sync"  # whoever provisions a vehicle does not cut its power before
        )

    def start(self) -> None:
        """Start the service; returns once it has said READY=1. Raises DrivewayError with its last words."""
        done = self.shell.run(f"systemctl start {SERVICE}", timeout_s=READY_S + 60)
        if done.status:
            raise DrivewayError(f"the agent did not become ready: {self.journal(20)}")

    def set_clock(self) -> None:
        """Set the guest's wall clock to ours: after a snapshot it is what it was then."""
        self.shell.check(f"date -u -s @{time.time():.3f}")

    # --- asking -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """`driveway status --json`, over the control socket; raises DrivewayError while nobody answers."""
        return self.ask("status")

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        """One question to the daemon in the vehicle."""
        line = self.shell.ask(CONTROL, json.dumps({"verb": verb, **arguments}), timeout_s=ASK_S)
        if not line:
            raise DrivewayError("the agent hung up")
        answer = json.loads(line)
        if not answer["ok"]:
            raise DrivewayError(f"the agent says to {verb}: {answer}")
        data: dict[str, Any] = answer["data"]
        return data

    def until_status(self, what: str, key: str, value: object, timeout_s: float) -> dict[str, Any]:
        """The status, once `key` (dots lead into tables) is `value`."""

        def reached() -> dict[str, Any] | None:
            said: Any = (status := self.status())
            for part in key.split("."):
                said = said[part] if said is not None else None
            return status if said == value else None

        found: dict[str, Any] = until(what, reached, timeout_s)
        return found

    def until_computing(self, timeout_s: float) -> int:
        """The worker's process, once it has kept a slice more than at first sight and goes on with another."""
        first: int | None = None

        def busy() -> int | None:
            nonlocal first
            status = self.status()
            kept, started = status["slices"]["kept"], status["slices"]["started"]
            first = kept if first is None else first
            pid: int | None = status["worker"]["pid"] if status["worker"] else None
            return pid if pid is not None and kept > first and started > kept else None

        found: int = until("the worker computes", busy, timeout_s, poll_s=0.05)
        return found

    def vacate(self, pid: int, driver: Callable[[], object]) -> float:
        """From the first frame of what `driver` does at the driver's door to the end of this worker, in ms.

        Measured in the guest, by the kernel's stamp on the frame; raises DrivewayError when the worker does not end.
        """
        out = "/run/rig.vacate"
        self.shell.check(
            f"rm -f {out}; systemd-run --quiet --collect --property=StandardOutput=file:{out} "
            f"/usr/local/lib/hil/vacate_probe.py {DOOR_BUS} {DOOR_FRAME} {pid}"
        )
        until("the probe listens", lambda: "ready" in self.shell.run(f"cat {out}").out, PROBE_S)
        driver()
        said = until("the worker is gone", lambda: self.shell.check(f"cat {out}").splitlines()[1:], PROBE_S)
        latency_ms: float | None = json.loads(said[0])["latency_ms"]
        if latency_ms is None:
            raise DrivewayError(f"the worker did not give way: {said[0]}")
        return latency_ms

    def book(self, folder: Path) -> AgentBook:
        """The agent's own books: its database, copied whole into `folder` while it works or lies still."""
        copy = "/run/rig.db"
        self.shell.check(f"/usr/local/lib/hil/copy_database.py /var/lib/driveway/driveway.db {copy}")
        (folder / "vehicle.db").write_bytes(self.shell.get(copy))
        return read_agent(UNIT, folder / "vehicle.db")

    def unit(self, prop: str, unit: str = SERVICE) -> str:
        """A property of a unit, as `systemctl show` prints it."""
        return self.shell.check(f"systemctl show -P {prop} {unit}").strip()

    def journal(self, lines: int = 200, unit: str = "driveway*") -> str:
        """The last lines of the agent's journal, workers included."""
        return self.shell.run(f"journalctl --no-pager -o short-monotonic -n {lines} -u '{unit}'").out


def newest_package() -> Path | None:
    """The .deb that $DRIVEWAY_DEB names, or that `make package` made last; None where there is none."""
    if given := os.environ.get("DRIVEWAY_DEB"):
        return Path(given)
    made = sorted(DIST.glob("driveway_*_amd64.deb"), key=lambda path: path.stat().st_mtime)
    return made[-1] if made else None


def _toml(value: object) -> str:
    """A value of a policy, in one line."""
    match value:
        case dict():
            return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value)


def _profile() -> dict[str, bytes]:
    """The car's profile and its DBCs, as an operator brings them: the package has none of a production car's DBCs."""
    profile = load_profile("tesla-model3")
    references = sorted({mapping.dbc for mapping in profile.buses.values()})
    text = (profile.folder / "tesla-model3.toml").read_text("utf-8").replace(OPENDBC_PREFIX, "")
    dbcs = {reference.removeprefix(OPENDBC_PREFIX): dbc_path(profile, reference) for reference in references}
    return {
        f"{PROFILES}/tesla-model3.toml": text.encode(),
        **{f"{PROFILES}/{name}": path.read_bytes() for name, path in dbcs.items()},
    }


def _archive(files: dict[str, bytes]) -> bytes:
    """A tar of these files, owned by root, each readable by its group."""
    body = BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, BytesIO(content))
    return body.getvalue()
