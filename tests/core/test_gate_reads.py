"""Each gate is asked again only when something that it reads has changed: so what it reads must be said in full."""

from __future__ import annotations

from typing import Any

import pytest

from agent.core import signals
from agent.core.events import ComputeSeen, LeavesOffered, Sample, SignalsSeen, Tick
from agent.core.findings import GateState
from agent.core.gates import RULES, Gates, evaluate
from agent.core.machine import step, world_of
from agent.core.policy import Policy, TariffZone, Window
from agent.core.state import State, initial
from agent.core.world import Sight, World
from tests.core.test_gate_timing import begin
from tests.core.world import car, computer


class Seen(World, frozen=True):
    """A world that notes which of its fields are looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name in World.__struct_fields__:
            NOTED.add(name)
        return super().__getattribute__(name)


NOTED: set[str] = set()


class SeenSight(Sight):
    """A sight that notes that the vehicle is looked at."""

    def read(self, path: str) -> signals.Reading:
        NOTED.add("vehicle")
        return super().read(path)

    def reads(self, path: str) -> bool:
        NOTED.add("vehicle")
        return super().reads(path)


def looked_at(name: str, state: State) -> set[str]:
    """The fields that a gate reads in this state."""
    world = world_of(state)
    sight = SeenSight(Seen(**{field: getattr(world, field) for field in World.__struct_fields__}), state.policy)
    NOTED.clear()
    for was_open in (True, False):
        list(RULES[name].look(sight, was_open))
    return set(NOTED) - {"now_ms"}


def a_restless_night(seed: int) -> list[State]:
    state, world, dice = begin(seed)
    states, now_ms = [], 0
    for _ in range(150):
        now_ms += dice.choice([100, 5_000, 70_000])
        for event in [*world.next(now_ms), Tick(at_ms=now_ms)]:
            state, _ = step(state, event)
        states.append(state)
    return states


def test_every_gate_says_in_full_what_it_reads() -> None:
    states = [state for seed in range(12) for state in a_restless_night(seed)]
    found: dict[str, set[str]] = {name: set() for name in RULES}
    for state in states:
        for name in RULES:
            found[name] |= looked_at(name, state)
    for name, fields in found.items():
        assert fields <= RULES[name].reads, name


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "demand", RULES["update"])
    assert not looked_at("demand", initial("unit-1", Policy(), 0)) <= {"demand_until_ms", "demand_detail"}


def test_a_reading_of_the_computer_asks_the_gates_of_the_computer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(parked_for_s=1, schedule=(Window(),), tariff_zones=(TariffZone(),))
    state = initial("unit-1", policy, 0)
    for now_ms in range(100, 2_100, 100):
        for event in (car(now_ms), computer(now_ms), Tick(at_ms=now_ms)):
            state, _ = step(state, event)
    asked: list[str] = []
    for name, rule in list(RULES.items()):

        def look(sight: Sight, was_open: bool, name: str = name, rule: Any = rule) -> Any:
            asked.append(name)
            return rule.look(sight, was_open)

        monkeypatch.setitem(RULES, name, type(rule)(look, rule.timing, rule.why, rule.reads))
    step(state, ComputeSeen(at_ms=2_001, die_c=51.0, power_w=20.0, sensor="simulated"))
    assert "temperature" in asked
    assert not {"parked", "occupied", "reserve", "consent", "storage"} & set(asked)


def gates_of(state: State) -> Gates:
    return evaluate(state.gates, world_of(state), state.policy)


def test_a_leaf_that_turns_up_late_costs_no_minimum_time() -> None:
    """A databroker says what it has before it says what that is: the battery's gate may open with its first word."""
    state = initial("unit-1", Policy(), 0)
    state, _ = step(state, Tick(at_ms=100))
    gates = {gate.name: gate for gate in state.gates.gates}
    assert gates["pack"].state is GateState.OPEN, "no car is known to tell its battery's temperature"
    state, _ = step(state, LeavesOffered(at_ms=200, source="databroker", paths=(signals.PACK_TEMPERATURE,)))
    gates = {gate.name: gate for gate in state.gates.gates}
    assert (gates["pack"].state, gates["pack"].reasons[0].code) == (GateState.CLOSED, "signal_missing")
    told = SignalsSeen(at_ms=300, source="databroker", samples=(Sample(signals.PACK_TEMPERATURE, 20.0),))
    state, _ = step(state, told)
    assert {gate.name: gate for gate in state.gates.gates}["pack"].state is GateState.OPEN
