"""Plants, faults and tunings for the thermal law, drawn from a seed, and one run of the law on such a plant.

Everything a plan draws is within the assumptions of the guard's proof (`agent.core.thermal_guard`) unless a test takes
one of them away. Where the proof allows a worst case (an error at its bound, a delay as long as a reading's), it is
drawn often, since a mean case proves little.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from agent.core import thermal
from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal import Heat
from hil.car.box import FAN_DEAD_FACTOR, Box, BoxParameters

READINGS = 200
replace_struct = msgspec.structs.replace


@dataclass
class Plan:
    """One plant, its air, its sensors, its work and the law's tuning."""

    seed: int
    policy: Policy
    box: BoxParameters
    air_from_c: float
    air_to_c: float
    air_tau_s: float
    sink_c: float | None
    fan_dies_s: float
    spacing_s: float
    jitter_share: float
    lost_share: float
    lag_share: float
    error_c: float
    offset_c: float
    noise_c: float
    grain_c: float
    power_error_share: float
    power_read_share: float
    overdraw_share: float
    busy_s: float
    rest_s: float
    swing_s: float
    band_c: float
    integral_s: float
    hold_ms: int
    air_heats: bool = False
    """The air gives the sink as much heat as the proof allows for: an idle computer's."""

    def air_c(self, at_s: float) -> float:
        """The air around the sink."""
        return self.air_to_c + (self.air_from_c - self.air_to_c) * math.exp(-at_s / self.air_tau_s)


def drawn(seed: int) -> Plan:
    """A plan within the assumptions."""
    chance = random.Random(seed)
    pick = chance.choice
    spacing_s = pick([0.25, 0.5, 1.0, 1.0, 2.0])
    error_c, grain_c = pick([1.0, 1.5, 2.0]), pick([0.1, 0.5])
    power_error_share = pick([0.01, 0.05])
    box = pick([BoxParameters().scattered(chance), _cornered(chance)])
    air_c = pick([chance.uniform(-20, 65), chance.uniform(45, 65), 65.0])
    hottest_sink_c = 95.0 - box.die_to_sink_k_per_w * 8.0
    warm = pick([None, chance.uniform(70, hottest_sink_c), chance.uniform(70, 85)])
    plan = Plan(
        seed=seed,
        policy=Policy(die_target_c=pick([88.0, 95.0, 95.0, 95.0])),
        box=box,
        air_from_c=air_c,
        air_to_c=pick([air_c, air_c, chance.uniform(-20, 65), 65.0]),
        air_tau_s=chance.uniform(600, 2_400),
        sink_c=warm,
        fan_dies_s=pick([0.0, chance.uniform(0, READINGS * spacing_s), math.inf]),
        spacing_s=spacing_s,
        jitter_share=pick([0.0, 0.2]),
        lost_share=pick([0.0, 0.0, 0.05]),
        lag_share=pick([0.0, chance.random(), 1.0]),
        error_c=error_c,
        offset_c=pick([-1, 1, chance.uniform(-1, 1)]) * (error_c - grain_c / 2),
        noise_c=pick([0.0, 0.2, 0.5]),
        grain_c=grain_c,
        power_error_share=power_error_share,
        power_read_share=pick([-1, 1, 0]) * power_error_share,
        overdraw_share=pick([0, 1]) * power_error_share,
        busy_s=pick([1e9, 1e9, chance.uniform(1, 60)]),
        rest_s=chance.uniform(1, 40),
        swing_s=pick([0.0, 0.0, 0.2]),
        band_c=pick([13.0, 0.1, 0.1, 100.0]),
        integral_s=pick([90.0, 1.0]),
        hold_ms=pick([5_000, 0]),
    )
    return _adverse(plan, chance) if chance.random() < 0.4 else plan


def _adverse(plan: Plan, chance: random.Random) -> Plan:
    """Everything at the bound that hurts, and nothing but the guard to hold the die: no fan, errors that flatter."""
    policy, pick = Policy(die_target_c=95.0), chance.choice
    return replace(
        plan,
        policy=policy,
        box=replace_struct(
            plan.box,
            die_to_sink_k_per_w=policy.die_to_sink_max_k_per_w,
            die_j_per_k=policy.die_max_j_per_k,
            sink_j_per_k=policy.sink_min_j_per_k,
        ),
        air_from_c=65.0,
        air_to_c=65.0,
        sink_c=chance.uniform(66, 88),
        fan_dies_s=0.0,
        jitter_share=0.0,
        lost_share=pick([0.0, 0.0, 0.5, 0.85]),
        lag_share=1.0,
        offset_c=-plan.error_c,
        noise_c=0.0,
        grain_c=0.01,
        power_read_share=plan.power_error_share,
        overdraw_share=plan.power_error_share,
        swing_s=0.0,
        band_c=0.1,
        hold_ms=0,
        air_heats=pick([False, True]),
    )


