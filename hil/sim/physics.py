"""The plant of `hil.car.plant` for inputs that stay the same for a while: minutes in one exact step, not in 0.5 s ones.

Heat: two nodes with constant power are a linear system with two real time constants, so the solution is a sum of two
exponentials, exact for any step. Energy: constant power until the charge reaches a limit, where the step is split.
The low-voltage battery relaxes to full while the DC-DC feeds it, and is used up in a straight line while it does not.
`tests/hil/test_sim_physics.py` holds this against the plant's own small steps.

What the plant does not have, and a bad night needs: a fan that stops, and a DC-DC that fails (`feeds`). A car whose
DC-DC is dead runs its low-voltage load, the computer included, from a small battery.
"""

from __future__ import annotations

import math

import msgspec

from hil.car.plant import PlantParameters, charge_efficiency

FAN_DEAD_FACTOR = 1.6 / 0.6
"""Sink to air without the fan, against with it (K/W)."""
LOW_VOLTAGE_AWAKE_W = 40.0
"""What the low-voltage side of an awake car draws besides the computer."""
LEAD_OHM = 0.030
LITHIUM_OHM = 0.015


class Surroundings(msgspec.Struct, frozen=True):
    """What acts on the car until something changes."""

    air_c: float = 15.0
    charger_w: float = 0.0
    computer_w: float = 8.0
    awake: bool = True
    feeds: bool = True
    fan: bool = True
    speed_kmh: float = 0.0


class Physics:
    """One car's batteries and the heat of its computer. Mutable: it is stepped many thousand times."""

    def __init__(self, parameters: PlantParameters, charge_percent: float, air_c: float, *, lithium: bool) -> None:
        self.parameters = parameters
        self.lithium = lithium
        self.low_voltage_ohm = LITHIUM_OHM if lithium else LEAD_OHM
        self.limit_percent = parameters.charge_limit_percent
        self.energy_wh = self.without_us_wh = parameters.capacity_wh * charge_percent / 100
        self.charging = self.charging_without_us = False
        self.low_voltage_wh = 0.9 * parameters.low_voltage_wh
        self.sink_c = air_c + parameters.sink_to_air_k_per_w * parameters.computer_idle_w
        self.die_c = self.sink_c + parameters.die_to_sink_k_per_w * parameters.computer_idle_w
        self.pack_c = air_c
        self.pack_w = 0.0
        self.now = Surroundings(air_c)
        self._modes = {fan: _Modes(parameters, fan=fan) for fan in (True, False)}

    @property
    def charge_percent(self) -> float:
        """State of charge."""
        return 100 * self.energy_wh / self.parameters.capacity_wh

    @property
    def charge_without_us_percent(self) -> float:
        """What it would be had the computer done nothing."""
        return 100 * self.without_us_wh / self.parameters.capacity_wh

    @property
    def low_voltage_v(self) -> float:
        """At the low-voltage battery's poles."""
        charge = self.low_voltage_wh / self.parameters.low_voltage_wh
        if self.now.awake and self.now.feeds:
            return 15.8 - 0.3 * charge if self.lithium else 14.4 - 0.9 * charge
        rest_v = 13.2 + 2.0 * charge if self.lithium else 11.6 + 1.1 * charge
        return rest_v - self.low_voltage_ohm * self._drain_w() / 12.0

    @property
    def low_voltage_a(self) -> float:
        """Positive into the low-voltage battery."""
        if self.now.awake and self.now.feeds:
            return self._fed_w() / self.low_voltage_v
        return -self._drain_w() / max(self.low_voltage_v, 1.0)

    def steady_die_c(self, computer_w: float) -> float:
        """Where the die would settle at this power."""
        p, fan = self.parameters, 1.0 if self.now.fan else FAN_DEAD_FACTOR
        return self.now.air_c + computer_w * (p.die_to_sink_k_per_w + fan * p.sink_to_air_k_per_w)

    def settle(self, surroundings: Surroundings) -> None:
        """The powers that follow from new surroundings."""
        self.now = surroundings
        self._settle()

    def advance(self, dt_s: float) -> None:
        """`dt_s` seconds later, the surroundings being the same."""
        if dt_s <= 0:
            return
        now = self.now
        self.die_c, self.sink_c = self._modes[now.fan].after(self.die_c, self.sink_c, now, dt_s)
        load_w, before_wh = self._load_w(now.computer_w), self.energy_wh
        self.energy_wh, self.charging = self._advance_energy(self.energy_wh, load_w, dt_s, charging=self.charging)
        self._advance_pack_heat(dt_s, (self.energy_wh - before_wh) * 3600 / dt_s)
        idle_w = self.parameters.computer_idle_w if now.awake else 0.0
        load_w = self._load_w(min(now.computer_w, idle_w))
        self.without_us_wh, self.charging_without_us = self._advance_energy(
            self.without_us_wh, load_w, dt_s, charging=self.charging_without_us
        )
        self._advance_low_voltage(dt_s)
        self._settle()

    def _settle(self) -> None:
        self.charging = self._charges(self.energy_wh, charging=self.charging)
        self.charging_without_us = self._charges(self.without_us_wh, charging=self.charging_without_us)
        self.pack_w = self._given_w() * self.charging - self._load_w(self.now.computer_w) if self.now.awake else 0.0

    def _given_w(self) -> float:
        return charge_efficiency(self.now.charger_w) * self.now.charger_w

    def _charges(self, energy_wh: float, *, charging: bool) -> bool:
        below = 0.0 if charging else self.parameters.top_up_below_limit_percent
        start_wh = self.parameters.capacity_wh * (self.limit_percent - below) / 100
        return self.now.awake and self.now.charger_w > 0 and energy_wh < start_wh - 1e-6

    def _load_w(self, computer_w: float) -> float:
        now, parameters = self.now, self.parameters
        if not now.awake:
            return 0.0
        low_voltage_w = computer_w + self._fed_w() if now.feeds else 0.0
        return (low_voltage_w + parameters.awake_w) / parameters.dcdc_efficiency + (
            now.speed_kmh * parameters.driving_wh_per_km
        )

    def _advance_energy(self, energy_wh: float, load_w: float, dt_s: float, *, charging: bool) -> tuple[float, bool]:
        """In steps that end where charging begins or ends."""
        capacity_wh = self.parameters.capacity_wh
        limit_wh = capacity_wh * self.limit_percent / 100
        again_wh = limit_wh - capacity_wh * self.parameters.top_up_below_limit_percent / 100
        left_h = dt_s / 3600
        for _ in range(100):
            power_w = self._given_w() * charging - load_w if self.now.awake else 0.0
            edge_wh = limit_wh if charging else again_wh
            chargeable = self.now.awake and self.now.charger_w > 0
            to_edge_h = (edge_wh - energy_wh) / power_w if power_w and chargeable else -1.0
            if not 0 < to_edge_h < left_h:
                break
            energy_wh, charging = edge_wh, not charging
            left_h -= to_edge_h
        return min(max(energy_wh + power_w * left_h, 0.0), capacity_wh), charging

    def _advance_pack_heat(self, dt_s: float, mean_w: float) -> None:
        """With the mean power of the step, in which charging may have begun or ended."""
        parameters = self.parameters
        settled_c = self.now.air_c + parameters.pack_to_air_k_per_w * parameters.pack_loss * abs(mean_w)
        tau_s = parameters.pack_j_per_k * parameters.pack_to_air_k_per_w
        self.pack_c = settled_c + (self.pack_c - settled_c) * math.exp(-dt_s / tau_s)

    def _fed_w(self) -> float:
        parameters = self.parameters
        return parameters.low_voltage_charge_w * (1 - self.low_voltage_wh / parameters.low_voltage_wh)

    def _drain_w(self) -> float:
        if not self.now.awake:
            return self.parameters.low_voltage_sleep_w
        return LOW_VOLTAGE_AWAKE_W + self.now.computer_w

    def _advance_low_voltage(self, dt_s: float) -> None:
        full_wh = self.parameters.low_voltage_wh
        if self.now.awake and self.now.feeds:
            tau_s = 3600 * full_wh / self.parameters.low_voltage_charge_w
            self.low_voltage_wh = full_wh + (self.low_voltage_wh - full_wh) * math.exp(-dt_s / tau_s)
        else:
            self.low_voltage_wh = max(0.0, self.low_voltage_wh - self._drain_w() * dt_s / 3600)


