"""A world that never rests: whatever a car, its computer, its clock, its owner and its grid can say, at random times.

Mostly things are well, so that gates open; then anything goes wrong, singly or together, for a moment or for long.
"""

from __future__ import annotations

import random

from agent.core import signals
from agent.core.events import (
    ComputeSeen,
    ConsentSeen,
    DemandSeen,
    EventType,
    HostSeen,
    LinkChanged,
    OwnerMode,
    OwnerSaid,
    OwnerSet,
    PriceSlot,
    PricesSeen,
    Quality,
    Sample,
    SelfTested,
    SignalsSeen,
    SignalValue,
    SourceChanged,
    StoreFailed,
    StoreRecovered,
    Unwritten,
)
from agent.core.policy import Departure, Policy, TariffZone, Window
from agent.core.signals import LEAVES, Leaf
from tests.core.full_car import CHARGING, START_WALL_MS, samples

PATHS = sorted(CHARGING)
MINUTE_MS = 60_000
WALKS: dict[str, tuple[float, float, float]] = {
    signals.CHARGE: (40, 90, 1.0),
    signals.CHARGE_DISPLAYED: (40, 90, 1.0),
    signals.PACK_POWER: (-2_000, 9_000, 700),
    signals.PACK_TEMPERATURE: (0, 50, 2.0),
    signals.LOW_VOLTAGE: (11.5, 14.5, 0.4),
    signals.LOW_VOLTAGE_CURRENT: (-12, 12, 3.0),
    signals.AMBIENT: (-30, 65, 4.0),
}
"""Leaves that walk: lowest, highest, largest step."""


def policy(dice: random.Random) -> Policy:
    """An owner who uses everything."""
    return Policy(
        parked_for_s=dice.choice([0, 1, 20]),
        plug_required=dice.random() < 0.7,
        net_drain_percent=dice.choice([0.5, 2, 10]),
        departures=(
            Departure(at="19:30", target_percent=dice.choice([60, 75, 80])),
            Departure(at="07:00", target_percent=80),
        ),
        charger_w=dice.choice([0, 3_000]),
        low_voltage_budget_wh=dice.choice([0.05, 1, 30]),
        schedule=dice.choice([(), (Window(start="18:00", end="18:40"), Window(start="19:00", end="06:00"))]),
        tariff_zones=(
            TariffZone(start="18:20", end="18:35", price_micro_per_kwh=500_000),
            TariffZone(start="21:00", end="23:00", price_micro_per_kwh=100_000),
        ),
        work_hours_per_stay=dice.choice([0.5, 3, 168]),
        payout_micro_per_kwh=dice.choice([0, 400_000]),
        consent_required_version=dice.choice([0, 1]),
    )


