"""What the agent takes from a vehicle: memory, processor, wake-ups, and what it writes to flash; held to limits.

    driveway-hil bench footprint --json footprint.json       about four minutes

Real processes (`hil.bench.idle` says which): parked with the gate open and no work to be had, driving with the gate
shut, both with 3,000 frames a second; then leases of a package that does nothing, so that only the agent's own share
counts. Memory and processor are as there; wake-ups are voluntary context switches of all threads; what is written is
`write_bytes` of /proc/PID/io, which the kernel counts as pages are handed to the file system, so a page that is written
twice before it is flushed counts twice, and the file system's own journal does not count.

Flash life: `endurance_tbw` terabytes may be written until the chip is worn (an eMMC of 64 GB with 3,000 cycles stands
for 192; half of that is taken, since it is not ours alone), every byte wears it `WRITE_AMPLIFICATION` times (small
synced writes; 4 is what vendors' notes give for them at the bad end), and a day has so many hours and leases:

    years = endurance_tbw · 10^12 / (WRITE_AMPLIFICATION · 365 · (24 h · per hour + LEASES_PER_DAY · per lease))

The limits are data (`footprint.toml`), each with its reason; `held` says whether all of them are kept.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
import tomllib
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from hil.bench.idle import FRAMES_PER_S, SETTLE_S, QuietRig, memory_mb, until_open, watch
from hil.bench.lease_rig import LeaseRig
from hil.broker import EmbeddedBroker, Mosquitto
from hil.demo.story import quiet_logs
from hil.packages.nothing import build_nothing_package
from hil.rig import Rig

SECONDS = 60.0
LEASES, ITEMS, WARM_UP_LEASES = 60, 24, 5
STARTS = 5
ENDURANCE_TBW, WRITE_AMPLIFICATION = 96.0, 4.0
LEASES_PER_DAY = 400
"""A night of eight hours, with a lease every 72 s."""
LIMITS = Path(__file__).with_name("footprint.toml")


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a figure (dots lead into tables) may be at most, or must be at least; `aim` is where it is to go."""

    figure: str
    why: str
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon while it waits."""

    gate: str
    rss_mb: float
    pss_mb: float
    cpu_percent: float
    wakeups_per_s: float
    written_mb_per_h: float


class Working(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon while it works off leases of `items` items, and its worker's memory."""

    leases: int
    items: int
    rss_mb: float
    worker_rss_mb: float
    cpu_ms_per_lease: float
    written_kb_per_lease: float


class Flash(msgspec.Struct, frozen=True, kw_only=True):
    """How long a chip of this endurance lasts, and by what."""

    years: float
    endurance_tbw: float
    write_amplification: float
    leases_per_day: int
    written_mb_per_day: float


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and which limits it breaks."""

    held: bool
    broken: dict[str, str]
    start_to_ready_s: float
    parked: Waiting
    driving: Waiting
    leases: Working
    flash: Flash
    limits: dict[str, str]


def run(seconds: float = SECONDS) -> Figures:
    """Measure it all. Raises DrivewayError when a rig is stuck."""
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="driveway-footprint-") as folder:
        parked, driving, ready_s = _waiting(Path(folder) / "waiting", seconds)
        leases = _working(Path(folder) / "working")
    return judged(ready_s, parked, driving, leases, limits())


def judged(ready_s: float, parked: Waiting, driving: Waiting, leases: Working, wanted: tuple[Limit, ...]) -> Figures:
    """The figures with their limits."""
    found = Figures(
        held=True,
        broken={},
        start_to_ready_s=ready_s,
        parked=parked,
        driving=driving,
        leases=leases,
        flash=flash(parked.written_mb_per_h, leases.written_kb_per_lease),
        limits={one.figure: _bound(one) for one in wanted},
    )
    broken = {one.figure: f"{value(found, one.figure):g}, {_bound(one)}" for one in wanted if not kept(found, one)}
    return msgspec.structs.replace(found, held=not broken, broken=broken)


def limits(path: Path = LIMITS) -> tuple[Limit, ...]:
    """What is to be held; raises DrivewayError for a file that cannot be read as that."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8"))["limit"], tuple[Limit, ...])
    except (OSError, tomllib.TOMLDecodeError, KeyError, msgspec.ValidationError) as error:
        raise DrivewayError(f"{path}: {error}") from error


