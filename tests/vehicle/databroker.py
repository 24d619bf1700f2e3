"""A databroker that hides the driver on purpose: the real one's ways to do it, each at a test's command.

It is the bench's broker (real gRPC, the wheel's own servicer) with levers: hang while the connection stays up, lose the
provider and keep its values, answer nonsense, end every subscription of a token, die and come back with other ids. A
full buffer, a sample interval and ONCHANGE come with the base class.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

import grpc
from kuksa.val.v2 import val_pb2

from agent.clock import SystemClock
from agent.core.events import EventType, LeavesOffered, SourceChanged, Tick
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.state import State, initial
from agent.vehicle.databroker import DatabrokerConfig
from agent.vehicle.kuksa import DatabrokerSource
from agent.vehicle.kuksa_channel import Door
from hil.bench.databroker import PARKED, VSS_6_0, Context, Databroker, Plain, Spec

DOOR = "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"
LIMIT_S = 20.0
"""No wait of these tests comes near it, however slow the machine: it ends a test that would hang."""


class AwkwardBroker(Databroker):
    """The broker with its levers."""

    def __init__(self, specs: Iterable[Spec] = VSS_6_0, first_id: int = 0) -> None:
        super().__init__(specs, first_id)
        self.running = asyncio.Event()
        self.running.set()
        self.answers: list[val_pb2.GetValuesResponse] = []
        """Nonsense to answer polls with, before the truth again."""
        self.address = "127.0.0.1:0"
        self.polls = 0
        self._provider: asyncio.Task[None] | None = None

    def hang(self) -> None:
        """No handler gets anywhere from now on, as in a stopped process."""
        self.running.clear()

    def provide(self, values: Mapping[str, Plain] = PARKED, hz: float = 20.0) -> None:
        """A provider that publishes these once, and then its heartbeat for as long as it lives."""
        self.publish(values)
        self._provider = asyncio.get_running_loop().create_task(self._beat(hz))

    def lose_provider(self) -> None:
        """It dies; what it published last stays."""
        if self._provider is not None:
            self._provider.cancel()

    def expire(self, token: str) -> None:
        """The token is worth nothing any more: subscriptions end without an error, calls are refused."""
        assert self.tokens is not None
        del self.tokens[token]
        for subscription in self.subscriptions:
            subscription.close()

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Serve, at the same address as before if it did."""
        self.address = await self.serve(self.address, credentials)

    async def reborn(self) -> AwkwardBroker:
        """Killed and started anew: empty, with other ids, at the same address."""
        self.lose_provider()
        await self.stop()
        successor = AwkwardBroker([entry.spec for entry in self.entries.values()], first_id=1_000)
        successor.address = self.address
        await successor.start()
        return successor

    async def GetValues(  # noqa: N802 - the service's name
        self, request: val_pb2.GetValuesRequest, context: Context
    ) -> val_pb2.GetValuesResponse:
        await self.running.wait()
        self.polls += 1
        if self.answers:
            return self.answers.pop(0)
        return await super().GetValues(request, context)

    async def Subscribe(  # noqa: N802 - the service's name
        self, request: val_pb2.SubscribeRequest, context: Context
    ) -> AsyncIterator[val_pb2.SubscribeResponse]:
        async for message in super().Subscribe(request, context):
            await self.running.wait()
            yield message

    async def _beat(self, hz: float) -> None:
        while True:
            await asyncio.sleep(1 / hz)
            self.publish({"Vehicle.Speed": self._speed()})

    def _speed(self) -> float:
        return float(self.entries["Vehicle.Speed"].point.value.float)


class Car:
    """The agent's side: the real source, and the real core behind it."""

    def __init__(self, config: DatabrokerConfig, door: Door) -> None:
        self._clock = SystemClock()
        self._source = DatabrokerSource(config, self._clock, door)
        self._news = asyncio.Event()
        self.events: list[EventType] = []
        policy = Policy(parked_for_s=0.2, reserve_percent=20)
        self.state: State = initial("car", policy, self._clock.boot_ms())

    def emit(self, event: EventType) -> None:
        self.events.append(event)
        self.state, _ = step(self.state, event)
        self._news.set()

    @property
    def gate(self) -> GateState:
        """What the gates make of the vehicle: the least open of those that look at it."""
        gates = {one.name: one.state for one in self.state.gates.gates}
        vehicle = [gates["parked"], gates["occupied"]]
        return GateState.CLOSED if GateState.CLOSED in vehicle else max(vehicle, key=lambda one: one.value)

    @property
    def offered(self) -> LeavesOffered:
        return next(event for event in reversed(self.events) if isinstance(event, LeavesOffered))

    @property
    def losses(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, SourceChanged) and not event.alive]

    def reasons(self) -> set[tuple[str, str]]:
        return {(reason.code, reason.signal) for reason in self.state.gates.reasons}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; ends the test when it never does."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def until_open(self) -> None:
        await self.until(lambda: self.gate is GateState.OPEN)

    async def until_shut(self) -> None:
        await self.until(lambda: self.gate is GateState.CLOSED)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Car]:
        """The source runs, and time passes for the core."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._source.run(self.emit)), group.create_task(self._tick())]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            self.emit(Tick(at_ms=self._clock.boot_ms()))
