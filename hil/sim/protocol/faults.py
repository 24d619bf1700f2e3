"""What goes wrong, as a list of values: drawn from a seed, written to a file, shortened, and played again.

A fault has a time, a kind, a target (a car or a replica, by number), a length and an amount, and nothing else, so that
any part of a list is a list of faults as well. `crash` and `kill` have the number of boundaries that are still passed
before the power fails: so it fails between any two steps, in time.
"""

from __future__ import annotations

import random
from typing import Annotated

import msgspec

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
Range = tuple[float, float]


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One fault, see KINDS. Times in ms of true time; `amount` is a chance, a jump in ms, or a count of boundaries."""

    at_ms: Annotated[int, msgspec.Meta(ge=0)]
    kind: str
    target: int = 0
    for_ms: Annotated[int, msgspec.Meta(ge=0)] = 0
    amount: float = 0.0


class Kind(msgspec.Struct, frozen=True):
    """How often a kind of fault comes (per hour, of each target), how long it lasts and how much of it there is."""

    per_hour: float
    of: str = "world"
    for_ms: Range = (0.0, 0.0)
    amount: Range = (0.0, 0.0)


KINDS: dict[str, Kind] = {
    # --- a car
    "crash": Kind(4.0, "car", (500, 120_000), (0, 60)),
    "reboot": Kind(2.0, "car", (5_000, 300_000), (0, 60)),
    "suspend": Kind(0.5, "car", (10_000, HOUR_MS)),
    "driver": Kind(2.0, "car", (2_000, 10 * MINUTE_MS)),
    "pause": Kind(0.5, "car", (5_000, 20 * MINUTE_MS)),
    "full_disk": Kind(1.0, "car", (1_000, 10 * MINUTE_MS)),
    "wall_jump": Kind(0.5, "car", amount=(-48 * HOUR_MS, 48 * HOUR_MS)),
    "bad_worker": Kind(1.0, "car", (60_000, 20 * MINUTE_MS), (0.1, 0.5)),
    "offline": Kind(1.0, "car", (1_000, 30 * MINUTE_MS)),
    "half_open": Kind(0.5, "car"),
    "take_over": Kind(0.5, "car"),
    "hang_up": Kind(1.0, "car"),
    "no_objects": Kind(1.0, "car", (1_000, 20 * MINUTE_MS), (0.2, 1.0)),
    # --- a dispatcher
    "kill": Kind(8.0, "replica", (200, 120_000), (0, 30)),
    "stall": Kind(2.0, "replica", (500, 5 * MINUTE_MS)),
    "race": Kind(2.0, "replica", (60_000, 20 * MINUTE_MS), (0.05, 0.5)),
    # --- the broker, for all
    "broker_restart": Kind(2.0, for_ms=(500, 3 * MINUTE_MS)),
    "lose": Kind(3.0, for_ms=(60_000, 20 * MINUTE_MS), amount=(0.05, 0.5)),
    "duplicate": Kind(2.0, for_ms=(60_000, 20 * MINUTE_MS), amount=(0.05, 0.6)),
    "late": Kind(2.0, for_ms=(60_000, 20 * MINUTE_MS), amount=(0.05, 0.6)),
    "refuse": Kind(1.5, for_ms=(30_000, 5 * MINUTE_MS), amount=(0.05, 0.5)),
    "ghosts": Kind(1.5, for_ms=(60_000, 20 * MINUTE_MS)),
    "expired": Kind(1.0, for_ms=(60_000, 20 * MINUTE_MS)),
    "old_retained": Kind(1.0, for_ms=(60_000, 20 * MINUTE_MS)),
    "hostile": Kind(1.5, for_ms=(60_000, 10 * MINUTE_MS), amount=(0.02, 0.3)),
    # --- the operator
    "cancel": Kind(10.0, amount=(0, 60)),
    "withdraw": Kind(2.0, amount=(0, 60)),
    "closed": Kind(1.0, for_ms=(30_000, 10 * MINUTE_MS), amount=(0, 300)),
    "stop": Kind(1.0, for_ms=(30_000, 10 * MINUTE_MS), amount=(0, 300)),
    "demand": Kind(0.5, "car", (30_000, 10 * MINUTE_MS)),
    # --- the database
    "clock_jump": Kind(1.0, amount=(-30_000, 30_000)),
}


def draw(
    seed: int, lasts_ms: int, cars: int, replicas: int, kinds: tuple[str, ...] = tuple(KINDS)
) -> tuple[Fault, ...]:
    """The faults of a run, in the order of time. Each kind has its own dice: to leave one out changes no other."""
    targets = {"car": cars, "replica": replicas, "world": 1}
    faults: list[Fault] = []
    for name in kinds:
        kind, chance = KINDS[name], random.Random(f"{seed}/{name}")
        for target in range(targets[kind.of]):
            at_ms = 0.0
            while (at_ms := at_ms + chance.expovariate(kind.per_hour) * HOUR_MS) < lasts_ms:
                lasts = _skewed(chance, kind.for_ms)
                amount = chance.uniform(*kind.amount)
                faults.append(Fault(round(at_ms), name, target, round(lasts), round(amount, 3)))
    return tuple(sorted(faults, key=lambda one: (one.at_ms, one.kind, one.target)))


def _skewed(chance: random.Random, within: Range) -> float:
    """Short ones are more common than long ones."""
    low, high = within
    return low + (high - low) * chance.random() ** 3
