"""One process of cars: `python -m hil.fleet.cars`, driven by lines of JSON on its standard input.

The first line is an `Assignment`; then come commands, each answered by one line. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import msgspec

from agent.clock import SystemClock
from agent.errors import DrivewayError
from agent.fleet.link_config import LinkConfig
from agent.fleet.tls import TlsFiles
from agent.trust.keys import keyid, load_public_key
from hil.fleet.car import Books, FleetCar, Yard
from hil.fleet.figures import Tally
from hil.fleet.parked import parked_state
from hil.fleet.shells import Settled, Work

CLOSING_AT_ONCE = 200


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which cars a process drives, and against what: number `first`, and every so many from there on."""

    seed: str
    first: int
    every: int
    cell: str
    broker: tuple[str, int]
    tls: TlsFiles | None
    keepalive_s: int
    dispatcher_key: str
    """The dispatcher's public key (PEM)."""
    work: Work
    compression: float
    """How many times sooner than it is told a car renews a long lease."""


class Grow(msgspec.Struct, frozen=True, tag=True):
    """Start cars until there are `cars` in this process, `per_s` a second (0: all at once)."""

    cars: int
    per_s: float


class Mark(msgspec.Struct, frozen=True, tag=True):
    """From now on it counts when each car is back and answered."""


class Take(msgspec.Struct, frozen=True, tag=True):
    """Hand over the tally, and begin a new one."""


class Look(msgspec.Struct, frozen=True, tag=True):
    """How it stands."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Every car gives back what it has leased and asks for nothing more."""


class Ledger(msgspec.Struct, frozen=True, tag=True):
    """Hand over what was settled since the last time."""


Command = Grow | Mark | Take | Look | Stop | Ledger


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How the cars of a process stand now."""

    cars: int
    connected: int
    working: int
    owed: int
    """Hand-ins that await a verdict."""
    made: int
    """Hand-ins with a statement, since the start."""


class Done(msgspec.Struct, frozen=True):
    """The answer to a command that has no other."""


class Cars:
    """The cars of this process. Use from the event loop's thread."""

    def __init__(self, assignment: Assignment) -> None:
        key = load_public_key(assignment.dispatcher_key)
        clock = SystemClock()
        self._assignment = assignment
        self._yard = Yard(
            seed=assignment.seed,
            cell=assignment.cell,
            parked=parked_state(clock),
            link=LinkConfig(
                brokers=(assignment.broker,),
                client_id="",
                filters=(),
                keepalive_s=assignment.keepalive_s,
                tls=assignment.tls,
            ),
            dispatcher_keys={keyid(key): key},
            clock=clock,
            work=assignment.work,
            compression=assignment.compression,
        )
        self._books = Books()
        self._cars: list[FleetCar] = []
        self._growing: asyncio.Task[None] | None = None

    def obey(self, command: Command) -> Done | Tally | Standing | list[Settled]:
        """Carry one command out; its answer."""
        match command:
            case Grow():
                self._growing = asyncio.get_running_loop().create_task(self._grow(command))
            case Mark():
                for car in self._cars:
                    car.mark()
            case Take():
                tally, self._books.tally = self._books.tally, Tally()
                return tally
            case Look():
                return self._standing()
            case Stop():
                for car in self._cars:
                    car.stop()
            case Ledger():
                settled = self._books.settled[:]
                self._books.settled.clear()
                return settled
        return Done()

    async def _grow(self, command: Grow) -> None:
        loop = asyncio.get_running_loop()
        began_s, started = loop.time(), 0
        while len(self._cars) < command.cars:
            if command.per_s:
                due_s = began_s + started / command.per_s
                if due_s > loop.time():
                    await asyncio.sleep(due_s - loop.time())
            car = FleetCar(self._assignment.first + self._assignment.every * len(self._cars), self._yard, self._books)
            self._cars.append(car)
            car.start()
            started += 1
            if not started % 50:
                await asyncio.sleep(0)
        gc.collect()
        gc.freeze()  # thousands of cars that stay: the collector need not walk over them again and again

    def _standing(self) -> Standing:
        return Standing(
            cars=len(self._cars),
            connected=sum(car.connected for car in self._cars),
            working=sum(car.working for car in self._cars),
            owed=sum(car.owed for car in self._cars),
            made=sum(car.made for car in self._cars),
        )

    async def close(self) -> None:
        """Every car leaves."""
        if self._growing is not None:
            self._growing.cancel()
        for begin in range(0, len(self._cars), CLOSING_AT_ONCE):
            await asyncio.gather(*(car.close() for car in self._cars[begin : begin + CLOSING_AT_ONCE]))


async def _serve() -> None:
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    cars = Cars(msgspec.json.decode(await reader.readline(), type=Assignment))
    try:
        while line := await reader.readline():
            answer = cars.obey(msgspec.json.decode(line, type=Command))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
    finally:
        await cars.close()


def main() -> None:
    """Run until standard input ends; exit status 1 with one sentence when it cannot start."""
    try:
        asyncio.run(_serve())
    except (DrivewayError, OSError) as error:
        sys.exit(f"cars: {error}")


if __name__ == "__main__":
    main()
