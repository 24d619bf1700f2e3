"""What trust costs: keys, bytes, processor time, the disk, long logs; and what cheats gain in spite of it.

    driveway-hil bench trust --json trust.json        two minutes on two cores, once the cheats' outputs are made

* keys (`trust_rates`): signing and verifying, by where the key lives;
* bytes (`trust_sizes`): statements, envelopes, messages, checkpoints and proofs;
* leases (`trust_leases`): the processor time of signing, hashing and committing beside a lease of one-second slices,
  which is held to `AIM_PERCENT`, and the waits for each commit;
* logs (`trust_logs`): a log of 100,000 leaves, opened, tested, and verified by a stranger;
* cheats (`trust_cheats`): the table of the cheating simulation, small.

`held`: the aim was reached, everything that was to be verified held, and the simulation's own promises held. What is
not installed is left out with its reason in `absent`. docs/proof.md says what each key is.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec
from cryptography.hazmat.backends.openssl import backend

from agent.errors import DrivewayError
from hil.bench.trust_cheats import measure_cheats
from hil.bench.trust_leases import PARTS, disk_of, measure_commits, measure_cpu
from hil.bench.trust_logs import LEAVES, measure_log
from hil.bench.trust_rates import KeyRate, measure_rates
from hil.bench.trust_sizes import Size, measure_sizes
from hil.bench.trust_work import Latency, Spread, Work
from hil.cheats.command import Detection, Report

ROUNDS = 3
AIM_PERCENT = 1.0
LEASES = 150
"""Of which each round's commits are."""
CHEATING_CARS = 10
CHEATS = "cheats"


class Caught(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one kind of cheat, as `hil.cheats.command.Detection` has it."""

    cheats: int
    caught: int
    jobs_median: float | None
    jobs_p95: int | None
    kept_permille: int


class Honest(msgspec.Struct, frozen=True, kw_only=True):
    """What one kind of cheat cost the honest, likewise."""

    honest_units: int
    honest_jobs: int
    honest_punished: int
    copies_permille: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over `rounds`, the least and the most beside them."""

    held: bool
    cpu_share_percent: float
    cpu_share_min_percent: float
    cpu_share_max_percent: float
    aim_percent: float
    verify_p50_ms: float
    verify_p99_ms: float
    log_leaves: int
    log_bytes: int
    rounds: int
    disk: str
    keys: dict[str, KeyRate]
    bytes: dict[str, Size]
    lease_cpu_ms: dict[str, Spread]
    commits: dict[str, Latency]
    log_ms: dict[str, Spread]
    cheats: dict[str, Caught]
    honest: dict[str, Honest]
    absent: dict[str, str]
    versions: dict[str, str]


def run(*, rounds: int = ROUNDS, leases: int = LEASES, leaves: int = LEAVES, cars: int = CHEATING_CARS) -> Figures:
    """Measure everything; raises DrivewayError when something that was signed or logged does not hold."""
    work = Work()
    _say("keys")
    rates = measure_rates(rounds)
    _say("bytes")
    sizes = measure_sizes(work)
    with tempfile.TemporaryDirectory(prefix="driveway-trust-") as name:
        folder = Path(name)
        disk = disk_of(folder)
        _say("leases at their own pace")
        cpu = asyncio.run(measure_cpu(work, folder, rounds))
        _say("commits")
        commits = asyncio.run(measure_commits(work, folder, rounds, leases))
        _say(f"a log of {leaves:,}")
        log = measure_log(work, folder, rounds, leaves)
    _say("cheats")
    cheats = played(cars)
    detections = [] if isinstance(cheats, str) else cheats.detections
    return Figures(
        held=cpu.share_percent.median < AIM_PERCENT and (isinstance(cheats, str) or cheats.held),
        cpu_share_percent=cpu.share_percent.median,
        cpu_share_min_percent=cpu.share_percent.min,
        cpu_share_max_percent=cpu.share_percent.max,
        aim_percent=AIM_PERCENT,
        verify_p50_ms=rates.verify.p50_ms,
        verify_p99_ms=rates.verify.p99_ms,
        log_leaves=log.leaves,
        log_bytes=log.bytes,
        rounds=rounds,
        disk=disk,
        keys=rates.keys,
        bytes=sizes,
        lease_cpu_ms={part: cpu.parts_ms[part] for part in PARTS},
        commits=commits,
        log_ms=log.ms,
        cheats=caught(detections),
        honest=honest(detections),
        absent=rates.absent | ({CHEATS: cheats} if isinstance(cheats, str) else {}),
        versions=versions(),
    )


def played(cars: int) -> Report | str:
    """One small run of the cheating simulation, or why there is none."""
    try:
        return measure_cheats(seed=1, seeds=1, cars=cars)
    except DrivewayError as error:  # the model whose answers are played with could not be had
        return str(error)


def caught(detections: Sequence[Detection]) -> dict[str, Caught]:
    """By the kind of cheat."""
    return {one.cheat: msgspec.convert(one, Caught, from_attributes=True) for one in detections}


def honest(detections: Sequence[Detection]) -> dict[str, Honest]:
    """By the kind of cheat that they had beside them."""
    return {one.cheat: msgspec.convert(one, Honest, from_attributes=True) for one in detections}


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    return {
        "cryptography": metadata.version("cryptography"),
        "openssl": backend.openssl_version_text(),
        "sqlite": sqlite3.sqlite_version,
        "msgspec": metadata.version("msgspec"),
        "python-pkcs11": _version("python-pkcs11"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
