"""Many cars, one after the other or in several processes; the same seed gives the same result, bit for bit.

A car's world comes from the seed and the car's number alone, so it does not matter which process plays it, and in which
order. A car stops at its first broken promise: what comes after one is not evidence of anything.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterable, Iterator

import msgspec

from agent.simulate.promises import PROMISES, Broken
from agent.simulate.recording import Header, Line
from hil.sim.world import NIGHT, Focus, build, spans


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one car."""

    number: int
    night_ms: int
    lived_ms: int
    events: int
    work_ms: int
    settled: int
    broken: tuple[Broken, ...] = ()
    header: Header | None = None
    lines: tuple[Line, ...] = ()
    """The recording, where a promise was broken."""


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What came of all of them."""

    cars: int
    nights: int
    seed: int
    car_hours: float
    events: int
    wall_s: float
    nights_s: float
    """Simulated seconds, all nights of all cars."""
    events_per_s: float
    car_nights_per_minute: float
    work_hours: float
    leases_settled: int
    violations: dict[str, int]
    held_hours: dict[str, float]
    """Car-hours each promise held."""


def play(seed: int, number: int, nights: int, focus: Focus = NIGHT, looking_for: str = "") -> Played:
    """One car, all its nights, until a promise is broken (the one that is looked for, if one is).

    Nothing that is made on the way has cycles but the car itself, so the collector would look at a million frozen
    values again and again for nothing (a third of the time).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return _play(seed, number, nights, focus, looking_for)
    finally:
        if collects:
            gc.enable()
        gc.collect()


def _play(seed: int, number: int, nights: int, focus: Focus, looking_for: str) -> Played:
    car = build(seed, number, nights, focus)
    car.witness.looking_for = looking_for
    lived_ms = night_ms = 0
    for start_ms, end_ms in spans(nights, focus, car.traits.start_ms):
        car.run(start_ms)
        if car.witness.broken:
            break
        car.run(end_ms)
        night_ms += focus.night_ms
        lived_ms += car.clock.now_ms - start_ms
        if car.witness.broken:
            break
    broken = tuple(car.witness.broken or car.witness.watch.finish(car.witness.state))
    return Played(
        number=number,
        night_ms=night_ms,
        lived_ms=lived_ms,
        events=car.witness.events,
        work_ms=car.work_ms,
        settled=car.shells.uplink.dispatcher.settled,
        broken=broken,
        header=car.witness.header if broken else None,
        lines=tuple(car.witness.lines) if broken else (),
    )


def play_all(cars: Iterable[int], nights: int, seed: int, workers: int = 1, focus: Focus = NIGHT) -> Iterator[Played]:
    """All cars, in the order of their numbers."""
    tasks = [(seed, number, nights, focus) for number in cars]
    if workers <= 1:
        yield from (play(*task) for task in tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_play_task, tasks, chunksize=1)


def _play_task(task: tuple[int, int, int, Focus]) -> Played:
    return play(*task)


def total(played: Iterable[Played], nights: int, seed: int, began_s: float) -> Total:
    """Sum up; `began_s` is when the playing began (`time.perf_counter`)."""
    violations = dict.fromkeys(PROMISES, 0)
    held = dict.fromkeys(PROMISES, 0.0)
    cars = events = lived_ms = work_ms = night_ms = settled = 0
    for one in played:
        cars += 1
        events, lived_ms, work_ms = events + one.events, lived_ms + one.lived_ms, work_ms + one.work_ms
        night_ms, settled = night_ms + one.night_ms, settled + one.settled
        names = {broken.name for broken in one.broken}
        for name in PROMISES:
            violations[name] += name in names
            held[name] += 0 if name in names else one.lived_ms / 3_600_000
    wall_s = time.perf_counter() - began_s
    return Total(
        cars=cars,
        nights=nights,
        seed=seed,
        car_hours=lived_ms / 3_600_000,
        events=events,
        wall_s=wall_s,
        nights_s=lived_ms / 1000,
        events_per_s=events / wall_s,
        car_nights_per_minute=cars * nights / wall_s * 60,
        work_hours=work_ms / 3_600_000,
        leases_settled=settled,
        violations=violations,
        held_hours=held,
    )
