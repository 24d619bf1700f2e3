"""One exact step of the simulation's physics is many small ones of the car's plant."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hil.car.plant import PlantInputs, PlantParameters, initial_state, soc_percent
from hil.car.plant import step as plant_step
from hil.sim.physics import FAN_DEAD_FACTOR, Physics, Surroundings

PARAMETERS = PlantParameters(capacity_wh=2_000.0, charge_limit_percent=80.0)


@settings(max_examples=25, deadline=None)
@example(charge=69.0, air_c=0.0, charger_w=11_000.0, share=0.0, seconds=185, awake=True)  # charging ends on the way
@given(
    charge=st.floats(20, 85),
    air_c=st.floats(-20, 60),
    charger_w=st.sampled_from([0.0, 1_400.0, 3_700.0, 11_000.0]),
    share=st.floats(0, 1),
    seconds=st.integers(1, 600),
    awake=st.booleans(),
)
def test_one_step_is_many(
    *, charge: float, air_c: float, charger_w: float, share: float, seconds: int, awake: bool
) -> None:
    computer_w = (8.0 + 52.0 * share) * awake
    inputs = PlantInputs(ambient_c=air_c, charger_w=charger_w, utilisation=share, awake=awake, speed_kmh=0.0)
    plant = plant_step(initial_state(PARAMETERS, charge, air_c), inputs, seconds, PARAMETERS)
    physics = Physics(PARAMETERS, charge, air_c, lithium=False)
    physics.settle(Surroundings(air_c, charger_w, computer_w, awake))
    physics.advance(seconds)
    assert physics.die_c == pytest.approx(plant.die_c, abs=0.35)  # Euler's error in the first seconds
    assert physics.sink_c == pytest.approx(plant.sink_c, abs=0.05)
    assert physics.pack_c == pytest.approx(plant.pack_c, abs=0.05)
    bursts = physics.charge_percent > 78.5  # a full car tops up by one percent in seconds: who is there first differs
    assert physics.charge_percent == pytest.approx(soc_percent(plant, PARAMETERS), abs=1.1 if bursts else 0.1)
    assert physics.low_voltage_wh == pytest.approx(plant.low_voltage_energy_wh, rel=2e-3)


@given(seconds=st.lists(st.integers(1, 600), min_size=2, max_size=6))
def test_steps_add_up(seconds: list[int]) -> None:
    whole, parts = (Physics(PARAMETERS, 60.0, 20.0, lithium=False) for _ in range(2))
    for one in (whole, parts):
        one.settle(Surroundings(30.0, 2_300.0, 60.0))
    whole.advance(sum(seconds))
    for dt_s in seconds:
        parts.advance(dt_s)
    assert parts.die_c == pytest.approx(whole.die_c, abs=1e-6)
    assert parts.charge_percent == pytest.approx(whole.charge_percent, abs=0.1)  # 2 Wh: 12 V charging tapers meanwhile


def test_a_dead_fan_heats_up_to_what_the_resistance_says() -> None:
    physics = Physics(PARAMETERS, 60.0, 20.0, lithium=False)
    physics.settle(Surroundings(20.0, 0.0, 30.0, fan=False))
    physics.advance(50_000)
    assert physics.die_c == pytest.approx(20.0 + 30.0 * (0.25 + FAN_DEAD_FACTOR * 0.60), abs=0.01)


def test_a_dead_converter_empties_the_low_voltage_battery_and_not_the_pack() -> None:
    physics = Physics(PARAMETERS, 60.0, 20.0, lithium=True)
    physics.settle(Surroundings(20.0, 0.0, 60.0, feeds=False))
    volts, energy_wh = physics.low_voltage_v, physics.low_voltage_wh
    physics.advance(3_600)
    assert energy_wh - physics.low_voltage_wh == pytest.approx(100.0)
    assert physics.low_voltage_v < volts
    assert physics.low_voltage_a < 0
    assert physics.charge_percent == physics.charge_without_us_percent


def test_without_us_there_is_what_an_idle_computer_leaves() -> None:
    physics = Physics(PARAMETERS, 60.0, 20.0, lithium=False)
    physics.settle(Surroundings(20.0, 0.0, 60.0))
    physics.advance(3_600)
    lost_wh = (physics.charge_without_us_percent - physics.charge_percent) / 100 * PARAMETERS.capacity_wh
    assert lost_wh == pytest.approx(52.0 / PARAMETERS.dcdc_efficiency)
