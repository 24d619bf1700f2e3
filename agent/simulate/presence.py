"""Might anybody be in the car? Decided from the samples alone, by a shorter way than the gates take.

One list of leaves with what an empty, parked car says on each. A leaf that last said anything else, that was never
heard, or that has been silent for longer than a missing message may be (500 ms), speaks for a person; so do, until a
quiet time has passed, all of these and a lock that was opened. Whether the gates agree is what is to be found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from agent.core import signals
from agent.core.events import (
    EventType,
    LeavesOffered,
    Quality,
    Sample,
    SignalsSeen,
    SignalValue,
    SourceChanged,
    SourceHeard,
)
from agent.core.policy import Policy
from agent.core.signals import Vehicle

SILENT_MS = 500
"""Field practice for missing messages: 200 to 500 ms."""
SILENT_USER_MS = 60_000
"""Who else uses the computer is sent slowly."""

Innocent = Callable[[SignalValue], bool]


def _is(wanted: bool | str) -> Innocent:  # noqa: FBT001 - the value an empty car says
    return lambda value: type(value) is type(wanted) and value == wanted


def _number(wanted: float) -> Innocent:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == wanted


NEEDED: dict[str, Innocent] = {
    signals.GEAR: _number(126),
    signals.BRAKE: _number(0),
    signals.LOW_VOLTAGE_STATE: lambda value: value in {"LOCK", "OFF"},
    signals.SEAT: _is("EMPTY"),
    signals.DRIVER_PRESENT: _is(False),
    signals.DOOR_HANDLE: _is(False),
    **dict.fromkeys(signals.DOORS, _is(False)),
    signals.TRUNK: _is(False),
}
"""Every car says these, unless its profile says that it has not got them; so it does its speed."""
WHERE_OFFERED: dict[str, Innocent] = {
    signals.MOVING: _is(False),
    signals.PARK_LOCK: _is(True),
    signals.PASSENGER_SEAT: _is("EMPTY"),
    signals.BELT: _is(False),
    signals.HOOD: _is(False),
}
USERS = frozenset(signals.OTHER_USERS)
SEATS = {signals.SEAT, signals.PASSENGER_SEAT}


class Presence:
    """What the samples so far say about people."""

    def __init__(self, policy: Policy, vehicle: Vehicle, now_ms: int) -> None:
        self._quiet_ms = round(policy.parked_for_s * 1000)
        self._policy = policy
        self._offered, self._absent = vehicle.offered, vehicle.absent
        self._innocent = self._expected()
        self._signs = set(self._innocent)
        """Leaves whose last word speaks for a person; all of them before anything is heard."""
        self._speaking: dict[str, set[str]] = {}
        """The sources whose last word on a leaf speaks for a person: one is enough."""
        self._key: dict[tuple[str, str], str] = {}
        self._heard: dict[str, int] = {}
        self._edge_keys: set[str] = set()
        self._user_keys: set[str] = set()
        self._down: set[str] = set()
        self._locked: bool | None = None
        self._last_sign_ms = now_ms

    def _expected(self) -> dict[str, Innocent]:
        """The leaves that this car must say, and what is innocent on each."""
        policy, offered = self._policy, self._offered
        expected: dict[str, Innocent] = {signals.SPEED: _standing(policy.standstill_kmh), **NEEDED}
        expected |= {path: said for path, said in WHERE_OFFERED.items() if path in offered}
        expected |= dict.fromkeys((path for path in signals.OTHER_USERS if path in offered), _is(False))
        if signals.LOCK in offered:
            expected[signals.LOCK] = _is(True) if policy.lock_required else lambda value: isinstance(value, bool)
        return {path: innocent for path, innocent in expected.items() if path not in self._absent}

    def happened(self, event: EventType) -> None:
        """Take note of what a vehicle source said."""
        match event:
            case LeavesOffered(paths=paths, absent=absent):
                known = set(self._innocent)
                self._offered |= frozenset(paths)
                self._absent = (self._absent | frozenset(absent)) - self._offered
                self._innocent = self._expected()
                self._signs = (self._signs | (set(self._innocent) - known)) & set(self._innocent)
            case SourceHeard(source=source, groups=groups, since_ms=since_ms):
                for group in groups:
                    self._hear(f"{source}/{group}", event.at_ms if since_ms is None else since_ms, event.at_ms)
            case SignalsSeen():
                for sample in event.samples:
                    self._sample(event, sample)
            case SourceChanged(source=source, alive=alive):
                self._down.discard(source) if alive else self._down.add(source)
            case _:
                pass

    def sign(self, now_ms: int) -> str:
        """What speaks for somebody at the car at this moment; empty when nothing does. Ask after each event."""
        sign = self._sign(now_ms)
        if sign:
            if sign not in USERS:
                self._last_sign_ms = now_ms
            return sign
        quiet_ms = now_ms - self._last_sign_ms
        return f"only {quiet_ms} ms of quiet" if quiet_ms < self._quiet_ms else ""

    def _sign(self, now_ms: int) -> str:
        if self._signs:
            return min(self._signs)
        for keys, silent_ms in ((self._edge_keys, SILENT_MS), (self._user_keys, SILENT_USER_MS)):
            for key in keys:
                if now_ms - self._heard[key] > silent_ms:
                    return f"{key} silent for {now_ms - self._heard[key]} ms"
        return "a source is down" if self._down else ""

    def _hear(self, key: str, since_ms: int, now_ms: int) -> None:
        """Heard from `since_ms` on; a silence before that is a sign, also when nobody looked in the meantime."""
        if key in self._edge_keys and since_ms - self._heard[key] > SILENT_MS:
            self._last_sign_ms = now_ms
        self._heard[key] = now_ms

    def _sample(self, event: SignalsSeen, sample: Sample) -> None:
        path, source = signals.ALIASES.get(sample.path, sample.path), event.source
        key = f"{source}/{sample.group or path}"
        self._hear(key, event.at_ms, event.at_ms)
        innocent = self._innocent.get(path)
        if innocent is None:
            return
        if self._key.get((path, source)) != key:
            self._key[path, source] = key
            self._user_keys = {one for (other, _), one in self._key.items() if other in USERS}
            self._edge_keys = {one for (other, _), one in self._key.items() if other not in USERS}
        value = sample.value
        if path in SEATS and isinstance(value, bool):
            value = "OCCUPIED" if value else "EMPTY"
        speaking = self._speaking.setdefault(path, set())
        if value is not None and sample.quality is Quality.GOOD and innocent(value):
            speaking.discard(source)
        else:
            speaking.add(source)
        if speaking:
            self._signs.add(path)
        else:
            self._signs.discard(path)
        if path == signals.LOCK and isinstance(value, bool):
            if not value and self._locked is not False:
                self._last_sign_ms = event.at_ms
            self._locked = value


def _standing(fastest_kmh: float) -> Innocent:
    def innocent(value: SignalValue) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(float(value)) and abs(float(value)) <= fastest_kmh

    return innocent
