"""What the simulated car says: leaves in groups that are heard together, honest until a fault is laid over one.

The honest values come from the body and the plant; faults are laid over them here, outside of the code under test. What
goes out is only what changed; that the rest is repeated many times a second is for the caller to say (`SourceHeard`).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.core import signals
from agent.core.events import Quality, Sample, SignalValue
from hil.car.body import Body, Door, Gear
from hil.car.power_state import PowerState

SOURCE = "car"
Word = tuple[SignalValue | None, Quality]
Lie = Callable[[SignalValue], Word]
"""What a faulty sensor says where the honest value is this."""

GEAR_VALUES = {Gear.PARK: 126.0, Gear.REVERSE: -1.0, Gear.NEUTRAL: 0.0, Gear.DRIVE: 127.0}
POWER_VALUES = {
    PowerState.OFF: "OFF",
    PowerState.CONDITIONING: "LOCK",
    PowerState.ACCESSORY: "ACC",
    PowerState.DRIVE: "ON",
}

GROUPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "gear": (20, (signals.GEAR, signals.PARK_LOCK)),
    "speed": (20, (signals.SPEED, signals.MOVING)),
    "brake": (20, (signals.BRAKE,)),
    "power": (100, (signals.LOW_VOLTAGE_STATE,)),
    "left": (100, (signals.DOORS[0], signals.DOORS[2], signals.DOOR_HANDLE)),
    "right": (100, (signals.DOORS[1], signals.DOORS[3], signals.TRUNK, signals.HOOD)),
    "seat": (100, (signals.SEAT, signals.PASSENGER_SEAT, signals.BELT, signals.DRIVER_PRESENT)),
    "lock": (100, (signals.LOCK,)),
    "battery": (
        1_000,
        (
            signals.CHARGE,
            signals.CHARGE_DISPLAYED,
            signals.PACK_POWER,
            signals.PACK_TEMPERATURE,
            signals.CAPACITY,
        ),
    ),
    "charge": (1_000, (signals.CABLE, signals.CHARGING, signals.CHARGE_LIMIT, *signals.CONTACTORS)),
    "low_voltage": (250, (signals.LOW_VOLTAGE, signals.LOW_VOLTAGE_CURRENT)),
    "ambient": (1_000, (signals.AMBIENT,)),
    "uses": (1_000, (*signals.OTHER_USERS, signals.PAUSE_REQUESTED, signals.POWER_OPTIMIZE)),
}
"""How often each group is sent (ms), and what is in it."""
GROUP_OF = {path: group for group, (_, paths) in GROUPS.items() for path in paths}
DRIVERS_GROUPS = ("gear", "speed", "brake", "power", "left", "right", "seat", "lock")
DRIVERS_LEAVES = tuple(path for group in DRIVERS_GROUPS for path in GROUPS[group][1])


class Model(msgspec.Struct, frozen=True):
    """Which leaves a car of this model has."""

    name: str
    lacks: frozenset[str] = frozenset()

    @property
    def leaves(self) -> frozenset[str]:
        """All that it says."""
        return frozenset(GROUP_OF) - self.lacks

    @property
    def absent(self) -> frozenset[str]:
        """What a profile says that it has not got, of what every car is asked for."""
        return frozenset(path for path in self.lacks if signals.LEAVES[path].needed)


MODELS = (
    Model("full"),
    Model(
        "plain",
        frozenset({signals.MOVING, signals.PARK_LOCK, signals.PASSENGER_SEAT, signals.BELT, signals.LOCK, signals.HOOD})
        | {signals.CHARGE_DISPLAYED, signals.CHARGE_LIMIT, signals.CAPACITY, signals.AMBIENT}
        | {*signals.OTHER_USERS, signals.PAUSE_REQUESTED, signals.POWER_OPTIMIZE},
    ),
    Model("small", frozenset({signals.TRUNK, signals.DRIVER_PRESENT, signals.PARK_LOCK, signals.CHARGE_DISPLAYED})),
)


class Bus:
    """One car's signals. `alive` is whether the source is there at all; a group that is `silent` is not sent."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.alive = True
        self.silent: set[str] = set()
        self.lies: dict[str, Lie] = {}
        self._leaves = model.leaves
        self._honest: dict[str, SignalValue] = {}
        self._said: dict[str, Word] = {}
        self._touched: set[str] = set()
        self._returning = set(GROUPS)
        """Groups that speak anew and have not yet said where they are."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that repeat what they said."""
        if not self.alive:
            return ()
        return tuple(group for group in GROUPS if group not in self.silent and group not in self._returning)

    @property
    def changed(self) -> bool:
        """Something may have to be said."""
        return self.alive and bool(self._touched)

    def put(self, path: str, value: SignalValue) -> None:
        """The honest value of a leaf."""
        if path in self._leaves and self._honest.get(path) != value:
            self._honest[path] = value
            self._touched.add(path)

    def honest(self, path: str) -> SignalValue | None:
        """What the leaf should say."""
        return self._honest.get(path)

    def lie(self, path: str, lie: Lie | None) -> None:
        """Lay a fault over a leaf, or take it away."""
        if path not in self._leaves:
            return
        if lie is None:
            self.lies.pop(path, None)
        else:
            self.lies[path] = lie
        self._touched.add(path)

    def forget(self) -> None:
        """Everything is said anew: the car has woken up, or the source has come back."""
        self._said.clear()
        self._touched.update(self._honest)
        self._returning = set(GROUPS)

    def hush(self, group: str) -> None:
        """A group falls silent."""
        self.silent.add(group)

    def resume(self, group: str) -> None:
        """A group is sent again, and says where it is now; one that was never silent goes on as it does."""
        if group not in self.silent:
            return
        self.silent.discard(group)
        self._returning.add(group)
        for path in GROUPS[group][1]:
            self._said.pop(path, None)
            self._touched.add(path)

    def news(self) -> tuple[Sample, ...]:
        """What is said now and was not said before."""
        if not self.alive or not self._touched:
            return ()
        samples = []
        for path in sorted(self._touched):
            group = GROUP_OF[path]
            if group in self.silent or path not in self._honest:
                continue
            self._touched.discard(path)
            lie, value = self.lies.get(path), self._honest[path]
            word: Word = (value, Quality.GOOD) if lie is None else lie(value)
            if self._said.get(path) != word or word[0] != word[0]:
                self._said[path] = word
                samples.append(Sample(path, word[0], word[1], group, GROUPS[group][0]))
        self._returning.clear()
        return tuple(samples)

    def shows_a_person(self, body: Body, *, unlocked: bool) -> bool:
        """Whether an honest sensor says now that somebody is there."""
        honest = empty_car(unlocked=False)
        return any(
            path not in self.lies
            and GROUP_OF[path] not in self.silent
            and self.alive
            and path in self._said
            and self._said[path] == (value, Quality.GOOD)
            and value not in {honest[path], "OFF"}
            for path, value in body_values(body, unlocked=unlocked).items()
            if path != signals.LOCK
        )


