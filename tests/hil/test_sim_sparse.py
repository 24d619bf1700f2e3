"""The short cut of the simulation is none: a night told where something happens is one told ten times a second.

The same random world is played twice. In the dense one the daemon's ticks, the bus's repetitions (every 100 ms) and the
computer's readings (every second) are all told; in the sparse one a repetition just before each event stands for them.
Gate timeline and effects must be the same, to the millisecond, but for measured energy, which only a dense night has.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from agent.core import effects as asked
from agent.core.effects import EffectType
from agent.core.model import Outlook
from agent.core.policy import Policy
from hil.sim import world
from hil.sim.car import Car
from hil.sim.chassis import Traits
from hil.sim.world import HOUR_MS, Focus

MINUTES = 20


def timeline(car: Car) -> list[tuple[int, Any]]:
    """Every change of a gate, and every effect but for what depends on how often power was measured."""
    happened: list[tuple[int, Any]] = []
    first = car.shells.perform
    states = [gate.state for gate in car.witness.state.gates.gates]

    def perform(effect: EffectType) -> None:
        if isinstance(effect, asked.HandIn):
            effect = msgspec.structs.replace(effect, facts=None)
        if isinstance(effect, asked.SendRequest | asked.SendHandIn):  # how long it expects to work rests on it too
            effect = msgspec.structs.replace(effect, outlook=Outlook())
        if not isinstance(effect, asked.KeepBudgets):  # written with whatever is decided after some time
            happened.append((car.clock.now_ms, effect))
        first(effect)

    def watch(before: Any, event: Any, after: Any, effects: Any, truth: Any) -> list[Any]:
        now = [gate.state for gate in after.gates.gates]
        if now != states:
            happened.append((car.clock.now_ms, tuple(now)))
            states[:] = now
        return []

    car.shells.perform = perform  # type: ignore[method-assign]
    car.witness.watch.saw = watch  # type: ignore[assignment,method-assign]
    return happened


def willing(traits: Traits, _chance: random.Random) -> Traits:
    """Gates that open soon, and a car that is at work from the first minute on."""
    policy = Policy(
        parked_for_s=20.0,
        reserve_percent=20.0,
        battery_wh=traits.plant.capacity_wh,
        low_voltage_chemistry=traits.policy.low_voltage_chemistry,
        departures=traits.policy.departures,
        pack_start_max_c=90.0,
        pack_stop_c=95.0,
        ambient_start_max_c=70.0,
        ambient_stop_c=75.0,
    )
    return msgspec.structs.replace(traits, policy=policy, charge_percent=85.0, reading_ms=1_000, slice_ms=20_000)


def warm(traits: Traits, chance: random.Random) -> Traits:
    """A box that 60 W heat too much."""
    traits = willing(traits, chance)
    plant = msgspec.structs.replace(traits.plant, sink_to_air_k_per_w=0.6)
    return msgspec.structs.replace(traits, plant=plant)


def both(seed: int, focus: Focus) -> tuple[list[tuple[int, Any]], list[tuple[int, Any]]]:
    found = []
    for dense in (True, False):
        car = world.build(seed, 0, 1, focus, dense=dense, keep=False)
        happened = timeline(car)
        car.run(car.traits.start_ms + focus.night_ms)
        found.append(happened)
    return found[0], found[1]


@pytest.mark.parametrize("seed", range(6))
def test_a_sparse_night_is_a_dense_night(seed: int) -> None:
    focus = Focus(
        name="sparse",
        night_ms=MINUTES * HOUR_MS // 60,
        faults_per_night=5,
        visits_per_night=2,
        shape=willing,
        air_c=12.0,
        parked=True,
    )
    dense, sparse = both(seed, focus)
    assert len(dense) > 20, "too little happened to say anything"
    assert sparse == dense


def test_a_sparse_night_is_a_dense_night_where_the_law_acts() -> None:
    """In the heat every reading counts, and is told in both."""
    focus = Focus(
        name="hot",
        night_ms=15 * HOUR_MS // 60,
        faults_per_night=2,
        channels=("fan", "worker"),
        shape=warm,
        air_c=48.0,
        parked=True,
        visits_per_night=0.5,
    )
    dense, sparse = both(3, focus)
    assert any(isinstance(what, asked.SetPace) for _, what in dense), "the law never acted"
    assert sparse == dense
