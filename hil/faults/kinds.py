"""Every kind of fault: what it hits, how long it lasts, and how it is made and ended.

A fault is an async context: entering it makes it, leaving it ends it. What chance it needs comes from the fault's own
generator, so that a schedule means the same whatever happens around it. A target that is hit already is waited for:
two faults of one process or link follow each other, those of different targets overlap freely.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import random
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec

from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from hil.faults.ground import Agent, Ground
from hil.faults.processes import Child
from hil.faults.proxy import BOTH, FAIR, Direction, FaultyLink, Weather

EXPIRED_S = -1.0


class Scope(enum.StrEnum):
    """What a fault hits: the broker, a dispatcher replica, the dispatcher's database, one car, or every car."""

    BROKER = "broker"
    DISPATCHER = "dispatcher"
    DATABASE = "database"
    CAR = "car"
    EVERYWHERE = "everywhere"


class Fault(msgspec.Struct, frozen=True):
    """One fault of a schedule: `after_s` the one before begins, it hits `target` (a number of its scope's)."""

    number: int
    kind: str
    target: int
    after_s: float
    lasts_s: float
    seed: int


Make = Callable[[Ground, Fault, random.Random], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault; `lasts_s` is the least and the most. `needs_tls`: only where the broker wants certificates."""

    scope: Scope
    lasts_s: tuple[float, float]
    make: Make
    needs_tls: bool = False


# --- processes ------------------------------------------------------------------------------------------------------


def _killed(child: Callable[[Ground, Fault], Child]) -> Make:
    @contextlib.asynccontextmanager
    async def make(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
        one = child(ground, fault)
        one.kill()
        try:
            yield
        finally:
            one.start()

    return make


def _frozen(child: Callable[[Ground, Fault], Child]) -> Make:
    @contextlib.asynccontextmanager
    async def make(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
        one = child(ground, fault)
        one.freeze()
        try:
            yield
        finally:
            one.thaw()

    return make


@contextlib.asynccontextmanager
async def worker_killed(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """SIGKILL to the inference worker, if there is one now."""
    pid = ground.agents[fault.target].worker_pid()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    yield


# --- the network ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def partition(ground: Ground, _fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """Nobody reaches the broker; what was sent arrives when it heals."""
    for link in ground.links:
        link.hold(*BOTH)
    try:
        yield
    finally:
        for link in ground.links:
            link.release()


def _held(link: Callable[[Ground, Fault], FaultyLink], *, one_way: bool) -> Make:
    @contextlib.asynccontextmanager
    async def make(ground: Ground, fault: Fault, chance: random.Random) -> AsyncIterator[None]:
        one = link(ground, fault)
        one.hold(*((chance.choice(BOTH),) if one_way else BOTH))
        try:
            yield
        finally:
            one.release()

    return make


def _half_open(link: Callable[[Ground, Fault], FaultyLink]) -> Make:
    @contextlib.asynccontextmanager
    async def make(ground: Ground, fault: Fault, chance: random.Random) -> AsyncIterator[None]:
        link(ground, fault).half_open(*chance.choice((BOTH, (Direction.UP,), (Direction.DOWN,))))
        yield

    return make


def _cut(link: Callable[[Ground, Fault], FaultyLink]) -> Make:
    @contextlib.asynccontextmanager
    async def make(ground: Ground, fault: Fault, chance: random.Random) -> AsyncIterator[None]:
        link(ground, fault).cut(after_bytes=chance.randint(0, 6_000), reset=chance.random() < 0.5)
        yield

    return make


@contextlib.asynccontextmanager
async def slow_link(ground: Ground, fault: Fault, chance: random.Random) -> AsyncIterator[None]:
    """Late, narrow, and in odd pieces."""
    link = _car_link(ground, fault)
    link.weather = Weather(
        delay_ms=(20, chance.uniform(50, 800)),
        bytes_per_s=chance.choice((2_000, 8_000, 64_000)),
        split_bytes=chance.choice((0, 7, 200)),
        gather_ms=chance.choice((0.0, 40.0)),
    )
    try:
        yield
    finally:
        link.weather = FAIR


@contextlib.asynccontextmanager
async def refused(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """The connection is reset, and new ones are refused."""
    link = _car_link(ground, fault)
    await link.refuse(refused=True)
    link.cut(reset=True)
    try:
        yield
    finally:
        await link.refuse(refused=False)


@contextlib.asynccontextmanager
async def twin(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """Another client with this car's identity (its certificate copied, its client id) takes its messages away."""
    agent = ground.agents[fault.target]
    config = LinkConfig(
        brokers=(("127.0.0.1", agent.link.port),),
        client_id=agent.unit,
        filters=(f"dw/v1/d/{agent.unit}/+",),
        tls=ground.tls(agent.unit),
    )
    link = Link(config, on_message=lambda _topic, _body: None, on_state=lambda _up, _broker, _detail: None)
    link.start()
    try:
        yield
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def certificate_expired(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """The car's certificate has run out when it connects next, until a new one is on its disk."""
    agent = ground.agents[fault.target]
    assert ground.authority is not None
    ground.authority.issue(agent.unit, valid_s=EXPIRED_S)
    agent.link.cut()
    try:
        yield
    finally:
        ground.authority.issue(agent.unit)


# --- disk, database, driver -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def disk_full(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """The disk of the car's state takes nothing more."""
    agent = ground.agents[fault.target]
    with agent.disk.full(agent.child.pid):
        yield


@contextlib.asynccontextmanager
async def database_locked(ground: Ground, _fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """Somebody else holds the dispatcher's database: nothing can be written, at last not even waited for."""
    async with ground.database.locked():
        yield


@contextlib.asynccontextmanager
async def database_slow(ground: Ground, _fault: Fault, chance: random.Random) -> AsyncIterator[None]:
    """Somebody else uses the dispatcher's database much: it is held for most of the time, in pieces."""

    async def hold() -> None:
        while True:
            async with ground.database.locked():
                await asyncio.sleep(chance.uniform(0.1, 0.6))
            await asyncio.sleep(chance.uniform(0.02, 0.2))

    task = asyncio.create_task(hold())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, sqlite3.OperationalError):
            await task


@contextlib.asynccontextmanager
async def driver(ground: Ground, fault: Fault, _chance: random.Random) -> AsyncIterator[None]:
    """A door opens in the middle of whatever it is, and closes again."""
    ground.tell_car(fault.target, "open_door")
    try:
        yield
    finally:
        ground.tell_car(fault.target, "close_door")


# --- the table ------------------------------------------------------------------------------------------------------


def _agent(ground: Ground, fault: Fault) -> Agent:
    return ground.agents[fault.target]


def _agent_child(ground: Ground, fault: Fault) -> Child:
    return _agent(ground, fault).child


def _dispatcher_child(ground: Ground, fault: Fault) -> Child:
    return ground.dispatchers[fault.target].child


def _broker_child(ground: Ground, _fault: Fault) -> Child:
    return ground.broker


def _car_link(ground: Ground, fault: Fault) -> FaultyLink:
    return _agent(ground, fault).link


def _dispatcher_link(ground: Ground, fault: Fault) -> FaultyLink:
    return ground.dispatchers[fault.target].link


KINDS: dict[str, Kind] = {
    "broker_killed": Kind(Scope.BROKER, (0.1, 2.0), _killed(_broker_child)),
    "broker_frozen": Kind(Scope.BROKER, (0.5, 6.0), _frozen(_broker_child)),
    "dispatcher_killed": Kind(Scope.DISPATCHER, (0.1, 4.0), _killed(_dispatcher_child)),
    "dispatcher_frozen": Kind(Scope.DISPATCHER, (0.5, 8.0), _frozen(_dispatcher_child)),
    "agent_killed": Kind(Scope.CAR, (0.1, 3.0), _killed(_agent_child)),
    "agent_frozen": Kind(Scope.CAR, (0.2, 4.0), _frozen(_agent_child)),
    "worker_killed": Kind(Scope.CAR, (0.0, 0.0), worker_killed),
    "partition_all": Kind(Scope.EVERYWHERE, (0.5, 6.0), partition),
    "partition_car": Kind(Scope.CAR, (1.0, 15.0), _held(_car_link, one_way=False)),
    "one_way_car": Kind(Scope.CAR, (1.0, 15.0), _held(_car_link, one_way=True)),
    "partition_dispatcher": Kind(Scope.DISPATCHER, (1.0, 10.0), _held(_dispatcher_link, one_way=False)),
    "slow_link": Kind(Scope.CAR, (2.0, 15.0), slow_link),
    "half_open_car": Kind(Scope.CAR, (0.0, 0.0), _half_open(_car_link)),
    "half_open_dispatcher": Kind(Scope.DISPATCHER, (0.0, 0.0), _half_open(_dispatcher_link)),
    "cut_in_packet": Kind(Scope.CAR, (0.0, 0.0), _cut(_car_link)),
    "cut_dispatcher": Kind(Scope.DISPATCHER, (0.0, 0.0), _cut(_dispatcher_link)),
    "refused": Kind(Scope.CAR, (0.5, 6.0), refused),
    "same_client_id": Kind(Scope.CAR, (0.5, 4.0), twin),
    "certificate_expired": Kind(Scope.CAR, (0.5, 5.0), certificate_expired, needs_tls=True),
    "disk_full": Kind(Scope.CAR, (0.5, 6.0), disk_full),
    "database_locked": Kind(Scope.DATABASE, (0.5, 8.0), database_locked),
    "database_slow": Kind(Scope.DATABASE, (1.0, 8.0), database_slow),
    "driver": Kind(Scope.CAR, (0.3, 4.0), driver),
}
"""Every kind, in the order of the table that is printed."""
