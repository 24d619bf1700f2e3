"""The car's link in virtual time: connects, loses the connection, and keeps what the real one promises its desk.

At most `max_in_flight` messages, and never more than the broker's Receive Maximum, are under way; one more is refused.
What the broker refuses, or hangs up over three times in a row, is told of by its token. A link that is lost is tried
again with full jitter; the first attempt after an outage comes within the cell's spread. A dead link that nobody closed
is found out by its keep-alive.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from agent.fleet.link_config import LinkConfig
from hil.sim.protocol.broker import Broker, Session

HANDSHAKE_MS = (60.0, 900.0)
UNREACHABLE_MS = (200.0, 10_000.0)
BACKOFF_MIN_MS = 500
BACKOFF_MAX_MS = 60_000
SETTLED_MS = 10_000
KEEPALIVE_ROUNDS = (1.0, 1.5)
POISONOUS = 3
"""A message over which the broker hangs up so often is told of."""
DETAIL = "the broker cannot be reached"

Soon = Callable[[float, Callable[[], object]], None]
"""Do something so much later, as long as this agent lives; what falls due while the car sleeps is done afterwards."""


class SimulatedLink:
    """See `agent.fleet.link.Link`, which it stands for, and `agent.ports.Carrier`."""

    def __init__(
        self,
        config: LinkConfig,
        cell: str,
        broker: Broker,
        chance: random.Random,
        soon: Soon,
        *,
        on_message: Callable[[str, bytes], None],
        on_state: Callable[[bool, str, str], None],
        on_undelivered: Callable[[str, str, bool], None],
        on_publish: Callable[[str, bytes], None],
    ) -> None:
        self._config, self._cell, self._broker, self._chance, self._soon = config, cell, broker, chance, soon
        self._on_message, self._on_state, self._on_undelivered = on_message, on_state, on_undelivered
        self._on_publish = on_publish
        self._session: Session | None = None
        self._in_flight: dict[int, str] = {}
        self._hang_ups: dict[str, int] = {}
        self._mids = itertools.count(1)
        self._attempt = 0
        self._spread_ms = 0
        self._life = 0
        self.network = True
        """Whether the car has any network at all."""

    @property
    def connected(self) -> bool:
        """As the car believes."""
        return self._session is not None

    @property
    def window(self) -> int:
        """How many messages may be under way."""
        return min(self._config.max_in_flight, self._broker.receive_maximum)

    @property
    def in_flight(self) -> int:
        """Messages without a PUBACK."""
        return len(self._in_flight)

    def start(self) -> None:
        """Begin connecting."""
        self._soon(self._chance.uniform(*HANDSHAKE_MS), self._connect)

    def spread(self, spread_ms: int) -> None:
        """From now on the first attempt after an outage comes within so long."""
        self._spread_ms = spread_ms

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        """Hand one message over; False when it cannot be taken now."""
        session = self._session
        if session is None or (qos and len(self._in_flight) >= self.window):
            return False
        self._on_publish(topic, payload)
        answered: Callable[[str], None] | None = None
        if qos:
            mid = next(self._mids)
            self._in_flight[mid] = token

            def answered(reason: str) -> None:
                self._soon(0, lambda: self._acknowledged(mid, reason))

        self._broker.from_car(session, topic, payload, expiry_s, answered)
        return True

    def arrived(self, topic: str, body: bytes) -> None:
        """The broker delivers."""
        self._soon(0, lambda: self._on_message(topic, body))

    def hung_up(self, detail: str) -> None:
        """The broker has closed the connection."""
        self._soon(0, lambda: self._lost(detail))

    def lose(self, detail: str) -> None:
        """The connection breaks, and the car notices."""
        if self._session is not None:
            self._session.open = False
        self._lost(detail)

    def go_deaf(self) -> None:
        """The connection is half open from now on; the keep-alive finds out."""
        session = self._session
        if session is None:
            return
        session.through = False
        found_ms = 1000 * self._config.keepalive_s * self._chance.uniform(*KEEPALIVE_ROUNDS)
        self._soon(found_ms, lambda: self.lose("keep alive timeout") if self._session is session else None)

    def end(self) -> None:
        """The agent has died: the broker finds the connection gone."""
        if self._session is not None:
            self._session.open = False
            self._session = None

    def _acknowledged(self, mid: int, reason: str) -> None:
        token = self._in_flight.pop(mid, None)
        if token is None:
            return
        self._hang_ups.pop(token, None)
        if reason and token:
            self._on_undelivered(token, reason, False)

    def _lost(self, detail: str) -> None:
        if self._session is None or self._session.open:
            return
        self._session = None
        tokens, self._in_flight = {token for token in self._in_flight.values() if token}, {}
        self._hang_ups = {token: self._hang_ups.get(token, 0) + 1 for token in sorted(tokens)}
        poison = [token for token, count in self._hang_ups.items() if count >= POISONOUS]
        for token in poison:
            del self._hang_ups[token]
        self._on_state(False, "broker:8883", detail)
        for token in poison:
            self._on_undelivered(token, "the broker hung up over it", True)
        self._again(after_outage=True)

    def _again(self, *, after_outage: bool = False) -> None:
        self._attempt += 1
        ceiling_ms = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** min(self._attempt, 16))
        if after_outage:
            ceiling_ms = max(ceiling_ms, self._spread_ms)
        self._soon(self._chance.uniform(0, ceiling_ms) + self._chance.uniform(*HANDSHAKE_MS), self._connect)

    def _connect(self) -> None:
        if self._session is not None:
            return
        session = self._broker.connect(self._config.client_id, self._cell, self) if self.network else None
        if session is None:
            self._soon(self._chance.uniform(*UNREACHABLE_MS), self._unreachable)
            return
        self._session = session
        self._life += 1
        life = self._life
        self._soon(SETTLED_MS, lambda: self._settled(life))
        self._on_state(True, "broker:8883", "")

    def _settled(self, life: int) -> None:
        if life == self._life and self._session is not None:
            self._attempt = 0

    def _unreachable(self) -> None:
        self._on_state(False, "broker:8883", DETAIL)
        self._again()
