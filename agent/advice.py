"""What may be expected of each reason, and what somebody at the car can do about it.

`agent.explain` says what is; this says how it goes on: when it clears by itself (where the moment is known, the reason
carries it as `clears_at_ms`, and that is said instead), and one next step, with the command or the key of the policy.
A test holds every code that the core can name to an entry of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.core.findings import Reason
from agent.printable import printable


class Advice(NamedTuple):
    """`expects`: when it clears. `do`: the next step. Both are sentences.

    `{signal}`, `{gate}`, `{limit}` and `{patience}` (how long the car must be left alone) are filled in.
    """

    expects: str
    do: str


PATIENT = "It clears {patience} after the last sign of a driver (policy.parked_for_s)."
HEARD = "It clears as soon as the car is heard saying otherwise."
LOOK = "compare `driveway signals` with the car: where they differ, the vehicle profile is wrong."
COOLS = "It clears when the computer has cooled; that takes minutes."

DRIVER = {
    "moving": Advice(PATIENT, "Nothing, while the car drives. Else " + LOOK),
    "gear_not_park": Advice(PATIENT, "Put the selector in Park. If it is, " + LOOK),
    "park_lock_open": Advice(PATIENT, "Engage the parking lock. If it is, " + LOOK),
    "brake_pressed": Advice(PATIENT, "Take the foot off the pedal. If nobody is there, " + LOOK),
    "powered_for_driving": Advice(PATIENT, "Switch the car off. If it is, " + LOOK),
    "door_handle_pulled": Advice(PATIENT, "Nothing, if somebody is at the car. Else " + LOOK),
    "door_open": Advice(PATIENT, "Shut it. If it is shut, " + LOOK),
    "unlocked": Advice("It clears when nobody has come for {patience}.", "Nothing; or lock the car."),
    "not_locked": Advice(PATIENT, "Lock the car, or set policy.lock_required = false."),
    "seat_occupied": Advice(PATIENT, "Take what lies on the seat away. If it is empty, " + LOOK),
    "belt_fastened": Advice(PATIENT, "Open the belt. If it is, " + LOOK),
    "driver_present": Advice(PATIENT, "Nothing, if somebody is in the car. Else " + LOOK),
    "parked_not_long_enough": Advice("It clears when the time is over and nobody came.", "Nothing; wait."),
    "occupied_not_long_enough": Advice("It clears when the time is over and nobody came.", "Nothing; wait."),
    "computer_in_use": Advice(
        "It clears 30 s after the car has done with it.", "Nothing; or end sentry, camp or update."
    ),
    "power_saving": Advice(
        "It clears when the car saves less power.",
        "Charge the car; policy.power_optimize_stop says from which level on work stops.",
    ),
}
SIGNALS = {
    "signal_missing": Advice(
        "It does not clear by itself: this leaf has never been heard.",
        "`driveway doctor` lists the leaves that no source maps; add {signal} to the vehicle profile.",
    ),
    "signal_stale": Advice(
        "It clears when the leaf is heard again; a car that sleeps says nothing.",
        "Wake the car. If it is awake: `driveway doctor` looks at the bus and the profile.",
    ),
    "signal_late": Advice("It clears with the next message.", "Nothing; if it stays: `driveway doctor`."),
    "signal_source_down": Advice(
        "It clears when the source is heard again; it is tried without end.",
        "`driveway signals` names the source; then look at the bus (`ip link`) or the databroker.",
    ),
    "signal_unknown": Advice(HEARD, "Drive a few metres: many cars know it after that. If it stays, ask the maker."),
    "signal_not_available": Advice(HEARD, "Have the car looked at, or take {signal} out of the vehicle profile."),
    "signal_invalid": Advice(HEARD, LOOK.capitalize()),
    "signal_fault": Advice("It clears when the sensor has been mended.", "Read the car's fault memory."),
    "signal_not_a_number": Advice(HEARD, "The vehicle profile decodes {signal} wrongly: check its scale and type."),
    "signal_out_of_range": Advice(HEARD, "The vehicle profile decodes {signal} wrongly, or its sensor is broken."),
    "signal_contradictory": Advice("It clears when the two agree.", LOOK.capitalize()),
}
ENERGY = {
    "charge_below_reserve": Advice(
        "It clears when the battery is charged above the limit.",
        "Plug the car in, or lower policy.reserve_percent.",
    ),
    "not_plugged_in": Advice("It clears 30 s after the cable is in.", "Plug the car in."),
    "net_drain": Advice(
        "It clears when the charge has risen again.", "Check charger and cable; a lower charge current drains too."
    ),
    "ready_by": Advice(
        "It clears when the charger is sure to make it in time, five minutes later at the soonest.",
        "Plug the car in, charge faster, or change policy.departures.",
    ),
    "pack_hot": Advice("It clears when the pack has cooled; that takes an hour or so.", "Nothing; park it in shade."),
    "pack_cold": Advice("It clears when the pack is warmer.", "Charge or precondition the car."),
    "contactors_open": Advice(
        "It clears 30 s after the car closes them, as when it charges.", "Plug the car in, or wake it."
    ),
    "low_voltage_empty": Advice("It clears when that battery has been charged.", "Charge it now, and have it tested."),
    "low_voltage_low": Advice("It clears when the converter feeds it.", "Wake or plug in the car; then test it."),
    "low_voltage_sags": Advice("It clears when the voltage is back.", "Nothing; if it stays, have the battery tested."),
    "low_voltage_not_fed": Advice("It clears when the converter runs, as when the car charges.", "Plug the car in."),
    "low_voltage_drains": Advice("It clears when the converter runs, as when the car charges.", "Plug the car in."),
    "low_voltage_budget": Advice(
        "It clears when half of it has been given back.", "Plug the car in, or raise policy.low_voltage_budget_wh."
    ),
}
SENSOR = "`driveway doctor` reads the computer's sensors; `driveway status` names the one that is used."
COMPUTER = {
    "temperature_missing": Advice("It clears with the first reading.", SENSOR),
    "temperature_stale": Advice("It clears with the next reading.", SENSOR),
    "temperature_frozen": Advice("It clears when the reading moves.", SENSOR + " A restart of the computer may help."),
    "temperature_late": Advice(
        "It clears with the next reading, in a second or so.", "Nothing; if it stays: " + SENSOR
    ),
    "die_above_limit": Advice(COOLS, "Give it air: look at fan, filter and sun. The limit is policy.die_limit_c."),
    "die_hot": Advice(COOLS, "Nothing; park in the shade. The limit is policy.die_start_c."),
    "die_rising": Advice(COOLS, "Nothing; if it stays, measure the bounds anew: `driveway bench --commission`."),
    "power_not_obeyed": Advice(
        "It clears after a rest, and is tried again.",
        "If it comes back: ask `driveway doctor`, and look who else computes there.",
    ),
    "power_missing": Advice("It clears with the next reading.", SENSOR),
    "throttled": Advice("It clears some seconds after the computer runs at full clock.", "Give it air and power."),
    "ambient_hot": Advice("It clears when it is cooler, five minutes later at the soonest.", "Park in the shade."),
    "ambient_cold": Advice("It clears when it is warmer.", "Nothing; policy.ambient_min_c is the limit."),
    "network_metered": Advice("It clears on a network that costs nothing.", "Park within reach of your own network."),
    "network_cap": Advice("It clears at the end of the day.", "Use a network that is not metered."),
    "fleet_closed": Advice("It clears when the operator opens the area.", "Nothing; the operator knows the reason."),
    "fleet_stopped": Advice("It clears when the operator opens the area.", "Nothing; the operator knows the reason."),
    "network_offline": Advice(
        "It clears with the connection, which is tried without end.",
        "`driveway doctor` tries the broker: its address, certificate and login.",
    ),
    "storage_failed": Advice("It clears when a write succeeds; it is tried again by itself.", "`df -h`; `dmesg`."),
    "self_test_failed": Advice(
        "It clears when the test passes; it is tried again by itself.",
        "`driveway doctor` shows every step (key, disk, catalogue, clock) and how to mend it.",
    ),
    "accelerator_absent": Advice("It clears when it is found; it is tried again by itself.", "`driveway doctor`."),
    "accelerator_starting": Advice("It clears in some seconds.", "Nothing; wait."),
    "accelerator_lost": Advice("It clears when it answers again.", "If it stays: `dmesg`, then restart the computer."),
    "update_pending": Advice(
        "It clears when the new version runs.", "`driveway update` says what it waits for; `driveway update now`."
    ),
    "update_overdue": Advice("It clears when the new version runs.", "Nothing; what was finished is handed in."),
    "agent_stopping": Advice("It clears when it is started again.", "`systemctl status driveway`."),
}
CLOCK = "`timedatectl` shows whether a time server is reached."
OWNER = {
    "owner_paused": Advice("It clears with `driveway resume`.", "`driveway resume`."),
    "owner_paused_in_car": Advice("It clears when the switch in the car is released.", "Release the switch."),
    "owner_finished": Advice("It clears with `driveway resume`.", "`driveway resume`."),
    "consent_missing": Advice(
        "It clears when the owner agrees.", "Read the terms, then `driveway consent --accept {limit}`."
    ),
    "outside_schedule": Advice("It clears when the next window begins.", "`driveway owner set --schedule ...`."),
    "tariff_waiting": Advice("It clears when the next cheap slot begins.", "Nothing; policy.work_hours_per_stay."),
    "work_hours_used": Advice("It clears at the departure.", "Raise policy.work_hours_per_stay."),
    "unprofitable": Advice("It clears when energy is cheaper.", "`driveway owner set --price-floor` asks for less."),
    "demand_response": Advice("It clears when the grid's order ends.", "Nothing; the order is the grid's."),
    "clock_unset": Advice("It clears when the clock is set.", CLOCK),
    "clock_unsynchronised": Advice("It clears when a time server keeps the clock.", CLOCK),
    "clock_jumped": Advice("It clears ten minutes after the last jump.", CLOCK),
}
OTHERS = {"settling": Advice("It clears by itself when the time is over.", "Nothing; wait.")}
ADVICE = DRIVER | SIGNALS | ENERGY | COMPUTER | OWNER | OTHERS
UNKNOWN = Advice("It clears when the {gate} gate finds nothing any more.", "`driveway doctor`.")


def advice_on(reason: Reason, *, parked_for_s: float, in_car: bool = False) -> Advice:
    """What to expect of this reason, and what to do; `parked_for_s` is the policy's."""
    found = ADVICE.get("owner_paused_in_car" if in_car else reason.code, UNKNOWN)
    names = {"signal": reason.signal, "gate": reason.gate, "limit": reason.limit, "patience": f"{parked_for_s:g} s"}
    return Advice(*(printable(text.format(**names)) for text in found))
