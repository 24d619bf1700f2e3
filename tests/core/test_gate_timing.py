"""No gate flaps faster than its minimum times, and none waits for news to change its mind.

Both over the whole table of gates and over everything the world can say; and the checks themselves find the bugs that
are planted for them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import gates, signals
from agent.core.energy import LOW_VOLTAGE_LIMITS
from agent.core.events import EventType, SourceHeard, Tick
from agent.core.findings import SEVERITY, GateState
from agent.core.gates import RULES, Gate, Timing
from agent.core.looks import energy, market
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.signals import LEAVES, Vehicle
from agent.core.state import State, initial
from agent.core.world import Sight
from agent.simulate.limits import EMPTY_V, SAG_V
from agent.simulate.timing import TIMES
from agent.zones import zone_named
from tests.core.full_car import FullCar
from tests.core.restless_world import RestlessWorld, policy

TIMINGS: dict[str, Timing] = {
    name: Timing(times.closed_s, times.held_s, times.open_s, times.patient) for name, times in TIMES.items()
}
"""As the watch over all gates has them, whatever a planted bug makes of the table."""
OPEN, HOLD, CLOSED = GateState.OPEN, GateState.HOLD, GateState.CLOSED
seeds = st.integers(0, 2**32)
REPLACE = msgspec.structs.replace


def begin(seed: int) -> tuple[State, RestlessWorld, random.Random]:
    world = RestlessWorld(seed)
    zone = zone_named(world.dice.choice(["UTC", "Europe/Berlin"]))
    state = initial("unit-1", policy(world.dice), 0, vehicle=Vehicle(offered=frozenset(LEAVES)), zone=zone)
    for event in world.begins():
        state, _ = step(state, event)
    return state, world, random.Random(seed)


# --- flapping -----------------------------------------------------------------------------------------------------


class Watch:
    """One gate's past, and what its minimum times forbid."""

    def __init__(self, name: str, state: GateState) -> None:
        self.name, self.state, self.since_ms = name, state, 0
        self.tightened_ms: int | None = None
        self.opened_ms: list[int] = []

    def sees(self, gate: Gate, now_ms: int, rules: Policy) -> None:
        before, after = self.state, gate.state
        if before is after:
            return
        timing, lasted_s = TIMINGS[self.name], (now_ms - self.since_ms) / 1000
        at = f"{self.name} went from {before} to {after} after {lasted_s} s at {now_ms}"
        if SEVERITY[after] > SEVERITY[before]:
            assert before is not OPEN or lasted_s >= timing.min_open_s, at
            self.tightened_ms = now_ms
        elif self.tightened_ms is not None:
            least_s = timing.min_closed_s if before is CLOSED else timing.min_hold_s
            assert now_ms - self.tightened_ms >= least_s * 1000, at
        if before is CLOSED and timing.patient:
            assert lasted_s >= rules.parked_for_s, at
        if after is OPEN:
            self.opened_ms.append(now_ms)
        self.state, self.since_ms = after, now_ms


def watch_a_night(seed: int, moves: int = 250) -> int:
    """A restless night; how often gates opened in it."""
    state, world, dice = begin(seed)
    watches = {gate.name: Watch(gate.name, gate.state) for gate in state.gates.gates}
    now_ms = 0
    for _ in range(moves):
        since_ms = now_ms
        now_ms += dice.choice([1, 10, 100, 1_000, 5_000, 20_000, 70_000])
        heard: list[EventType] = [SourceHeard(at_ms=now_ms, source="bus", groups=("car",), since_ms=since_ms)]
        for event in [*heard, *world.next(now_ms), Tick(at_ms=now_ms)]:
            state, _ = step(state, event)
            for gate in state.gates.gates:
                watches[gate.name].sees(gate, now_ms, state.policy)
    return sum(len(watch.opened_ms) for watch in watches.values())


def watch_nights(count: int) -> None:
    for seed in range(count):
        watch_a_night(seed)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_no_gate_flaps_faster_than_its_minimum_times(seed: int) -> None:
    watch_a_night(seed)


def test_the_nights_are_restless_enough_for_every_gate_to_move() -> None:
    moved = set()
    for seed in range(20):
        state, world, dice = begin(seed)
        first = {gate.name: gate.state for gate in state.gates.gates}
        now_ms = 0
        for _ in range(250):
            now_ms += dice.choice([1, 10, 100, 1_000, 5_000, 20_000, 70_000])
            for event in [*world.next(now_ms), Tick(at_ms=now_ms)]:
                state, _ = step(state, event)
            moved |= {gate.name for gate in state.gates.gates if gate.state is not first[gate.name]}
    assert moved == set(RULES) - {"update", "agent"}, "these two know no way back"


def test_the_watch_has_every_gates_minimum_times_by_itself() -> None:
    assert {name: rule.timing for name, rule in RULES.items()} == TIMINGS


def test_the_watch_has_the_low_voltage_batterys_limits_by_itself() -> None:
    stops = {chemistry: (limits.stop_v, limits.at_once_v) for chemistry, limits in LOW_VOLTAGE_LIMITS.items()}
    assert stops == {chemistry: (SAG_V[chemistry], EMPTY_V[chemistry]) for chemistry in SAG_V}


