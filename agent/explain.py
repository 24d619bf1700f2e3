"""Reasons in plain words: what shuts the gate, in one sentence a driver or a technician understands.

One template a reason code; `{value}`, `{limit}` and `{signal}` are filled in. A code without a template still gets a
sentence from its parts, so nothing is ever unexplained.
"""

from __future__ import annotations

from agent.core.events import SignalValue
from agent.core.findings import Reason

SENTENCES = {
    "moving": "The car is moving ({value} km/h).",
    "gear_not_park": "The gear selector is not in Park.",
    "brake_pressed": "Somebody is on the brake pedal.",
    "powered_for_driving": "The car is switched on for a driver (low-voltage state {value}).",
    "door_handle_pulled": "Somebody pulled the driver's door handle.",
    "door_open": "A door or lid is open ({signal}).",
    "seat_occupied": "Somebody sits in the driver's seat.",
    "driver_present": "The car detects its driver.",
    "parked_not_long_enough": "Parked for {value} s; it must be {limit} s before work starts.",
    "occupied_not_long_enough": "Empty for {value} s; it must be {limit} s before work starts.",
    "not_plugged_in": "The charging cable is not connected.",
    "charge_below_reserve": "The battery is at {value} %; work needs more than {limit} % to keep the owner's reserve.",
    "temperature_missing": "There is no temperature reading of the computer, which counts as too hot.",
    "temperature_stale": "The last temperature reading of the computer is too old, which counts as too hot.",
    "die_above_limit": "The computer is at {value} °C, above its limit of {limit} °C.",
    "die_hot": "The computer is at {value} °C; new work waits until it is below {limit} °C.",
    "owner_paused": "The owner paused the work.",
    "storage_failed": "What is earned cannot be written down: {value}.",
    "agent_stopping": "The agent is being stopped.",
    "signal_missing": "{signal} has never been seen; until it is, the driver may be here.",
    "signal_stale": "{signal} has not been seen for too long; until it is, the driver may be here.",
    "signal_source_down": "The bus that carries {signal} is silent; until it speaks, the driver may be here.",
    "signal_invalid": "The car itself says that {signal} is not valid; until it is, the driver may be here.",
    "signal_unknown": "The car does not know {signal}; until it does, the driver may be here.",
    "signal_out_of_range": "{signal} has a value that cannot be; until it is sane, the driver may be here.",
}


def sentence(reason: Reason) -> str:
    """The reason as one sentence."""
    template = SENTENCES.get(reason.code, "{signal} is {value}, the limit is {limit} ({code}).")
    return template.format(
        code=reason.code, signal=reason.signal, value=_plain(reason.value), limit=_plain(reason.limit)
    )


def _plain(value: SignalValue | None) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return str(value)
