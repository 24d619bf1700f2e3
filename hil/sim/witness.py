"""The core under test, seen from outside: every step is recorded with what was true, and every promise checked."""

from __future__ import annotations

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.signals import Vehicle
from agent.core.state import initial
from agent.simulate.promises import Broken, Truth, Watch
from agent.simulate.recording import Header, Line
from hil.sim.chassis import Traits


class Witness:
    """One core from its first event on. `keep` the lines where a failure is to be replayed."""

    def __init__(self, traits: Traits, *, keep: bool) -> None:
        self._traits, self._keep = traits, keep
        vehicle = Vehicle(offered=traits.model.leaves, absent=traits.model.absent)
        self.state = initial(traits.name, traits.policy, traits.start_ms, vehicle=vehicle, zone=traits.zone)
        self.watch = Watch(traits.policy)
        self.lines: list[Line] = []
        self.broken: list[Broken] = []
        self.looking_for = ""
        """The only promise that counts; empty: each does."""
        self.events = 0

    @property
    def header(self) -> Header:
        """How a replay begins."""
        traits = self._traits
        return Header(
            name=traits.name,
            start_ms=traits.start_ms,
            policy=traits.policy,
            offered=traits.model.leaves,
            absent=traits.model.absent,
            zone=traits.zone,
        )

    @property
    def open(self) -> bool:
        """The gate is open."""
        return self.state.gates.state is GateState.OPEN

    def step(self, event: EventType, truth: Truth | None) -> tuple[EffectType, ...]:
        """One event, and what was true when it came; what the core asks for."""
        before = self.state
        self.state, effects = step(before, event)
        self.events += 1
        if self._keep:
            self.lines.append(Line(event, truth))
        broken = self.watch.saw(before, event, self.state, effects, truth)
        if broken:
            self.broken += [one for one in broken if self.looking_for in {"", one.name}]
        return effects
