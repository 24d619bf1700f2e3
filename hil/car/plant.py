"""The car's physics: traction battery, charger, 12 V system, and the computer's heat. Pure: state, inputs, dt -> state.

Energy (powers in watts, positive into the traction battery):

    computer  = idle + (max - idle) * utilisation        work is paced by duty, so power is linear in the busy share
    load      = (computer + awake overhead + 12 V charging) / dcdc_efficiency + driving
    charging  = charge_efficiency(P_ac) * P_ac            while plugged in and below the limit
    pack      = charging - load                           while the contactors are closed, which is while it is awake
    d(energy) = pack * dt

The charge efficiency grows with power (0.85 at 1.4 kW, 0.88 at 2.3, 0.90 at 3.7, 0.92 from 7.4: losses of the
on-board charger are largely fixed; ADAC and others measured 8-20 % loss). A full car tops up in bursts: charging
stops at the limit and starts again a percent below. The awake overhead of a parked electric car is 150-250 W.

Heat of the computer, two nodes (die, heatsink); one thermal resistance to the air:

    C1 dT1/dt = P - (T1 - T2)/R12          C2 dT2/dt = (T1 - T2)/R12 - (T2 - T_air)/R2a

Steady state: T2 = T_air + R2a P, T1 = T2 + R12 P. C1 = 40 J/K, R12 = 0.25 K/W, C2 = 450 J/K, R2a = 0.60 K/W with a
running fan: an AGX-Orin-like box, cross-checked with published Orin NX measurements (1.39 K/W in total, a smaller
sink). Integrated by explicit Euler in steps well under the fastest time constant (R12 C1 = 10 s), so the discrete
system keeps the bounds of the continuous one.
"""

from __future__ import annotations

import itertools
import math

import msgspec

CHARGE_EFFICIENCY = ((1_400.0, 0.85), (2_300.0, 0.88), (3_700.0, 0.90), (7_400.0, 0.92))
"""(AC watts, efficiency), linear in between, flat outside."""
MAX_STEP_S = 0.5


class PlantParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The car's constants."""

    capacity_wh: float = 75_000.0
    charge_limit_percent: float = 80.0
    top_up_below_limit_percent: float = 1.0
    awake_w: float = 200.0
    driving_wh_per_km: float = 150.0
    dcdc_efficiency: float = 0.90
    computer_idle_w: float = 8.0
    computer_max_w: float = 60.0
    die_j_per_k: float = 40.0
    die_to_sink_k_per_w: float = 0.25
    sink_j_per_k: float = 450.0
    sink_to_air_k_per_w: float = 0.60
    pack_j_per_k: float = 400_000.0
    """450 kg of cells at about 900 J/(kg K)."""
    pack_to_air_k_per_w: float = 0.1
    pack_loss: float = 0.02
    low_voltage_wh: float = 540.0
    """A 45 Ah lead-acid battery."""
    low_voltage_sleep_w: float = 10.0
    low_voltage_charge_w: float = 60.0


class PlantState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is integrated, and the powers of the latest step."""

    energy_wh: float
    die_c: float
    sink_c: float
    pack_c: float
    low_voltage_energy_wh: float
    charging: bool = False
    awake: bool = True
    pack_w: float = 0.0
    computer_w: float = 0.0
    low_voltage_w: float = 0.0
    computer_energy_wh: float = 0.0
    """What the computer has used since the start."""
    grid_energy_wh: float = 0.0
    """What came out of the wall since the start."""


class PlantInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What acts on the plant during a step. `charger_w` is the AC power on offer, 0 when not plugged in."""

    ambient_c: float
    charger_w: float
    utilisation: float
    awake: bool
    speed_kmh: float


def initial_state(parameters: PlantParameters, soc_percent: float, ambient_c: float) -> PlantState:
    """A car that has stood long enough to be as warm as the air, with an idle computer."""
    sink_c = ambient_c + parameters.sink_to_air_k_per_w * parameters.computer_idle_w
    return PlantState(
        energy_wh=parameters.capacity_wh * soc_percent / 100,
        die_c=sink_c + parameters.die_to_sink_k_per_w * parameters.computer_idle_w,
        sink_c=sink_c,
        pack_c=ambient_c,
        low_voltage_energy_wh=0.9 * parameters.low_voltage_wh,
    )


def step(state: PlantState, inputs: PlantInputs, dt_s: float, parameters: PlantParameters) -> PlantState:
    """The plant `dt_s` seconds later; with 0 only the powers follow the inputs."""
    count = max(1, math.ceil(dt_s / MAX_STEP_S))
    for _ in range(count):
        state = _integrate(_settle(state, inputs, parameters), inputs, dt_s / count, parameters)
    return state