def body_values(body: Body, *, unlocked: bool) -> dict[str, SignalValue]:
    """What an honest car says of doors, seats, pedal and gear."""
    moving = body.speed_kmh != 0
    return {
        signals.GEAR: GEAR_VALUES[body.gear],
        signals.PARK_LOCK: body.gear is Gear.PARK,
        signals.SPEED: body.speed_kmh,
        signals.MOVING: moving,
        signals.BRAKE: 100.0 if body.brake_pressed else 0.0,
        signals.LOW_VOLTAGE_STATE: POWER_VALUES[body.power_state],
        signals.DOORS[0]: Door.ROW1_DRIVER in body.open_doors,
        signals.DOORS[1]: Door.ROW1_PASSENGER in body.open_doors,
        signals.DOORS[2]: Door.ROW2_DRIVER in body.open_doors,
        signals.DOORS[3]: Door.ROW2_PASSENGER in body.open_doors,
        signals.DOOR_HANDLE: body.handle_pulled,
        signals.TRUNK: Door.TRUNK in body.open_doors,
        signals.HOOD: False,
        signals.SEAT: "OCCUPIED" if body.seat_occupied else "EMPTY",
        signals.PASSENGER_SEAT: "EMPTY",
        signals.BELT: moving,
        signals.DRIVER_PRESENT: body.seat_occupied,
        signals.LOCK: not unlocked,
    }


def empty_car(*, unlocked: bool) -> dict[str, SignalValue]:
    """What the car says with nobody at it."""
    return body_values(Body(), unlocked=unlocked)
