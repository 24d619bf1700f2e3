"""Reasons in plain words: what shuts the gate, and what to do about it, for a driver or a technician.

One template a reason code; `{value}`, `{limit}` and `{signal}` are filled in, and `{until}` says what an unknown signal
counts as. A code without a template still gets a sentence from its parts, so nothing is ever unexplained; a test holds
every code that the core can name to a template of its own.
"""

from __future__ import annotations

from agent.core.events import SignalValue
from agent.core.findings import Reason
from agent.core.signals import PAUSE_REQUESTED
from agent.printable import printable

DRIVER = {
    "moving": "The car is moving ({value} km/h).",
    "gear_not_park": "The gear selector is not in Park.",
    "park_lock_open": "The parking lock is not engaged.",
    "brake_pressed": "Somebody is on the brake pedal.",
    "powered_for_driving": "The car is switched on for a driver (low-voltage state {value}).",
    "door_handle_pulled": "Somebody pulled a door handle.",
    "door_open": "A door or lid is open ({signal}).",
    "unlocked": "The car was unlocked a moment ago: somebody is about to open it.",
    "not_locked": "The car is not locked, which the policy asks for (lock_required).",
    "seat_occupied": "Somebody sits in the car ({signal}).",
    "belt_fastened": "The driver's belt is fastened.",
    "driver_present": "The car detects its driver.",
    "parked_not_long_enough": "Parked for {value} s; it must be {limit} s before work starts.",
    "occupied_not_long_enough": "Empty for {value} s; it must be {limit} s before work starts.",
    "computer_in_use": "The car uses the computer itself ({signal}).",
    "power_saving": "The car saves power at level {value}; work stops from level {limit}.",
}
SIGNALS = {
    "signal_missing": "{signal} has never been seen; {until}. Check the vehicle profile and the bus.",
    "signal_stale": "{signal} has not been seen for too long; {until}.",
    "signal_late": "{signal} is late; nothing new is begun until it is heard again.",
    "signal_source_down": "The source of {signal} is silent; {until}. Check the bus or the databroker.",
    "signal_unknown": "The car does not know {signal}; {until}.",
    "signal_not_available": "The car says that {signal} is not available; {until}.",
    "signal_invalid": "{signal} is not valid; {until}.",
    "signal_fault": "The car says that the sensor of {signal} is broken; {until}. Have it repaired.",
    "signal_not_a_number": "{signal} is not a number; {until}.",
    "signal_out_of_range": "{signal} has a value that cannot be; {until}.",
    "signal_contradictory": "{signal} is {value}, although {limit}: one of them is wrong; {until}.",
}
ENERGY = {
    "charge_below_reserve": "The battery is at {value} %; work needs more than {limit} % to keep the owner's reserve.",
    "not_plugged_in": "The charging cable is not connected; plug it in, or set plug_required = false.",
    "net_drain": "Plugged in, but the battery has sunk to {value} %, below {limit} %: the cable does not feed it. "
    "Check the charger.",
    "ready_by": "The battery is at {value} % and must be at {limit} % when the car leaves; work might delay that. "
    "It goes on once the car is plugged in and the charger sure to make it.",
    "pack_hot": "The battery is at {value} °C; work needs it below {limit} °C.",
    "pack_cold": "The battery is at {value} °C; work needs it above {limit} °C.",
    "contactors_open": "The high-voltage battery is switched off, so the small battery would carry the computer.",
    "low_voltage_empty": "The low-voltage battery is at {value} V, below {limit} V: nearly empty. Have it checked.",
    "low_voltage_low": "The low-voltage battery has sunk to {value} V, below {limit} V; it must be charged first.",
    "low_voltage_sags": "The low-voltage battery is at {value} V; nothing new is begun below {limit} V.",
    "low_voltage_not_fed": "The low-voltage battery is at {value} V; work starts from {limit} V, when it is fed.",
    "low_voltage_drains": "The low-voltage battery carries the car ({value} A); nothing new is begun below {limit} A.",
    "low_voltage_budget": "The work took {value} Wh out of the low-voltage battery; it goes on below {limit} Wh, "
    "once the car has charged it.",
}
COMPUTER = {
    "temperature_missing": "There is no temperature of the computer, which counts as too hot. Check its sensor.",
    "temperature_stale": "The last temperature reading of the computer is too old, which counts as too hot.",
    "temperature_frozen": "The temperature of the computer does not move although its power does: the sensor is stuck. "
    "Check it.",
    "temperature_late": "The temperature reading of the computer is late; nothing new is begun until it comes.",
    "die_above_limit": "The computer is at {value} °C, above its limit of {limit} °C; it is left to cool.",
    "die_hot": "The computer is at {value} °C; new work waits until it is below {limit} °C.",
    "die_rising": "The computer would reach {value} °C with more work; it waits until that stays below {limit} °C.",
    "power_not_obeyed": "The computer drew more than the {limit} W to which it was held (now: {value} W); it rests, "
    "then tries again.",
    "power_missing": "There is no reading of the computer's power, so nobody knows whether it obeys. Check its sensor.",
    "throttled": "The computer slows itself down because of heat or power; new work waits until it no longer does.",
    "ambient_hot": "It is {value} °C around the car (60 °C is supposed while its sensor says nothing); work needs less "
    "than {limit} °C. Park it in the shade.",
    "ambient_cold": "It is {value} °C around the car; work needs at least {limit} °C.",
    "network_metered": "The network costs money by the byte; wait for another, or set metered_allowed = true.",
    "network_cap": "Over a network that costs money {value} MB went today, of {limit} MB allowed (metered_daily_mb); "
    "nothing new is asked for before the day is over. Finished work is still handed in.",
    "fleet_closed": "The fleet's operator gives no new work in this area for now.",
    "fleet_stopped": "The fleet's operator has stopped all work in this area for now.",
    "network_offline": "There is no connection to a broker; it is being made. Check the network.",
    "storage_failed": "What is earned cannot be written down: {value}. Free some space, or look at the disk.",
    "self_test_failed": "The agent's own test has not been passed: {value}.",
    "accelerator_absent": "The accelerator cannot be used: {value}. Install what is missing; it is "
    "tried again by itself.",
    "accelerator_starting": "The accelerator is being asked whether it is ready; that takes some seconds.",
    "accelerator_lost": "The accelerator was lost ({value}); it is being asked whether it is back.",
    "update_pending": "An update of the agent waits; nothing new is begun before it is installed "
    "(`driveway update` says what it waits for).",
    "update_overdue": "An update of the agent waits, and the lease took longer than update_drain_s; it is given back.",
    "agent_stopping": "The agent is being stopped.",
}
OWNER = {
    "owner_paused": "The owner paused the work; `driveway resume` goes on.",
    "owner_paused_in_car": "The owner paused the work with the switch in the car; it goes on when that is released.",
    "owner_finished": "The owner let the last work finish and wants no more; `driveway resume` goes on.",
    "consent_missing": "The owner has not agreed to version {limit} of the terms, which is in force. "
    "See `driveway consent`.",
    "outside_schedule": "It is {value}, outside the owner's schedule (the first of its windows: {limit}).",
    "tariff_waiting": "Energy costs {value} now; cheaper hours are chosen (at most {limit}), and it waits for them.",
    "work_hours_used": "The {limit} hours of work that the owner wants before the next departure are done.",
    "unprofitable": "Energy costs {value}; from {limit} on the work does not pay.",
    "demand_response": "The grid has asked for relief: {value}.",
    "clock_unset": "The clock was never set, and the schedule or the prices hang on it. Check its time server.",
    "clock_unsynchronised": "Nobody keeps the clock, and the schedule or the prices hang on it. Check its time server.",
    "clock_jumped": "The clock has jumped, and the schedule or the prices hang on it; it is believed again once it has "
    "stood still for ten minutes.",
}
OTHERS = {
    "settling": "The {signal} gate has been better for {value} s; it loosens after {limit} s, lest it flap.",
    "keep_awake_clock": "The car is not kept awake: the wish names a moment, and the clock cannot be trusted. "
    "Check its time server.",
    "keep_awake_minutes": "The car was kept awake for as long as the owner allows in a day; it may sleep now.",
    "keep_awake_energy": "Keeping the car awake took as much energy as the owner allows in a day; it may sleep now.",
    "keep_awake_wakes": "The car was kept awake as often as the owner allows in a day; it may sleep now.",
}
SENTENCES = DRIVER | SIGNALS | ENERGY | COMPUTER | OWNER | OTHERS

DRIVERS_GATES = {"parked", "occupied", "shared"}


def sentence(reason: Reason) -> str:
    """The reason in a sentence or two."""
    drivers = reason.gate in DRIVERS_GATES
    in_car = reason.code == "owner_paused" and reason.signal == PAUSE_REQUESTED
    template = SENTENCES.get("owner_paused_in_car" if in_car else reason.code)
    said = (template or "{signal} is {value}, the limit is {limit} ({code}).").format(
        code=reason.code,
        signal=reason.signal,
        value=_plain(reason.value) or "no detail",
        limit=_plain(reason.limit),
        until="until it is well, the driver may be here" if drivers else "until it is well, it counts against the work",
    )
    return printable(said)


def advice(code: str) -> str:
    """What a code that stands alone means, such as that of a refused wish to stay awake; '' for an empty one."""
    return SENTENCES.get(code, code)


def _plain(value: SignalValue | None) -> str:
    """A value as people read it: one digit after the point, or three in all where it is small (prices, volts)."""
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0") if abs(value) >= 20 else f"{value:.3g}"
    return str(value)
