"""All cars of a fleet, over the processes that drive them: grow, mark, look, and what they saw."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from agent.errors import FleetError
from hil.broker import HOST
from hil.fleet.cars import Assignment, Done, Grow, Ledger, Look, Mark, Standing, Stop, Take
from hil.fleet.figures import Tally, merged
from hil.fleet.plan import FleetPlan
from hil.fleet.processes import CarProcess, Usage, usage
from hil.fleet.region import Region
from hil.fleet.shells import Settled, Work

ANSWER = TypeVar("ANSWER")
POLL_S = 0.2
KEEPALIVE_S = 300


class Park:
    """Use as a context manager, within a region that is up. Car n is driven by process n modulo their number."""

    def __init__(self, plan: FleetPlan, region: Region, *, folder: Path, cell: str, seed: str) -> None:
        self._plan, self._region = plan, region
        self._folder, self._cell, self._seed = folder, cell, seed
        self._processes: list[CarProcess] = []
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        key = (self._region.dispatcher_folder / "dispatcher.pub").read_text("ascii")
        count = self._plan.car_processes
        with ExitStack() as undo:
            undo.callback(self._closing.close)
            for number in range(count):
                assignment = Assignment(
                    seed=self._seed,
                    first=number,
                    every=count,
                    cell=self._cell,
                    broker=(HOST, self._region.car_port),
                    tls=self._region.car_tls,
                    keepalive_s=KEEPALIVE_S,
                    dispatcher_key=key,
                    work=Work(slice_s=self._plan.slice_s),
                    compression=self._plan.compression,
                )
                process = CarProcess(self._folder / f"cars-{number}.log", assignment)
                self._processes.append(process)
                self._closing.callback(process.close)
            self.look()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.hang_up()  # all of them, before one is waited for
        self._closing.close()

    def grow(self, cars: int) -> None:
        """Start cars until there are so many, at the plan's ramp; returns at once."""
        count = len(self._processes)
        for number, process in enumerate(self._processes):
            process.say(Grow(len(range(number, cars, count)), self._plan.ramp_per_s / count))
        for process in self._processes:
            process.hear(Done)

    def look(self) -> Standing:
        """How all cars stand now."""
        answers = self._ask(Look(), Standing)
        return Standing(
            cars=sum(one.cars for one in answers),
            connected=sum(one.connected for one in answers),
            working=sum(one.working for one in answers),
            owed=sum(one.owed for one in answers),
            made=sum(one.made for one in answers),
        )

    def wait(self, until: Callable[[Standing], bool], timeout_s: float) -> Standing:
        """Look until that is so, or the time is up; how it stood then."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            standing = self.look()
            if until(standing) or time.monotonic() > deadline_s:
                return standing
            time.sleep(POLL_S)

    def mark(self) -> None:
        """From now on it counts when each car is back and answered."""
        self._ask(Mark(), Done)

    def take(self) -> Tally:
        """What all cars saw since the last time."""
        return merged(self._ask(Take(), Tally))

    def stop(self) -> None:
        """Every car gives back what it has leased, and asks for nothing more."""
        self._ask(Stop(), Done)

    def ledger(self) -> list[Settled]:
        """Every verdict on a hand-in with a statement that a car has, since the last time."""
        return [one for answer in self._ask(Ledger(), list[Settled]) for one in answer]

    def usage(self) -> Usage:
        """Of all processes of cars."""
        return usage(process.pid for process in self._processes)

    def _ask(self, command: msgspec.Struct, kind: type[ANSWER]) -> list[ANSWER]:
        if not self._processes:
            raise FleetError("there are no processes of cars")
        for process in self._processes:
            process.say(command)
        return [process.hear(kind) for process in self._processes]
