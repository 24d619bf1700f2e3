"""Simulated car-nights a minute, on one core: the world of `driveway-hil sim`, seed 1, in slices to show the spread."""

from __future__ import annotations

import statistics
import time

import msgspec

from agent.simulate.promises import PROMISES
from hil.sim.engine import play_all, total

SEED = 1
ROUNDS = 5
CARS_A_ROUND = 24


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Car-nights of 12 simulated hours and 55 minutes: the median of the rounds, the slowest and the fastest."""

    car_nights_per_minute: float
    car_nights_per_minute_worst: float
    car_nights_per_minute_best: float
    events_per_s: float
    events_per_night: float
    cars: int
    car_hours: float
    violations: int
    promises: int


def run() -> Figures:
    """Play the cars one after the other in this process."""
    rounds = []
    for number in range(ROUNDS):
        began_s = time.perf_counter()
        cars = range(number * CARS_A_ROUND, (number + 1) * CARS_A_ROUND)
        rounds.append(total(play_all(cars, 1, SEED), 1, SEED, began_s))
    paces = [one.car_nights_per_minute for one in rounds]
    events = sum(one.events for one in rounds)
    return Figures(
        car_nights_per_minute=statistics.median(paces),
        car_nights_per_minute_worst=min(paces),
        car_nights_per_minute_best=max(paces),
        events_per_s=statistics.median(one.events_per_s for one in rounds),
        events_per_night=events / (ROUNDS * CARS_A_ROUND),
        cars=ROUNDS * CARS_A_ROUND,
        car_hours=sum(one.car_hours for one in rounds),
        violations=sum(sum(one.violations.values()) for one in rounds),
        promises=len(PROMISES),
    )
