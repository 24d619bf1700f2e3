"""Between the link and the book: what waits on its way in, and on its way out, and what is dropped when it is too much.

In: a bounded queue for each kind of message. A hand-in is work that was done, so it is taken first and dropped last,
and its car is told when to come again (`later`). A request costs nothing to repeat, so it is dropped first, then
renewals, then news of links. A request that has waited for longer than its car waits for an answer is not worth one.

What waits is handled up to `BATCH` messages at a time: one transaction, one write to the disk for all of them. While
a batch is decided, on the one thread that owns the book, the next ones gather.

Before it, each unit has a bucket of tokens: one that talks without end, whatever it says, fills nobody's queue but its
own. Who has none left is not heard; a car that means it says it again.

Out: the link takes only as many messages as the broker may have unacknowledged, so answers wait here in order. When
too many do, no further batch is begun, and the queue at the other end fills and drops by the rules above. When the
link goes down, answers are dropped: cars ask again. So is an answer of which the link says that this broker is never to
be sent it.

A dispatcher that has lost its database leaves the broker until it is back: what its share of the messages would be, the
others get, who may still have theirs. What waits here goes on waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import structlog

from hil.dispatcher.service import Dispatcher, Message

BATCH = 64
WAITING_IN = 4096
WAITING_OUT = 2048
UNIT_MESSAGES_PER_S = 50.0
UNIT_BURST = 500.0
"""A car says two things a lease, and after a long silence what has gathered in its outbox."""
UNITS_REMEMBERED = 16_384
"""Beyond that, the one that was quiet for the longest is forgotten: its bucket is full anyway."""
PUT_OFF = 256
"""Hand-ins that are answered `later` at a time; of more than these not even that can be said."""
REQUEST_WORTH_S = 30.0
TICK_S = 1.0
FLUSH_S = 0.004
STUCK_S = 10.0
"""An answer that a link which is up does not take for so long is one that this broker never takes."""
TOPIC_CHARACTERS = 128
"""Longer than any unit's."""
KINDS = ("request", "renew", "status", "hand-in")
"""In the order in which they are dropped."""


log = structlog.get_logger("dispatcher")


class Waiting(NamedTuple):
    """A message, and when it came (loop time)."""

    at_s: float
    topic: str
    payload: bytes


class Fairness:
    """A bucket of tokens for each unit. `now_s` is the loop's time."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admits(self, unit: str) -> bool:
        """Whether another message of this unit may be heard now."""
        now_s = self._now_s()
        tokens, at_s = self._buckets.pop(unit, (UNIT_BURST, now_s))
        tokens = min(UNIT_BURST, tokens + UNIT_MESSAGES_PER_S * (now_s - at_s))
        admitted = tokens >= 1.0
        self._buckets[unit] = (tokens - admitted, now_s)
        if len(self._buckets) > UNITS_REMEMBERED:
            self._buckets.popitem(last=False)
        return admitted


class Intake:
    """The queue between link and book. Use from the event loop's thread."""

    def __init__(self, now_s: Callable[[], float], *, capacity: int = WAITING_IN) -> None:
        self._now_s, self._capacity = now_s, capacity
        self._queues: dict[str, deque[Waiting]] = {kind: deque() for kind in KINDS}
        self._put_off: deque[Message] = deque(maxlen=PUT_OFF)
        self._fairness = Fairness(now_s)
        self.dropped: Counter[str] = Counter()
        self.arrived = asyncio.Event()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def offer(self, topic: str, payload: bytes) -> None:
        """Take a message in; when that is one too many, one of the kind that matters least goes."""
        kind = _kind(topic)
        if not self._fairness.admits(topic.rpartition("/")[0][:TOPIC_CHARACTERS]):
            self.dropped["unit talks too much"] += 1
            return
        self._queues[kind].append(Waiting(self._now_s(), topic, payload))
        self.arrived.set()
        if len(self) > self._capacity:
            self._drop()

    def take(self, most: int = BATCH) -> list[Message]:
        """The messages to handle next, hand-ins first."""
        batch: list[Message] = []
        too_old_s = self._now_s() - REQUEST_WORTH_S
        for kind in reversed(KINDS):
            queue = self._queues[kind]
            while queue and len(batch) < most:
                waiting = queue.popleft()
                if kind == "request" and waiting.at_s < too_old_s:
                    self.dropped["request too old"] += 1
                else:
                    batch.append((waiting.topic, waiting.payload))
        return batch

    def put_off(self) -> list[Message]:
        """The hand-ins that were dropped since the last call, to be answered `later`."""
        found = list(self._put_off)
        self._put_off.clear()
        return found

    def _drop(self) -> None:
        """The oldest of the first kind there is: its sender will say it again soonest."""
        for kind in KINDS:
            if self._queues[kind]:
                oldest = self._queues[kind].popleft()
                self.dropped[kind] += 1
                if kind == "hand-in":
                    self._put_off.append((oldest.topic, oldest.payload))
                return


