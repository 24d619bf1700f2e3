"""What goes wrong on the rig with a VM: to the machine, its network, its disk, its TPM, its clock, and its services.

Each fault is made where it is made on a vehicle: by the machine (a cable, the power, the TPM's chip), or by root in the
guest (interfaces, a full disk, the wall clock, signals to a unit's processes). `CANNOT` says of the rest why not.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import DrivewayError
from hil.rigs import faults as f
from hil.rigs import stimuli as s
from hil.vm.ports import BUSES
from hil.vm.vehicle import SERVICE, Vehicle

NETWORK = "netem"
FILLER = "/var/lib/filler"
NO_SUCH_SIGNAL = "the CAN profile of this rig's car has no such signal"
NO_ORDERS = "the operator's orders are tried on real processes (sil)"
CANNOT: dict[type, str] = {
    s.Lock: NO_SUCH_SIGNAL,
    s.OtherUser: NO_SUCH_SIGNAL,
    s.PowerSaving: NO_SUCH_SIGNAL,
    s.CarSwitch: NO_SUCH_SIGNAL,
    s.Prices: NO_ORDERS,
    s.DemandOrder: NO_ORDERS,
    s.PaceOrder: NO_ORDERS,
    s.SelfTest: "the agent's own test cannot be made to fail from outside",
    f.PackageRefused: "the packages of this rig are good",
    f.DiskError: "its disk knows no errors; power cuts and a full disk it knows",
    f.DieBiased: "the car writes what its plant says",
    f.PowerUnread: "the car writes what its plant says",
    f.PowerDisobeys: "the plant follows the worker's real load",
    f.AcceleratorLost: "the CPU cannot be lost",
    f.PlansStale: "ONNX Runtime needs no plans",
    f.KeySlow: "the emulated TPM answers at once or not at all",
    f.ClockLost: "the VM's clock has no keeper that could be lost",
    f.ConverterDead: "the plant of this rig's car has no such fault",
}
FAULTS = (
    *(f.BrokerKilled, f.Partition, f.BadNetwork, f.DispatcherKilled, f.AgentKilled, f.AgentHangs, f.WorkerKilled),
    *(f.WorkerHangs, f.DiskFull, f.BusOff, f.Suspend, f.KeyAbsent, f.ClockJump, f.PowerCut),
)
Mend = Callable[[], None]


def strike(vehicle: Vehicle, fault: f.Fault) -> Mend:
    """Begin it now; how to mend it. Raises DrivewayError where it cannot be made."""
    match fault:
        case f.BrokerKilled() | f.Partition() | f.BadNetwork() | f.DispatcherKilled():
            return _network(vehicle, fault)
        case f.AgentKilled() | f.AgentHangs() | f.WorkerKilled() | f.WorkerHangs():
            return _signal(vehicle, fault)
        case f.DiskFull() | f.BusOff() | f.ClockJump():
            return _system(vehicle, fault)
        case f.Suspend() | f.KeyAbsent() | f.PowerCut():
            return _machine(vehicle, fault)
        case _:
            raise AssertionError("why_not says that it cannot")


def _network(vehicle: Vehicle, fault: f.BrokerKilled | f.Partition | f.BadNetwork | f.DispatcherKilled) -> Mend:
    machine, fleet, shell = vehicle.machine, vehicle.fleet, vehicle.shell
    match fault:
        case f.BrokerKilled():
            fleet.broker.kill()
            return fleet.broker.start
        case f.DispatcherKilled():
            fleet.kill_dispatcher()
            return fleet.start_dispatcher
        case f.Partition():
            machine.set_link(up=False)
            return lambda: machine.set_link(up=True)
        case f.BadNetwork(delay_ms=delay_ms):
            card = shell.check("ip -o route get 10.0.2.100 | sed 's/.* dev \\([^ ]*\\).*/\\1/'").strip()
            weather = f"delay {delay_ms}ms {delay_ms // 2}ms loss 3% duplicate 1% reorder 5% rate 64kbit"
            shell.check(f"tc qdisc replace dev {card} root {NETWORK} {weather}")
            return lambda: _done(shell.check(f"tc qdisc del dev {card} root"))


def _signal(vehicle: Vehicle, fault: f.AgentKilled | f.AgentHangs | f.WorkerKilled | f.WorkerHangs) -> Mend:
    """The agent is started again by systemd, after its watchdog where it hangs; the agent starts workers again."""
    match fault:
        case f.AgentKilled():
            vehicle.shell.check(f"systemctl kill --kill-whom=main -s KILL {SERVICE}")
        case f.AgentHangs():
            vehicle.shell.check(f"systemctl kill --kill-whom=main -s STOP {SERVICE}")
        case f.WorkerKilled():
            _worker(vehicle, "KILL")
        case f.WorkerHangs():
            _worker(vehicle, "STOP")
    return lambda: None


def _worker(vehicle: Vehicle, signal: str) -> None:
    there = vehicle.shell.check("systemctl list-units --no-legend --state=active 'driveway-worker@*'")
    if not there.strip():
        raise DrivewayError("there is no worker to signal", hint="let the step wait for one")
    vehicle.shell.check(f"systemctl kill -s {signal} 'driveway-worker@*'")


def _system(vehicle: Vehicle, fault: f.DiskFull | f.BusOff | f.ClockJump) -> Mend:
    shell = vehicle.shell
    match fault:
        case f.DiskFull():
            # As root, so that what is set aside for root is used up too.
            shell.check(f"fallocate -l $(( $(stat -f -c '%f * %S' /var/lib) * 95 / 100 )) {FILLER}")
            shell.run(f"dd if=/dev/zero bs=64k >>{FILLER} 2>/dev/null", timeout_s=120.0)
            return lambda: _done(shell.check(f"rm {FILLER}"))
        case f.BusOff():
            shell.check("; ".join(f"ip link set {one} down" for one in BUSES.values()))
            return lambda: _done(shell.check("; ".join(f"ip link set {one} up" for one in BUSES.values())))
        case f.ClockJump(by_s=by_s):
            shell.check(f"date -u -s @$(( $(date +%s) + {round(by_s)} ))")
            return lambda: _done(shell.check(f"date -u -s @$(( $(date +%s) - {round(by_s)} ))"))


def _machine(vehicle: Vehicle, fault: f.Suspend | f.KeyAbsent | f.PowerCut) -> Mend:
    machine = vehicle.machine
    match fault:
        case f.Suspend():
            machine.suspend()
            return machine.wake
        case f.KeyAbsent():
            machine.freeze_tpm()
            return machine.unfreeze_tpm
        case f.PowerCut():
            machine.power_cut()

            def boot() -> None:
                machine.start()
                vehicle.set_clock()

            return boot


def _done(_output: str) -> None:
    """Whatever it printed, it did it."""
