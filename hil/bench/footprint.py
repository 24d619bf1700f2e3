"""What the agent takes from a vehicle: memory, processor, wake-ups, and what it writes to flash; held to limits.

    driveway-hil bench footprint --json footprint.json       about six minutes; as root, what reaches the disk as well

`hil.bench.footprint_situations` says what is watched, `footprint_starts` what is started; what a package with systemd
takes in a container (`footprint_container`) is there where a container can be booted. What could not be measured is in
`absent`, with the reason, and breaks no limit.

Flash life. A chip of CAPACITY_GB whose cells take CYCLES may be given CAPACITY_GB · CYCLES gigabytes over its life,
divided by how often each byte is written inside it (JEDEC's TBW: capacity · cycles / write amplification). Half of that
is counted on, since the chip is not ours alone:

    years = CAPACITY_GB · CYCLES · SHARE / (WRITE_AMPLIFICATION · 365 · GB a day)
    GB a day = 24 h · per idle hour + LEASES_PER_DAY · per lease

64 GB and 3,000 cycles are a small multi-level-cell eMMC. 4: each flush of one 4 KiB block programs a page of 16 KiB,
which is the bad end; what the chip's own cleaning adds is small while it is not full. Bytes are those that the disk was
given, the file system's journal included, where the disk was counted; else the pages that the daemon made dirty, which
is less than half of that.

The limits are data (`footprint.toml`), each with its reason; `held` says whether all of them are kept. Those of
processor time are for a machine that does nothing else.
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

import msgspec

from agent.errors import DrivewayError
from hil.bench import footprint_container, footprint_disk, footprint_starts
from hil.bench.footprint_container import Contained
from hil.bench.footprint_situations import Computing, Waiting, Working, computing, waiting, working
from hil.bench.footprint_starts import Package, Spread
from hil.demo.story import quiet_logs

SECONDS = 60.0
CAPACITY_GB, CYCLES, SHARE, WRITE_AMPLIFICATION = 64.0, 3_000.0, 0.5, 4.0
LEASES_PER_DAY, NIGHT_H = 400, 8
"""A night of eight hours, with a lease every 72 s."""
LIMITS = Path(__file__).with_name("footprint.toml")


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a figure (dots lead into tables) may be at most, or must be at least; `aim` is where it is to go."""

    figure: str
    why: str
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None


class Flash(msgspec.Struct, frozen=True, kw_only=True):
    """How long a chip of this endurance lasts, and by what."""

    years: float
    endurance_tb: float
    """What may be written into its cells on our account."""
    write_amplification: float
    leases_per_day: int
    mb_per_idle_h: float
    mb_per_lease: float
    mb_per_night: float
    mb_per_day: float
    counted: str


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and which limits it breaks."""

    held: bool
    broken: dict[str, str]
    absent: dict[str, str]
    asleep: Waiting
    driving: Waiting
    quiet: Waiting
    parked: Waiting
    computing: Computing
    leases: Working
    flash: Flash
    ready: Spread
    starts: dict[str, Spread]
    package: Package | None
    container: Contained | None
    limits: dict[str, str]


def run(seconds: float = SECONDS) -> Figures:
    """Measure it all. Raises DrivewayError when a rig is stuck."""
    quiet_logs()
    wanted = limits()
    container, no_container = footprint_container.contained(seconds)
    with tempfile.TemporaryDirectory(prefix="driveway-footprint-") as folder:
        waits = waiting(Path(folder) / "waiting", seconds)
        within = computing(Path(folder) / "computing", seconds)
        leases = working(Path(folder) / "leases", seconds)
    package = footprint_starts.package()
    reasons = {
        "disk": footprint_disk.why_not(),
        "container": no_container,
        "package": None if package else "there is none: make package",
    }
    found = Figures(
        held=True,
        broken={},
        absent={name: why for name, why in reasons.items() if why},
        asleep=waits.asleep,
        driving=waits.driving,
        quiet=waits.quiet,
        parked=waits.parked,
        computing=within,
        leases=leases,
        flash=flash(waits.parked, leases),
        ready=waits.ready,
        starts=waits.starts,
        package=package,
        container=container,
        limits={},
    )
    return judged(found, wanted)


def judged(found: Figures, wanted: tuple[Limit, ...]) -> Figures:
    """The figures with their limits."""
    broken = {
        one.figure: f"{value(found, one.figure):g}, {bound(one)}: {one.why}"
        for one in wanted
        if not is_kept(found, one)
    }
    return msgspec.structs.replace(
        found, held=not broken, broken=broken, limits={one.figure: bound(one) for one in wanted}
    )


def limits(path: Path = LIMITS) -> tuple[Limit, ...]:
    """What is to be held; raises DrivewayError for a file that cannot be read as that."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8"))["limit"], tuple[Limit, ...])
    except (OSError, tomllib.TOMLDecodeError, KeyError, msgspec.ValidationError) as error:
        raise DrivewayError(f"{path}: {error}") from error


def is_kept(figures: Figures, limit: Limit) -> bool:
    """Whether a limit is kept; what was not measured breaks none."""
    found = value(figures, limit.figure)
    if found is None:
        return True
    return (limit.at_most is None or found <= limit.at_most) and (limit.at_least is None or found >= limit.at_least)


def value(figures: Figures, name: str) -> float | None:
    """A figure by its name, None for one that was not measured; raises DrivewayError where there is none."""
    found: object = figures
    try:
        for part in name.split("."):
            if found is None:
                return None
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        return None if found is None else float(found)  # type: ignore[arg-type]  # a figure, or a TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DrivewayError(f"{LIMITS.name}: there is no figure {name!r}") from error


def flash(idle: Waiting, leases: Working) -> Flash:
    """The formula above, with the disk's own counts where there are any."""
    counted = idle.disk_mb_per_h is not None and leases.disk_kb_per_lease is not None
    mb_per_h = (idle.disk_mb_per_h if counted else idle.written_mb_per_h) or 0.0
    mb_per_lease = ((leases.disk_kb_per_lease if counted else leases.written_kb_per_lease) or 0.0) / 1000
    mb_per_day = 24 * mb_per_h + LEASES_PER_DAY * mb_per_lease
    endurance_mb = CAPACITY_GB * 1000 * CYCLES * SHARE
    return Flash(
        years=round(endurance_mb / (WRITE_AMPLIFICATION * 365 * max(mb_per_day, 1e-3)), 1),
        endurance_tb=endurance_mb / 1e6,
        write_amplification=WRITE_AMPLIFICATION,
        leases_per_day=LEASES_PER_DAY,
        mb_per_idle_h=mb_per_h,
        mb_per_lease=round(mb_per_lease, 4),
        mb_per_night=round(NIGHT_H * mb_per_h + LEASES_PER_DAY * mb_per_lease, 2),
        mb_per_day=round(mb_per_day, 2),
        counted="what the disk was given" if counted else "pages that the daemon made dirty",
    )


def bound(limit: Limit) -> str:
    """A limit as people read it."""
    said = f"at most {limit.at_most:g}" if limit.at_most is not None else f"at least {limit.at_least:g}"
    return f"{said} (aim {limit.aim:g})" if limit.aim is not None else said
