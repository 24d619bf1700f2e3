"""What the daemon costs while it waits: processor and memory of the process, with 3,000 frames a second on the bus.

    driveway-hil bench idle --json idle.json                 about two minutes
    python -m hil.bench.idle --seconds 20 --json idle.json   the same, alone

Real processes: the daemon (`driveway run`), a broker, a dispatcher without work, and a car's buses as Unix datagram
sockets with a BPF program in front of them, which does here what CAN_RAW_FILTER does on a vehicle: a container has no
CAN. Every line of the receive path but the opening of the socket is the vehicle's. What filtering costs in the kernel
falls on the sender here, and on the interrupt there; neither is the daemon's.

Four situations: the buses silent, the car driving (gate closed), parked with the gate open and no work to be had, which
is `cpu_percent`, and a parked car through a databroker instead of buses (`hil.bench.databroker`, every sign ten times a
second; its gates may still be settling). Processor time is what the kernel counted for all threads (schedstat,
nanoseconds), in percent of one core, and is told by thread; memory is the resident set, of which `pss_mb` is the
daemon's own share. Aims: 0.5 % of one core, 1 % with a databroker, 45 MB. What waking up costs depends on the machine:
a process that wakes 25 times a second to do nothing takes 0.2 to 0.4 % of a core of a small virtual machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from agent.trust.keys import FileSigner
from hil.car.sysfs import SensorTree
from hil.demo.story import quiet_logs
from hil.rig import CONFIG, Rig

SECONDS = 30.0
SETTLE_S = 8.0
"""Gates open three seconds after every sign agrees; half a minute of warm-up would change nothing."""
FRAMES_PER_S = 3_000
WAIT_S = 60.0
BUSES = ("party", "vehicle", "energy")
PROFILES = 'profiles = ["tesla-model3", "driveway-energy"]\n'
BUS = """
[[vehicle.bus]]
name = "{name}"
interface = "unixgram"
channel = "{folder}/{name}.bus"
"""


class IdleFigures(msgspec.Struct, frozen=True):
    """What came of it. Processor time in percent of one core; threads by name, with the gate open."""

    cpu_percent: float
    rss_mb: float
    pss_mb: float
    gate: str
    cpu_percent_driving: float
    cpu_percent_silent: float
    cpu_percent_databroker: float
    rss_mb_databroker: float
    threads: dict[str, float]
    wakeups_per_s: float
    frames_per_s: float
    wanted_frames_per_s: float
    rss_of_imports_mb: dict[str, float]


class Usage(msgspec.Struct, frozen=True):
    """What a process has used until now."""

    at_s: float
    thread_ns: dict[str, int]
    switches: int


class QuietRig(Rig):
    """A rig whose daemon hears buses over Unix sockets, with the intervals of a vehicle."""

    def start_fleet(self) -> None:
        """Start the broker and a dispatcher that has no work, and says so once in half a minute."""
        publisher = FileSigner.open_or_create(self.folder / "publisher.key")
        (self.folder / "publisher.pub").write_text(publisher.public_key_pem(), "ascii")
        (self.folder / "packages").mkdir()
        SensorTree(self.folder / "car" / "sysfs").write(45.0, 40.0, 8.0)
        self._closing.enter_context(self.broker)
        ready = self.folder / "dispatcher"
        broker = f"127.0.0.1:{self._broker_port}"
        codes = str(self.enrol_codes())
        arguments = ("--dir", str(ready), "--broker", broker, "--retry-s", "30", "--enrol-code-file", codes)
        self._spawn("dispatcher", "hil.dispatcher", *arguments)
        self._wait_for("dispatcher", (ready / "ready").exists)

    def start_quiet_daemon(self, vehicle: str) -> int:
        """Start the daemon, which reads the vehicle as this part of its configuration says; its process id."""
        ready = json.loads((self.folder / "dispatcher" / "ready").read_text("ascii"))
        text = CONFIG.replace(PROFILES, "").format(
            control_socket=self._sockets / "control.sock",
            unit="car-idle",
            buses=vehicle,
            broker_port=self._broker_port,
            enrol_url=f"{ready['http_url']}/enrol",
            enrol_code=self._enrol_code,
            policy=self.policy_text,
        )
        self.config.write_text(text.replace("interval_ms = 200", "interval_ms = 500"), "utf-8")
        process = self._spawn("daemon", "agent", "run", "--config", str(self.config))
        self._wait_for("daemon", lambda: self.status() is not None)
        return process.pid

    def start_buses(self, frames_per_s: int) -> None:
        """Start the car's buses, silent."""
        self._spawn("bus", "hil.bench.bus", "--dir", str(self._sockets), "--frames-per-s", str(frames_per_s))
        self._wait_for("bus", lambda: "ready" in (self.folder / "bus.log").read_text())

    @property
    def buses(self) -> str:
        """The configuration of the three buses."""
        return PROFILES + "".join(BUS.format(name=name, folder=self._sockets) for name in BUSES)

    def start_databroker(self) -> str:
        """Start a databroker that publishes a parked car; the configuration to read it."""
        address = f"unix:{self._sockets / 'databroker.sock'}"
        self._spawn("databroker", "hil.bench.databroker", "--address", address)
        self._wait_for("databroker", lambda: "unix:" in (self.folder / "databroker.log").read_text())
        return f'[vehicle.databroker]\naddress = "{address}"\n'

    def order(self, number: signal.Signals) -> None:
        """Tell the car: SIGUSR1 drive, SIGUSR2 park."""
        self._processes["bus"].send_signal(number)


