"""What goes wrong on the rig with processes: signals to them, a proxy in the way, a disk limit, faults of frames.

`CANNOT` says of the rest why not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from agent.errors import DrivewayError
from hil.faults.proxy import Weather
from hil.rig import Rig
from hil.rigs import car_orders
from hil.rigs import faults as f
from hil.rigs import stimuli as s

if TYPE_CHECKING:
    from hil.rigs.sil import SilRig

NO_SUCH_SIGNAL = "the CAN profile of this rig's car has no such signal"
NO_CLOCK = "this machine's clock is not the rig's to set"
NO_TPM = "keys are files here; the VM has a TPM"
CANNOT: dict[type, str] = {
    s.Lock: NO_SUCH_SIGNAL,
    s.OtherUser: NO_SUCH_SIGNAL,
    s.PowerSaving: NO_SUCH_SIGNAL,
    s.CarSwitch: NO_SUCH_SIGNAL,
    s.Drive: "this rig's car drives only when it begins",
    s.DriverDrivesAway: "this rig's car drives only when it begins",
    s.CarSleeps: "this rig's computer does not sleep with its car",
    s.CarWakes: "this rig's computer does not sleep with its car",
    s.DayWeather: "a day is too long for real time",
    s.Metered: "the network of this machine is not the rig's to change",
    s.SelfTest: "the agent's own test cannot be made to fail from outside",
    f.WorkerHangs: "nothing makes a worker hang from outside; tests/inference does",
    f.PackageRefused: "the packages of this rig are good",
    f.DiskFull: "a disk of its own needs a mount; `driveway-hil faults` has one",
    f.BusOff: "CAN over UDP has no bus-off; the VM's controllers do",
    f.DieBiased: "the car writes what its plant says",
    f.PowerUnread: "the car writes what its plant says",
    f.PowerDisobeys: "the plant follows the worker's real load",
    f.AcceleratorLost: "the CPU cannot be lost",
    f.PlansStale: "ONNX Runtime needs no plans",
    f.Suspend: "this machine is not the rig's to suspend",
    f.KeyAbsent: NO_TPM,
    f.KeySlow: NO_TPM,
    f.ClockJump: NO_CLOCK,
    f.ClockLost: NO_CLOCK,
    f.ConverterDead: "the plant of this rig's car has no such fault",
    f.PowerCut: "this machine's power is not the rig's to cut",
}
Mend = Callable[[], None]


def strike(rig: SilRig, fault: f.Fault) -> Mend:
    """Begin it now; how to mend it. Raises DrivewayError where it cannot be made."""
    match fault:
        case f.BrokerKilled() | f.Partition() | f.BadNetwork():
            return _network(rig, fault)
        case f.DispatcherKilled() | f.AgentKilled() | f.AgentHangs() | f.WorkerKilled() | f.DiskError():
            return _process(rig.room, fault)
        case f.SensorStuck() | f.SensorLies() | f.SensorGone() | f.BusSilent() | f.DieUnread() | f.FanDead():
            return car_orders.strike(rig.room.car, fault)
        case _:
            raise AssertionError("why_not says that it cannot")


def _network(rig: SilRig, fault: f.BrokerKilled | f.Partition | f.BadNetwork) -> Mend:
    match fault:
        case f.BrokerKilled():
            rig.room.broker.kill()
            return rig.room.broker.start
        case f.Partition():
            rig.link.hold()
            return rig.link.release
        case f.BadNetwork(delay_ms=delay_ms):
            rig.link.weather(Weather(delay_ms=(delay_ms / 2, float(delay_ms)), bytes_per_s=8_000, split_bytes=200))
            return lambda: rig.link.weather(Weather())
        case _:
            assert_never(fault)


def _process(
    room: Rig, fault: f.DispatcherKilled | f.AgentKilled | f.AgentHangs | f.WorkerKilled | f.DiskError
) -> Mend:
    match fault:
        case f.DispatcherKilled():
            room.stop("dispatcher", signal.SIGKILL)
            return room.start_dispatcher
        case f.AgentKilled():
            with contextlib.suppress(DrivewayError):
                room.ask("record")  # what it saw until now dies with it otherwise
            room.stop("daemon", signal.SIGKILL)
            return room.start_daemon
        case f.AgentHangs():
            pid = _pid(room)
            os.kill(pid, signal.SIGSTOP)
            return lambda: os.kill(pid, signal.SIGCONT)
        case f.WorkerKilled():
            status = room.status()
            if status is None or status["worker"] is None:
                raise DrivewayError("there is no worker to kill", hint="let the step wait for one")
            with contextlib.suppress(ProcessLookupError):
                os.kill(status["worker"]["pid"], signal.SIGKILL)
            return lambda: None
        case f.DiskError():
            return _full_database(room)
        case _:
            assert_never(fault)


def _full_database(room: Rig) -> Mend:
    """The database cannot grow any more (EFBIG, which SQLite calls an I/O error); the log, much smaller, can."""
    pid = _pid(room)
    largest_bytes = max(path.stat().st_size for path in (room.folder / "state").glob("driveway.db*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))

    def mend() -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    return mend


def _pid(room: Rig) -> int:
    pid = room.pid("daemon")
    if pid is None:
        raise DrivewayError("the daemon does not run")
    return pid
