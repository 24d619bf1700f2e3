"""How hard may we run? One power cap a second, and the pace that obeys it.

Three layers, each simpler than the one above it and right without it:

1. **The law** holds the die at `die_target_c`: a proportional-integral power cap, the form of Linux' power_allocator,
   P = I + k (T_set - T), with k such that the cap begins to fall BAND_C below the target at the latest. No wind-up: I
   stays between idle and full power, does not grow while the cap cannot follow, and loses what the guard cuts off.
2. **The guard** (`agent.core.thermal_guard`) bounds the cap so that the die provably stays under `die_limit_c`, for
   any air, any fan, and any tuning of the law.
3. **The watchdog** (`agent.core.thermal_watch`) stops the work when what the proof takes for granted does not hold.

The cap moves in steps, a thirteenth of the range (4 W of 8..60 W), and rises only when it has stood for 5 s: noise
would move it 40 times a minute otherwise. A falling cap acts at once. Without a temperature for 2 s the cap is idle.

**Where power is not measured** (a laptop's hwmon) a cap in watts cannot be checked, and a bound of the flow cannot be
had: the proof does not cover such a computer. There the same law sets the *duty*, the share of time that is computed,
from temperature alone: `cap_w` is then what that duty would draw on a linear scale, and in place of the guard stands a
straight line from full duty at the target to none at the limit. What is left to go wrong (a die faster than the
readings) is the platform's own throttle's. Duty cycling costs 6 to 20 % of the work against a real power limit,
since work is concave in power, and its period must stay short: 0.3 K of ripple at 1 s, 3 K at 10 s, 19 K at 300 s.

**Looking ahead**: `forecast_c` says how warm the die gets over the length of a slice or a lease if it is run at the
present cap, from the temperature of the sink as far as it can be told, and its slope.
"""

from __future__ import annotations

import math

import msgspec

from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.thermal_guard import IDLE_AFTER_S, Flow, guard_w, slow_rate_per_s
from agent.core.thermal_watch import Seen, Watch

STEPS = 13
"""The cap has so many steps between idle and full power."""
HOLD_MS = 5_000
"""So long a cap must have stood before it may rise."""
BAND_C = 13.0
"""So far below the target full power is asked for, whatever the integral says."""
INTEGRAL_S = 90.0
SMOOTH_S = 5.0
"""The temperature that starts are judged by is filtered with this time constant: one warm reading is noise."""
SINK_FAST_S, SINK_SLOW_S = 5.0, 20.0
"""The slope of the sink is the difference of two filters: 0.5 K of noise in a reading is 0.01 K/s in the slope."""
PACE_STEP_PERMILLE = 50
"""Paces are rounded down to this, so that noise does not become a message to the worker each second."""
PERIOD_MAX_MS, MEASURED_PERIOD_MAX_MS = 5_000, 1_000
"""A pace whose work and rest take longer than this together is a pause: the die would swing with it. Where power is
measured, the guard takes for granted besides that from one reading to the next the mean power is under the cap."""
DIE_MIN_C, DIE_MAX_C, POWER_MAX_W = -60.0, 200.0, 100_000.0
"""What a reading beyond these says is that its sensor is broken: it counts as none."""
HORIZON_MAX_S = 60.0
"""Beyond this the law has acted long since, and a straight line says nothing."""


def plausible(seen: ComputeSeen) -> ComputeSeen:
    """The reading without what no working sensor says (beyond the limits above, not a number): that counts as none."""
    die_c = seen.die_c if seen.die_c is not None and DIE_MIN_C <= seen.die_c <= DIE_MAX_C else None
    power_w = seen.power_w if seen.power_w is not None and 0 <= seen.power_w <= POWER_MAX_W else None
    if die_c is seen.die_c and power_w is seen.power_w:
        return seen
    return msgspec.structs.replace(seen, die_c=die_c, power_w=power_w)


