"""Which fault comes when, from a seed; and the one who makes them happen.

The schedule is an endless sequence that depends on the seed and the size of the fleet alone: kinds come out of a bag
that is shuffled anew when it is empty, so that every kind is had about as often. What real processes then make of it is
theirs: the same seed gives the same faults at the same moments, not the same interleaving.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterator

import msgspec

from hil.faults.ground import Ground
from hil.faults.kinds import KINDS, Fault, Kind, Scope

BETWEEN_S = 2.0
"""On average from the beginning of one fault to that of the next."""


class Injection(msgspec.Struct, frozen=True):
    """A fault as it came to be, in wall-clock milliseconds; `unit` is empty where it hit more than one car."""

    kind: str
    unit: str
    begin_ms: int
    end_ms: int


def possible(*, tls: bool) -> dict[str, Kind]:
    """The kinds that can be made in this run."""
    return {name: kind for name, kind in KINDS.items() if tls or not kind.needs_tls}


def schedule(seed: int, kinds: dict[str, Kind], *, cars: int, dispatchers: int) -> Iterator[Fault]:
    """The faults of a run, without an end."""
    chance = random.Random(seed)
    size = {Scope.CAR: cars, Scope.DISPATCHER: dispatchers}
    bag: list[str] = []
    number = 0
    while True:
        if not bag:
            bag = list(kinds)
            chance.shuffle(bag)
        name = bag.pop()
        kind = kinds[name]
        yield Fault(
            number=number,
            kind=name,
            target=chance.randrange(size.get(kind.scope, 1)),
            after_s=chance.expovariate(1 / BETWEEN_S),
            lasts_s=chance.uniform(*kind.lasts_s),
            seed=chance.getrandbits(32),
        )
        number += 1


class Injector:
    """Makes the faults of a schedule happen until it is told to stop; what it did is in `done`."""

    def __init__(self, ground: Ground, faults: Iterator[Fault]) -> None:
        self._ground, self._faults = ground, faults
        self._locks: dict[tuple[Scope, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: set[asyncio.Task[None]] = set()
        self.done: list[Injection] = []
        self.failed: list[str] = []

    async def run(self) -> None:
        """Inject until cancelled; faults that are on go to their end."""
        try:
            for fault in self._faults:
                await asyncio.sleep(fault.after_s)
                task = asyncio.create_task(self._inject(fault))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
        finally:
            await asyncio.gather(*self._running)

    async def _inject(self, fault: Fault) -> None:
        kind = KINDS[fault.kind]
        async with self._locks[kind.scope, fault.target]:
            begin_ms = wall_ms()
            try:
                async with kind.make(self._ground, fault, random.Random(fault.seed)):
                    await asyncio.sleep(fault.lasts_s)
            except Exception as error:  # noqa: BLE001 - one fault that cannot be made must not end the others
                self.failed.append(f"{fault.kind}: {error!r}")
                return
            unit = self._ground.agents[fault.target].unit if kind.scope is Scope.CAR else ""
            self.done.append(Injection(fault.kind, unit, begin_ms, wall_ms()))


def wall_ms() -> int:
    """The wall clock, which the dispatcher's rows are written by, too."""
    return time.time_ns() // 1_000_000
