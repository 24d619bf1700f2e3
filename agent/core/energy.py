"""What the work drew and what that cost, and how both batteries fare: everything measured, integrated over time.

What is signed (energy in micro-watt-hours, payment in millionths of the currency) is whole; costs are for people.

The cost of a span of time is

    cost = (E + O) * (price / charge_efficiency + wear)

    E     what the computer drew
    O     awake_overhead_w for the time of a lease, unless the car charges and so is awake anyway
    price at the plug, at that time; unplugged, what is taken out now is bought again at about the same price
    wear  of the traction battery, where the energy comes out of it: unplugged

so it is all that the owner pays more than for a car that sleeps, as far as the policy's constants are right.

Sources send a value again only when it changes. So every filter here holds its last value until the next comes (zero
order hold) and is worked out for the moment at which it is asked, in whole seconds: a silent car and a talkative one
that say the same give the same answers.
"""

from __future__ import annotations

import math

import msgspec

from agent.core import signals
from agent.core.events import ComputeSeen
from agent.core.policy import Policy
from agent.core.signals import Vehicle

MS_PER_HOUR = 3_600_000
LONGEST_GAP_MS = 5_000
"""Readings further apart than this say nothing about the time between them: that time is counted as unmeasured."""
MILLIJOULES_PER_MICRO_WH = 3.6


class Rate(msgspec.Struct, frozen=True):
    """What a kWh costs the owner now (millionths of the currency), all in; and how many watts beside the computer's."""

    micro_per_kwh: float = 0.0
    overhead_w: float = 0.0

    @classmethod
    def of(cls, policy: Policy, price_micro_per_kwh: int, *, plugged: bool, overhead: bool) -> Rate:
        """The rate at a price at the plug; see the module's docstring."""
        wear = 0.0 if plugged else float(policy.wear_micro_per_kwh)
        overhead_w = policy.awake_overhead_w if overhead else 0.0
        return cls(price_micro_per_kwh / policy.charge_efficiency + wear, overhead_w)


class Meter(msgspec.Struct, frozen=True):
    """The energy of the computer and its cost: the sensor's own counter, else the trapezoid rule over its readings."""

    last_ms: int | None = None
    last_w: float | None = None
    total_micro_wh: float = 0.0
    unmeasured_ms: int = 0
    cost_micro: float = 0.0
    last_mj: int | None = None

    def read(self, seen: ComputeSeen, rate: Rate | None = None) -> Meter:
        """The meter after one more reading; a missing reading adds time that was not measured, not zero energy.

        The span since the last reading is charged at `rate`, which is that of its end.
        """
        if self.last_ms is None:
            return msgspec.structs.replace(self, last_ms=seen.at_ms, last_w=seen.power_w, last_mj=seen.energy_mj)
        span_ms = max(0, seen.at_ms - self.last_ms)
        spent_micro_wh = self._spent_micro_wh(seen, span_ms)
        unmeasured_ms = self.unmeasured_ms + (span_ms if spent_micro_wh is None else 0)
        cost_micro = self.cost_micro
        if rate is not None and span_ms <= LONGEST_GAP_MS:
            cost_micro += rate.overhead_w * span_ms / MS_PER_HOUR * rate.micro_per_kwh / 1e3
        if rate is not None and spent_micro_wh is not None:
            cost_micro += spent_micro_wh * rate.micro_per_kwh / 1e9
        total_micro_wh = self.total_micro_wh + (spent_micro_wh or 0.0)
        return Meter(seen.at_ms, seen.power_w, total_micro_wh, unmeasured_ms, cost_micro, seen.energy_mj)

    def _spent_micro_wh(self, seen: ComputeSeen, span_ms: int) -> float | None:
        """The energy since the last reading; None where it was not measured. A counter that went back began anew."""
        if self.last_mj is not None and seen.energy_mj is not None and seen.energy_mj >= self.last_mj:
            return (seen.energy_mj - self.last_mj) / MILLIJOULES_PER_MICRO_WH
        if self.last_w is None or seen.power_w is None or span_ms > LONGEST_GAP_MS:
            return None
        return (self.last_w + seen.power_w) / 2 * span_ms / MS_PER_HOUR * 1e6


# --- the batteries ------------------------------------------------------------------------------------------------