def run(seconds: float = SECONDS) -> IdleFigures:
    """Measure the three situations, `seconds` each. Raises DrivewayError when the gate does not open."""
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="driveway-idle-") as folder, QuietRig(Path(folder) / "rig") as rig:
        rig.start_fleet()
        try:
            return _measure(rig, seconds)
        finally:
            rig.stop("bus", signal.SIGKILL)  # it minds no other


def _measure(rig: QuietRig, seconds: float) -> IdleFigures:
    rig.start_buses(FRAMES_PER_S)
    pid = rig.start_quiet_daemon(rig.buses)
    time.sleep(SETTLE_S)
    silent, _ = watch(pid, seconds)
    rig.order(signal.SIGUSR1)
    time.sleep(SETTLE_S)
    driving, _ = watch(pid, seconds)
    rig.order(signal.SIGUSR2)
    gate = until_open(rig)
    time.sleep(SETTLE_S)
    frames = _frames(rig)
    parked, switches = watch(pid, seconds)
    wanted, rss_mb, pss_mb = _frames(rig) - frames, memory_mb(pid, "Rss"), memory_mb(pid, "Pss")
    rig.stop("bus", signal.SIGKILL)
    rig.stop("daemon")
    other = rig.start_quiet_daemon(rig.start_databroker())
    time.sleep(SETTLE_S)
    told, _ = watch(other, seconds)
    return IdleFigures(
        cpu_percent=round(sum(parked.values()), 3),
        rss_mb=rss_mb,
        pss_mb=pss_mb,
        gate=gate,
        cpu_percent_driving=round(sum(driving.values()), 3),
        cpu_percent_silent=round(sum(silent.values()), 3),
        cpu_percent_databroker=round(sum(told.values()), 3),
        rss_mb_databroker=memory_mb(other, "Rss"),
        threads={name: round(share, 3) for name, share in parked.most_common() if share >= 0.001},
        wakeups_per_s=round(switches, 1),
        frames_per_s=FRAMES_PER_S,
        wanted_frames_per_s=round(wanted / seconds, 1),
        rss_of_imports_mb=_imports_mb(),
    )


def until_open(rig: QuietRig) -> str:
    """Wait for the gate; 'open'. Raises DrivewayError with the reasons that keep it shut."""
    deadline_s = time.monotonic() + WAIT_S
    status = None
    while time.monotonic() < deadline_s:
        rig.alive()
        status = rig.status()
        if status is not None and status["gate"] == "open":
            return "open"
        time.sleep(0.2)
    told = [reason["text"] for reason in (status or {}).get("reasons", [])]
    raise DrivewayError(f"the gate did not open in {WAIT_S:.0f} s: {' '.join(told)}")


def _frames(rig: QuietRig) -> int:
    """How many frames the daemon has taken from its buses."""
    return sum(source["counts"].get("frames", 0) for source in rig.ask("status")["sources"])


def watch(pid: int, seconds: float) -> tuple[Counter[str], float]:
    """Percent of one core by thread, and wake-ups a second, over `seconds`."""
    before = _usage(pid)
    time.sleep(seconds)
    after = _usage(pid)
    took_s = after.at_s - before.at_s
    shares: Counter[str] = Counter()
    for thread, used_ns in after.thread_ns.items():
        shares[thread.partition(" ")[2]] += (used_ns - before.thread_ns.get(thread, 0)) / took_s / 1e7  # type: ignore[assignment]  # a counter of shares
    return shares, (after.switches - before.switches) / took_s


def _usage(pid: int) -> Usage:
    """What every thread has used, by its number and name."""
    used: dict[str, int] = {}
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = "event loop" if task.name == str(pid) else "threads"
        used[f"{task.name} {name}"] = int((task / "schedstat").read_text().split()[0])
        status = (task / "status").read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))
    return Usage(time.monotonic(), used, switches)


def memory_mb(pid: int, kind: str) -> float:
    """Resident (`Rss`) or proportional (`Pss`) memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise DrivewayError(f"the kernel does not tell {kind} of process {pid}")


IMPORTS = """
import sys
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
last = resident()
print("interpreter", round(last, 1))
for name in ("asyncio", "msgspec", "agent.log", "cryptography.hazmat.primitives.asymmetric.ec", "sqlite3",
             "paho.mqtt.client", "agent.daemon"):
    __import__(name)
    now = resident()
    print(name if name.startswith("agent") else name.partition(".")[0], round(now - last, 1))
    last = now
"""


def _imports_mb() -> dict[str, float]:
    """What each part adds to a fresh interpreter, in this order; a module that an earlier one imported adds nothing."""
    told = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True).stdout
    return {name: float(megabytes) for name, megabytes in (line.split() for line in told.splitlines())}


def main() -> int:
    """Measure, print, and write the figures down where asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m hil.bench.idle", description="What the daemon costs while it waits."
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each situation is watched")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    figures = run(options.seconds)
    told = msgspec.json.format(msgspec.json.encode(figures)).decode()
    print(told)
    if options.json is not None:
        options.json.write_text(told + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
