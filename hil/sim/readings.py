"""How the simulated computer is read, and when every one of its readings counts."""

from __future__ import annotations

from collections.abc import Callable

from agent.core.findings import GateState
from agent.core.gates import RULES
from agent.core.state import State
from hil.sim.physics import Physics

Telemetry = Callable[[float, float], tuple[float | None, float | None]]
"""What is read of the die (degrees Celsius) and of the power (W); None where there is nothing."""
WORST_ERROR_C = 1.0
POWER_ERROR_SHARE = 0.02
LAW_ACTS_C = 20.0
"""So far below its target the thermal law and its guard leave full power, whatever they remember of the readings
before; only there may readings be left out."""
START_MARGIN_C = 6.0
TEMPERATURE = tuple(RULES).index("temperature")


def honest_reading(die_c: float, power_w: float) -> tuple[float | None, float | None]:
    """What good sensors read: the die to half a degree, the power to a tenth of a watt."""
    return round(die_c * 2) / 2, round(power_w, 1)


def law_may_act(state: State, physics: Physics, *, busy: bool) -> bool:
    """Whether the die is, or may come to be, so warm that the thermal law and its gate act on single readings."""
    policy = state.policy
    if state.gates.gates[TEMPERATURE].state is not GateState.OPEN:
        return True
    if not busy and physics.die_c < policy.die_start_c - START_MARGIN_C:
        return False
    hottest_c = max(physics.die_c, physics.steady_die_c(policy.power_max_w))
    return hottest_c >= policy.die_target_c - LAW_ACTS_C