class RestlessWorld:
    """Names the next events, from a seed; the same seed, the same world."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.values: dict[str, SignalValue] = dict(CHARGING)
        self.offset_ms = START_WALL_MS
        self.die_c = 50.0

    def begins(self) -> list[EventType]:
        """Everything well."""
        return [
            HostSeen(at_ms=0, wall_ms=self.offset_ms, wall_error_ms=20),
            LinkChanged(at_ms=0, connected=True, broker="b:1"),
            ConsentSeen(at_ms=0, version=1),
            SignalsSeen(at_ms=0, source="bus", samples=samples(self.values)),
            self._compute(0),
        ]

    def next(self, at_ms: int) -> list[EventType]:
        """What happens now."""
        what = self.dice.choices(
            [self._walk, self._flip, self._mend, self._compute, self._clock, self._market, self._owner, self._shell],
            [6, 2, 4, 4, 1, 1, 1, 1],
        )[0]
        event = what(at_ms)
        return [event] if isinstance(event, EventType) else list(event)

    def _walk(self, at_ms: int) -> EventType:
        path = self.dice.choice(sorted(WALKS))
        low, high, step = WALKS[path]
        value = min(high, max(low, float(self.values[path]) + self.dice.uniform(-step, step)))
        self.values[path] = value
        return SignalsSeen(at_ms=at_ms, source="bus", samples=samples({path: value}))

    def _flip(self, at_ms: int) -> EventType:
        """One leaf says something else, or that it does not know."""
        path = self.dice.choice(PATHS)
        if self.dice.random() < 0.3:
            sample = Sample(path, None, self.dice.choice([Quality.UNKNOWN, Quality.FAULT]), group="car")
            return SignalsSeen(at_ms=at_ms, source="bus", samples=(sample,))
        value = self._any_value(path, LEAVES[path])
        return SignalsSeen(at_ms=at_ms, source="bus", samples=samples({path: value}))

    def _any_value(self, path: str, leaf: Leaf) -> SignalValue:
        if leaf.kind is bool:
            return self.dice.random() < 0.5
        if leaf.allowed:
            return self.dice.choice(sorted(leaf.allowed))
        if path == signals.TIMER_TIME:
            minute = self.dice.randrange(60)
            return self.dice.choice(["nonsense", f"2026-06-01T{self.dice.randrange(18, 24)}:{minute:02d}:00"])
        return self.dice.uniform(max(leaf.minimum, -200), min(leaf.maximum, 200))

    def _mend(self, at_ms: int) -> EventType:
        return SignalsSeen(at_ms=at_ms, source="bus", samples=samples(self.values))

    def _compute(self, at_ms: int) -> EventType:
        self.die_c = min(97.0, max(40.0, self.die_c + self.dice.uniform(-9, 8)))
        die_c = None if self.dice.random() < 0.05 else self.die_c
        return ComputeSeen(at_ms=at_ms, die_c=die_c, power_w=self.dice.uniform(8, 60), sensor="simulated")

    def _clock(self, at_ms: int) -> EventType:
        if self.dice.random() < 0.3:
            self.offset_ms += self.dice.choice([-3_600_000, -90_000, 20_000, 86_400_000])
        error_ms = None if self.dice.random() < 0.2 else self.dice.choice([5, 20, 90_000])
        return HostSeen(at_ms=at_ms, wall_ms=self.offset_ms + at_ms, wall_error_ms=error_ms)

    def _market(self, at_ms: int) -> EventType:
        if self.dice.random() < 0.4:
            return DemandSeen(at_ms=at_ms, stop_for_ms=self.dice.choice([0, 5_000, 600_000]))
        start = self.offset_ms + at_ms - at_ms % (15 * MINUTE_MS)
        slots = tuple(
            PriceSlot(
                start + part * 15 * MINUTE_MS,
                start + (part + 1) * 15 * MINUTE_MS,
                self.dice.randrange(-50_000, 500_000),
            )
            for part in range(self.dice.randrange(12))
        )
        expires = start + self.dice.choice([1, 20, 200]) * MINUTE_MS
        return PricesSeen(at_ms=at_ms, issued_wall_ms=self.offset_ms + at_ms, expires_wall_ms=expires, slots=slots)

    def _owner(self, at_ms: int) -> EventType:
        kind = self.dice.randrange(3)
        if kind == 0:
            mode = self.dice.choice([OwnerMode.AUTO, OwnerMode.AUTO, OwnerMode.PAUSED, OwnerMode.FINISH])
            return OwnerSaid(at_ms=at_ms, mode=mode, until_ms=at_ms + self.dice.randrange(1, 300_000))
        if kind == 1:
            return ConsentSeen(at_ms=at_ms, version=self.dice.choice([1, 1, 0]))
        floor = self.dice.choice([0, 0, 90_000])
        return OwnerSet(at_ms=at_ms, schedule=(), price_floor_micro_per_kwh=floor, workload_classes=())

    def _shell(self, at_ms: int) -> list[EventType]:
        kind = self.dice.randrange(5)
        if kind == 0:
            return [LinkChanged(at_ms=at_ms, connected=self.dice.random() < 0.7, broker="b:1")]
        if kind == 1:
            return [StoreFailed(at_ms=at_ms, detail="full", step=Unwritten.NOTE)]
        if kind == 2:
            return [StoreRecovered(at_ms=at_ms)]
        if kind == 3:
            return [SelfTested(at_ms=at_ms, problem=self.dice.choice(["", "", "no key"]))]
        alive = self.dice.random() < 0.7
        return [SourceChanged(at_ms=at_ms, source="bus", alive=alive, detail="")]
