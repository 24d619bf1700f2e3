"""One MQTT 5 link, kept alive for good: paho-mqtt behind a few methods, with its traps closed.

The broker is a lossy, duplicating, reordering pipe, so nothing is kept here: a message that cannot be handed over
now is refused (`publish` returns False) and the durable outbox offers it again. What stands between paho and us:

* A connection lives once (`connection.py`), its paho client on one thread of its own (`conversation.py`): its queue
  and its packet identifiers die with it, so a reconnect never floods the broker.
* paho never reconnects by itself, since its waits have no jitter. We do, through the brokers in order, and from the
  first again after a link that stood (`backoff.py`).
* The link is up when the SUBACK granted every filter, not when the CONNACK came.
* What the broker refuses, or hangs up over again and again, is told by its token (`quarantine.py`).
* A watch looks every ten seconds at three things that a network thread cannot tell of itself: that it is stuck, that
  it has died, and that the computer has slept, after which no connection is what it seems.
* Offline, it speaks once, and then once an hour; back again, it says how long that was. Nothing else fills a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from agent.clock import boot_s, slept_s
from agent.fleet.backoff import TAKEN_OVER, Backoff, settled
from agent.fleet.connection import Connection
from agent.fleet.conversation import REDIRECT_CODES, Ending
from agent.fleet.flood import FloodGate
from agent.fleet.link_config import LinkConfig
from agent.fleet.quarantine import LOSSES, Quarantine
from agent.fleet.tls import TlsClient
from agent.log import logger

UP_DEADLINE_S = 30.0
"""A broker that has not granted the subscriptions by then is left."""
WATCH_S = 10.0
TELL_AGAIN_S = 3_600.0
"""How often a link that stays down is told of."""
SLEPT_S = 5.0
"""After a sleep of so long the connection is presumed dead."""
WAKE_JITTER_S = 2.0
SAID_MOST = 64
PROVEN_S = 5.0
"""A connection that has lived for so long without a suspect (`quarantine.py`) shows that it would go on living."""
LEFT_BEHIND = 4
"""With so many threads that do not end, no more are begun until one does."""


class LinkStatus(msgspec.Struct, frozen=True):
    """How the link is now, and what it counted since the start. `attempts` are those since it was up last.

    `dropped` counts messages by reason: from outside that were too many, and of ours that a broker did not take.
    """

    connected: bool
    broker: str
    detail: str
    attempts: int
    connections: int
    dropped: dict[str, int]
    sent_bytes: int
    received_bytes: int


class Link:
    """Use from one asyncio loop: the callbacks run on its thread.

    `on_message(topic, payload)` hands over what arrived; `on_state(connected, broker, detail)` says when the link
    came up or went down, and why; `on_undelivered(token, detail, poison)` says that a broker refused the message of
    this token, or (`poison`) hung up each time that it was on its way. `connection` is what a connection is made of: a
    thread each by default, a shared loop where thousands of links run in one process.
    """

    def __init__(
        self,
        config: LinkConfig,
        *,
        on_message: Callable[[str, bytes], None],
        on_state: Callable[[bool, str, str], None],
        on_undelivered: Callable[[str, str, bool], None] | None = None,
        connection: Callable[..., Connection] = Connection,
    ) -> None:
        self._config, self._new_connection = config, connection
        self._on_message, self._on_state, self._on_undelivered = on_message, on_state, on_undelivered
        self._tls = None if config.tls is None else TlsClient(config.tls)
        self._backoff, self._quarantine = Backoff(config.reconnect_max_s), Quarantine()
        self._gate = FloodGate(config.messages_per_s, config.message_burst)
        self._connection: Connection | None = None
        self._alone: Callable[[], bool] | None = None
        """A suspect that goes once the connection is proven and what is on its way then is acknowledged."""
        self._proving: asyncio.TimerHandle | None = None
        self._proven = False
        """From then on nothing passes a suspect that waits."""
        self._left_behind: list[Connection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()
        self._turn = self._attempts = self._connections = 0
        self._down_since_s, self._told_up, self._told_at_s = boot_s(), False, -math.inf
        self._broker, self._detail = "", ""
        self._dropped: Counter[str] = Counter()
        self._moved = (0, 0)
        self._said: set[tuple[str, str]] = set()
        self._flooded = False
        self.connected = False

    def start(self) -> None:
        """Begin connecting; needs the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_connected(), name="mqtt-link"),
            loop.create_task(self._watch(), name="mqtt-watch"),
        ]

    def spread(self, spread_ms: int) -> None:
        """From now on the first attempt after an outage comes within so long, at random."""
        self._backoff.spread_s = spread_ms / 1000

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        expiry_s: int | None = None,
        token: str = "",
        retain: bool = False,
    ) -> bool:
        """Hand one message to the broker; False when it cannot be taken now. True proves nothing (see above).

        What this broker must never be sent is not taken either, and told of by its token.
        """
        connection = self._connection
        if connection is None or not self.connected:
            return False
        in_flight = [message.token for message in connection.in_flight]
        if self._alone is not None and self._proven:
            return False  # what has to travel alone would never travel if others went before it
        if not self._quarantine.admits(token, in_flight, proven=self._proven):
            if self._alone is not None or not self._quarantine.suspects(token):
                return False
            self._alone = partial(self.publish, topic, payload, qos=qos, expiry_s=expiry_s, token=token, retain=retain)
            return True
        taken, refusal = connection.publish(topic, payload, qos, expiry_s, token, retain=retain)
        if refusal:
            refuse = partial(self._refused, token, refusal)
            asyncio.get_running_loop().call_soon(connection.guarded, refuse)
        return taken

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received since the start, with about what the network adds to them."""
        now = (0, 0) if self._connection is None else self._connection.traffic
        return self._moved[0] + now[0], self._moved[1] + now[1]

    def status(self) -> LinkStatus:
        """How it is now."""
        sent, received = self.traffic()
        dropped = self._dropped + (Counter() if self._connection is None else self._connection.dropped)
        if self._gate.dropped:
            dropped["flood"] = self._gate.dropped
        return LinkStatus(
            connected=self.connected,
            broker=self._broker,
            detail=self._detail,
            attempts=self._attempts,
            connections=self._connections,
            dropped=dict(dropped),
            sent_bytes=sent,
            received_bytes=received,
        )

    async def close(self) -> None:
        """Say goodbye (the will is not sent) and end the threads."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one connection after the other -------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        while True:
            address = self._config.brokers[self._turn % len(self._config.brokers)]
            self._broker = f"{address[0]}:{address[1]}"
            self._attempts += 1
            try:
                ending, up_since_s = await self._one_connection(address)
            except Exception as error:  # noqa: BLE001 - the link outlives whatever it was
                ending, up_since_s = Ending(f"the link failed: {error!r}", bug=True), None
            up_for_s = None if up_since_s is None else boot_s() - up_since_s
            self._went_down(ending, was_up=up_for_s is not None)
            ceiling_s = self._backoff.ceiling_s(up_for_s=up_for_s, code=ending.code)
            self._turn = 0 if settled(up_for_s) else self._turn + 1
            await self._pause(random.uniform(0, ceiling_s))  # noqa: S311 - jitter, not a secret

    async def _one_connection(self, address: tuple[str, int]) -> tuple[Ending, float | None]:
        """From the attempt to the end of what came of it, and since when it was up (boot time; None: it never was)."""
        self._left_behind = [one for one in self._left_behind if one.alive]
        if len(self._left_behind) >= LEFT_BEHIND:
            return Ending(f"{LEFT_BEHIND} network threads are stuck (in the resolver?) and no more are begun"), None
        connection = self._new_connection(
            self._config,
            address,
            tls=self._tls,
            gate=self._gate,
            on_message=self._on_message,
            on_acknowledged=self._acknowledged,
        )
        self._connection, up_since_s = connection, None
        try:
            over = connection.start()
            if await self._came_up(connection):
                up_since_s = boot_s()
                self._is_up()
            ending = await asyncio.shield(over)
        finally:
            self.connected = False
            await connection.end()
            self._put_away(connection)
        if ending.blames:
            for token in self._quarantine.lost(connection.blamed):
                self._tell_undelivered(
                    token, f"{LOSSES} connections ended while it was sent: {ending.detail}", poison=True
                )
        return ending, up_since_s

    async def _came_up(self, connection: Connection) -> bool:
        """Wait for that, or for the connection's end, or for its deadline."""
        waiting = asyncio.create_task(connection.up.wait())
        try:
            first: set[asyncio.Future[Any]] = {connection.over, waiting}
            await asyncio.wait(first, timeout=UP_DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not connection.up.is_set():
            detail = f"the broker at {self._broker} did not grant the subscriptions in {UP_DEADLINE_S:.0f} s"
            connection.break_off(Ending(detail))
        return not connection.over.done()

    def _put_away(self, connection: Connection) -> None:
        """Count what it moved, and remember it if its thread does not end."""
        self._connection = self._alone = None
        self._proven = False
        if self._proving is not None:
            self._proving.cancel()
        sent, received = connection.traffic
        self._moved = self._moved[0] + sent, self._moved[1] + received
        self._dropped += connection.dropped
        if connection.alive:
            self._left_behind.append(connection)

    def _is_up(self) -> None:
        down_s = boot_s() - self._down_since_s
        again = self._connections > 0 or self._attempts > 1
        self._detail = f"after {down_s:.0f} s, at attempt {self._attempts}" if again else ""
        self.connected = True
        self._connections += 1
        self._attempts = 0
        self._told_up = True
        self._proving = asyncio.get_running_loop().call_later(PROVEN_S, self._prove)
        self._on_state(True, self._broker, self._detail)

    def _went_down(self, ending: Ending, *, was_up: bool) -> None:
        """Tell of it, though of a link that stays down but once an hour."""
        now_s, self._detail = boot_s(), ending.detail
        if was_up:
            self._down_since_s = now_s
        news = dict.fromkeys(REDIRECT_CODES, "redirect_ignored") | {TAKEN_OVER: "client_id_taken_over"}
        if ending.bug:
            self._say_once("link_failed", ending.detail)
        elif ending.code in news:
            self._say_once(news[ending.code], ending.detail)
        if self._told_up or now_s - self._told_at_s >= TELL_AGAIN_S:
            self._told_up, self._told_at_s = False, now_s
            try:
                self._on_state(False, self._broker, ending.detail)
            except Exception as error:  # noqa: BLE001 - the link outlives whatever it was
                self._say_once("link_failed", repr(error))

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the computer wakes from sleep: then what was in the way may be gone.

        Waking ends the connection too, so this may begin after it: a wake counts until the next attempt.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)
            self._hurry.clear()
            await asyncio.sleep(random.uniform(0, WAKE_JITTER_S))  # noqa: S311 - jitter, not a secret

    # --- what is told of messages -------------------------------------------------------------------------------

    def _acknowledged(self, token: str, refusal: str) -> None:
        self._quarantine.acknowledged(token)
        self._send_alone()
        if refusal:
            self._refused(token, f"the broker refused it: {refusal}")

    def _prove(self) -> None:
        self._proven = True
        if self._connection is not None:
            self._connection.guarded(self._send_alone)

    def _send_alone(self) -> None:
        connection = self._connection
        if self._alone is not None and self._proven and connection is not None and not connection.in_flight:
            alone, self._alone = self._alone, None
            alone()

    def _refused(self, token: str, detail: str) -> None:
        self._dropped["refused"] += 1
        self._say_once("message_not_taken", detail)
        self._tell_undelivered(token, detail, poison=False)

    def _tell_undelivered(self, token: str, detail: str, *, poison: bool) -> None:
        if poison:
            self._dropped["poison"] += 1
        if token and self._on_undelivered is not None:
            self._on_undelivered(token, detail, poison)

    def _say_once(self, name: str, detail: str) -> None:
        """Log what was not said before, up to a number: a broker's words are without end."""
        if (name, detail) not in self._said and len(self._said) < SAID_MOST:
            self._said.add((name, detail))
            logger().warning(name, broker=self._broker, detail=detail)

    # --- the watch ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        asleep_s = slept_s()
        while True:
            await asyncio.sleep(WATCH_S)
            before_s, asleep_s = asleep_s, slept_s()
            connection = self._connection
            if asleep_s - before_s > SLEPT_S:
                self._hurry.set()
                if connection is not None:
                    connection.break_off(Ending(f"this computer slept for {asleep_s - before_s:.0f} s"))
            elif connection is not None and self.connected and (stuck := connection.stuck()):
                connection.break_off(Ending(stuck))
            self._tell_of_floods()

    def _tell_of_floods(self) -> None:
        flooded = self._gate.flooded(time.monotonic())
        if flooded != self._flooded:
            self._flooded = flooded
            name = "flood_of_messages" if flooded else "flood_over"
            logger().warning(name, broker=self._broker, dropped=self._gate.dropped)
