"""What people do to a simulated car: come, open, sit, drive, plug and forget. Sequences of the body's own actions.

Each is a list of things to do with the seconds that pass before each. The first signs are the earliest a car gives:
unlocking, then the handle, then the door.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from hil.car.body import Action, Door, Gear
from hil.sim.car import Car

Deed = Callable[[Car], None]
Sequence = list[tuple[float, Deed]]
"""Seconds to wait, then what to do."""


def visit(chance: random.Random) -> Sequence:
    """Somebody comes by: looks, fetches something, sits for a while, or only opens the trunk."""
    return chance.choice((_glance, _fetch, _sit, _trunk, _passenger))(chance)


def drive_away(chance: random.Random) -> Sequence:
    """The driver unplugs, gets in, and is gone."""
    quick = chance.uniform
    return [
        (0, _comes),
        *_unlock(chance),
        (quick(1, 20), lambda car: car.do(Action.UNPLUG)),
        *_get_in(chance),
        (quick(1, 30), lambda car: car.do(Action.BRAKE)),
        (quick(0.3, 3), lambda car: car.do(Action.SHIFT, gear=Gear.DRIVE)),
        (quick(0.3, 3), lambda car: car.do(Action.RELEASE_BRAKE)),
        (quick(0.1, 2), lambda car: car.set_speed(30.0)),
    ]


def come_home(chance: random.Random, *, plug: bool) -> Sequence:
    """The car arrives; the driver gets out, and plugs in or forgets to."""
    quick = chance.uniform
    steps: Sequence = [
        (0, lambda car: car.do(Action.ARRIVE)),
        (quick(0.5, 5), lambda car: car.do(Action.PARK)),
        *_get_out(chance),
    ]
    if plug:
        steps.append((quick(2, 30), lambda car: car.do(Action.PLUG)))
    return [*steps, *_lock(chance)]


def _comes(car: Car) -> None:
    car.comes(there=True)


def _unlock(chance: random.Random) -> Sequence:
    return [(chance.uniform(0, 1), lambda car: car.lock(unlocked=True))]


def _lock(chance: random.Random) -> Sequence:
    """Locked most of the time; at home some never lock."""
    if chance.random() < 0.1:
        return [(1, lambda car: car.comes(there=False))]
    return [
        (chance.uniform(0.5, 20), lambda car: car.lock(unlocked=False)),
        (chance.uniform(0.5, 5), lambda car: car.comes(there=False)),
    ]


def _open(chance: random.Random, door: Door) -> Sequence:
    quick = chance.uniform
    handle: Sequence = [(quick(0.3, 3), lambda car: car.do(Action.PULL_HANDLE))] if door is Door.ROW1_DRIVER else []
    return [
        *handle,
        (quick(0.1, 1), lambda car: car.do(Action.OPEN_DOOR, door=door)),
        (quick(0.1, 0.5), lambda car: car.release_handle()),
    ]


def _close(chance: random.Random, door: Door) -> Sequence:
    return [(chance.uniform(0.5, 10), lambda car: car.do(Action.CLOSE_DOOR, door=door))]


def _get_in(chance: random.Random) -> Sequence:
    quick = chance.uniform
    return [
        *_open(chance, Door.ROW1_DRIVER),
        (quick(0.5, 4), lambda car: car.do(Action.SIT)),
        *_close(chance, Door.ROW1_DRIVER),
    ]


def _get_out(chance: random.Random) -> Sequence:
    quick = chance.uniform
    return [
        (quick(1, 30), lambda car: car.do(Action.OPEN_DOOR)),
        (quick(0.5, 4), lambda car: car.do(Action.LEAVE)),
        *_close(chance, Door.ROW1_DRIVER),
    ]


def _glance(chance: random.Random) -> Sequence:
    return [(0, _comes), *_unlock(chance), *_lock(chance)]


def _fetch(chance: random.Random) -> Sequence:
    door = chance.choice((Door.ROW1_DRIVER, Door.ROW2_DRIVER, Door.ROW2_PASSENGER, Door.ROW1_PASSENGER))
    return [(0, _comes), *_unlock(chance), *_open(chance, door), *_close(chance, door), *_lock(chance)]


def _passenger(chance: random.Random) -> Sequence:
    """Without unlocking: a car that stands open at home."""
    door = chance.choice((Door.ROW1_PASSENGER, Door.ROW2_PASSENGER))
    return [(0, _comes), *_open(chance, door), *_close(chance, door), (1, lambda car: car.comes(there=False))]


def _trunk(chance: random.Random) -> Sequence:
    return [(0, _comes), *_open(chance, Door.TRUNK), *_close(chance, Door.TRUNK), *_lock(chance)]


def _sit(chance: random.Random) -> Sequence:
    stay_s = chance.choice((20, 120, 900))
    pedal: Sequence = [
        (2, lambda car: car.do(Action.BRAKE)),
        (1, lambda car: car.do(Action.RELEASE_BRAKE)),
    ]
    steps = [(0.0, _comes), *_unlock(chance), *_get_in(chance)]
    if chance.random() < 0.5:
        steps += pedal
    return [*steps, (stay_s * chance.random(), lambda _car: None), *_get_out(chance), *_lock(chance)]
