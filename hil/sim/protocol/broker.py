"""A broker with the worst behaviour that MQTT 5 and its implementations allow, and a hostile one besides.

What it may do, each measured or documented on some broker: lose a message after its PUBACK; deliver one any number of
times, hours later too; deliver in any order; drop sessions, queues and retained messages at a restart; hand a message
to a member of the share group that is dead; deliver what has expired; keep an old retained message; refuse a message;
let a link be half open; let somebody else take over a client id. What it cannot do is make a signature.

A hostile one alters, swaps, strips, forges and replays what passes. It has no keys.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from hil.sim.protocol.hostility import Hostility
from hil.sim.protocol.timeloop import VirtualLoop

NETWORK_MS = (3.0, 60.0)
"""One way between a client and the broker."""
PUBACK_REFUSED = "quota exceeded"


class Weather(msgspec.Struct):
    """What the broker does now, as chances per message."""

    lose: float = 0.0
    duplicate: float = 0.0
    copies: int = 1
    late: float = 0.0
    late_ms: int = 60_000
    refuse: float = 0.0
    ghosts: bool = False
    """Dead members of the share group still get their share."""
    forgets_retained: bool = False
    old_retained: bool = False
    delivers_expired: bool = False


class Member(Protocol):
    """A dispatcher in the share group."""

    @property
    def listening(self) -> bool:
        """Its connection is up."""
        ...

    def arrived(self, topic: str, body: bytes) -> None:
        """A message for it."""
        ...

    def hung_up(self) -> None:
        """The broker has closed its connection."""
        ...


class Client(Protocol):
    """A car's side of its connection."""

    def arrived(self, topic: str, body: bytes) -> None:
        """A message for it."""
        ...

    def hung_up(self, detail: str) -> None:
        """The broker has closed the connection."""
        ...


class Session(msgspec.Struct, eq=False):
    """One connection of a car; `open` as the broker sees it, `through` whether bytes pass at all (not: half open)."""

    unit: str
    cell: str
    client: Client
    open: bool = True
    through: bool = True


