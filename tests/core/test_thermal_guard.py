"""The guard's promise on thousands of plants, and that each bug planted in it breaks the promise.

Three things are checked of each run, from the weakest: the true die never exceeds its limit; it never even tends to
more than its limit at the power that is drawn (what the induction in the proof claims, where the closed loop would
mask a wrong bound for long); and the flow's lower bound is never above the true flow (the proof's first step).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest

from agent.core import thermal, thermal_guard
from agent.core.policy import Policy
from agent.core.thermal import Heat
from agent.core.thermal_guard import Flow
from tests.core.thermal_plants import Outcome, drawn, idle_is_safe, run

PLANS = 2_000
PARTS = 4
REPLACE = msgspec.structs.replace
GUARD, AFTER, LOWER = thermal_guard.guard_w, Flow.after, thermal_guard._lower_flow_w
NOMINAL_R = {"die_to_sink_min_k_per_w": 0.25, "die_to_sink_max_k_per_w": 0.25}
NOMINAL = NOMINAL_R | {"die_min_j_per_k": 40.0, "die_max_j_per_k": 40.0, "sink_min_j_per_k": 450.0}


def broken(outcome: Outcome, limit_c: float = 95.0) -> str:
    """Which of the three promises a run broke; empty when all held."""
    if outcome.die_max_c > limit_c:
        return f"die at {outcome.die_max_c:.2f} C"
    if outcome.tends_max_c > limit_c:
        return f"die tends to {outcome.tends_max_c:.2f} C"
    return f"flow overestimated by {outcome.flow_excess_w:.2f} W" if outcome.flow_excess_w > 0.1 else ""


@pytest.mark.parametrize("part", range(PARTS))
def test_the_die_never_exceeds_its_limit_on_any_plant_within_the_bounds(part: int) -> None:
    tried, near = 0, 0
    for seed in range(part, PLANS, PARTS):
        plan = drawn(seed)
        if not idle_is_safe(plan):
            continue
        outcome = run(plan)
        assert not broken(outcome), f"plan {seed}: {broken(outcome)}"
        tried += 1
        near += outcome.tends_max_c > 92
    assert tried > 0.9 * PLANS / PARTS
    assert near > 0.1 * PLANS / PARTS, "the plans must lead to where the guard decides"


def test_why_the_lower_of_two_filters_would_not_do() -> None:
    """High, low, high power: a plant between the two filters lags behind both of them, and stays above our bound."""
    policy = Policy()
    slow, fast = thermal_guard.slow_rate_per_s(policy), thermal_guard.fast_rate_per_s(policy)
    rates = {"slow": slow, "fast": fast, "between": math.sqrt(slow * fast)}
    flows = dict.fromkeys(rates, 60.0)
    ours = Flow(low_w=60.0, high_w=60.0, power_w=60.0)
    for power_w in [8.0] * 8 + [60.0] * 4:
        flows = {name: power_w + (was - power_w) * math.exp(-rates[name]) for name, was in flows.items()}
        ours = ours.after(power_w, 1.0, 0.0, policy)
    assert min(flows["slow"], flows["fast"]) > flows["between"] + 2
    assert ours.low_w <= flows["between"]


# --- planted bugs -----------------------------------------------------------------------------------------------


def forget_the_error_bar(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "guard_w", lambda die, low, _e, *rest, policy: GUARD(die, low, 0.0, *rest, policy=policy))


def forget_the_power_sensors_error(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        thermal, "guard_w", lambda die, low, e, _, span, *, policy: GUARD(die, low, e, 0.0, span, policy=policy)
    )
    patch.setattr(Flow, "after", lambda flow, power, span, _share, policy: AFTER(flow, power, span, 0.0, policy))


def forget_that_the_sink_warms_meanwhile(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "guard_w", lambda *seen, policy: GUARD(*seen, policy=REPLACE(policy, sink_min_j_per_k=1e6)))


def use_the_nominal_resistance(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "guard_w", lambda *seen, policy: GUARD(*seen, policy=REPLACE(policy, **NOMINAL_R)))


def filter_with_nominal_constants(patch: pytest.MonkeyPatch) -> None:
    def hopeful(flow: float, power: float, span: float, policy: Policy) -> float:
        return LOWER(flow, power, span, REPLACE(policy, **NOMINAL))

    patch.setattr(thermal_guard, "_lower_flow_w", hopeful)


def filter_only_slowly(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal_guard, "fast_rate_per_s", thermal_guard.slow_rate_per_s)


def filter_only_fast(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal_guard, "slow_rate_per_s", thermal_guard.fast_rate_per_s)


def take_the_power_for_the_flow(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal_guard, "_lower_flow_w", lambda _flow, power, _span, _policy: power)


def forget_what_the_sink_keeps(patch: pytest.MonkeyPatch) -> None:
    def balanced(flow: float, power: float, span: float, policy: Policy) -> float:
        rising = flow < power
        rate = thermal_guard.slow_rate_per_s(policy) if rising else thermal_guard.fast_rate_per_s(policy)
        return power + (flow - power) * math.exp(-rate * span)

    patch.setattr(thermal_guard, "_lower_flow_w", balanced)


def believe_the_higher_of_two_powers(patch: pytest.MonkeyPatch) -> None:
    def higher(flow: Flow, power: float | None, span: float, share: float, policy: Policy) -> Flow:
        most = max(power or 0.0, flow.power_w or 0.0)
        return REPLACE(AFTER(REPLACE(flow, power_w=most), most, span, share, policy), power_w=power)

    patch.setattr(Flow, "after", higher)


def think_nothing_happened_in_a_gap(patch: pytest.MonkeyPatch) -> None:
    def patient(flow: Flow, power: float | None, span: float, share: float, policy: Policy) -> Flow:
        return AFTER(flow, power, min(span, thermal_guard.IDLE_AFTER_S), share, policy)

    patch.setattr(Flow, "after", patient)


def run_on_without_readings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Heat, "waited", lambda heat, _now_ms, _policy: heat)


def round_the_cap_up(patch: pytest.MonkeyPatch) -> None:
    def generous(_heat: Heat, law: float, ceiling: float, _now_ms: int, policy: Policy) -> float:
        step = thermal._range_w(policy) / thermal.STEPS
        steps = math.ceil((min(law, ceiling) - policy.power_idle_w) / step)
        return min(policy.power_max_w, policy.power_idle_w + step * max(0, steps))

    patch.setattr(Heat, "_next_cap_w", generous)


def leave_the_guard_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(thermal, "guard_w", lambda *_, policy: math.inf)


BUGS: list[Callable[[pytest.MonkeyPatch], None]] = [
    forget_the_error_bar,
    forget_the_power_sensors_error,
    forget_that_the_sink_warms_meanwhile,
    use_the_nominal_resistance,
    filter_with_nominal_constants,
    filter_only_slowly,
    filter_only_fast,
    take_the_power_for_the_flow,
    forget_what_the_sink_keeps,
    believe_the_higher_of_two_powers,
    think_nothing_happened_in_a_gap,
    run_on_without_readings,
    round_the_cap_up,
    leave_the_guard_out,
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_in_the_guard_breaks_the_promise(bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        for seed in range(PLANS):
            plan = drawn(seed)
            if idle_is_safe(plan) and broken(run(plan)):
                return
    raise AssertionError(f"{bug.__name__} went unnoticed on {PLANS} plans")
