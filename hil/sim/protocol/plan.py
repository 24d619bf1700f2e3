"""A run as a value: how many of what, from which seed, and everything that goes wrong. It replays to the last byte."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import msgspec

from agent.errors import ConfigError
from hil.sim.protocol.book_watch import Job, Package
from hil.sim.protocol.faults import KINDS, MINUTE_MS, Fault, draw

FORMAT = "driveway-protocol-run/1"
Few = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
FAULTS_MS = 40 * MINUTE_MS
LEAST_TTL_S = 60
PACKAGES = (
    Package("quick", "a1" * 32, 200, 8, 5, inline=True),
    Package("plain", "b2" * 32, 2_000, 16, 4),
    Package("slow", "c3" * 32, 40_000, 16, 3, ttl_s=960),
    Package("bulky", "d4" * 32, 1_000, 3_000, 4),
)
"""`slow` makes leases that need renewals, `bulky` answers that no message holds."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated. Faults come within the first `faults_ms`; jobs are put up within the first three quarters."""

    format: str = FORMAT
    cars: Few = 8
    dispatchers: Few = 2
    jobs: Few = 40
    seed: int = 1
    faults_ms: int = FAULTS_MS
    faults: tuple[Fault, ...] = ()
    note: str = ""
    """For people: where it comes from, and what it is said to show."""


def planned(
    cars: int,
    dispatchers: int,
    jobs: int,
    seed: int,
    *,
    faults_ms: int = FAULTS_MS,
    kinds: tuple[str, ...] = tuple(KINDS),
) -> Plan:
    """A run with the faults that its seed draws."""
    faults = draw(seed, faults_ms, cars, dispatchers, kinds)
    return Plan(cars=cars, dispatchers=dispatchers, jobs=jobs, seed=seed, faults_ms=faults_ms, faults=faults)


def jobs_of(plan: Plan) -> list[tuple[int, Job]]:
    """The jobs, each with when it is put up: short and long ones, small and large answers."""
    chance = random.Random(f"{plan.seed}/jobs")
    found = []
    for number in range(plan.jobs):
        package = chance.choice(PACKAGES)
        slice_items = chance.randint(1, package.most_items)
        count = chance.randint(1, 6) * slice_items - chance.randrange(slice_items)
        job = Job(
            name=f"job-{number:04d}",
            customer=f"customer-{chance.randint(0, 1)}",
            package=package,
            items=tuple(f"{plan.seed}/{number}/{item}".encode() for item in range(count)),
            slice_items=slice_items,
            price_micro_per_item=chance.randint(0, 900),
            ttl_s=package.ttl_s or max(LEAST_TTL_S, 3 * count * package.item_ms // 1000),
        )
        found.append((round(chance.uniform(0, plan.faults_ms * 3 / 4)) if number else 0, job))
    return found


def write(path: Path, plan: Plan) -> None:
    """Write a run down; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n")


def read(path: Path) -> Plan:
    """A run that was written down; raises ConfigError for what is none, and OSError."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no run of the protocol: {error}", hint="see --trace-dir") from error
    if plan.format != FORMAT or not {one.kind for one in plan.faults} <= KINDS.keys():
        raise ConfigError(f"{path} is of another version: {plan.format!r}", hint=f"this one reads {FORMAT}")
    return plan