def open_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates, "_loosens_ms", lambda *_args: 0)


def count_from_the_last_finding(patch: pytest.MonkeyPatch) -> None:
    """Patience, but no minimum times."""

    def hasty(_gate: Gate, timing: Timing, better_since_ms: int, rules: Policy) -> int:
        return better_since_ms + round((rules.parked_for_s if timing.patient else 0) * 1000)

    patch.setattr(gates, "_loosens_ms", hasty)


def forget_when_it_tightened(patch: pytest.MonkeyPatch) -> None:
    settle = gates._settle
    patch.setattr(gates, "_settle", lambda *args: REPLACE(settle(*args), tightened_ms=None))


def retime(name: str, timing: Timing) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(RULES, name, REPLACE(RULES[name], timing=timing))

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        open_at_once,
        count_from_the_last_finding,
        forget_when_it_tightened,
        retime("tariff", Timing(min_closed_s=300)),
        retime("demand", Timing()),
        retime("clock", Timing(min_hold_s=5)),
        retime("parked", Timing()),
        retime("temperature", Timing()),
    ],
)
def test_flapping_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="went from"):
        watch_nights(200)


# --- looking only when it is due ------------------------------------------------------------------------------------

Shown = list[tuple[str, GateState, int, list[str]]]


def shown(state: State, but: frozenset[str]) -> Shown:
    """What the gates say, without the values, which are those of the last look."""
    return [
        (gate.name, gate.state, gate.since_ms, [reason.code for reason in gate.reasons])
        for gate in state.gates.gates
        if gate.name not in but
    ]


def always(state: State, at_ms: int) -> State:
    return step(REPLACE(state, plan_due_ms=0, looked_at=None), Tick(at_ms=at_ms))[0]


def when_due(state: State, at_ms: int) -> State:
    """As the daemon, whose ticks the core leaves out until something is due."""
    return step(state, Tick(at_ms=at_ms))[0]


def when_it_wakes(state: State, at_ms: int) -> State:
    """As a simulation, in which the car is always heard: it leaps to when something changes by itself."""
    return state if at_ms < state.wakes_ms else always(state, at_ms)


def compare(seed: int, grid_ms: int, ticks: int, lazily: Callable[[State, int], State]) -> None:
    """One car that looks at every tick, and one that looks when something is due; the same is said to both."""
    state, world, dice = begin(seed)
    lazy = keen = state
    now_ms, but = 0, frozenset({"temperature"} if lazily is when_it_wakes else ())
    for number in range(ticks):
        now_ms += grid_ms
        since_ms = now_ms - grid_ms
        news: list[EventType] = [SourceHeard(at_ms=now_ms, source="bus", groups=("car",), since_ms=since_ms)]
        if dice.random() < 0.05:
            news += world.next(now_ms)
        if dice.random() < 0.03 and lazy.compute is not None:  # every reading is a look, so they must be few
            news.append(REPLACE(lazy.compute, at_ms=now_ms))
        for event in news:
            lazy, keen = step(lazy, event)[0], step(keen, event)[0]
        for at_ms in (now_ms, now_ms + 1):  # a gate that has just moved is looked at once more, a millisecond later
            lazy, keen = lazily(lazy, at_ms), always(keen, at_ms)
        assert shown(lazy, but) == shown(keen, but), f"tick {number}, at {now_ms}"


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_looking_when_it_is_due_sees_the_same_as_looking_always(seed: int) -> None:
    compare(seed, 100, 500, when_due)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seeds, st.sampled_from([100, 1_000, 10_000, 97_000]))
def test_leaping_to_the_next_change_sees_the_same_as_looking_always(seed: int, grid_ms: int) -> None:
    compare(seed, grid_ms, 400, when_it_wakes)


def compare_many(count: int) -> None:
    for seed in range(count):
        compare(seed, 1_000 if seed % 2 else 10_000, 400, when_it_wakes)


def no_second_look(patch: pytest.MonkeyPatch) -> None:
    """The looks forget to say when they would come out differently."""
    patch.setattr(Sight, "again", lambda _self, _at_ms: None)


def no_look_at_the_filters(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(energy, "_filtered", lambda sight, low_pass, _limit: low_pass.at(sight.now_ms))


def no_look_at_the_schedules_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(market, "next_change", lambda *_args: None)


@pytest.mark.parametrize("plant", [no_second_look, no_look_at_the_filters, no_look_at_the_schedules_end])
def test_a_look_that_is_not_taken_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="tick"):
        compare_many(60)


def test_after_a_change_the_other_of_two_thresholds_counts_at_once() -> None:
    """A battery that holds the gate because it is drained is not fed either: at 13.0 V nothing begins."""
    car = FullCar()
    car.says(signals.LOW_VOLTAGE, 13.0)
    car.says(signals.LOW_VOLTAGE_CURRENT, -5.0)
    while car.gate("low_voltage") is OPEN:
        car.advance(1)
    assert car.codes("low_voltage") == ["low_voltage_drains"]
    assert car.state.wakes_ms == car.now_ms + 1
    car.tell(Tick(at_ms=car.now_ms + 1))
    assert car.codes("low_voltage") == ["low_voltage_not_fed", "low_voltage_drains"]
