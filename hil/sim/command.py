"""`driveway-hil sim`: plays the cars, says what held and for how long, and leaves a short trace of what did not."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from agent.simulate.recording import Recording, write
from hil.sim.engine import Played, Total, play_all, total
from hil.sim.protocol import command
from hil.sim.protocol.command import ProtocolTotal, Wish
from hil.sim.shrink import shrink

PROGRESS_EVERY_S = 5.0


class WithProtocol(Total, frozen=True, kw_only=True):
    """The nights, and the runs of the lease protocol."""

    protocol: ProtocolTotal


class ProtocolAlone(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of the lease protocol, without nights."""

    protocol: ProtocolTotal


def simulate(
    cars: int,
    nights: int,
    seed: int,
    *,
    workers: int,
    json_file: Path | None,
    trace_dir: Path,
    protocol: Wish | None = None,
) -> int:
    """Play `cars` cars for `nights` nights each, and then the lease protocol, where that is wished for.

    1 when a promise or an invariant was broken. Raises ConfigError, OSError.
    """
    if min(cars, nights, workers) < 1:
        raise ConfigError("a simulation needs at least one car, one night and one worker")
    began_s = said_s = time.perf_counter()
    played: list[Played] = []
    for one in play_all(range(cars), nights, seed, workers):
        if one.broken:
            _tell(one, seed, trace_dir)
        played.append(msgspec.structs.replace(one, header=None, lines=()))
        if time.perf_counter() - said_s > PROGRESS_EVERY_S:
            said_s = time.perf_counter()
            print(f"{len(played)} of {cars} cars", file=sys.stderr)
    result = total(played, nights, seed, began_s)
    _print(result)
    broken = any(result.violations.values())
    if protocol is not None:
        runs = command.simulate(protocol, workers=workers, trace_dir=trace_dir)
        broken = broken or any(runs.violations.values())
        result = WithProtocol(**msgspec.structs.asdict(result), protocol=runs)
    _write(json_file, result)
    return 1 if broken else 0


def simulate_protocol(wish: Wish, *, workers: int, json_file: Path | None, trace_dir: Path) -> int:
    """Play the lease protocol alone; 1 when an invariant was broken. Raises ConfigError, OSError."""
    runs = command.simulate(wish, workers=workers, trace_dir=trace_dir)
    _write(json_file, ProtocolAlone(protocol=runs))
    return 1 if any(runs.violations.values()) else 0


def _write(json_file: Path | None, result: msgspec.Struct) -> None:
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def _tell(one: Played, seed: int, trace_dir: Path) -> None:
    """Say what broke, and leave a trace that breaks it again."""
    first = one.broken[0]
    assert one.header is not None
    hours = (first.at_ms - one.header.start_ms) / 3_600_000
    print(f"BROKEN {first.name}: seed {seed}, car {one.number}, {hours:.3f} h ({first.at_ms} ms): {first.detail}")
    note = f"driveway-hil sim --seed {seed}, car {one.number}, {first.name} at {first.at_ms} ms: {first.detail}"
    header = msgspec.structs.replace(one.header, note=note)
    short = shrink(Recording(header, one.lines), first)
    trace_dir.mkdir(parents=True, exist_ok=True)
    path = trace_dir / f"{seed}-{one.number}-{first.name}.jsonl"
    write(path, short.header, short.lines)
    print(f"  {len(short.lines)} of {len(one.lines)} events show it: driveway simulate {path}")


def _print(result: Total) -> None:
    print(
        f"{result.cars} cars, {result.nights} nights each, seed {result.seed}: {result.car_hours:,.0f} car-hours, "
        f"{result.work_hours:,.0f} h of work, {result.leases_settled:,} leases settled"
    )
    print(
        f"{result.events:,} events in {result.wall_s:.1f} s: {result.events_per_s:,.0f} events/s, "
        f"{result.car_nights_per_minute:,.0f} car-nights/min"
    )
    width = max(map(len, result.violations))
    for name, count in result.violations.items():
        verdict = f"BROKEN in {count} cars" if count else "held"
        print(f"  {name:{width}}  {verdict:20}  {result.held_hours[name]:12,.0f} car-hours")
