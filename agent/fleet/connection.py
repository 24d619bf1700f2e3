"""One connection as the event loop sees it: a conversation on a thread of its own, and what crosses between the two.

The thread hands over and goes on; everything here runs on the event loop. What arrives waits in a short inbox and is
handed over one message a turn of the loop, so that a flood of messages delays no frame of the vehicle's bus. Once
`end` was called, or the connection is over, nothing of it is heard any more, whatever its thread still does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.fleet.broker_limits import BrokerLimits
from agent.fleet.conversation import Conversation, Ending, Outgoing
from agent.fleet.flood import FloodGate
from agent.fleet.link_config import LinkConfig
from agent.fleet.tls import TlsClient

END_S = 2.0
"""How long a goodbye may take, and then the cutting off."""
UNSENT_MESSAGES = 16
"""More messages of QoS 0 than these do not wait for the network."""


class Connection:
    """From `start` to the end of the future that it returns.

    `on_message(topic, payload)` and `on_acknowledged(token, refusal)` are called on the event loop; `up` is set once
    every filter is granted. An exception in either callback ends the connection.
    """

    def __init__(
        self,
        config: LinkConfig,
        address: tuple[str, int],
        *,
        tls: TlsClient | None,
        gate: FloodGate,
        on_message: Callable[[str, bytes], None],
        on_acknowledged: Callable[[str, str], None],
    ) -> None:
        self._config, self._deliver, self._on_acknowledged = config, on_message, on_acknowledged
        self._loop = asyncio.get_running_loop()
        self.up = asyncio.Event()
        self.over: asyncio.Future[Ending] = self._loop.create_future()
        self.limits = BrokerLimits()
        self.in_flight: dict[Outgoing, None] = {}
        self.dropped: Counter[str] = Counter()
        self._gone = asyncio.Event()
        self._inbox: deque[tuple[str, bytes]] = deque(maxlen=config.inbox_messages)
        self._delivering = self._deaf = False
        self._talk = self._conversation(config, address, tls, gate)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    def _conversation(
        self, config: LinkConfig, address: tuple[str, int], tls: TlsClient | None, gate: FloodGate
    ) -> Conversation:
        return Conversation(config, address, tls, gate, self)

    def start(self) -> asyncio.Future[Ending]:
        """Connect on a thread of its own; the future ends, with the reason, when the connection is over."""
        self._thread.start()
        return self.over

    @property
    def window(self) -> int:
        """How many messages with QoS 1 may be unacknowledged at once."""
        return min(self._config.max_in_flight, self.limits.receive_maximum)

    def publish(
        self, topic: str, payload: bytes, qos: int, expiry_s: int | None, token: str, *, retain: bool
    ) -> tuple[bool, str]:
        """Take one message on its way: whether it was taken, and why this broker must never be sent it ('': it may)."""
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = "application/json"
        if expiry_s is not None:
            properties.MessageExpiryInterval = min(max(1, expiry_s), 2**32 - 1)
        refusal = self.limits.refusal(topic, len(payload), len(properties.pack()), retain=retain)
        if refusal:
            return False, refusal
        qos = min(qos, self.limits.maximum_qos, 1)
        if (qos and len(self.in_flight) >= self.window) or len(self._talk.unsent) >= self.window + UNSENT_MESSAGES:
            return False, ""
        message = Outgoing(topic, payload, qos, retain, properties, token)
        if qos:
            self.in_flight[message] = None
        self._talk.send(message)
        return True, ""

    @property
    def blamed(self) -> list[str]:
        """The tokens of what has left and was not acknowledged."""
        return [message.token for message in self.in_flight if message.sent_at_s is not None]

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        made = self._talk.socket
        return (0, 0) if made is None else (made.sent_bytes, made.received_bytes)

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def stuck(self) -> str:
        """Why its thread cannot be relied upon any more; empty while it can."""
        if not self.over.done() and not self._thread.is_alive() and not self._gone.is_set():
            return "the network thread has died"
        behind_s = time.monotonic() - self._talk.alive_until_s
        return f"the network thread is stuck (overdue for {behind_s:.0f} s)" if behind_s > 0 else ""

    def break_off(self, ending: Ending) -> None:
        """The connection is over, for this reason."""
        if not self.over.done():
            self.over.set_result(ending)

    async def end(self) -> None:
        """Be deaf from now on; say goodbye if that is still possible, and wait for the thread as long as is sensible.

        A thread that does not end is left behind: `alive` tells.
        """
        self._deaf = True
        self._inbox.clear()
        if not self._thread.is_alive() and not self._gone.is_set():
            self._gone.set()
        for step in (self._talk.leave, self._talk.cut):
            if not self._gone.is_set():
                step()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), END_S)
        if self._gone.is_set():
            self._thread.join()  # it has said its last word
        self._talk.close_waker()

    def _finish(self, ending: Ending) -> None:
        self._gone.set()
        self.break_off(ending)

    def _run(self) -> None:
        """The thread."""
        self._tell(self._finish, self._talk.run())

    # --- what the thread tells (conversation.Listener), and what becomes of it ------------------------------------

    def _tell(self, call: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(call, *args)

    def subscribed(self, limits: BrokerLimits) -> None:
        """Every filter is granted. On the network thread."""
        self._tell(self._came_up, limits)

    def received(self, topic: str, payload: bytes) -> None:
        """A message came; only the newest wait. On the network thread."""
        if len(self._inbox) == self._inbox.maxlen:
            self.dropped["inbox full"] += 1
        self._inbox.append((topic, payload))
        if len(self._inbox) == 1:
            self._tell(self._wake)

    def acknowledged(self, message: Outgoing, refusal: str) -> None:
        """The broker took a message, or refused it. On the network thread."""
        self._tell(self._let_go, message, refusal)

    def _came_up(self, limits: BrokerLimits) -> None:
        self.limits = limits
        self.up.set()

    def _let_go(self, message: Outgoing, refusal: str) -> None:
        self.in_flight.pop(message, None)
        if not self._deaf:
            self.guarded(partial(self._on_acknowledged, message.token, refusal))

    def _wake(self) -> None:
        if not self._delivering:
            self._delivering = True
            self._hand_over()

    def _hand_over(self) -> None:
        """One message, then a turn of the loop for everybody else."""
        if self._deaf or not self._inbox:
            self._delivering = False
            return
        self._loop.call_soon(self._hand_over)
        self.guarded(partial(self._deliver, *self._inbox.popleft()))

    def guarded(self, callback: Callable[[], None]) -> None:
        """Call it; what it raises ends this connection."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - it ends the connection, and the link tells of it
            self._deaf = True
            self.break_off(Ending(f"what was received could not be handled: {error!r}", bug=True))
