"""One car of the fleet: the daemon's core, desk and link, around a computer and a disk that are stood in for.

Everything that crosses the broker is what a daemon would send, signed and checked alike. The core is woken when it says
that it has something to do; its car stands parked all the time (`hil.fleet.parked`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Mapping
from functools import partial

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.clock import boot_id
from agent.core.effects import EffectType, SendHandIn, SendRenewal, SendRequest
from agent.core.events import EventType, GrantSeen, LinkChanged, Stopping, Tick, VerdictSeen
from agent.core.machine import step
from agent.core.model import Grant
from agent.core.state import State
from agent.fleet.desk import Desk
from agent.fleet.link import Link
from agent.fleet.link_config import LinkConfig
from agent.fleet.orders import Orders
from agent.ports import Clock
from hil.fleet.connection import LoopConnection
from hil.fleet.figures import Histogram, Tally, bin_of
from hil.fleet.keys import signer, unit_name
from hil.fleet.parked import READING_MS, REPEAT_MS, heard, reading
from hil.fleet.rows import Rows
from hil.fleet.shells import Settled, Shells, Work


class Yard(msgspec.Struct, frozen=True, kw_only=True):
    """What the cars of one process share."""

    seed: str
    cell: str
    parked: State
    link: LinkConfig
    dispatcher_keys: Mapping[str, EllipticCurvePublicKey]
    clock: Clock
    work: Work
    compression: float = 1.0


class Books:
    """Where the cars of one process write down what they see. `tally` is taken away and begun anew now and then."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.settled: list[Settled] = []


def compressed(event: EventType, compression: float) -> EventType:
    """A long lease is renewed sooner, since it is worked off sooner; everything else is in this machine's time."""
    match event:
        case GrantSeen(grant=Grant() as grant) if grant.renew_ms:
            sooner = msgspec.structs.replace(grant, renew_ms=max(1, round(grant.renew_ms / compression)))
            return msgspec.structs.replace(event, grant=sooner)
        case VerdictSeen(next_grant=Grant() as grant) if grant.renew_ms:
            sooner = msgspec.structs.replace(grant, renew_ms=max(1, round(grant.renew_ms / compression)))
            return msgspec.structs.replace(event, next_grant=sooner)
        case _:
            return event