def soc_percent(state: PlantState, parameters: PlantParameters) -> float:
    """State of charge."""
    return 100 * state.energy_wh / parameters.capacity_wh


def charge_efficiency(charger_w: float) -> float:
    """Wall to pack, at this AC power."""
    points = CHARGE_EFFICIENCY
    if charger_w <= points[0][0]:
        return points[0][1]
    for (low_w, low), (high_w, high) in itertools.pairwise(points):
        if charger_w <= high_w:
            return low + (high - low) * (charger_w - low_w) / (high_w - low_w)
    return points[-1][1]


def low_voltage_v(state: PlantState, parameters: PlantParameters) -> float:
    """12 V system: 13.5-14.4 V while the DC-DC feeds it, else 12.0-12.7 V less the drop over 30 mOhm."""
    charge = state.low_voltage_energy_wh / parameters.low_voltage_wh
    if state.awake:
        return 14.4 - 0.9 * charge
    return 12.0 + 0.7 * charge - 0.030 * parameters.low_voltage_sleep_w / 12.0


def low_voltage_a(state: PlantState, parameters: PlantParameters) -> float:
    """12 V battery current, positive into it."""
    return state.low_voltage_w / low_voltage_v(state, parameters)


def _settle(state: PlantState, inputs: PlantInputs, parameters: PlantParameters) -> PlantState:
    """The powers that follow from the state and the inputs."""
    idle_w, max_w = parameters.computer_idle_w, parameters.computer_max_w
    computer_w = idle_w + (max_w - idle_w) * min(max(inputs.utilisation, 0.0), 1.0) if inputs.awake else 0.0
    charging = _charges(state, inputs, parameters)
    low_voltage_charge = 1 - state.low_voltage_energy_wh / parameters.low_voltage_wh
    low_voltage_w = (
        parameters.low_voltage_charge_w * low_voltage_charge if inputs.awake else _sleep_w(state, parameters)
    )
    pack_w = 0.0
    if inputs.awake:
        load_w = (computer_w + parameters.awake_w + low_voltage_w) / parameters.dcdc_efficiency
        load_w += inputs.speed_kmh * parameters.driving_wh_per_km
        pack_w = charge_efficiency(inputs.charger_w) * inputs.charger_w * charging - load_w
    return msgspec.structs.replace(
        state,
        awake=inputs.awake,
        charging=charging,
        computer_w=computer_w,
        low_voltage_w=low_voltage_w,
        pack_w=pack_w if state.energy_wh > 0 or pack_w > 0 else 0.0,
    )


def _charges(state: PlantState, inputs: PlantInputs, parameters: PlantParameters) -> bool:
    limit = parameters.charge_limit_percent
    start_below = limit if state.charging else limit - parameters.top_up_below_limit_percent
    return inputs.awake and inputs.charger_w > 0 and soc_percent(state, parameters) < start_below


def _sleep_w(state: PlantState, parameters: PlantParameters) -> float:
    return -parameters.low_voltage_sleep_w if state.low_voltage_energy_wh > 0 else 0.0


def _integrate(state: PlantState, inputs: PlantInputs, dt_s: float, parameters: PlantParameters) -> PlantState:
    hours = dt_s / 3600
    die_to_sink_w = (state.die_c - state.sink_c) / parameters.die_to_sink_k_per_w
    sink_to_air_w = (state.sink_c - inputs.ambient_c) / parameters.sink_to_air_k_per_w
    pack_to_air_w = (state.pack_c - inputs.ambient_c) / parameters.pack_to_air_k_per_w
    pack_heat_w = parameters.pack_loss * abs(state.pack_w)
    low_voltage_energy_wh = state.low_voltage_energy_wh + state.low_voltage_w * hours
    return msgspec.structs.replace(
        state,
        energy_wh=min(max(state.energy_wh + state.pack_w * hours, 0.0), parameters.capacity_wh),
        die_c=state.die_c + (state.computer_w - die_to_sink_w) * dt_s / parameters.die_j_per_k,
        sink_c=state.sink_c + (die_to_sink_w - sink_to_air_w) * dt_s / parameters.sink_j_per_k,
        pack_c=state.pack_c + (pack_heat_w - pack_to_air_w) * dt_s / parameters.pack_j_per_k,
        low_voltage_energy_wh=min(max(low_voltage_energy_wh, 0.0), parameters.low_voltage_wh),
        computer_energy_wh=state.computer_energy_wh + state.computer_w * hours,
        grid_energy_wh=state.grid_energy_wh + inputs.charger_w * state.charging * hours,
    )