def _cornered(chance: random.Random) -> BoxParameters:
    """A box whose constants lie on the bounds that the policy gives for them."""
    policy, pick = Policy(), chance.choice
    return BoxParameters(
        die_j_per_k=pick([policy.die_min_j_per_k, policy.die_max_j_per_k]),
        die_to_sink_k_per_w=pick([policy.die_to_sink_min_k_per_w, policy.die_to_sink_max_k_per_w]),
        sink_j_per_k=policy.sink_min_j_per_k,
        sink_to_air_k_per_w=chance.uniform(0.4, 0.8),
    )


@dataclass
class Outcome:
    """What a run came to."""

    die_max_c: float = -math.inf
    tends_max_c: float = -math.inf
    """The highest temperature that the die ever tended to at its power: what the proof bounds, and stricter."""
    flow_excess_w: float = -math.inf
    """The most by which the flow's lower bound was above the true flow."""
    problems: set[str] = field(default_factory=set)
    stopped_s: float = math.inf
    caps: list[tuple[int, float]] = field(default_factory=list)
    die: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Fault:
    """What is outside of the assumptions; all off by default."""

    cap_ignored_s: float = math.inf
    sensor_frozen_s: float = math.inf
    resistance_factor: float = 1.0
    blind_s: float = math.inf
    power_blind_s: float = math.inf
    stop_on_problem: bool = True