STEP_MS = 1_000
"""Filters are worked out in steps of this, counted from the last change of their value."""
PACK_FILTER_S = 60.0
LOW_VOLTAGE_FILTER_S = 45.0
"""openpilot's time constant: long enough for a window motor, short enough for an empty battery."""
SETTLED = 8
"""After so many time constants a filter has reached its value."""
RECHARGE_CREDIT_W = 45.0
"""What a DC-DC converter that holds the battery up is taken to give back at least, as openpilot does."""


class LowPass(msgspec.Struct, frozen=True):
    """A first-order low-pass over a value that holds until the next: `filtered` is its output at `at_ms`."""

    value: float
    filtered: float
    at_ms: int
    tau_s: float

    def seen(self, value: float, at_ms: int) -> LowPass:
        """The filter after one more value; the same value again changes nothing."""
        if value == self.value:
            return self
        return LowPass(value, self._at(at_ms), at_ms, self.tau_s)

    def at(self, now_ms: int) -> float:
        """The output at `now_ms`, to the second."""
        return self._at(now_ms - (now_ms - self.at_ms) % STEP_MS)

    def next_ms(self, now_ms: int) -> int:
        """When the output changes next."""
        return now_ms - (now_ms - self.at_ms) % STEP_MS + STEP_MS

    def will_cross(self, limit: float, now_ms: int) -> bool:
        """Whether the output is on one side of the limit and on its way to the other."""
        return (self.at(now_ms) < limit) is not (self.value < limit)

    def _at(self, at_ms: int) -> float:
        constants = (at_ms - self.at_ms) / (self.tau_s * 1000)
        if constants >= SETTLED:
            return self.value
        return self.value + (self.filtered - self.value) * math.exp(-constants)


def _follow(before: LowPass | None, value: float | None, at_ms: int, tau_s: float) -> LowPass | None:
    if value is None:
        return before
    return LowPass(value, value, at_ms, tau_s) if before is None else before.seen(value, at_ms)


class LowVoltageLimits(msgspec.Struct, frozen=True):
    """Volts of a low-voltage battery: start at `run_v`; below `hold_v` for a while nothing new begins.

    A filtered voltage below `stop_v`, or any below `at_once_v`, ends the work.
    """

    run_v: float
    hold_v: float
    stop_v: float
    at_once_v: float


LOW_VOLTAGE_LIMITS = {
    "lead": LowVoltageLimits(13.2, 12.9, 12.4, 11.8),
    "lithium": LowVoltageLimits(15.2, 15.0, 14.8, 14.4),
}
"""13.2 V and 15.2 V show a DC-DC converter that feeds; 11.8 V is openpilot's; docs/policy.md says the rest."""


class LowVoltage(msgspec.Struct, frozen=True):
    """What the low-voltage battery did lately.

    `low_since_ms`: since when its voltage is below the threshold for new work. `taken_wh` is what the work took out of
    it and it has not been given back, at `taken_at_ms`, changing by `taken_w` since.
    """

    volts: LowPass | None = None
    amperes: LowPass | None = None
    low_since_ms: int | None = None
    taken_wh: float = 0.0
    taken_w: float = 0.0
    taken_at_ms: int = 0
    working: bool = False

    def seen(self, volts: float | None, amperes: float | None, limits: LowVoltageLimits, at_ms: int) -> LowVoltage:
        """The battery after a word on its voltage and its current (amperes, positive into it)."""
        low_since_ms = self.low_since_ms
        if volts is not None:
            low_since_ms = (at_ms if low_since_ms is None else low_since_ms) if volts < limits.hold_v else None
        filtered = _follow(self.volts, volts, at_ms, LOW_VOLTAGE_FILTER_S)
        current = _follow(self.amperes, amperes, at_ms, LOW_VOLTAGE_FILTER_S)
        if filtered is self.volts and current is self.amperes:
            return self
        seen = msgspec.structs.replace(self, volts=filtered, amperes=current, low_since_ms=low_since_ms)
        return _counted(seen, limits, at_ms)

    def works(self, limits: LowVoltageLimits, at_ms: int, *, working: bool) -> LowVoltage:
        """The battery when the computer begins or ends to work: only what the work takes is counted against it."""
        if working is self.working:
            return self
        return _counted(msgspec.structs.replace(self, working=working), limits, at_ms)

    def taken_wh_at(self, now_ms: int) -> float:
        """What the work has taken out and has not been given back."""
        return max(0.0, self.taken_wh + self.taken_w * (now_ms - self.taken_at_ms) / MS_PER_HOUR)


