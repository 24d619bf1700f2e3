"""Reads the vehicle from a KUKSA databroker over kuksa.val.v2, so that nothing the broker does can hide a driver.

A session lists the broker's metadata, works out which leaves to ask for and by which name, drops those that the token
may not read, subscribes to the edges and switches, and besides asks for the values of all edges every 250 ms. Both are
needed: the stream is fast but may drop changes silently (a full buffer), and stays silent when a provider dies; the
poll repairs what was dropped, and notices a broker that hangs.

* The stream has the largest buffer that the broker grants (1,000) and no sample interval: that filter drops changes.
* A poll has 200 ms. A late one is repeated at once; two in a row, or a stream that ends, and the source is lost, with
  its reason, until a new session has begun: first after 250 ms, then ever later, at most every 5 s.
* A session starts from nothing: identifiers and metadata change when a broker restarts, so leaves are listed anew and
  named by their paths.
* A token that its file replaces is taken up in a running session, with a new subscription in place of the old one.

What the values are worth, and since when, is decided in `agent.vehicle.kuksa_mirror`. Only this file and the keep-awake
port hold a stub; this one calls ListMetadata, GetValue, GetValues and Subscribe.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import grpc
import grpc.aio
from kuksa.val.v2 import types_pb2, val_pb2, val_pb2_grpc

from agent.core.events import EventType
from agent.log import logger
from agent.ports import Clock, Emit
from agent.vehicle.databroker import DatabrokerConfig
from agent.vehicle.kuksa_channel import Door, LostError, Metadata, cause
from agent.vehicle.kuksa_leaves import EDGE, SLOW, Name, resolve
from agent.vehicle.kuksa_mirror import SOURCE, Mirror, Point

BUFFER_SIZE = 1_000
POLL_DEADLINE_S = 0.2
POLLS_LOST = 2
SLOW_MS = 1_000
"""How often the leaves are asked for that move slowly."""
BEGIN_DEADLINE_S = 5.0
RETRY_FIRST_S, RETRY_LAST_S = 0.25, 5.0
SETTLED_S = 2.0
"""A session that lasted so long was none that fails at once, over and over."""
LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""A call that failed so may be tried again; any other failure ends the session."""
UNREADABLE = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND)

Note = Callable[[dict[str, object]], None]


class DatabrokerSource:
    """A vehicle source (`agent.ports.Source`) over a databroker."""

    def __init__(self, config: DatabrokerConfig, clock: Clock, door: Door) -> None:
        self._config, self._clock, self._door = config, clock, door
        self._mirror = Mirror(config)
        self._listed: dict[str, object] = {}
        self._counts: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """What its events call it; named providers are below."""
        return SOURCE

    @property
    def counts(self) -> dict[str, int]:
        """Messages of the stream, polls, late polls and lost sessions since the start."""
        return dict(self._counts)

    async def run(self, emit: Emit) -> None:
        """Read and emit until cancelled; a lost broker is an event, and so is whatever goes wrong in here."""
        retry_s = RETRY_FIRST_S
        while True:
            session = _Session(
                self._config, self._clock, self._door, self._mirror, emit=emit, note=self._note, counts=self._counts
            )
            begun_s = asyncio.get_running_loop().time()
            try:
                await session.run()
            except Exception as error:  # a broker that answers nonsense must not end the daemon
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from error  # a task group that fails while it is cancelled forgets it
                detail = _reason(error)
            else:
                detail = "the session ended"
            self._counts["sessions_lost"] += 1
            for event in self._mirror.lost(detail, self._clock.boot_ms()):
                emit(event)
            if asyncio.get_running_loop().time() - begun_s > SETTLED_S:
                retry_s = RETRY_FIRST_S
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, RETRY_LAST_S)

    def _note(self, listed: dict[str, object]) -> None:
        """Tell what the broker's list is worth, unless it is worth the same as in the session before."""
        if listed != self._listed:
            self._listed = listed
            logger().info("databroker_listed", **listed)