class FleetCar:
    """One car. Use from the event loop's thread."""

    def __init__(self, number: int, yard: Yard, books: Books) -> None:
        self._yard, self._books = yard, books
        self._loop = asyncio.get_running_loop()
        unit = unit_name(number)
        self._state = msgspec.structs.replace(yard.parked, name=unit)
        self._events: deque[EventType] = deque()
        self._stepping = False
        self._timer: asyncio.TimerHandle | None = None
        self._heard_ms = self._read_ms = self._state.now_ms
        self._asked: dict[str, float] = {}
        """When each answer that is awaited was asked for, by request or token."""
        self._question = ""
        """The request that was sent last."""
        self._back = self._served = True
        boot, clock = boot_id(), yard.clock
        orders = Orders(Rows(), clock, boot, lambda: True)
        self._desk = Desk(
            unit=unit,
            cell=yard.cell,
            run=secrets.token_hex(8),
            dispatcher_keys=yard.dispatcher_keys,
            orders=orders,
            emit=self.tell,
            clock=clock,
        )
        self._shells = Shells(
            unit,
            desk=self._desk,
            signer=signer(yard.seed, number),
            emit=self.tell,
            clock=clock,
            work=yard.work,
            settled=books.settled,
        )
        self._link = Link(
            self._desk.link_config(yard.link),
            on_message=self._receive,
            on_state=self._link_changed,
            on_undelivered=self._undelivered,
            connection=partial(LoopConnection, on_up=self._came_up),
        )
        self._desk.attach(self)

    # --- its life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting."""
        self._link.start()
        self._arm()

    def mark(self) -> None:
        """From now on it counts when this car is back and answered."""
        self._back, self._served = self.connected, False

    def stop(self) -> None:
        """Give back what is leased, and ask for nothing any more."""
        self.tell(Stopping(at_ms=self._yard.clock.boot_ms()))

    async def close(self) -> None:
        """Leave."""
        if self._timer is not None:
            self._timer.cancel()
        self._shells.close()
        await self._desk.close()
        await self._link.close()

    @property
    def connected(self) -> bool:
        """Its subscriptions are granted."""
        return self._link.connected

    @property
    def owed(self) -> int:
        """Hand-ins that await a verdict."""
        return len(self._shells.outbox)

    @property
    def working(self) -> bool:
        """It holds a lease."""
        return self._state.lease is not None

    @property
    def made(self) -> int:
        """Hand-ins with a statement, since it was made."""
        return self._shells.made

    # --- the core ----------------------------------------------------------------------------------------------

    def tell(self, event: EventType) -> None:
        """One event into the core, and whatever follows from it at once."""
        self._events.append(compressed(event, self._yard.compression))
        if self._stepping:
            return
        self._stepping = True
        try:
            self._refresh()
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._stepping = False
        self._arm()

    def _refresh(self) -> None:
        """The car has said nothing new, and its computer has stayed cool, until now."""
        now_ms = self._yard.clock.boot_ms()
        if now_ms - self._heard_ms > REPEAT_MS:
            since_ms, self._heard_ms = self._heard_ms, now_ms
            self._step(heard(now_ms, since_ms))
        if now_ms - self._read_ms >= READING_MS:
            since_ms, self._read_ms = self._read_ms, now_ms
            self._step(reading(now_ms, since_ms))

    def _step(self, event: EventType) -> None:
        self._note_event(event)
        self._state, effects = step(self._state, event)
        for effect in effects:
            self._note_effect(effect)
            self._shells.perform(effect)

    def _arm(self) -> None:
        """Wake the core when it says that it has something to do."""
        if self._timer is not None:
            self._timer.cancel()
        wait_ms = max(1, self._state.wakes_ms - self._yard.clock.boot_ms())
        self._timer = self._loop.call_later(wait_ms / 1000, self._tick)

    def _tick(self) -> None:
        self.tell(Tick(at_ms=self._yard.clock.boot_ms()))

    # --- the link: what it carries is counted -------------------------------------------------------------------

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = ""
    ) -> bool:
        """See `agent.ports.Carrier`."""
        taken = self._link.publish(topic, payload, qos=qos, expiry_s=expiry_s, token=token)
        if taken:
            tally, verb = self._books.tally, topic.rpartition("/")[2]
            tally.sent[verb] = tally.sent.get(verb, 0) + 1
            tally.sent_bytes[verb] = tally.sent_bytes.get(verb, 0) + len(payload)
        else:
            self._count("not_taken")
        return taken

    def spread(self, spread_ms: int) -> None:
        """See `agent.ports.Carrier`."""
        self._link.spread(spread_ms)

    def _receive(self, topic: str, body: bytes) -> None:
        tally, verb = self._books.tally, topic.rpartition("/")[2]
        tally.received[verb] = tally.received.get(verb, 0) + 1
        tally.received_bytes[verb] = tally.received_bytes.get(verb, 0) + len(body)
        self._desk.receive(topic, body)

    def _link_changed(self, connected: bool, broker: str, detail: str) -> None:  # noqa: FBT001 - Link's callback
        self._desk.link_changed(connected, broker, detail)

    def _came_up(self, took_ms: float) -> None:
        self._books.tally.connect.add(took_ms)

    def _undelivered(self, token: str, detail: str, poison: bool) -> None:  # noqa: FBT001 - Link's callback
        self._count("poison" if poison else "undelivered")
        self._desk.undelivered(token, detail, poison=poison)

    # --- figures -----------------------------------------------------------------------------------------------

    def _count(self, name: str) -> None:
        events = self._books.tally.events
        events[name] = events.get(name, 0) + 1

    def _moment(self, moments: dict[int, int]) -> None:
        number = bin_of(self._loop.time())
        moments[number] = moments.get(number, 0) + 1

    def _note_effect(self, effect: EffectType) -> None:
        match effect:
            case SendRequest(rid=rid):
                if self._question in self._asked:
                    self._count("asked_again")
                    del self._asked[self._question]
                self._question = rid
                self._asked[rid] = self._loop.time()
            case SendRenewal(rid=rid):
                self._asked[rid] = self._loop.time()
            case SendHandIn(key=key):
                if str(key) in self._asked:
                    self._count("handed_in_again")
                self._asked.setdefault(str(key), self._loop.time())
            case _:
                pass

    def _note_event(self, event: EventType) -> None:
        tally = self._books.tally
        match event:
            case GrantSeen(rid=rid, grant=grant):
                held = self._state.lease
                renewed = grant is not None and held is not None and held.key == grant.key
                name = "renewed" if renewed else "granted" if grant is not None else "no_work"
                into = tally.renewal if renewed else tally.grant if grant is not None else tally.no_work
                self._answered(rid, into, name)
            case VerdictSeen(key=key, verdict=verdict, next_grant=following):
                self._answered(str(key), tally.verdict, verdict.value)
                if following is not None:
                    self._count("granted_with_verdict")
            case LinkChanged(connected=True):
                self._asked.clear()
                self._moment(tally.ups)
                if not self._back:
                    self._back = True
                    self._moment(tally.back)
            case LinkChanged():
                self._moment(tally.downs)
            case _:
                pass

    def _answered(self, asked: str, into: Histogram, name: str) -> None:
        self._count(name)
        since_s = self._asked.pop(asked, None)
        if since_s is None:
            self._count("unasked")
        else:
            into.add(1000 * (self._loop.time() - since_s))
        if not self._served:
            self._served = True
            self._moment(self._books.tally.served)