def _counted(battery: LowVoltage, limits: LowVoltageLimits, at_ms: int) -> LowVoltage:
    """What was taken until now, and at what power it goes on from here."""
    volts, amperes, taken_w = battery.volts, battery.amperes, 0.0
    if volts is not None:
        into_w = 0.0 if amperes is None else volts.value * amperes.value
        if into_w < 0:
            taken_w = -into_w if battery.working else 0.0
        else:
            taken_w = -max(into_w, RECHARGE_CREDIT_W if volts.value >= limits.run_v else 0.0)
    taken_wh = battery.taken_wh_at(at_ms)
    return msgspec.structs.replace(battery, taken_wh=taken_wh, taken_w=taken_w, taken_at_ms=at_ms)


class Battery(msgspec.Struct, frozen=True):
    """What the batteries did lately, as far as one reading does not tell.

    `pack` is the power into the traction battery (W), `charge` its charge (%), both filtered; `highest_percent` is the
    highest filtered charge since plug-in, `kept_percent` that of an earlier run until cable and charge are heard. A
    value that cannot be believed changes nothing here; the gates see to that.
    """

    pack: LowPass | None = None
    charge: LowPass | None = None
    highest_percent: float = 0.0
    kept_percent: float = 0.0
    plugged_since_ms: int | None = None
    low_voltage: LowVoltage = LowVoltage()

    def seen(self, vehicle: Vehicle, policy: Policy, at_ms: int) -> Battery:
        """The batteries after the car said something."""
        told = _Told(vehicle)
        plugged = told.truth(signals.CABLE)
        # With the plug the filter begins anew: the charge before the drive says nothing about the one after it.
        before = None if plugged and self.plugged_since_ms is None else self.charge
        charge = _follow(before, told.number(signals.CHARGE), at_ms, PACK_FILTER_S)
        charged = 0.0 if charge is None else charge.at(at_ms)
        since_ms = None if plugged is False else self.plugged_since_ms
        highest = 0.0 if since_ms is None else max(self.highest_percent, charged)
        if plugged and since_ms is None:
            since_ms, highest = at_ms, charged
        kept = 0.0 if plugged is False else self.kept_percent
        if kept and since_ms is not None and charge is not None:
            # It may have been driven since. It must charge again before it may drain again, and no more than that.
            highest, kept = max(highest, min(kept, charged + policy.net_drain_percent)), 0.0
        limits = LOW_VOLTAGE_LIMITS[policy.low_voltage_chemistry]
        volts, amperes = told.number(signals.LOW_VOLTAGE), told.number(signals.LOW_VOLTAGE_CURRENT)
        return Battery(
            pack=_follow(self.pack, told.number(signals.PACK_POWER), at_ms, PACK_FILTER_S),
            charge=charge,
            highest_percent=highest,
            kept_percent=kept,
            plugged_since_ms=since_ms,
            low_voltage=self.low_voltage.seen(volts, amperes, limits, at_ms),
        )

    def works(self, policy: Policy, at_ms: int, *, working: bool) -> Battery:
        """The batteries when the computer begins or ends to work."""
        if working is self.low_voltage.working:
            return self
        limits = LOW_VOLTAGE_LIMITS[policy.low_voltage_chemistry]
        return msgspec.structs.replace(self, low_voltage=self.low_voltage.works(limits, at_ms, working=working))

    def highest_at(self, now_ms: int) -> float:
        """The highest charge (percent) since plug-in."""
        return max(self.highest_percent, 0.0 if self.charge is None else self.charge.at(now_ms))


class _Told:
    """The newest words of the car that could be believed when they came."""

    def __init__(self, vehicle: Vehicle) -> None:
        self._vehicle = vehicle

    def number(self, path: str) -> float | None:
        value = self._vehicle.word(path)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def truth(self, path: str) -> bool | None:
        value = self._vehicle.word(path)
        return value if isinstance(value, bool) else None
