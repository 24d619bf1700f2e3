"""A recorded night as stimuli: what the car, its surroundings and its owner did, each with its time.

Readers make one from a file; the rehearsal plays it. A stimulus is either an event that the core is told of as it is
(samples, a source that comes or goes, the owner's word), or a fact about the surroundings from which the rehearsal
makes events itself: temperatures, the network, how far the clock is wrong.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    Event,
    OwnerSaid,
    PriceSlot,
    SignalsSeen,
    SourceChanged,
    SourceHeard,
)
from agent.core.signals import Vehicle


class Quantity(enum.StrEnum):
    """What a trace may record besides the car's own signals; each is modelled where it does not."""

    DIE_C = "compute.die_c"
    POWER_W = "compute.power_w"
    AMBIENT_C = "ambient_c"


class Recorded(Event, frozen=True, tag=True):
    """A recorded quantity holds `value` from now on; None: from now on nobody measured it."""

    quantity: Quantity
    value: float | None


class ClockSet(Event, frozen=True, tag=True):
    """From now on the computer's wall clock is `error_ms` ahead of true time; `kept` is whether anybody keeps it."""

    error_ms: int
    kept: bool


class NetworkSet(Event, frozen=True, tag=True):
    """The broker can be reached from now on, or not; over a network that costs, or not."""

    connected: bool
    metered: bool


Stimulus = (
    SignalsSeen | SourceHeard | SourceChanged | OwnerSaid | ConsentSeen | DemandSeen | Recorded | ClockSet | NetworkSet
)


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A night that can be played: its stimuli in order of time, which starts at 0.

    `start_wall_ms` is the wall time (since 1970) of time 0, None where the trace does not tell. A source in `holding`
    is taken as alive and repeating itself between its rows, by the group of that name. `vehicle` says which leaves this
    car has and lacks. `prices` are known from the start, as day-ahead prices are. `remarks` are sentences
    for the reader of a report; a reader of a stream adds to them until its last stimulus.
    """

    name: str
    kind: str
    start_wall_ms: int | None
    stimuli: Iterable[Stimulus]
    vehicle: Vehicle
    holding: frozenset[str] = frozenset()
    prices: tuple[PriceSlot, ...] = ()
    remarks: list[str] = []
