"""A dispatcher replica: the real service and the real book over the one database, and a process that may die anywhere.

It may die before a transaction and between any two statements of it (it is rolled back then), after the commit before
anything is published, and between any two publishes. While it publishes, another replica may get its turn, so that its
answers leave in any order with those of others.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from hil.dispatcher.pump import Intake
from hil.dispatcher.service import Dispatcher
from hil.sim.protocol.broker import Broker
from hil.sim.protocol.counter import Counterpart
from hil.sim.protocol.timeloop import VirtualLoop

SERVICE_MS = (0.5, 6.0)
RECONNECT_MS = (100.0, 3_000.0)
INTAKE_MESSAGES = 64
BATCH_MESSAGES = 16
TICK_MS = 5_000.0
"""The real process does so about once a second; what is due then (a lease that has run out) is in no such hurry."""


class ReplicaDied(BaseException):
    """The process is gone in the middle of what it did."""


class Watch(Protocol):
    """Who looks on, after every commit and at every answer."""

    def booked(self, replica: Replica) -> None:
        """The book has committed something."""
        ...

    def answered(self, replica: Replica, topic: str, body: bytes) -> None:
        """An answer left."""
        ...


class Replica:
    """One process, whatever becomes of it. Each life has a service and a book of its own."""

    def __init__(
        self,
        name: str,
        *,
        loop: VirtualLoop,
        chance: random.Random,
        broker: Broker,
        watch: Watch,
        counter: Counterpart,
    ) -> None:
        self.name, self._loop, self._chance, self._broker, self._watch = name, loop, chance, broker, watch
        self._counter = counter
        self.others: list[Replica] = []
        self.race = 0.0
        """The chance that at a boundary another replica gets its turn."""
        self.listening = False
        self.serving = False
        self._alive = False
        self._intake = self._empty_intake()
        self._life = 0
        self._planned = False
        self.stalled_until_ms = 0.0
        self.boundaries = 0
        self.dies_at: int | None = None
        self.down_ms = 2_000.0
        self.service = self._build()

    def start(self) -> None:
        """The process starts, and connects."""
        self._life += 1
        self._alive = True
        self.service = self._build()
        self._intake = self._empty_intake()
        self._connect_soon()
        self._tick(self._life)

    @property
    def waiting(self) -> int:
        """Messages in its queue."""
        return len(self._intake)

    def die(self) -> None:
        """Killed; the process is started again after a while."""
        self._alive = self.listening = self.serving = False
        self._intake = self._empty_intake()
        self._loop.after(self.down_ms, self.start)

    def stall(self, for_ms: float) -> None:
        """The process is stopped (SIGSTOP) for a while: its messages wait."""
        self.stalled_until_ms = self._loop.now_s * 1000 + for_ms

    def hung_up(self) -> None:
        """The broker has died."""
        self.listening = False
        if self._alive:
            self._connect_soon()

    def arrived(self, topic: str, body: bytes) -> None:
        """A message from the broker, into the bounded queue."""
        self._intake.offer(topic, body)
        self._plan()

    def serve(self) -> None:
        """Handle what waits, as one batch; nothing waits: what is due by itself."""
        if self.serving or not self._alive:
            return
        self.serving = True
        try:
            put_off = self._intake.put_off()
            if put_off:
                self.service.put_off(put_off)
            self.service.handle(self._intake.take(BATCH_MESSAGES))
        except ReplicaDied:
            if self._alive:
                self.die()
        finally:
            self.serving = False

    def operate(self, action: Callable[[Dispatcher], object]) -> bool:
        """An operator's order, by way of this replica; False when it is not there, or dies over it."""
        if not self._alive or self.serving:
            return False
        self.serving = True
        try:
            action(self.service)
        except ReplicaDied:
            if self._alive:
                self.die()
            return False
        finally:
            self.serving = False
        return True

    def boundary(self, _name: str) -> None:
        """Between two steps: here the process may die."""
        self.boundaries += 1
        if self.dies_at is not None and self.boundaries >= self.dies_at:
            self.dies_at = None
            raise ReplicaDied

    def _let_others(self) -> None:
        """Another replica, which has something to do, may be faster."""
        if self.race and self._chance.random() < self.race:
            waiting = [one for one in self.others if one.waiting and not one.serving]
            if waiting:
                self._chance.choice(waiting).serve()

    def _empty_intake(self) -> Intake:
        return Intake(lambda: self._loop.now_s, capacity=INTAKE_MESSAGES)

    def _build(self) -> Dispatcher:
        return self._counter.service(self._publish, self)

    def _publish(self, topic: str, payload: bytes, expiry_s: int | None, *, retain: bool = False) -> bool:
        self.boundary("before a publish")
        self._let_others()
        if not self.listening:
            return False
        self._watch.answered(self, topic, payload)
        self._broker.from_dispatcher(topic, payload, expiry_s, retain=retain)
        self.boundary("after a publish")
        return True

    def committed(self) -> None:
        """A transaction is durable."""
        self._watch.booked(self)

    def _connect_soon(self) -> None:
        life = self._life
        self._loop.after(self._chance.uniform(*RECONNECT_MS), lambda: self._connect(life))

    def _connect(self, life: int) -> None:
        if not self._alive or life != self._life or self.listening:
            return
        if self._broker.up:
            self.listening = True
            self.operate(lambda service: service.republish())
        else:
            self._connect_soon()

    def _tick(self, life: int) -> None:
        """Once a second, and sooner or later when the process is stopped or busy."""
        if not self._alive or life != self._life:
            return
        if not self._intake and self._loop.now_s * 1000 >= self.stalled_until_ms:
            self.serve()
        self._loop.after(TICK_MS, lambda: self._tick(life))

    def _plan(self) -> None:
        if not self._planned and self._intake:
            self._planned = True
            wait_ms = max(0.0, self.stalled_until_ms - self._loop.now_s * 1000)
            self._loop.after(wait_ms + self._chance.uniform(*SERVICE_MS), self._turn)

    def _turn(self) -> None:
        self._planned = False
        if self._loop.now_s * 1000 < self.stalled_until_ms:
            self._plan()
            return
        self.serve()
        self._plan()
