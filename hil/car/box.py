"""The computer's heat alone: the two nodes of `hil.car.plant`, for runs over thousands of plants in seconds.

The same equations and the same Euler steps as the plant; a test holds the two against each other. Mutable, and
without the rest of the car. Numbers in W, K, J, degrees Celsius.
"""

from __future__ import annotations

import math
import random

import msgspec

STEP_S = 0.25
FAN_DEAD_FACTOR = 1.6 / 0.6
"""Without its fan the sink of the nominal box has 1.6 K/W to the air in place of 0.6."""


class BoxParameters(msgspec.Struct, frozen=True, kw_only=True):
    """The box's constants; the defaults are the nominal plant's."""

    die_j_per_k: float = 40.0
    die_to_sink_k_per_w: float = 0.25
    sink_j_per_k: float = 450.0
    sink_to_air_k_per_w: float = 0.60
    idle_w: float = 8.0

    def scattered(self, chance: random.Random, share: float = 0.3) -> BoxParameters:
        """Another box of the same make: each constant anywhere within `share` of this one's."""
        return BoxParameters(
            die_j_per_k=self.die_j_per_k * chance.uniform(1 - share, 1 + share),
            die_to_sink_k_per_w=self.die_to_sink_k_per_w * chance.uniform(1 - share, 1 + share),
            sink_j_per_k=self.sink_j_per_k * chance.uniform(1 - share, 1 + share),
            sink_to_air_k_per_w=self.sink_to_air_k_per_w * chance.uniform(1 - share, 1 + share),
            idle_w=self.idle_w,
        )


class Box:
    """One computer, as warm as an idle one in air of `air_c`, unless a sink's temperature is given."""

    def __init__(self, parameters: BoxParameters, air_c: float, sink_c: float | None = None) -> None:
        self.parameters = parameters
        self.sink_c = air_c + parameters.sink_to_air_k_per_w * parameters.idle_w if sink_c is None else sink_c
        self.die_c = self.sink_c + parameters.die_to_sink_k_per_w * parameters.idle_w

    def advance(self, power_w: float, air_c: float, span_s: float, *, fan: bool = True) -> float:
        """`span_s` seconds at a constant power; the highest die temperature on the way."""
        box = self.parameters
        to_air = box.sink_to_air_k_per_w * (1.0 if fan else FAN_DEAD_FACTOR)
        steps = max(1, math.ceil(span_s / STEP_S))
        step_s = span_s / steps
        die_c, sink_c, highest_c = self.die_c, self.sink_c, self.die_c
        for _ in range(steps):
            flow_w = (die_c - sink_c) / box.die_to_sink_k_per_w
            die_c += (power_w - flow_w) * step_s / box.die_j_per_k
            sink_c += (flow_w - (sink_c - air_c) / to_air) * step_s / box.sink_j_per_k
            highest_c = max(highest_c, die_c)
        self.die_c, self.sink_c = die_c, sink_c
        return highest_c
