"""The watchdog behind the thermal law: what the law's proof takes for granted is looked at, and work stops if it fails.

    die_above_limit      two readings in a row above the limit, whatever the proof says
    power_not_obeyed     with work running, mean power above the mean cap by a fifth for 3 s: the cap has no effect
    power_missing        power was measured before, or its reader promises it, and for 3 s there was none: nobody can
                         see whether the cap is obeyed
    temperature_frozen   the reading has not moved by a digit, although the flow of heat did by far more than its error

(The age of the reading itself is judged by the gate's look, since age comes without news.) Each has a way back: a
reading under the limit, power measured again, a reading that moves. A cap that was not obeyed is believed again after
a rest, unless our work still runs above what was allowed; what the computer draws without our work says nothing about
obedience. The rest doubles each time within an hour, so that a broken actuator makes the computer stop and go ever more
rarely instead of every few seconds.

Work at a pace is full power and idle in turns, so a single reading says little of obedience, even one that is the mean
of half a second: power and cap go through the same low-pass, which lasts longer than a pace's period (1 s at most).
What never draws more than its cap is so never above it after the filter either.

A platform that holds the clocks down (`throttled`) is no danger but a sign that it is hotter than we think: work on
hold until some time after the last sign of it.
"""

from __future__ import annotations

import math

import msgspec

from agent.core.policy import Policy
from agent.core.thermal_guard import Flow

REPLACE = msgspec.structs.replace
HOT_READINGS = 2
OBEYS_SHARE = 1.2
OBEYS_MARGIN_W = 1.0
"""What other software on the computer may come to."""
OBEDIENCE_S = 2.0
"""Time constant of that low-pass."""
PATIENCE_MS = 3_000
"""Power must follow a cap within a second; seen above it for so long, it did not."""
REST_MS = 60_000
REST_MAX_MS = 3_600_000
REMEMBERED_MS = 3_600_000
THROTTLE_REST_MS = 30_000
STILL_MS = 120_000
"""The flow is compared over at most this: over hours, a law that holds the target makes a still reading of its own."""
SINK_DRIFT_K = 3.0
"""The sink may drift so far against the die while the flow changes, and hide the change in the reading."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One reading as the watchdog gets it, `span_s` after the one before.

    `cap_w` is the highest cap that the power may still follow; `promised`: the reader says that it measures power.
    """

    at_ms: int
    die_c: float | None
    power_w: float | None
    error_c: float
    cap_w: float
    span_s: float
    promised: bool
    flow: Flow
    throttled: bool
    working: bool


class Watch(msgspec.Struct, frozen=True):
    """What the watchdog remembers. `problem` is the code of what stops the work, empty when nothing does.

    `power_ms` is when power was last measured; until it first is, when it was first promised. `mean_w` and
    `mean_cap_w` are the filtered power and cap; none while our work does not run.
    """

    problem: str = ""
    hot_readings: int = 0
    mean_w: float | None = None
    mean_cap_w: float = 0.0
    over_since_ms: int | None = None
    allowed_w: float = 0.0
    rests_until_ms: int = 0
    rests: int = 0
    power_ms: int | None = None
    still_c: float | None = None
    still: Flow = Flow()
    still_ms: int = 0
    frozen: bool = False
    throttled_until_ms: int = 0

    def after(self, seen: Seen, policy: Policy) -> Watch:
        """The watchdog after one more reading."""
        watch = _motion(_obedience(_heat(self, seen, policy), seen), seen, policy)
        throttled_until_ms = seen.at_ms + THROTTLE_REST_MS if seen.throttled else watch.throttled_until_ms
        return REPLACE(watch, problem=_named(watch, seen), throttled_until_ms=throttled_until_ms)


def _named(watch: Watch, seen: Seen) -> str:
    """What is wrong, worst first."""
    if watch.hot_readings >= HOT_READINGS:
        return "die_above_limit"
    if watch.allowed_w > 0:
        return "power_not_obeyed"
    if watch.power_ms is not None and seen.at_ms - watch.power_ms > PATIENCE_MS:
        return "power_missing"
    return "temperature_frozen" if watch.frozen else ""


def _heat(watch: Watch, seen: Seen, policy: Policy) -> Watch:
    if seen.die_c is None:
        return watch
    hot = seen.die_c > policy.die_limit_c
    return REPLACE(watch, hot_readings=min(watch.hot_readings + 1, HOT_READINGS) if hot else 0)


def _obedience(watch: Watch, seen: Seen) -> Watch:
    """Whether the power follows the cap; `allowed_w` is what was exceeded, while that is held against it."""
    if seen.power_w is None:
        return REPLACE(watch, power_ms=seen.at_ms) if seen.promised and watch.power_ms is None else watch
    watch = _averaged(REPLACE(watch, power_ms=seen.at_ms), seen, seen.power_w)
    if watch.allowed_w > 0:
        over = seen.at_ms < watch.rests_until_ms or (seen.working and seen.power_w > watch.allowed_w)
        return watch if over else REPLACE(watch, allowed_w=0.0, over_since_ms=None)
    allowed_w = OBEYS_SHARE * watch.mean_cap_w + OBEYS_MARGIN_W
    if watch.mean_w is None or watch.mean_w <= allowed_w:
        return REPLACE(watch, over_since_ms=None)
    since_ms = seen.at_ms if watch.over_since_ms is None else watch.over_since_ms
    if seen.at_ms - since_ms < PATIENCE_MS:
        return REPLACE(watch, over_since_ms=since_ms)
    recent = watch.rests > 0 and seen.at_ms - watch.rests_until_ms < REMEMBERED_MS
    rests = watch.rests + 1 if recent else 1
    until_ms = seen.at_ms + min(REST_MS * 2 ** (rests - 1), REST_MAX_MS)
    return REPLACE(watch, allowed_w=allowed_w, rests_until_ms=until_ms, rests=min(rests, 10))


def _averaged(watch: Watch, seen: Seen, power_w: float) -> Watch:
    """Power and cap after the low-pass; it begins with our work."""
    if not seen.working:
        return REPLACE(watch, mean_w=None)
    if watch.mean_w is None:
        return REPLACE(watch, mean_w=power_w, mean_cap_w=seen.cap_w)
    weight = 1 - math.exp(-seen.span_s / OBEDIENCE_S)
    mean_w = watch.mean_w + weight * (power_w - watch.mean_w)
    mean_cap_w = watch.mean_cap_w + weight * (seen.cap_w - watch.mean_cap_w)
    return REPLACE(watch, mean_w=mean_w, mean_cap_w=mean_cap_w)


def _motion(watch: Watch, seen: Seen, policy: Policy) -> Watch:
    """Whether the reading moves when the heat does, since it changed last or since a while ago."""
    if seen.die_c is None or seen.power_w is None:
        return watch
    if seen.die_c != watch.still_c:
        return REPLACE(watch, still_c=seen.die_c, still=seen.flow, still_ms=seen.at_ms, frozen=False)
    if seen.at_ms - watch.still_ms > STILL_MS:
        return REPLACE(watch, still=seen.flow, still_ms=seen.at_ms)
    moved_w = max(seen.flow.low_w - watch.still.high_w, watch.still.low_w - seen.flow.high_w)
    hidden_k = 2 * seen.error_c + SINK_DRIFT_K
    frozen = watch.frozen or moved_w * policy.die_to_sink_min_k_per_w > hidden_k
    return REPLACE(watch, frozen=frozen)
