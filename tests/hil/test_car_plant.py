from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.car.plant import (
    PlantInputs,
    PlantParameters,
    PlantState,
    charge_efficiency,
    initial_state,
    low_voltage_a,
    low_voltage_v,
    soc_percent,
    step,
)

PARAMETERS = PlantParameters()
INPUTS = st.builds(
    PlantInputs,
    ambient_c=st.floats(-20, 50),
    charger_w=st.sampled_from([0.0, 2_300.0, 7_400.0, 11_000.0]),
    utilisation=st.floats(0, 1),
    awake=st.booleans(),
    speed_kmh=st.sampled_from([0.0, 50.0, 130.0]),
)
STEPS_S = st.floats(0.01, 5)


def parked(**changes: float | bool) -> PlantInputs:
    idle = PlantInputs(ambient_c=20.0, charger_w=0.0, utilisation=0.0, awake=True, speed_kmh=0.0)
    return msgspec.structs.replace(idle, **changes)


def start(soc: float = 60.0, ambient_c: float = 20.0) -> PlantState:
    return initial_state(PARAMETERS, soc, ambient_c)


def settled_die_c(inputs: PlantInputs, computer_w: float) -> float:
    ambient_to_die = PARAMETERS.sink_to_air_k_per_w + PARAMETERS.die_to_sink_k_per_w
    return inputs.ambient_c + ambient_to_die * computer_w


@given(inputs=INPUTS, steps_s=st.lists(st.floats(0.01, 0.5), min_size=1, max_size=60))
def test_charge_changes_by_exactly_the_integral_of_pack_power(inputs: PlantInputs, steps_s: list[float]) -> None:
    state, moved_wh = start(), 0.0
    for dt_s in steps_s:  # within the plant's own step, so that the power it shows is the one it integrated
        before = state
        state = step(state, inputs, dt_s, PARAMETERS)
        moved_wh += state.pack_w * dt_s / 3600
        assert state.computer_energy_wh - before.computer_energy_wh == pytest.approx(state.computer_w * dt_s / 3600)
    assert state.energy_wh - start().energy_wh == pytest.approx(moved_wh, abs=1e-6)


@given(inputs=INPUTS, dt_s=STEPS_S)
def test_no_energy_comes_from_nowhere(inputs: PlantInputs, dt_s: float) -> None:
    state = step(start(), inputs, dt_s, PARAMETERS)
    gained_wh = state.energy_wh - start().energy_wh
    assert gained_wh + state.computer_energy_wh <= state.grid_energy_wh + 1e-9


@given(changes=st.lists(st.tuples(INPUTS, STEPS_S), min_size=1, max_size=40))
def test_everything_stays_within_its_bounds(changes: list[tuple[PlantInputs, float]]) -> None:
    state = start()
    hottest_c = max(state.die_c, *(settled_die_c(inputs, PARAMETERS.computer_max_w) for inputs, _ in changes))
    coldest_c = min(20.0, *(inputs.ambient_c for inputs, _ in changes))
    for inputs, dt_s in changes:
        state = step(state, inputs, dt_s, PARAMETERS)
        assert coldest_c - 1e-9 <= state.sink_c <= hottest_c + 1e-9
        assert coldest_c - 1e-9 <= state.die_c <= hottest_c + 1e-9
        assert 0 <= state.energy_wh <= PARAMETERS.capacity_wh
        assert 0 <= state.low_voltage_energy_wh <= PARAMETERS.low_voltage_wh


@given(utilisation=st.floats(0, 1), ambient_c=st.floats(-20, 50))
def test_the_die_settles_where_the_resistances_say(utilisation: float, ambient_c: float) -> None:
    inputs = parked(utilisation=utilisation, ambient_c=ambient_c)
    state = step(start(), inputs, 4_000, PARAMETERS)
    assert state.computer_w == pytest.approx(8 + 52 * utilisation)
    assert state.die_c == pytest.approx(settled_die_c(inputs, state.computer_w), abs=0.01)


def test_an_idle_computer_cools_without_a_bump() -> None:
    state = step(start(), parked(utilisation=1.0), 1_000, PARAMETERS)
    temperatures = [state.die_c]
    for _ in range(600):
        state = step(state, parked(), 1.0, PARAMETERS)
        temperatures.append(state.die_c)
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures[0] - temperatures[-1] > 20


def test_charging_power_is_the_formula_of_the_notes() -> None:
    state = step(start(), parked(charger_w=11_000.0), 0.0, PARAMETERS)
    load_w = (8 + 200 + state.low_voltage_w) / 0.90
    assert state.charging
    assert state.pack_w == pytest.approx(0.92 * 11_000 - load_w)


def test_charging_stops_at_the_limit_and_tops_up_a_percent_below() -> None:
    at_limit = step(start(80.0), parked(charger_w=11_000.0), 1.0, PARAMETERS)
    assert not at_limit.charging
    assert at_limit.pack_w < 0
    assert not step(start(79.5), parked(charger_w=11_000.0), 1.0, PARAMETERS).charging
    rising = step(start(78.9), parked(charger_w=11_000.0), 1.0, PARAMETERS)
    seconds = 1
    while rising.charging:
        rising = step(rising, parked(charger_w=11_000.0), 10.0, PARAMETERS)
        seconds += 10
    assert soc_percent(rising, PARAMETERS) == pytest.approx(80.0, abs=0.01)
    assert seconds == pytest.approx(0.011 * PARAMETERS.capacity_wh / 9_880 * 3600, abs=15)


def test_a_sleeping_car_lives_on_its_12_v_battery_with_the_contactors_open() -> None:
    asleep = step(start(), parked(awake=False, charger_w=11_000.0), 3_600, PARAMETERS)
    assert asleep.pack_w == 0
    assert asleep.computer_w == 0
    assert not asleep.charging
    assert 12.0 < low_voltage_v(asleep, PARAMETERS) < 12.7
    assert low_voltage_a(asleep, PARAMETERS) < 0
    assert start().low_voltage_energy_wh - asleep.low_voltage_energy_wh == pytest.approx(10)
    awake = step(asleep, parked(), 1.0, PARAMETERS)
    assert 13.5 <= low_voltage_v(awake, PARAMETERS) <= 14.4
    assert low_voltage_a(awake, PARAMETERS) > 0


@pytest.mark.parametrize(
    ("charger_w", "efficiency"),
    [(1_000, 0.85), (1_400, 0.85), (2_300, 0.88), (3_000, 0.89), (7_400, 0.92), (11_000, 0.92)],
)
def test_charge_efficiency_follows_its_table(charger_w: float, efficiency: float) -> None:
    assert charge_efficiency(charger_w) == pytest.approx(efficiency)
