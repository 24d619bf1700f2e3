"""`driveway-hil sim --protocol`: plays runs of the lease protocol, and leaves short runs of what did not hold."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from hil.sim.protocol.engine import Played, play
from hil.sim.protocol.invariants import INVARIANTS
from hil.sim.protocol.plan import Plan, planned, read, write
from hil.sim.protocol.shrink import shrink
from hil.sim.protocol.sweep import KINDS as SWEPT
from hil.sim.protocol.sweep import sweep

CARS = 20


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What to play: `runs` runs with the seeds from `seed` on; with `sweep` a short one for each boundary as well."""

    cars: int = CARS
    dispatchers: int = 3
    jobs: int = 200
    seed: int = 1
    runs: int = 1
    sweep: bool = False


class ProtocolTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What came of all runs; `messages_per_lease` counts both directions, faults and all."""

    cars: int
    dispatchers: int
    jobs: int
    seed: int
    runs: int
    virtual_hours: float
    events: int
    wall_s: float
    events_per_s: float
    leases: int
    leases_settled: int
    leases_per_s: float
    slices: int
    jobs_done: int
    messages_up: int
    messages_down: int
    messages_per_lease: float
    bytes_up: int
    agent_lives: int
    faults: dict[str, int]
    broker: dict[str, int]
    violations: dict[str, int]
    fingerprints: list[str]


def simulate(wish: Wish, *, workers: int, trace_dir: Path) -> ProtocolTotal:
    """Play the runs, and print what came of them. Raises ConfigError, OSError."""
    if min(wish.cars, wish.dispatchers, wish.jobs, wish.runs, workers) < 1:
        raise ConfigError("a simulation of the protocol needs at least one car, dispatcher, job, run and worker")
    began_s = time.perf_counter()
    played: list[Played] = []
    for one in chain(_play_all(wish, workers), _swept() if wish.sweep else ()):
        if one.violation is not None:
            _tell(one, trace_dir)
        played.append(msgspec.structs.replace(one, plan=msgspec.structs.replace(one.plan, faults=())))
    result = _total(wish, played, time.perf_counter() - began_s)
    _print(result)
    return result


def replay(path: Path) -> int:
    """Play a run that was written down; 1 when it breaks an invariant. Raises ConfigError, OSError."""
    plan = read(path)
    played = play(plan)
    print(f"{path}: seed {plan.seed}, {len(plan.faults)} faults, {played.events:,} events, {played.fingerprint[:16]}")
    if played.violation is None:
        print("every invariant held")
        return 0
    broken = played.violation
    print(f"BROKEN {broken.name} at {broken.at_ms / 1000:.3f} s: {broken.detail}")
    return 1


def _plans(wish: Wish) -> list[Plan]:
    seeds = range(wish.seed, wish.seed + wish.runs)
    return [planned(wish.cars, wish.dispatchers, wish.jobs, seed) for seed in seeds]


def _play_all(wish: Wish, workers: int) -> Iterator[Played]:
    """All runs, in the order of their seeds; it does not matter which process plays which."""
    if min(workers, wish.runs) <= 1:
        yield from map(play, _plans(wish))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(play, _plans(wish), chunksize=1)


def _swept() -> Iterator[Played]:
    """A short run for each place where a car's power, or a dispatcher, may fail."""
    for kind in SWEPT:
        yield from sweep(kind)


def _tell(one: Played, trace_dir: Path) -> None:
    """Say what broke, and leave a run with few faults that breaks it again."""
    broken = one.violation
    assert broken is not None
    print(f"BROKEN {broken.name}: seed {one.plan.seed}, {broken.at_ms / 1000:.3f} s: {broken.detail}")
    short = shrink(one.plan, broken)
    note = f"seed {one.plan.seed}, {broken.name} at {broken.at_ms} ms: {broken.detail}"
    path = trace_dir / f"protocol-{one.plan.seed}-{broken.name}.json"
    write(path, msgspec.structs.replace(short, note=note))
    shown = f"driveway-hil sim --protocol --replay {path}"
    print(f"  {len(short.faults)} of {len(one.plan.faults)} faults show it: {shown}")


def _total(wish: Wish, played: list[Played], wall_s: float) -> ProtocolTotal:
    faults: Counter[str] = Counter()
    broker: Counter[str] = Counter()
    broken = Counter(one.violation.name for one in played if one.violation is not None)
    for one in played:
        faults.update(one.faults)
        broker.update(one.broker)
    events, leases = sum(one.events for one in played), sum(one.leases for one in played)
    settled = sum(one.settled for one in played)
    up, down = sum(one.messages_up for one in played), sum(one.messages_down for one in played)
    return ProtocolTotal(
        cars=wish.cars,
        dispatchers=wish.dispatchers,
        jobs=wish.jobs,
        seed=wish.seed,
        runs=len(played),
        virtual_hours=sum(one.ended_ms for one in played) / 3_600_000,
        events=events,
        wall_s=wall_s,
        events_per_s=events / wall_s,
        leases=leases,
        leases_settled=settled,
        leases_per_s=leases / wall_s,
        slices=sum(one.slices for one in played),
        jobs_done=sum(one.jobs_done for one in played),
        messages_up=up,
        messages_down=down,
        messages_per_lease=(up + down) / max(1, leases),
        bytes_up=sum(one.bytes_up for one in played),
        agent_lives=sum(one.lives for one in played),
        faults=dict(sorted(faults.items())),
        broker=dict(sorted(broker.items())),
        violations={name: broken[name] for name in INVARIANTS},
        fingerprints=[one.fingerprint for one in played],
    )


def _print(result: ProtocolTotal) -> None:
    print(
        f"protocol: {result.runs} runs of up to {result.cars} cars, {result.dispatchers} dispatchers, {result.jobs} "
        f"jobs, from seed {result.seed}: {result.virtual_hours:,.1f} h, {sum(result.faults.values()):,} faults"
    )
    print(
        f"{result.leases:,} leases, {result.leases_settled:,} settled, {result.jobs_done:,} jobs ended; "
        f"{result.events:,} events in {result.wall_s:.1f} s: {result.events_per_s:,.0f} events/s, "
        f"{result.leases_per_s:,.0f} leases/s"
    )
    width = max(map(len, result.violations))
    for name, count in result.violations.items():
        print(f"  {name:{width}}  {f'BROKEN in {count} runs' if count else 'held'}")
