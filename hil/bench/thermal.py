"""How much work the thermal law gets done: against on/off hysteresis, and against the ideal steady cap.

Ninety minutes each on the AGX-Orin-like box: air at 25, 45 and 60 C; a soak from 25 to 60 C with a time constant of
25 minutes; a fan that is dead from the start; and boxes whose every constant is up to 30 % off, at 45 and 60 C. Then
a liquid-cooled box of a driving computer (350 W, 0.12 K/W to coolant of 25 to 65 C) with bounds of its own.
Readings once a second with 0.5 K of noise in steps of 0.5 K; work grows with the share of power as share^0.7.

* ours: `agent.core.thermal`, with the policy's default bounds: it is not told which box it has.
* on/off: full power until the die is at 88 C, idle until it is at 80 C, as desktop tools do.
* ideal: the steady power at which this very box in this very air would settle at 88 C exactly. Nobody can know it
  beforehand. It takes no credit for the heat that a cold sink takes up, so a law can come out above it.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable

import msgspec

from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal import Heat
from hil.car.box import FAN_DEAD_FACTOR, Box, BoxParameters

MINUTES = 90
BOXES = 60
NOISE_K, GRAIN_K = 0.5, 0.5
ON_C, OFF_C = 80.0, 88.0
SEED = 2026
WORST_WORK_VS_IDEAL = 0.95


class Computer(msgspec.Struct, frozen=True):
    """A kind of computer: one box of its make, and the limits and bounds that its policy has."""

    policy: Policy
    box: BoxParameters


AIR_COOLED = Computer(Policy(), BoxParameters())
FAN_DEAD = Computer(Policy(), BoxParameters(sink_to_air_k_per_w=0.6 * FAN_DEAD_FACTOR))
LIQUID_COOLED = Computer(
    Policy(
        die_to_sink_min_k_per_w=0.035,
        die_to_sink_max_k_per_w=0.065,
        die_min_j_per_k=140.0,
        die_max_j_per_k=260.0,
        sink_min_j_per_k=2_400.0,
        power_idle_w=40.0,
        power_max_w=350.0,
    ),
    BoxParameters(
        die_j_per_k=200.0, die_to_sink_k_per_w=0.05, sink_j_per_k=3_500.0, sink_to_air_k_per_w=0.12, idle_w=40.0
    ),
)

Air = Callable[[float], float]
"""Air temperature (C) after so many seconds."""
Law = Callable[[int, float, float], float]
"""The next cap (W) after a reading: its time (ms), the die (C), the power (W) that was drawn."""


class Run(msgspec.Struct, frozen=True):
    """One law on one box: work relative to full speed, the die's true maximum, and how often the cap moved."""

    work: float
    die_max_c: float
    cap_changes_per_minute: float


class Case(msgspec.Struct, frozen=True):
    """Both laws and the ideal in the same air; of many boxes the worst of each figure."""

    ours: float
    on_off: float
    ideal: float
    work_vs_ideal: float
    work_vs_on_off: float
    die_max_c: float
    on_off_die_max_c: float
    cap_changes_per_minute: float


class ThermalFigures(msgspec.Struct, frozen=True):
    """What came of it. The figures at the top are the worst (`work_vs_on_off`: the median) over all cases and boxes."""

    work_vs_ideal: float
    work_vs_on_off: float
    die_max_c: float
    die_limit_c: float
    cap_changes_per_minute: float
    held: bool
    """The die stayed under its limit, and the work within 5 % of the ideal, in every case."""
    cases: dict[str, Case]
    boxes: int
    minutes_each: int
    readings: int
    microseconds_per_reading: float


