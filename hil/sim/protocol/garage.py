"""One car: what outlives its agent. Its clocks, its key, its disk, its network, and who sits in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.state import State
from hil.sim.protocol.broker import Broker
from hil.sim.protocol.clocks import CarClock
from hil.sim.protocol.computer import Troubles, Worked
from hil.sim.protocol.disk import Disk
from hil.sim.protocol.keys import SeededSigner
from hil.sim.protocol.timeloop import VirtualLoop
from hil.sim.protocol.web import ObjectStore

if TYPE_CHECKING:
    from hil.sim.protocol.agent_run import AgentRun


class Watch(Protocol):
    """Who looks on, after every step of a car."""

    def stepped(
        self, garage: Garage, before: State, event: EventType, after: State, effects: tuple[EffectType, ...]
    ) -> None:
        """The core took a step."""
        ...

    def took_up(self, garage: Garage) -> None:
        """The agent has taken up what an earlier life left."""
        ...

    def committed(self, garage: Garage) -> None:
        """The store took a call."""
        ...

    def failed(self, what: str) -> None:
        """Something failed that nobody foresaw."""
        ...

    def worked(self, garage: Garage, worked: Worked) -> None:
        """A slice was computed, or begun."""
        ...

    def published(self, garage: Garage, topic: str, body: bytes) -> None:
        """A message left the car."""
        ...


class Garage:
    """A car, whatever becomes of its agent. `make` begins another life of it."""

    def __init__(
        self,
        unit: str,
        cell: str,
        *,
        loop: VirtualLoop,
        chance: random.Random,
        clock: CarClock,
        signer: SeededSigner,
        broker: Broker,
        watch: Watch,
        objects: ObjectStore,
        packages: tuple[tuple[str, str], ...],
        dispatcher_keys: Mapping[str, EllipticCurvePublicKey],
        item_ms: Callable[[str], float],
        answer_bytes: Callable[[str], int],
        make: Callable[[Garage], AgentRun],
    ) -> None:
        self.unit, self.cell, self.loop, self.chance, self.clock = unit, cell, loop, chance, clock
        self.signer, self.broker, self.watch, self.objects = signer, broker, watch, objects
        self.packages, self.dispatcher_keys = packages, dispatcher_keys
        self.item_ms, self.answer_bytes = item_ms, answer_bytes
        self._make = make
        self.disk = Disk()
        self.troubles = Troubles()
        self.network = True
        self.driver_here = False
        self.objects_fail = 0.0
        """The chance that a connection to the object store does."""
        self.suspended = False
        self.frozen: list[Callable[[], object]] = []
        self.run: AgentRun | None = None
        self.lives = 0
        self.boundaries = 0
        """How many boundaries were passed so far, in all lives."""
        self.fails_at: int | None = None
        """At which of them the power fails next."""
        self.reboots = True
        self.woke_ms = 0.0
        """When it woke last, in true time."""
        self.seen_changes = -1
        self.down_ms = 2_000.0

    def start(self) -> None:
        """The agent starts."""
        if self.run is None:
            self.lives += 1
            self.run = self._make(self)
            self.run.begin()

    def restart(self, after_ms: float) -> None:
        """The agent ends, and is started again so much later."""
        self.stop()
        self.loop.after(after_ms, self.start)

    def stop(self) -> None:
        """The agent ends where it stands."""
        if self.run is not None:
            self.run.end()
            self.run = None
        self.suspended, self.frozen = False, []
        self.disk.lose_power()

    def power_fails(self, _name: str) -> bool:
        """Whether it does so now; asked at every boundary."""
        self.boundaries += 1
        if self.fails_at is None or self.boundaries < self.fails_at:
            return False
        self.fails_at = None
        return True

    def power_cut(self) -> None:
        """Everything that was not on disk is gone. The computer is booted again, or only the agent is."""
        self.restart(self.down_ms)
        if self.reboots:
            self.clock.reboot()

    def suspend(self, for_ms: float) -> None:
        """The computer sleeps: nothing runs, boot time goes on, and nobody answers the broker."""
        if self.suspended or self.run is None:
            return
        self.suspended = True
        self.broker.half_open(self.unit)
        self.loop.after(for_ms, self.wake)

    def wake(self) -> None:
        """Everything that fell due meanwhile is done now; the link turns out to be dead."""
        if not self.suspended:
            return
        self.suspended = False
        self.woke_ms = self.loop.now_s * 1000
        frozen, self.frozen = self.frozen, []
        run = self.run
        if run is None:
            return
        run.soon(0, run.tick)
        for action in frozen:
            run.soon(0, action)
        run.soon(1_000, lambda: run.link.lose("the computer was suspended"))

    def set_network(self, *, there: bool) -> None:
        """The car's network comes or goes; it notices."""
        self.network = there
        run = self.run
        if run is None:
            return
        run.link.network = there
        if not there:
            run.soon(500, lambda: run.link.lose("no network"))