def kept(figures: Figures, limit: Limit) -> bool:
    """Whether a limit is kept."""
    found = value(figures, limit.figure)
    return (limit.at_most is None or found <= limit.at_most) and (limit.at_least is None or found >= limit.at_least)


def value(figures: Figures, name: str) -> float:
    """A figure by its name; raises DrivewayError where there is none."""
    found: object = figures
    for part in name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, int | float):
        raise DrivewayError(f"{LIMITS.name}: there is no figure {name!r}")
    return float(found)


def flash(mb_per_h: float, kb_per_lease: float) -> Flash:
    """The formula above."""
    mb_per_day = 24 * mb_per_h + LEASES_PER_DAY * kb_per_lease / 1000
    years = ENDURANCE_TBW * 1e6 / (WRITE_AMPLIFICATION * 365 * mb_per_day) if mb_per_day else 1_000.0
    return Flash(
        years=round(years, 1),
        endurance_tbw=ENDURANCE_TBW,
        write_amplification=WRITE_AMPLIFICATION,
        leases_per_day=LEASES_PER_DAY,
        written_mb_per_day=round(mb_per_day, 2),
    )


def _bound(limit: Limit) -> str:
    said = f"at most {limit.at_most:g}" if limit.at_most is not None else f"at least {limit.at_least:g}"
    return f"{said} (aim {limit.aim:g})" if limit.aim is not None else said


# --- measuring --------------------------------------------------------------------------------------------------------


def _waiting(folder: Path, seconds: float) -> tuple[Waiting, Waiting, float]:
    with QuietRig(folder) as rig:
        rig.start_fleet()
        try:
            rig.start_buses(FRAMES_PER_S)
            starts_s = []
            for _ in range(STARTS):
                began_s = time.monotonic()
                pid = rig.start_quiet_daemon(rig.buses)
                starts_s.append(time.monotonic() - began_s)
                if len(starts_s) < STARTS:
                    rig.stop("daemon")
            rig.order(signal.SIGUSR1)
            time.sleep(SETTLE_S)
            driving = _watched(rig, pid, seconds)
            rig.order(signal.SIGUSR2)
            until_open(rig)
            time.sleep(SETTLE_S)
            return _watched(rig, pid, seconds), driving, round(statistics.median(starts_s), 2)
        finally:
            rig.stop("bus", signal.SIGKILL)  # it minds no other


def _watched(rig: QuietRig, pid: int, seconds: float) -> Waiting:
    before, began_s = written_bytes(pid), time.monotonic()
    threads, wakeups = watch(pid, seconds)
    per_h = (written_bytes(pid) - before) / (time.monotonic() - began_s) * 3600
    return Waiting(
        gate=str(rig.ask("status")["gate"]),
        rss_mb=memory_mb(pid, "Rss"),
        pss_mb=memory_mb(pid, "Pss"),
        cpu_percent=round(sum(threads.values()), 3),
        wakeups_per_s=round(wakeups, 1),
        written_mb_per_h=round(per_h / 1e6, 2),
    )


def _working(folder: Path) -> Working:
    kind = EmbeddedBroker if Mosquitto.binary() is None else Mosquitto
    with Rig(folder, parked_for_s=1.0, broker=kind) as rig:
        package = rig.publish("nothing", build_nothing_package)
        rig.start()
        rig.car("driver_leaves")
        work = LeaseRig(rig, package, None)
        try:
            work.wait_for(work.put_up(WARM_UP_LEASES, ITEMS), WARM_UP_LEASES)
            pid, worker = rig.pid("daemon"), (rig.status() or {}).get("worker")
            assert pid is not None
            before = written_bytes(pid)
            done = work.measure(LEASES, ITEMS)
            written = written_bytes(pid) - before
        finally:
            work.close()
        cpu_s = done.after.cpu_s["daemon"] - done.before.cpu_s["daemon"]
        return Working(
            leases=LEASES,
            items=ITEMS,
            rss_mb=memory_mb(pid, "Rss"),
            worker_rss_mb=memory_mb(worker["pid"], "Rss") if worker else 0.0,
            cpu_ms_per_lease=round(cpu_s * 1000 / LEASES, 2),
            written_kb_per_lease=round(written / 1000 / LEASES, 2),
        )


def written_bytes(pid: int) -> int:
    """What a process has handed to the file system until now; raises DrivewayError where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text("ascii").splitlines()
    except OSError as error:
        raise DrivewayError(f"the kernel does not tell what process {pid} writes: {error}") from error
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes:"))