def run(boxes: int = BOXES, minutes: int = MINUTES) -> ThermalFigures:
    """All cases on the nominal box, and on so many others."""
    chance = random.Random(SEED)
    others = [Computer(AIR_COOLED.policy, AIR_COOLED.box.scattered(chance)) for _ in range(boxes)]
    began_s = time.perf_counter()
    cases = {
        "air 25 C": _case([AIR_COOLED], lambda _s: 25.0, minutes),
        "air 45 C": _case([AIR_COOLED], lambda _s: 45.0, minutes),
        "air 60 C": _case([AIR_COOLED], lambda _s: 60.0, minutes),
        "soak 25 to 60 C": _case([AIR_COOLED], _soak, minutes),
        "dead fan, 45 C": _case([FAN_DEAD], lambda _s: 45.0, minutes),
        f"{boxes} boxes, 45 C, worst": _case(others, lambda _s: 45.0, minutes),
        f"{boxes} boxes, 60 C, worst": _case(others, lambda _s: 60.0, minutes),
        "liquid, 25 C": _case([LIQUID_COOLED], lambda _s: 25.0, minutes),
        "liquid, 65 C": _case([LIQUID_COOLED], lambda _s: 65.0, minutes),
    }
    readings = 2 * (7 + 2 * boxes) * minutes * 60
    work_vs_ideal = min(case.work_vs_ideal for case in cases.values())
    die_max_c = max(case.die_max_c for case in cases.values())
    limit_c = AIR_COOLED.policy.die_limit_c
    return ThermalFigures(
        work_vs_ideal=work_vs_ideal,
        work_vs_on_off=statistics.median(case.work_vs_on_off for case in cases.values()),
        die_max_c=die_max_c,
        die_limit_c=limit_c,
        held=work_vs_ideal >= WORST_WORK_VS_IDEAL and die_max_c <= limit_c,
        cap_changes_per_minute=max(case.cap_changes_per_minute for case in cases.values()),
        cases=cases,
        boxes=boxes,
        minutes_each=minutes,
        readings=readings,
        microseconds_per_reading=(time.perf_counter() - began_s) / readings * 1e6,
    )


def _soak(seconds: float) -> float:
    """A car that was driven in the cool stands in the sun."""
    return 60 - 35 * math.exp(-seconds / 1_500)


def _case(computers: list[Computer], air: Air, minutes: int) -> Case:
    ours = [_run(one, air, minutes, _ours(one.policy)) for one in computers]
    on_off = [_run(one, air, minutes, _on_off(one.policy)) for one in computers]
    ideal = [_ideal(one, air, minutes) for one in computers]
    return Case(
        ours=min(one.work for one in ours),
        on_off=min(one.work for one in on_off),
        ideal=min(ideal),
        work_vs_ideal=min(one.work / best for one, best in zip(ours, ideal, strict=True)),
        work_vs_on_off=min(one.work / other.work for one, other in zip(ours, on_off, strict=True)),
        die_max_c=max(one.die_max_c for one in ours),
        on_off_die_max_c=max(one.die_max_c for one in on_off),
        cap_changes_per_minute=max(one.cap_changes_per_minute for one in ours),
    )


def _ours(policy: Policy) -> Law:
    heat = Heat()

    def law(at_ms: int, die_c: float, power_w: float) -> float:
        nonlocal heat
        event = ComputeSeen(at_ms=at_ms, die_c=die_c, power_w=power_w, sensor="simulated")
        heat = heat.seen(event, policy, working=True)
        return policy.power_idle_w if heat.problem else heat.cap_w

    return law


def _on_off(policy: Policy) -> Law:
    on = True

    def law(_at_ms: int, die_c: float, _power_w: float) -> float:
        nonlocal on
        on = die_c < OFF_C if on else die_c <= ON_C
        return policy.power_max_w if on else policy.power_idle_w

    return law


def _run(computer: Computer, air: Air, minutes: int, law: Law) -> Run:
    """One law on one box; the same noise for each."""
    chance = random.Random(SEED)
    box = Box(computer.box, air(0.0))
    power_w, work, highest_c, changes = computer.box.idle_w, 0.0, -math.inf, 0
    for second in range(minutes * 60):
        read_c = round((box.die_c + chance.gauss(0, NOISE_K)) / GRAIN_K) * GRAIN_K
        cap_w = law((second + 1) * 1_000, read_c, power_w)
        changes += cap_w != power_w
        power_w = cap_w
        work += work_rate(power_w, computer.policy)
        highest_c = max(highest_c, box.advance(power_w, air(second), 1.0))
    return Run(work / (minutes * 60), highest_c, changes / minutes)


def _ideal(computer: Computer, air: Air, minutes: int) -> float:
    """Work at the power that holds this box at the target in the air of each second."""
    policy, to_air = computer.policy, computer.box.die_to_sink_k_per_w + computer.box.sink_to_air_k_per_w
    powers_w = ((policy.die_target_c - air(second)) / to_air for second in range(minutes * 60))
    return sum(work_rate(power_w, policy) for power_w in powers_w) / (minutes * 60)


def work_rate(power_w: float, policy: Policy) -> float:
    """How fast work is done at a power, full speed being 1: concave, since the last watts buy the least."""
    share = (power_w - policy.power_idle_w) / (policy.power_max_w - policy.power_idle_w)
    return float(min(1.0, max(0.0, share)) ** 0.7)