class _Modes:
    """The two-node heat equation x' = A x + b, solved: x(t) = x* + e^(At) (x(0) - x*), A with two real eigenvalues."""

    def __init__(self, parameters: PlantParameters, *, fan: bool) -> None:
        self._r12 = parameters.die_to_sink_k_per_w
        self._r2a = parameters.sink_to_air_k_per_w * (1.0 if fan else FAN_DEAD_FACTOR)
        c1, c2 = parameters.die_j_per_k, parameters.sink_j_per_k
        self._a = -1 / (self._r12 * c1)
        self._b = 1 / (self._r12 * c1)
        self._c = 1 / (self._r12 * c2)
        self._d = -1 / (self._r12 * c2) - 1 / (self._r2a * c2)
        mean, product = (self._a + self._d) / 2, self._a * self._d - self._b * self._c
        spread = math.sqrt(mean * mean - product)
        self._fast, self._slow = mean - spread, mean + spread

    def after(self, die_c: float, sink_c: float, now: Surroundings, dt_s: float) -> tuple[float, float]:
        """Both nodes `dt_s` later. e^(At) = s0 I + s1 A (Sylvester's formula)."""
        sink_end_c = now.air_c + self._r2a * now.computer_w * now.awake
        die_end_c = sink_end_c + self._r12 * now.computer_w * now.awake
        x, y = die_c - die_end_c, sink_c - sink_end_c
        fast, slow = math.exp(self._fast * dt_s), math.exp(self._slow * dt_s)
        s1 = (fast - slow) / (self._fast - self._slow)
        s0 = slow - self._slow * s1
        return (
            die_end_c + s0 * x + s1 * (self._a * x + self._b * y),
            sink_end_c + s0 * y + s1 * (self._c * x + self._d * y),
        )