def run(plan: Plan, fault: Fault | None = None, readings: int = READINGS) -> Outcome:
    """The law on the plant: readings, caps that are obeyed after a lag, idle when the watchdog says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thermal, "BAND_C", plan.band_c)
        patch.setattr(thermal, "INTEGRAL_S", plan.integral_s)
        patch.setattr(thermal, "HOLD_MS", plan.hold_ms)
        return Course(plan, fault or Fault()).run(readings)


class Course:
    """One run."""

    def __init__(self, plan: Plan, fault: Fault) -> None:
        self.plan, self.fault = plan, fault
        self.chance = random.Random(plan.seed + 1)
        parameters = plan.box
        if fault.resistance_factor != 1.0:
            parameters = BoxParameters(
                die_j_per_k=plan.box.die_j_per_k,
                die_to_sink_k_per_w=plan.box.die_to_sink_k_per_w * fault.resistance_factor,
                sink_j_per_k=plan.box.sink_j_per_k,
                sink_to_air_k_per_w=plan.box.sink_to_air_k_per_w,
            )
        self.box = Box(parameters, plan.air_c(0), plan.sink_c)
        self.heat, self.outcome = Heat(), Outcome()
        self.now_s, self.energy_j, self.read_s = 0.0, 0.0, 0.0
        self.cap_w = self.ordered_w = plan.policy.power_idle_w
        self.orders: list[tuple[float, float]] = []
        self.frozen_c: float | None = None

    def run(self, readings: int) -> Outcome:
        plan = self.plan
        for _ in range(readings):
            self._read()
            spread = plan.jitter_share * plan.spacing_s
            self._pass(plan.spacing_s - spread * self.chance.random())
            while self.chance.random() < plan.lost_share:
                self._pass(plan.spacing_s)
        return self.outcome

    def _read(self) -> None:
        plan, policy, span_s = self.plan, self.plan.policy, self.now_s - self.read_s
        mean_w = self.energy_j / span_s if span_s > 0 else policy.power_idle_w
        self.energy_j, self.read_s = 0.0, self.now_s
        event = ComputeSeen(
            at_ms=1_000_000 + round(self.now_s * 1000),
            die_c=None if self.now_s >= self.fault.blind_s else self._reading_c(),
            power_w=None if self.now_s >= self.fault.power_blind_s else mean_w * (1 + plan.power_read_share),
            sensor="simulated",
            die_error_c=plan.error_c,
            power_error_share=plan.power_error_share,
        )
        before_w = self.heat.cap_w
        flow_w = (self.box.die_c - self.box.sink_c) / self.box.parameters.die_to_sink_k_per_w
        self.heat = self.heat.seen(event, policy, working=self._busy())
        self.outcome.flow_excess_w = max(self.outcome.flow_excess_w, self.heat.flow.low_w - flow_w)
        if self.heat.cap_w != before_w:
            self.outcome.caps.append((event.at_ms, self.heat.cap_w))
        if self.heat.problem:
            self.outcome.problems.add(self.heat.problem)
            self.outcome.stopped_s = min(self.outcome.stopped_s, self.now_s)
        self._order()

    def _reading_c(self) -> float:
        """Within the bar of error of the true die, whatever noise and grain add up to; or what a dead sensor says."""
        plan, true_c = self.plan, self.box.die_c
        read_c = round((true_c + plan.offset_c + self.chance.gauss(0, plan.noise_c)) / plan.grain_c) * plan.grain_c
        read_c = min(max(read_c, true_c - plan.error_c), true_c + plan.error_c)
        if self.now_s >= self.fault.sensor_frozen_s:
            self.frozen_c = read_c if self.frozen_c is None else self.frozen_c
            return self.frozen_c
        return read_c

    def _order(self) -> None:
        """Every cap counts after the lag, in the order in which they were given."""
        if self.heat.cap_w != self.ordered_w:
            self.ordered_w = self.heat.cap_w
            self.orders.append((self.now_s + self.plan.lag_share * self.plan.spacing_s, self.ordered_w))
        while self.orders and self.now_s >= self.orders[0][0]:
            self.cap_w = self.orders.pop(0)[1]

    def _pass(self, span_s: float) -> None:
        """Time in small pieces: the law's clock goes on, and the power follows what is in force."""
        end_s = self.now_s + span_s
        while self.now_s < end_s - 1e-9:
            piece_s = min(0.25, end_s - self.now_s)
            self.heat = self.heat.waited(1_000_000 + round(self.now_s * 1000), self.plan.policy)
            self._order()
            power_w = self._power_w()
            fan = self.now_s < self.plan.fan_dies_s
            air_c = self._air_c(fan=fan)
            self.outcome.die_max_c = max(self.outcome.die_max_c, self.box.advance(power_w, air_c, piece_s, fan=fan))
            tends_c = self.box.sink_c + self.box.parameters.die_to_sink_k_per_w * power_w
            self.outcome.tends_max_c = max(self.outcome.tends_max_c, tends_c)
            self.energy_j += power_w * piece_s
            self.now_s += piece_s
        self.outcome.die.append((self.now_s, self.box.die_c))

    def _air_c(self, *, fan: bool) -> float:
        if not self.plan.air_heats:
            return self.plan.air_c(self.now_s)
        box, idle_w = self.box.parameters, self.plan.policy.power_idle_w
        if self.box.sink_c + box.die_to_sink_k_per_w * 1.05 * idle_w > self.plan.policy.die_limit_c - 1:
            return self.plan.air_c(self.now_s)  # more heat, and idle would not be safe
        return self.box.sink_c + box.sink_to_air_k_per_w * (1.0 if fan else FAN_DEAD_FACTOR) * idle_w

    def _busy(self) -> bool:
        if self.heat.problem and self.fault.stop_on_problem:
            return False
        return self.now_s % (self.plan.busy_s + self.plan.rest_s) < self.plan.busy_s

    def _power_w(self) -> float:
        policy, plan = self.plan.policy, self.plan
        idle_w, most_w = policy.power_idle_w, policy.power_max_w * (1 + plan.overdraw_share)
        if not self._busy():
            return idle_w
        if self.now_s >= self.fault.cap_ignored_s:
            return policy.power_max_w
        cap_w = max(idle_w, self.cap_w)
        if plan.swing_s:
            return cap_w if self.now_s % (2 * plan.swing_s) < plan.swing_s else idle_w
        return min(most_w, cap_w * (1 + plan.overdraw_share))


def idle_is_safe(plan: Plan) -> bool:
    """The proof's last assumption: at idle the die settles under its limit, even without a fan, and begins there."""
    to_air = plan.box.sink_to_air_k_per_w * FAN_DEAD_FACTOR
    idle_w = plan.policy.power_idle_w * (1 + plan.power_error_share)
    settled_c = max(plan.air_from_c, plan.air_to_c) + (to_air + plan.box.die_to_sink_k_per_w) * idle_w
    begins_c = (plan.sink_c or -math.inf) + plan.box.die_to_sink_k_per_w * idle_w
    return max(settled_c, begins_c) <= plan.policy.die_limit_c
