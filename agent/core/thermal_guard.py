"""The guard: the highest power after which the die provably stays under its limit until the next word can count.

Two nodes, die (1) and heatsink (2); P is the computer's power, q the heat that flows from die to sink, q_air from the
sink to the air, everything in W, K, J:

    C1 T1' = P - q      C2 T2' = q - q_air      q = (T1 - T2) / R12

Air and fan are unknown, and so is T2. What is known, from a step test (`agent.core.commissioning`):
R12 in [Rmin, Rmax], C1 in [C1min, C1max], C2 >= C2min.

**Assumptions.**

    A1  The plant is the one above, with its constants within the bounds.
    A2  A temperature reading m is within e of T1 (`die_error_c`: offset, noise and quantisation together).
    A3  From D after a cap was set, D being the spacing of readings, the power is at most cap * (1 + s); it is never
        above P_max * (1 + s). s is the power sensor's `power_error_share`: better than that nobody can check. Work at a
        pace is at full power in turns: at most the cap is then its mean over a period, which is 1 s at most where power
        is measured (`agent.core.thermal`), and the die swings about it by 0.3 K.
    A4  A power reading is the mean since the reading before it, or between two readings the power is not below the
        lower of them; either within s. (The second holds for an idle computer and for one at full power, not for one at
        a pace. So a sensor that shows only the moment is sampled, `agent.telemetry.sampling`, and its reading is the
        first, but for chance: as likely below as above, and dying out in the flow, which takes the lower of two.)
    A5  q_air >= -P_idle and q <= P_max (1 + s): the air gives the sink at most an idle computer's heat, and the die at
        most its own. What idles is warmer than its air. (A cold sink in hot air breaks the first until it has warmed
        up. As long as T2 <= T_lim - Rmax P_max (1 + s) any power is safe; so nothing is lost where the hottest air or
        coolant lies below that: 75 C for 60 W and 0.33 K/W, 72 C for 350 W and 0.065 K/W, but no such room for 350 W
        and 0.33 K/W. `agent.policy_check` looks at that. The error that is left in the flow then dies out with the
        die's time constant on the way up. A hot sink in a cold gale breaks the second while it falls.)
    A6  Idle is safe: T2 + R12 P_idle (1 + s) <= T_lim, at any time.
    A7  At the first reading T1 <= T_lim, and no heat flows from the sink into the die: q >= 0.

**Step 1: a lower bound of the flow.** From the plant and A5, with w = P_idle,

    R12 q' = (P - q)/C1 - (q - q_air)/C2  >=  g(q) = (P - q)/C1 - (q + w)/C2min

Let q* = (C2min P - C1max w) / (C1max + C2min), where (P - q*)/C1max = (q* + w)/C2min; -w <= q* <= P.
Below q*, P > q, so g(q) is least for C1max: g(q) >= (q* - q)(1/C1max + 1/C2min) > 0, and q' >= that over Rmax: q rises
at least with the *slow* rate (1/C1max + 1/C2min)/Rmax towards q*. Above q*, g(q) >= -(q - q*)(1/C1min + 1/C2min)
(between q* and P since C1max >= C1min; above P since (q* + w)/C2min = (P - q*)/C1max <= (P - q*)/C1min), and q' >= that
over Rmin: q falls at most with the *fast* rate (1/C1min + 1/C2min)/Rmin. `Flow.low_w` follows q* with exactly these two
rates, each P taken from A4 at its lowest. So where low equals q, low' <= q'; it starts at 0 <= q (A7); by the
comparison theorem for scalar equations low <= q for ever. (The usual sketch takes the lower of a fast and a slow
low-pass filter instead. That is no bound: after high, low, high power a filter between the two lies below both.)

**Step 2: one word.** At reading k let p be the power that is drawn until the next word counts, at most H = 2 s + D
later (the next reading, or after 2 s without one the idle cap; either has D to be obeyed). Until then the sink rises by
at most `rise` = H (P_max (1 + s) + P_idle) / C2min, since T2' <= (q - q_air)/C2. The die relaxes towards
T2(t) + R12 P(t): T1' = (T2 + R12 P - T1) / (R12 C1), so it stays below the larger of T1(k) and what that ever is. With
T2(k) = T1(k) - R12 q(k) and step 1,

    T2(t) + R12 P(t) <= m + e + rise + R12 (p - low)

which is at most T_lim for every R12 in its bounds when, with `room` = T_lim - e - rise - m,

    p <= low + room / (Rmax if room >= 0 else Rmin).

**Conclusion, by induction.** T1 <= T_lim at reading 0 (A7). If T1 <= T_lim at reading k, and the power from k until the
next word counts is at most max(P_idle, that p), then T1 is, until then, a convex combination of a value <= T_lim and
targets <= T_lim (step 2, or A6 where idle is all that is left). While a lower cap is not obeyed yet, the older one is
in force, and that one was shown safe for all of H. So T1 <= T_lim at reading k + 1 and always. Ambient, fan, soak and
the performance law do not appear: they only move T2 and P.

**When an assumption fails.** A1 (worn paste, a lost sink) and A2 (a lying sensor): `agent.core.thermal_watch` stops
work on two readings above the limit, and on a reading that does not move while the flow does. A3: it stops work when
the power stays above the cap. No reading: idle after 2 s, a stop after 3 s. A4: what a mean of a swinging power hides
is of second order, rate * D / 8 of the swing in the flow (0.4 K at 1 s for a swing of 50 W), less than what A5 keeps in
hand while the sink is hotter than its air. A6: the cap is idle and the die still climbs: two readings above the limit.
Behind all of it stand the platform's own throttle (99 C) and trip (104.5 C).
"""

