"""The car is never harmed: reserve, departure, die and low-voltage battery, held against what is true.

Where nobody tells the truth (a recorded night), the event stream's own last word stands for it. The thresholds are the
policy's; how a gate comes to its decision is not looked at.
"""

from __future__ import annotations

from agent.core import signals
from agent.core.events import ComputeSeen, EventType, Quality, SignalsSeen
from agent.core.policy import Policy
from agent.simulate.truth import Broken, Promise, Truth
from agent.simulate.work import Work

DEPARTURE_PERCENT = 0.5
"""So little less charge at a departure is within what a battery tells of itself."""
OBEYS_SHARE = 1.2
DISOBEYED_MS = 6_000
DISOBEYED_C = 6.0
"""A computer that draws a fifth more than its pace allows breaks the guard's assumption: until the watchdog has ended
the work (3 s of it, 2 readings), the die may pass its limit by what that power heats it: 1 K/s at most."""
SAG_V = {"lead": 12.4, "lithium": 14.8}
"""Below this the low-voltage battery is being used up: never for longer than `SAG_MS` while the work goes on."""
EMPTY_V = {"lead": 11.8, "lithium": 14.4}
"""Below this it is nearly empty: the work stops at once."""
SAG_MS = 300_000
EMPTY_MS = 5_000


class Limits:
    """Watches the car's batteries and the computer's die."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._charge: float | None = None
        self._charge_ms = 0
        self._low_voltage: float | None = None
        self._die: ComputeSeen | None = None
        self._hot_readings = 0
        self._disobeyed_ms: int | None = None
        self._sagging_ms: int | None = None
        self._empty_ms: int | None = None
        self._low = True
        """The charge came down to where work stops, and has not yet risen to where it may begin."""
        self._told: set[str] = set()

    def happened(self, event: EventType, work: Work) -> None:
        """Take note of what the sensors say."""
        match event:
            case SignalsSeen():
                for sample in event.samples:
                    if sample.path == signals.CHARGE:
                        self._charge, self._charge_ms = _number(sample.value, sample.quality), event.at_ms
                    elif sample.path == signals.LOW_VOLTAGE:
                        self._low_voltage = _number(sample.value, sample.quality)
            case ComputeSeen():
                self._die = event
                above = event.die_c is not None and event.die_c > self._policy.die_limit_c
                self._hot_readings = self._hot_readings + 1 if above else 0
                if self._disobeys(event, work):
                    self._disobeyed_ms = event.at_ms
            case _:
                pass

    def saw(self, truth: Truth, now_ms: int, work: Work, broken: list[Broken]) -> None:
        """Check one step. Each kind of breach is told once, until it is over."""
        running = work.running
        self._reserve(truth, now_ms, work, broken)
        self._heat(truth, now_ms, broken, running=running)
        self._twelve_volts(truth, now_ms, broken, running=running)
        wanted, without = truth.ready_by_percent, truth.charge_without_us_percent
        charge = truth.charge_percent
        if wanted is not None and without is not None and charge is not None:
            possible = without >= wanted
            if possible and charge < wanted - DEPARTURE_PERCENT:
                detail = f"{charge:.2f} % at the departure, {without:.2f} % without us, {wanted:.2f} % wanted"
                broken.append(Broken(Promise.READY_BY, now_ms, detail))

    def _tell(self, kind: str, name: Promise, now_ms: int, detail: str, broken: list[Broken], *, true: bool) -> None:
        if not true:
            self._told.discard(kind)
        elif kind not in self._told:
            self._told.add(kind)
            broken.append(Broken(name, now_ms, detail))

    def _reserve(self, truth: Truth, now_ms: int, work: Work, broken: list[Broken]) -> None:
        policy, said = self._policy, self._charge
        charge = said if truth.charge_percent is None else truth.charge_percent
        below = work.running and charge is not None and charge < policy.reserve_percent
        self._tell("reserve", Promise.RESERVE, now_ms, f"at work at {charge} %", broken, true=below)
        stops_at = policy.reserve_percent + policy.reserve_stop_margin_percent
        starts_at = policy.reserve_percent + policy.reserve_start_margin_percent
        if said is None or said <= stops_at:
            self._low = True
        elif said > starts_at:
            self._low = False
        at_floor = work.running and (said is None or said <= stops_at)
        self._tell("floor", Promise.RESERVE, now_ms, f"at work at {said} %, floor {stops_at} %", broken, true=at_floor)
        if self._low and work.started and not at_floor:
            detail = f"work begins at {said} %, between {stops_at} % and {starts_at} %"
            broken.append(Broken(Promise.FLAPPING, now_ms, detail))

    def _heat(self, truth: Truth, now_ms: int, broken: list[Broken], *, running: bool) -> None:
        limit_c = self._policy.die_limit_c
        disobeyed_ms = self._disobeyed_ms
        grace_c = DISOBEYED_C if disobeyed_ms is not None and now_ms - disobeyed_ms < DISOBEYED_MS else 0.0
        above = truth.die_c is not None and truth.die_c > limit_c + grace_c
        self._tell("die", Promise.DIE, now_ms, f"die at {truth.die_c} C, limit {limit_c} C", broken, true=above)
        read = running and self._hot_readings > 1
        self._tell("read", Promise.DIE, now_ms, "at work after two readings above the limit", broken, true=read)

    def _twelve_volts(self, truth: Truth, now_ms: int, broken: list[Broken], *, running: bool) -> None:
        chemistry = self._policy.low_voltage_chemistry
        volts = self._low_voltage if truth.low_voltage_v is None else truth.low_voltage_v
        sagging = running and volts is not None and volts < SAG_V[chemistry]
        empty = running and volts is not None and volts < EMPTY_V[chemistry]
        self._sagging_ms = (now_ms if self._sagging_ms is None else self._sagging_ms) if sagging else None
        self._empty_ms = (now_ms if self._empty_ms is None else self._empty_ms) if empty else None
        drained = (self._sagging_ms is not None and now_ms - self._sagging_ms > SAG_MS) or (
            self._empty_ms is not None and now_ms - self._empty_ms > EMPTY_MS
        )
        detail = f"at work on a low-voltage battery of {volts} V"
        self._tell("low_voltage", Promise.LOW_VOLTAGE, now_ms, detail, broken, true=drained)

    def _disobeys(self, event: ComputeSeen, work: Work) -> bool:
        if event.power_w is None:
            return False
        policy = self._policy
        allowed_w = policy.power_idle_w + (policy.power_max_w - policy.power_idle_w) * work.duty_permille / 1000
        return event.power_w > OBEYS_SHARE * allowed_w


def _number(value: object, quality: Quality) -> float | None:
    good = quality is Quality.GOOD and isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and isinstance(value, int | float) and 0 <= value <= 100 else None