class Carrying(Protocol):
    """What of `agent.fleet.link.Link` is used here."""

    connected: bool

    def publish(
        self, topic: str, payload: bytes, *, expiry_s: int | None = None, token: str = "", retain: bool = False
    ) -> bool:
        """False when it cannot be taken now; what can never be is told of by its token."""
        ...


class Absent(Protocol):
    """What of `agent.fleet.link.Link` it takes to leave the broker, and to come back."""

    def start(self) -> None:
        """Connect, and keep connected."""
        ...

    async def close(self) -> None:
        """Leave."""
        ...


class _Leaving(NamedTuple):
    topic: str
    payload: bytes
    expiry_s: int | None
    retain: bool
    token: str


class Outbox:
    """The queue between book and link. `put` may be called on any thread; the rest runs on the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, capacity: int = WAITING_OUT) -> None:
        self._loop, self._capacity = loop, capacity
        self._queue: deque[_Leaving] = deque()
        self._flushing, self._numbers = False, itertools.count()
        self._again: asyncio.TimerHandle | None = None
        self._refused_since_s: float | None = None
        self.link: Carrying | None = None
        self.dropped: Counter[str] = Counter()
        self.has_room = asyncio.Event()
        self.has_room.set()

    def put(self, topic: str, payload: bytes, expiry_s: int | None, /, *, retain: bool = False) -> bool:
        """Queue a message; False when it is dropped at once."""
        if len(self._queue) >= 2 * self._capacity:  # a batch more than is ever begun with a full queue
            self.dropped["outbox full"] += 1
            return False
        self._queue.append(_Leaving(topic, payload, expiry_s, retain, f"out-{next(self._numbers)}"))
        if not self._flushing:
            self._flushing = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._flush)
        return True

    def undelivered(self, token: str, _detail: str, _poison: bool) -> None:  # noqa: FBT001 - the link's signature
        """The broker may never be sent this message, or refused it: it is dropped, and those behind it go on."""
        self.dropped["never taken"] += 1
        if self._queue and self._queue[0].token == token:
            self._queue.popleft()
            self._refused_since_s = None
            self._flush()

    def _flush(self) -> None:
        """Hand over what the link takes; look again soon while something is left."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self._flushing = False
        while self._queue:
            if self.link is None or not self.link.connected:
                self.dropped["link down"] += len(self._queue)
                self._queue.clear()
                break
            one = self._queue[0]
            if not self.link.publish(one.topic, one.payload, expiry_s=one.expiry_s, token=one.token, retain=one.retain):
                self._wait(one)
                break
            self._queue.popleft()
            self._refused_since_s = None
        if len(self._queue) < self._capacity:
            self.has_room.set()
        else:
            self.has_room.clear()

    def _wait(self, one: _Leaving) -> None:
        now_s = self._loop.time()
        if self._refused_since_s is None:
            self._refused_since_s = now_s
        elif now_s - self._refused_since_s > STUCK_S:
            self._refused_since_s = None
            self._queue.remove(one)
            self.dropped["never taken"] += 1
        self._flushing = True
        self._again = self._loop.call_later(FLUSH_S, self._flush)


async def pump(
    dispatcher: Dispatcher, intake: Intake, outbox: Outbox, on_book: Executor, link: Absent | None = None
) -> None:
    """Until cancelled: take what waits, have it decided on the book's thread, and go on when there is room for more.

    `link` is left while the database is lost.
    """
    loop = asyncio.get_running_loop()
    while True:
        if link is not None and dispatcher.database_lost:
            await _stay_away(dispatcher, on_book, link)
        await outbox.has_room.wait()
        put_off = intake.put_off()
        if put_off:
            await loop.run_in_executor(on_book, dispatcher.put_off, put_off)
        batch = intake.take()
        if batch:
            await loop.run_in_executor(on_book, dispatcher.handle, batch)
            continue
        intake.arrived.clear()
        try:
            await asyncio.wait_for(intake.arrived.wait(), TICK_S)
        except TimeoutError:
            await loop.run_in_executor(on_book, dispatcher.tick)


async def _stay_away(dispatcher: Dispatcher, on_book: Executor, link: Absent) -> None:
    log.warning("left_the_broker", detail="the database is lost, and others may have it")
    await link.close()
    while dispatcher.database_lost:
        await asyncio.sleep(TICK_S)
        await asyncio.get_running_loop().run_in_executor(on_book, dispatcher.tick)
    link.start()


def _kind(topic: str) -> str:
    verb = topic.rpartition("/")[2]
    if verb in ("result", "yield"):
        return "hand-in"
    return verb if verb in KINDS else "request"