from __future__ import annotations

import math

import msgspec

from agent.core.policy import Policy

IDLE_AFTER_S = 2.0
"""A temperature older than this is answered with the idle cap."""


class Flow(msgspec.Struct, frozen=True):
    """Bounds of the heat (W) that flows from the die into the sink; `power_w` is the last reading's."""

    low_w: float = 0.0
    high_w: float = 0.0
    power_w: float | None = None

    def after(self, power_w: float | None, span_s: float, error_share: float, policy: Policy) -> Flow:
        """The bounds `span_s` seconds later; a power that was not measured counts as anything from nothing to full."""
        before_w = self.power_w if span_s <= IDLE_AFTER_S else None
        if power_w is None or before_w is None:
            lowest_w, high_w = 0.0, policy.power_max_w * (1 + error_share)
        else:
            lowest_w = min(power_w, before_w) * (1 - error_share)
            high_w = _upper_flow_w(self.high_w, max(power_w, before_w) * (1 + error_share), span_s, policy)
        low_w = _lower_flow_w(self.low_w, lowest_w, span_s, policy)
        return Flow(low_w, high_w, power_w)


def guard_w(
    die_c: float, flow_low_w: float, error_c: float, error_share: float, span_s: float, *, policy: Policy
) -> float:
    """The highest cap (W) that is safe after a reading of `die_c`, `span_s` seconds after the one before it."""
    held_s = IDLE_AFTER_S + min(span_s, IDLE_AFTER_S)
    rise_k = held_s * (policy.power_max_w * (1 + error_share) + policy.power_idle_w) / policy.sink_min_j_per_k
    room_k = policy.die_limit_c - error_c - rise_k - die_c
    resistance = policy.die_to_sink_max_k_per_w if room_k >= 0 else policy.die_to_sink_min_k_per_w
    return max(policy.power_idle_w, (flow_low_w + room_k / resistance) / (1 + error_share))


def slow_rate_per_s(policy: Policy) -> float:
    """The slowest that a flow can rise towards its balance."""
    return (1 / policy.die_max_j_per_k + 1 / policy.sink_min_j_per_k) / policy.die_to_sink_max_k_per_w


def fast_rate_per_s(policy: Policy) -> float:
    """The fastest that a flow can fall towards its balance."""
    return (1 / policy.die_min_j_per_k + 1 / policy.sink_min_j_per_k) / policy.die_to_sink_min_k_per_w


def _lower_flow_w(flow_w: float, power_w: float, span_s: float, policy: Policy) -> float:
    die, sink = policy.die_max_j_per_k, policy.sink_min_j_per_k
    balance_w = (sink * power_w - die * policy.power_idle_w) / (die + sink)
    rate = slow_rate_per_s(policy) if flow_w < balance_w else fast_rate_per_s(policy)
    return balance_w + (flow_w - balance_w) * math.exp(-rate * span_s)


def _upper_flow_w(flow_w: float, power_w: float, span_s: float, policy: Policy) -> float:
    """For the watchdog: as fast up and as slowly down as can be, with a sink that takes everything."""
    slow = 1 / (policy.die_max_j_per_k * policy.die_to_sink_max_k_per_w)
    rate = fast_rate_per_s(policy) if flow_w < power_w else slow
    return power_w + (flow_w - power_w) * math.exp(-rate * span_s)