class Broker:
    """All connections pass here. `chance` decides every single message."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, receive_maximum: int) -> None:
        self._loop, self._chance = loop, chance
        self.receive_maximum = receive_maximum
        self.weather = Weather()
        self.hostility: Hostility | None = None
        self.up = True
        self._life = 0
        """Counts restarts: what is under way when one comes is gone."""
        self._sessions: dict[str, Session] = {}
        self.members: list[Member] = []
        self._retained: dict[str, list[bytes]] = {}
        self.counts: Counter[str] = Counter()

    # --- connections -------------------------------------------------------------------------------------------

    def connect(self, unit: str, cell: str, client: Client) -> Session | None:
        """A car's connection with its subscriptions; an older one of the same id is taken over. None: nobody there."""
        if not self.up:
            return None
        self.take_over(unit)
        session = Session(unit, cell, client)
        self._sessions[unit] = session
        kept = self._retained.get(f"dw/v1/b/{cell}/pace", [])
        if kept and not self.weather.forgets_retained:
            body = kept[0] if self.weather.old_retained else kept[-1]
            self._carry(lambda: self._deliver(session, f"dw/v1/b/{cell}/pace", body))
        return session

    def take_over(self, unit: str) -> None:
        """Somebody has connected with this client id: the session that was there ends."""
        before = self._sessions.pop(unit, None)
        if before is not None and before.open:
            self._hang_up(before, "session taken over")

    def drop(self, unit: str, detail: str) -> None:
        """End a car's session, as brokers do for reasons of their own."""
        session = self._sessions.get(unit)
        if session is not None and session.open:
            self._hang_up(session, detail)

    def half_open(self, unit: str) -> None:
        """Nothing passes any more, and neither side knows."""
        session = self._sessions.get(unit)
        if session is not None:
            session.through = False

    def stop(self) -> None:
        """The broker dies: what it had of messages and sessions is gone."""
        self.up = False
        self._life += 1
        self._retained.clear()
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            self._hang_up(session, "connection reset")
        for member in self.members:
            member.hung_up()

    def start(self) -> None:
        """It is there again, and remembers nothing."""
        self.up = True

    def _hang_up(self, session: Session, detail: str) -> None:
        session.open = False
        if session.through:
            self._loop.after(self._chance.uniform(*NETWORK_MS), lambda: session.client.hung_up(detail))

    # --- messages ----------------------------------------------------------------------------------------------

    def from_car(
        self, session: Session, topic: str, body: bytes, expiry_s: int | None, answered: Callable[[str], None] | None
    ) -> None:
        """A car publishes; `answered` (QoS 1) is called with "" for a PUBACK and with a reason for a refusal."""
        if not session.through:
            return
        self.counts["up"] += 1

        def arrive() -> None:
            if not (session.open and session.through):
                return
            refused = answered is not None and self._chance.random() < self.weather.refuse
            if answered is not None:
                self._carry(lambda: answered(PUBACK_REFUSED if refused else "") if session.open else None)
            if not refused:
                self._spread(topic, body, expiry_s, self._to_group)

        self._carry(arrive)

    def from_dispatcher(self, topic: str, body: bytes, expiry_s: int | None, *, retain: bool = False) -> None:
        """A dispatcher publishes; it was connected a moment ago."""
        self.counts["down"] += 1
        if retain:
            kept = self._retained.setdefault(topic, [])
            kept.append(body)
            del kept[:-3]
        self._carry(lambda: self._spread(topic, body, expiry_s, self._to_cars))

    def inject(self, topic: str, body: bytes) -> None:
        """A hostile broker says something of its own."""
        self.counts["injected"] += 1
        (self._to_group if topic.startswith("dw/v1/u/") else self._to_cars)(topic, body)

    def _carry(self, action: Callable[[], object]) -> None:
        """Across the network, if the broker lives until then."""
        life = self._life
        self._loop.after(self._chance.uniform(*NETWORK_MS), lambda: action() if life == self._life else None)

    def _spread(self, topic: str, body: bytes, expiry_s: int | None, send: Callable[[str, bytes], None]) -> None:
        """Not at all, once, or often; at once or much later; as it was or altered."""
        chance, weather = self._chance, self.weather
        if chance.random() < weather.lose:
            self.counts["lost"] += 1
            return
        copies = 1
        if chance.random() < weather.duplicate:
            copies += chance.randint(1, weather.copies)
            self.counts["duplicated"] += copies - 1
        for number in range(copies):
            delay_ms = 0.0 if number == 0 else chance.uniform(1, weather.late_ms)
            if chance.random() < weather.late:
                self.counts["late"] += 1
                delay_ms = chance.uniform(0, weather.late_ms)
            if expiry_s is not None and delay_ms > 1000 * expiry_s and not weather.delivers_expired:
                self.counts["expired"] += 1
                continue
            if self.hostility is not None:
                topic, body = self.hostility.bend(topic, body)
            self._send_after(delay_ms, topic, body, send)

    def _send_after(self, delay_ms: float, topic: str, body: bytes, send: Callable[[str, bytes], None]) -> None:
        """Now or later, if the broker lives until then."""
        life = self._life
        if delay_ms:
            self._loop.after(delay_ms, lambda: send(topic, body) if life == self._life else None)
        else:
            send(topic, body)

    def _to_group(self, topic: str, body: bytes) -> None:
        """One member of the share group gets it, of those that live, and perhaps of those that do not."""
        members = [one for one in self.members if one.listening or self.weather.ghosts]
        member = self._chance.choice(members) if members else None
        if member is None or not member.listening:
            self.counts["to_nobody"] += 1
            return
        member.arrived(topic, body)

    def _to_cars(self, topic: str, body: bytes) -> None:
        parts = topic.split("/")
        if len(parts) != 5:
            sessions = []
        elif parts[2] == "b":
            sessions = [one for one in self._sessions.values() if one.cell == parts[3]]
        else:
            sessions = [one for one in self._sessions.values() if one.unit == parts[3]]
        for session in sessions:
            self._deliver(session, topic, body)
        if not sessions:
            self.counts["to_nobody"] += 1

    def _deliver(self, session: Session, topic: str, body: bytes) -> None:
        def arrive() -> None:
            if session.open and session.through:
                session.client.arrived(topic, body)

        self._carry(arrive)