class Heat(msgspec.Struct, frozen=True):
    """What the thermal law remembers from one reading to the next.

    `cap_w` is the power cap (W); `problem` the code of what the watchdog stops the work for, empty when there is
    nothing. `die_c` is the last believable reading, taken at `die_ms`; `smooth_c` the same, filtered.
    """

    cap_w: float = 0.0
    problem: str = ""
    die_c: float | None = None
    die_ms: int = 0
    smooth_c: float = 0.0
    seen_ms: int | None = None
    flow: Flow = Flow()
    integral_w: float = 0.0
    cap_before_w: float = 0.0
    cap_since_ms: int = 0
    sink_fast_c: float = 0.0
    sink_slow_c: float = 0.0
    watch: Watch = Watch()

    @property
    def measured(self) -> bool:
        """Whether this computer's power is measured, or ought to be, so that a cap can be checked."""
        return self.watch.power_ms is not None

    def seen(self, event: ComputeSeen, policy: Policy, *, working: bool = False) -> Heat:
        """The law after one more reading; `working` says whether our own work runs, which the cap is for."""
        event = plausible(event)
        die_c, power_w = event.die_c, event.power_w
        span_s = IDLE_AFTER_S if self.seen_ms is None else max(0, event.at_ms - self.seen_ms) / 1000
        flow = self.flow.after(power_w, span_s, event.power_error_share, policy)
        seen = Seen(
            at_ms=event.at_ms,
            die_c=die_c,
            power_w=power_w,
            error_c=event.die_error_c,
            cap_w=max(self.cap_w, self.cap_before_w, policy.power_idle_w),
            span_s=span_s,
            promised=event.power_promised,
            flow=flow,
            throttled=event.throttled,
            working=working,
        )
        watch = self.watch.after(seen, policy)
        heat = msgspec.structs.replace(self, seen_ms=event.at_ms, flow=flow, watch=watch, problem=watch.problem)
        return heat.waited(event.at_ms, policy) if die_c is None else heat._warmed(die_c, event, policy)  # noqa: SLF001 - its own class

    def waited(self, now_ms: int, policy: Policy) -> Heat:
        """The law at `now_ms` with nothing new: a temperature that has grown old is answered with the idle cap."""
        if self.cap_w <= policy.power_idle_w or now_ms <= self.late_ms:
            return self
        return msgspec.structs.replace(self, cap_w=policy.power_idle_w, cap_before_w=self.cap_w, cap_since_ms=now_ms)

    @property
    def late_ms(self) -> int:
        """After this the last temperature is too old to run on."""
        return self.die_ms + round(IDLE_AFTER_S * 1000)

    def forecast_c(self, horizon_s: float, policy: Policy) -> float | None:
        """The die in `horizon_s` seconds if work runs at the present cap until then; None without a temperature."""
        if self.die_c is None:
            return None
        horizon_s = min(horizon_s, HORIZON_MAX_S)
        slope = (self.sink_fast_c - self.sink_slow_c) / (SINK_SLOW_S - SINK_FAST_S)
        sink_c = self.sink_fast_c + slope * (SINK_FAST_S + horizon_s)
        if not self.measured:
            return sink_c
        flow_w = (self.flow.low_w + self.flow.high_w) / 2
        settled = 1 - math.exp(-slow_rate_per_s(policy) * horizon_s)
        return sink_c + _resistance(policy) * (flow_w + (self.cap_w - flow_w) * settled)

    def _warmed(self, die_c: float, event: ComputeSeen, policy: Policy) -> Heat:
        """The law after a believable temperature."""
        fresh = self.die_c is None or event.at_ms > self.late_ms
        span_s = IDLE_AFTER_S if fresh else max(0, event.at_ms - self.die_ms) / 1000
        ceiling_w = self._ceiling_w(die_c, span_s, event, policy)
        smooth_c = die_c if fresh else _filtered(self.smooth_c, die_c, span_s / SMOOTH_S)
        law_w, integral_w = self._law(smooth_c, 0.0 if fresh else span_s, ceiling_w, policy)
        flow_w = (self.flow.low_w + self.flow.high_w) / 2 if self.measured else 0.0
        sink_c = die_c - _resistance(policy) * flow_w
        cap_w = self._next_cap_w(law_w, ceiling_w, event.at_ms, policy)
        moved = cap_w != self.cap_w
        return msgspec.structs.replace(
            self,
            cap_w=cap_w,
            cap_before_w=self.cap_w,
            cap_since_ms=event.at_ms if moved else self.cap_since_ms,
            die_c=die_c,
            die_ms=event.at_ms,
            smooth_c=smooth_c,
            integral_w=integral_w,
            sink_fast_c=sink_c if fresh else _filtered(self.sink_fast_c, sink_c, span_s / SINK_FAST_S),
            sink_slow_c=sink_c if fresh else _filtered(self.sink_slow_c, sink_c, span_s / SINK_SLOW_S),
        )

    def _ceiling_w(self, die_c: float, span_s: float, event: ComputeSeen, policy: Policy) -> float:
        """What the law may at most ask for: the guard's word, or the straight line where power is not measured."""
        if self.measured:
            error_c, error_share = event.die_error_c, event.power_error_share
            safe_w = guard_w(die_c, self.flow.low_w, error_c, error_share, span_s, policy=policy)
            return min(policy.power_max_w, safe_w)
        line = (policy.die_limit_c - event.die_error_c - die_c) / max(policy.die_limit_c - policy.die_target_c, 1.0)
        return policy.power_idle_w + _range_w(policy) * min(1.0, max(0.0, line))

    def _law(self, die_c: float, span_s: float, ceiling_w: float, policy: Policy) -> tuple[float, float]:
        """(what the law asks for, its integral): proportional-integral about the target, without wind-up."""
        gain = _range_w(policy) / BAND_C
        error_c = policy.die_target_c - die_c
        law_w = max(self.integral_w, policy.power_idle_w) + gain * error_c
        grows = law_w < ceiling_w or error_c < 0
        integral_w = self.integral_w + (gain * error_c * span_s / INTEGRAL_S if grows else 0.0)
        if ceiling_w < policy.power_max_w:
            integral_w -= max(0.0, law_w - ceiling_w)
        return law_w, min(policy.power_max_w, max(policy.power_idle_w, integral_w))

    def _next_cap_w(self, law_w: float, ceiling_w: float, now_ms: int, policy: Policy) -> float:
        """The next cap: down at once, up when the last has stood for a while, in whole steps."""
        step_w = _range_w(policy) / STEPS
        steps = math.floor((min(law_w, ceiling_w) - policy.power_idle_w) / step_w + 1e-9)
        level_w = policy.power_idle_w + step_w * max(0, steps)
        falls = ceiling_w < self.cap_w - 1e-9 or law_w < self.cap_w - step_w / 2
        rises = level_w > self.cap_w and now_ms - self.cap_since_ms >= HOLD_MS
        first = self.cap_w <= 0
        return level_w if falls or rises or first else self.cap_w


def duty_permille(cap_w: float, policy: Policy, micro_batch_ms: float = 0.0, *, measured: bool = False) -> int:
    """The share of time, in thousandths, for which a worker may compute so that the mean stays under the cap.

    0 is a pause: also for a share so small that rest and micro-batch would take too long together, 5 s or, where power
    is `measured`, 1 s.
    """
    share = (cap_w - policy.power_idle_w) / _range_w(policy)
    duty = int(min(1.0, max(0.0, share)) * 1000 / PACE_STEP_PERMILLE + 1e-6) * PACE_STEP_PERMILLE
    longest_ms = MEASURED_PERIOD_MAX_MS if measured else PERIOD_MAX_MS
    return duty if duty == 1000 or duty * longest_ms >= micro_batch_ms * 1000 else 0


def _range_w(policy: Policy) -> float:
    return max(policy.power_max_w - policy.power_idle_w, 1e-9)


def _resistance(policy: Policy) -> float:
    return (policy.die_to_sink_min_k_per_w + policy.die_to_sink_max_k_per_w) / 2


def _filtered(was: float, now: float, spans: float) -> float:
    """A first-order low pass over `spans` time constants."""
    return was + (now - was) * (1 - math.exp(-spans))