class _Session:
    """One connection to the broker, from metadata to whatever ends it."""

    def __init__(
        self,
        config: DatabrokerConfig,
        clock: Clock,
        door: Door,
        mirror: Mirror,
        *,
        emit: Emit,
        note: Note,
        counts: Counter[str],
    ) -> None:
        self._config, self._clock, self._door, self._mirror = config, clock, door, mirror
        self._emit, self._note, self._counts = emit, note, counts
        self._names: tuple[Name, ...] = ()

    async def run(self) -> None:
        """Read until the broker is lost; raises why."""
        async with self._door.open() as channel:
            stub = val_pb2_grpc.VALStub(channel)
            listed = await stub.ListMetadata(
                val_pb2.ListMetadataRequest(root="Vehicle"), timeout=BEGIN_DEADLINE_S, metadata=self._door.metadata()
            )
            names = resolve(listed.metadata, self._config.absent, self._mirror.heartbeats)
            self._names = await self._readable(stub, names)
            if not self._names:
                raise LostError("the databroker has no leaf that the agent may read")
            self._tell(self._mirror.begin(self._names, self._clock.boot_ms()))
            async with asyncio.TaskGroup() as group:
                await self._watch(stub, group)

    async def _readable(self, stub: val_pb2_grpc.VALStub, names: tuple[Name, ...]) -> tuple[Name, ...]:
        """The names that the token may read: asked one by one only when asking for all is refused."""
        refused: list[str] = []
        if names:
            try:
                request = _Question(names, ()).request
                await stub.GetValues(request, timeout=BEGIN_DEADLINE_S, metadata=self._door.metadata())
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNREADABLE:
                    raise
                refused = [name.asked for name in names if not await self._may_read(stub, name)]
        problems = {name.asked: name.problem for name in names if name.problem}
        self._note({"leaves": len(names), "refused": refused, "problems": problems})
        return tuple(name for name in names if name.asked not in refused)

    async def _may_read(self, stub: val_pb2_grpc.VALStub, name: Name) -> bool:
        request = val_pb2.GetValueRequest(signal_id=types_pb2.SignalID(path=name.asked))
        try:
            await stub.GetValue(request, timeout=BEGIN_DEADLINE_S, metadata=self._door.metadata())
        except grpc.aio.AioRpcError as error:
            if error.code() in UNREADABLE:
                return False
            raise
        return True

    async def _watch(self, stub: val_pb2_grpc.VALStub, group: asyncio.TaskGroup) -> None:
        """Keep a subscription, with the newest token, and poll, until one of them fails."""
        every, edges = _Question(self._names, (EDGE, SLOW)), _Question([n for n in self._names if n.edge], (EDGE,))
        loop = asyncio.get_running_loop()
        stream: asyncio.Task[None] | None = None
        token: Metadata | None = None
        slow_s = poll_s = loop.time()
        while True:
            if (now := self._door.metadata()) != token:
                if stream is not None:
                    stream.cancel()
                stream, token = group.create_task(self._stream(stub, now), name="databroker stream"), now
            slow = loop.time() >= slow_s
            await self._poll(stub, every if slow else edges)
            if slow:
                slow_s = loop.time() + (SLOW_MS - self._config.poll_ms / 2) / 1000
            poll_s = max(poll_s + self._config.poll_ms / 1000, loop.time())
            await asyncio.sleep(poll_s - loop.time())

    async def _stream(self, stub: val_pb2_grpc.VALStub, token: Metadata) -> None:
        """Take what the subscription brings until it ends; raises LostError."""
        paths = [name.asked for name in self._names if name.streamed]
        if not paths:
            return
        request = val_pb2.SubscribeRequest(signal_paths=paths, buffer_size=BUFFER_SIZE)
        call = stub.Subscribe(request, metadata=token)
        try:
            async for message in call:
                self._counts["messages"] += 1
                self._tell(self._mirror.streamed(message.entries.items(), self._clock.boot_ms()))
        finally:
            call.cancel()
        raise LostError("the databroker ended the subscription (as it does when the token expires)")

    async def _poll(self, stub: val_pb2_grpc.VALStub, question: _Question) -> None:
        """Ask for values, and again at once when the answer is late; raises when that is late as well."""
        for attempt in range(1, POLLS_LOST + 1):
            turn = self._mirror.turn
            self._counts["polls"] += 1
            token = self._door.metadata()
            try:
                answer = await stub.GetValues(question.request, timeout=POLL_DEADLINE_S, metadata=token)
            except grpc.aio.AioRpcError as error:
                self._counts["polls_late"] += 1
                if error.code() not in LATE or attempt == POLLS_LOST:
                    raise
                self._tell(self._mirror.watch(self._clock.boot_ms()))
            else:
                points = question.answered(answer)
                self._tell(self._mirror.polled(points, question.groups, turn, self._clock.boot_ms()))
                return

    def _tell(self, events: Sequence[EventType]) -> None:
        for event in events:
            self._emit(event)


class _Question:
    """A set of leaves to ask for; the request is built once and sent for as long as the session lasts."""

    def __init__(self, names: Sequence[Name], groups: tuple[str, ...]) -> None:
        self.groups = groups
        self._asked = [name.asked for name in names]
        self.request = val_pb2.GetValuesRequest(signal_ids=[types_pb2.SignalID(path=asked) for asked in self._asked])

    def answered(self, answer: val_pb2.GetValuesResponse) -> list[Point]:
        """The values with their names, which come in the order in which they were asked for; raises LostError."""
        if len(answer.data_points) != len(self._asked):
            count = f"{len(answer.data_points)} of {len(self._asked)}"
            raise LostError(f"the databroker answered another question: {count} values")
        return list(zip(self._asked, answer.data_points, strict=True))


def _reason(error: BaseException) -> str:
    """Why a session ended, as people may read it: the first cause within a group of failures."""
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0])
    if isinstance(error, grpc.aio.AioRpcError):
        return cause(error)
    if isinstance(error, LostError):
        return error.what
    return f"the databroker's answer could not be used: {error!r}"
