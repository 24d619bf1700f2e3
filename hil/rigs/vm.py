"""The rig `vm`: the package as a vehicle installs it, in a VM (`hil.vm`), with a broker and a dispatcher here.

Real: systemd and its units, SocketCAN, the TPM, the disk and its power cuts, suspend, mutual TLS, the package itself.
Simulated: the car around it (`hil.car`), its sensors. The VM's processor is emulated, so the agent computes about
twenty times longer than on a vehicle: `hil.vm.vehicle.SLOWER` lists what is given longer, and every run notes that.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, get_args

from agent.errors import DrivewayError
from hil.acl.guarded import GuardedMosquitto
from hil.rigs import car_orders, stimuli, vm_faults
from hil.rigs.faults import Fault
from hil.rigs.interface import Reached, Rig
from hil.rigs.observation import Evidence, Measurement
from hil.rigs.status_view import StatusView, lease_spans
from hil.rigs.stimuli import Stimulus
from hil.scenario.model import RigName, Scenario
from hil.vm import snapshots
from hil.vm.car import CarProcess
from hil.vm.fleet import HostFleet, until
from hil.vm.image import build_image
from hil.vm.machine import PROGRAMS, Machine, Options
from hil.vm.rootfs import build_rootfs
from hil.vm.vehicle import SERVICE, SLOWER, Vehicle, newest_package

ITEMS_PER_JOB = 24
LOOK_S = 0.4
ANSWER_S = 300.0
NOT_BUILT = "the car in front of the VM does not do that"

OWNER = (stimuli.OwnerPauses, stimuli.OwnerResumes, stimuli.OwnerFinishes, stimuli.Consent)
SERVICES = (stimuli.StopAgent, stimuli.StartAgent)


class VmRig(Rig):
    """One vehicle in a VM, from its prepared snapshot on."""

    name: ClassVar[RigName] = "vm"
    about: ClassVar[str] = "the package in a VM: systemd, SocketCAN, a TPM, power cuts"
    time_factor: ClassVar[float] = 20.0
    resolution_ms: ClassVar[int] = 1_000
    longest_s: ClassVar[float | None] = 900.0

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        super().__init__(scenario, folder)
        self._closing = ExitStack()
        self._view = StatusView()
        self._began_s = 0.0
        self._base: Path | None = None

    @classmethod
    def cannot(cls, what: Stimulus | Fault) -> str | None:
        """Why it cannot be done here; None when it can."""
        if isinstance(what, (*get_args(car_orders.People), *get_args(car_orders.Change), *OWNER, *SERVICES)):
            return None
        if isinstance(what, (*get_args(car_orders.CarFault), *vm_faults.FAULTS)):
            return None
        return vm_faults.CANNOT.get(type(what)) or NOT_BUILT

    @classmethod
    def lacks(cls, _scenario: Scenario) -> str | None:
        """What this machine lacks for the rig."""
        if os.getuid():
            return "a vehicle in a VM is built by root only"
        if missing := [name for name in (*PROGRAMS, "mmdebstrap", "mke2fs") if shutil.which(name) is None]:
            return f"not installed: {', '.join(missing)}"
        if GuardedMosquitto.binary() is None or GuardedMosquitto.plugin() is None:
            return "not installed: mosquitto with its dynamic-security plugin"
        return None if newest_package() is not None else "there is no package: run `make package`"

    # --- states -------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """A copy of a vehicle with the package in it, switched off."""
        package = newest_package()
        if package is None:
            raise DrivewayError("there is no package to install", hint="make package")
        image = build_image(build_rootfs())
        self._base = snapshots.take(snapshots.installed(image, package), self.folder / "vehicle")
        self._fleet = self._closing.enter_context(HostFleet(self.folder / "fleet"))
        self._machine = self._closing.enter_context(Machine(image, self._base, Options(forwards=self._fleet.forwards)))
        self._vehicle = Vehicle(self._machine, self._fleet)

    def begin(self) -> None:
        """Configure it as the scenario says, put jobs up, start the agent, and the car around it."""
        setup = self.scenario.setup
        self._machine.start(snapshots.INSTALLED)
        self._vehicle.set_clock()
        self._vehicle.configure(self.scenario.policy_changes)
        for _ in range(setup.jobs):
            self._fleet.order(ITEMS_PER_JOB)
        car = CarProcess(
            self.folder / "car",
            self._machine.sockets,
            start="driving" if setup.start == "driving" else "parked",
            soc_percent=setup.charge_percent,
            ambient_c=setup.ambient_c,
        )
        self._car = self._closing.enter_context(car)
        if setup.start == "unplugged":
            self._car.do("unplug")
        self._vehicle.start()
        until("the agent answers", self._vehicle.status, ANSWER_S)
        self._began_s = time.monotonic()
        self._look()

    def end(self) -> None:
        """Keep what was written, and switch it off."""
        (self.folder / "journal.txt").write_text(self._vehicle.journal(100_000, "*"), "utf-8")
        self._leases: list[dict[str, Any]] = []
        if self.observations[-1].answers:
            self._leases = self._vehicle.ask("earnings", limit=1000)["leases"]
        self._book = self._vehicle.book(self.folder)
        self._found = self._fleet.audit(self._book)
        self._machine.power_cut()

    def remove(self) -> None:
        """Everything ends; of the folder only the vehicle's disks go, which are large."""
        self._closing.close()
        self._closing = ExitStack()
        for disk in () if self._base is None else self._base.glob("*.qcow2"):
            disk.unlink()
        self._base = None

    # --- while it runs ------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """Milliseconds since the scenario began."""
        return round((time.monotonic() - self._began_s) * 1000)

    def do(self, stimulus: Stimulus) -> int:
        """Carry it out; when it showed first."""
        at_ms = self.now_ms
        match stimulus:
            case stimuli.OwnerPauses(pause_s=pause_s):
                self._say("pause" if pause_s is None else f"pause --for {round(pause_s)}s")
            case stimuli.OwnerResumes():
                self._say("resume")
            case stimuli.OwnerFinishes():
                self._say("finish")
            case stimuli.Consent(version=version):
                self._say(f"consent --accept {version}" if version else "consent --withdraw")
            case stimuli.StopAgent():
                self._vehicle.shell.check(f"systemctl stop {SERVICE}", timeout_s=ANSWER_S)
            case stimuli.StartAgent():
                self._vehicle.shell.check(f"systemctl start {SERVICE}", timeout_s=ANSWER_S)
            case _:
                car_orders.do(self.car, stimulus)
        return at_ms

    def _say(self, verb: str) -> None:
        self._vehicle.shell.check(f"driveway {verb} --config /etc/driveway/agent.toml", timeout_s=120.0)

    def car(self, do: str, /, **arguments: object) -> dict[str, Any]:
        """One order to the simulated car."""
        return self._car.do(do, **arguments)

    def strike(self, fault: Fault) -> Callable[[], None]:
        """Make the fault; how to mend it."""
        if isinstance(fault, get_args(car_orders.CarFault)):
            return car_orders.strike(self.car, fault)
        return vm_faults.strike(self._vehicle, fault)

    def advance(self, until_ms: int, reached: Reached | None) -> bool:
        """Let time pass, with a look twice a second."""
        while True:
            self._look()
            if reached is not None and reached(self.last):
                return True
            left_s = (until_ms - self.now_ms) / 1000
            if left_s <= 0:
                return False
            time.sleep(min(LOOK_S, left_s))

    def _look(self) -> None:
        try:
            status = self._vehicle.status() if self._machine.is_awake else None
        except DrivewayError:
            status = None
        if status is None:
            self.observations.append(self._view.silent(self.now_ms))
            return
        car: dict[str, Any] = self._car.do("state")["state"]
        book = self._fleet.book()
        settled = sum(row.verdict in {"settled", "dup"} for row in book.hand_ins)
        # Jobs are small here, so that a lease ends within a scenario: there are always as many as it begins with.
        for _ in range(self.scenario.setup.jobs - sum(job.state != "done" for job in book.jobs)):
            self._fleet.order(ITEMS_PER_JOB)
        self.observations.append(self._view.look(self.now_ms, status, car, settled))

    def evidence(self) -> Evidence:
        """The audit of both books, and what was left."""
        count = len(self._found)
        books = Measurement(
            name="lost or paid twice",
            value=count,
            unit="",
            at_most=0,
            held=count == 0,
            detail=json.dumps([str(one) for one in self._found[:5]]) if self._found else "",
        )
        files = {"journal": "journal.txt", "serial console": "vehicle/serial.log", "dispatcher": "fleet/dispatcher.log"}
        return Evidence(
            measurements=(books,),
            leases=lease_spans(self._leases, self.observations),
            versions={"qemu": self._machine.qemu_version, "image": self._machine.image.digest},
            files={what: self.folder / name for what, name in files.items() if (self.folder / name).exists()},
            notes=tuple(f"slower here: {name} = {why}" for name, why in SLOWER.items()),
        )
