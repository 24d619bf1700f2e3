"""The gates that guard both batteries and the next departure: each threshold, each wait, each way to lie."""

from __future__ import annotations

import pytest

from agent.core import signals
from agent.core.events import Quality, Sample, SignalsSeen, SignalValue
from agent.core.findings import GateState
from agent.core.policy import Departure, Policy
from tests.core.full_car import CHARGING, FullCar

OPEN, HOLD, CLOSED = GateState.OPEN, GateState.HOLD, GateState.CLOSED
BREAKFAST = Departure(at="07:00", target_percent=80)
"""Thirteen hours after the car arrives."""


def parked(policy: Policy | None = None, **changes: SignalValue) -> FullCar:
    car = FullCar(policy)
    car.advance(10)
    assert car.state.gates.state is OPEN, car.state.gates.reasons
    for name, value in changes.items():
        car.says(getattr(signals, name.upper()), value)
    return car


def test_a_car_that_tells_everything_may_work() -> None:
    car = parked()
    car.advance(60)
    assert car.state.gates.reasons == ()


# --- plug, pack, contactors ---------------------------------------------------------------------------------------


def test_a_cable_that_is_out_while_the_car_charges_is_a_contradiction() -> None:
    car = parked()
    car.says(signals.CABLE, False)
    assert car.codes("plugged") == ["not_plugged_in", "signal_contradictory"]


def test_plugged_in_but_draining_is_not_plugged_in() -> None:
    car = parked(Policy(parked_for_s=1, net_drain_percent=2))
    car.says(signals.CHARGE, 75.0)
    car.advance(600)
    car.says(signals.CHARGE, 73.0)
    assert car.gate("plugged") is OPEN
    car.says(signals.CHARGE, 72.9)
    assert (car.gate("plugged"), car.reason("plugged").code) == (CLOSED, "net_drain")
    car.says(signals.CHARGE, 73.5)
    car.advance(60)
    assert car.gate("plugged") is CLOSED, "half of the drain must come back"
    car.says(signals.CHARGE, 74.0)
    car.advance(1)
    assert car.gate("plugged") is OPEN


def test_a_new_plug_in_begins_a_new_count() -> None:
    car = parked(charge=78.0)
    car.advance(600)
    car.says(signals.CHARGING, False)
    car.says(signals.CABLE, False)
    car.says(signals.CHARGE, 70.0)
    car.advance(400)
    car.says(signals.CABLE, True)
    car.advance(60)
    assert car.gate("plugged") is OPEN


def test_one_absurd_charge_does_not_become_the_highest() -> None:
    car = parked()
    car.says(signals.CHARGE, 99.0)
    car.now_ms += 100
    car.says(signals.CHARGE, 70.0)
    car.advance(60)
    assert car.gate("plugged") is OPEN


def test_unplugged_work_needs_no_cable_and_knows_no_drain() -> None:
    car = parked(Policy(parked_for_s=1, plug_required=False), cable=False, charging=False, charge=60.0)
    car.advance(60)
    assert car.gate("plugged") is OPEN


@pytest.mark.parametrize(
    ("value", "while_open", "to_start"),
    [(2.9, "pack_cold", "pack_cold"), (3.1, "", "pack_cold"), (41.0, "", "pack_hot"), (45.0, "pack_hot", "pack_hot")],
)
def test_the_packs_temperature_has_two_thresholds_on_both_sides(value: float, while_open: str, to_start: str) -> None:
    car = parked(pack_temperature=value)
    assert car.codes("pack") == ([while_open] if while_open else [])
    fresh = FullCar(changes={signals.PACK_TEMPERATURE: value})
    assert fresh.codes("pack") == [to_start]


@pytest.mark.parametrize("contactor", signals.CONTACTORS)
def test_both_contactors_must_be_closed(contactor: str) -> None:
    car = parked()
    car.says(signals.PACK_POWER, 0.0)
    car.says(contactor, False)
    assert (car.reason("powered").code, car.gate("powered")) == ("contactors_open", CLOSED)


def test_power_through_open_contactors_is_a_contradiction() -> None:
    car = parked()
    car.says(signals.CONTACTORS[0], False)
    assert "signal_contradictory" in car.codes("powered")


def test_two_charges_that_differ_are_a_contradiction() -> None:
    car = parked()
    car.says(signals.CHARGE_DISPLAYED, 30.0)
    assert car.codes("reserve") == ["signal_contradictory"]


ENERGY_PATHS = (
    signals.CABLE,
    signals.CHARGE,
    signals.PACK_TEMPERATURE,
    *signals.CONTACTORS,
    signals.LOW_VOLTAGE,
    signals.LOW_VOLTAGE_CURRENT,
    signals.TIMER_MODE,
)


@pytest.mark.parametrize("path", ENERGY_PATHS)
def test_what_the_car_does_not_know_shuts_the_gate(path: str) -> None:
    car = parked()
    sample = Sample(path, None, Quality.FAULT, group="car")
    car.tell(SignalsSeen(at_ms=car.now_ms, source="bus", samples=(sample,)))
    assert car.state.gates.state is CLOSED
    assert {reason.code for reason in car.state.gates.reasons} == {"signal_fault"}


# --- the low-voltage battery --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chemistry", "run", "hold"), [("lead", 13.2, 12.9), ("lithium", 15.2, 15.0)])
def test_work_starts_only_on_a_battery_that_is_fed(chemistry: str, run: float, hold: float) -> None:
    policy = Policy(parked_for_s=1, low_voltage_chemistry=chemistry)  # type: ignore[arg-type]
    car = FullCar(policy, changes={signals.LOW_VOLTAGE: run - 0.01})
    car.advance(5)
    assert (car.gate("low_voltage"), car.codes("low_voltage")) == (HOLD, ["low_voltage_not_fed"])
    car.says(signals.LOW_VOLTAGE, run)
    car.advance(15)
    assert car.gate("low_voltage") is OPEN
    car.says(signals.LOW_VOLTAGE, hold)
    car.advance(30)
    assert car.gate("low_voltage") is OPEN, "above the lower threshold it may go on"


def test_a_sag_holds_only_when_it_lasts() -> None:
    car = parked()
    car.says(signals.LOW_VOLTAGE, 12.8)
    car.advance(1.9, step_ms=100)
    assert car.gate("low_voltage") is OPEN, "a window motor"
    car.advance(0.1, step_ms=100)
    assert (car.gate("low_voltage"), car.codes("low_voltage")) == (HOLD, ["low_voltage_sags"])


def test_a_low_filtered_voltage_stops_and_a_very_low_one_stops_at_once() -> None:
    car = parked()
    car.says(signals.LOW_VOLTAGE, 12.3)
    car.advance(60)
    assert car.gate("low_voltage") is HOLD
    car.advance(120)
    assert "low_voltage_low" in car.codes("low_voltage")
    assert car.gate("low_voltage") is CLOSED
    car = parked()
    car.says(signals.LOW_VOLTAGE, 11.7)
    assert (car.gate("low_voltage"), car.codes("low_voltage")) == (CLOSED, ["low_voltage_empty"])


def test_a_battery_that_carries_the_car_alone_starts_nothing() -> None:
    car = parked()
    car.says(signals.LOW_VOLTAGE_CURRENT, -5.0)
    car.advance(10)
    assert car.gate("low_voltage") is OPEN, "for a moment"
    car.advance(60)
    assert (car.gate("low_voltage"), car.codes("low_voltage")) == (HOLD, ["low_voltage_drains"])


# --- ready by the departure ---------------------------------------------------------------------------------------


def test_the_inequality_of_a_slow_charger() -> None:
    """10 % of 75 kWh are missing: 7.5 kWh. At 85 % of (1,200 W - 58 W for full work) that takes 7.7 hours."""
    car = FullCar(Policy(parked_for_s=1, departures=(BREAKFAST,)))
    car.says(signals.PACK_POWER, 1_200.0)
    car.advance(600, step_ms=5_000)
    assert car.gate("ready_by") is OPEN
    enough_s = 13 * 3600 - 7_500 / ((1_200 - 52 / 0.9) * 0.85) * 3600
    car.advance(enough_s - 620, step_ms=20_000)
    assert car.gate("ready_by") is OPEN, "the charge has not moved, but there is time"
    car.advance(120, step_ms=5_000)
    reason = car.reason("ready_by")
    assert (car.gate("ready_by"), reason.code, reason.value, reason.limit) == (CLOSED, "ready_by", 70.0, 80.0)


def test_a_charger_that_gives_less_shuts_the_gate_and_one_that_gives_more_opens_it() -> None:
    car = parked(Policy(parked_for_s=1, departures=(BREAKFAST,)))
    car.says(signals.PACK_POWER, 300.0)
    car.advance(300)
    assert car.gate("ready_by") is CLOSED
    car.says(signals.PACK_POWER, 800.0)
    car.advance(600)
    assert car.gate("ready_by") is CLOSED, "enough to go on is not enough to begin"
    car.says(signals.PACK_POWER, 900.0)
    car.advance(600)
    assert car.gate("ready_by") is OPEN


def test_at_the_target_the_car_may_sag_as_far_as_it_does_by_itself() -> None:
    car = parked(Policy(parked_for_s=1, departures=(BREAKFAST,)), charging=False, pack_power=-300.0)
    assert car.gate("ready_by") is CLOSED, "not charging, and nothing is counted on"
    car.says(signals.CHARGE, 80.0)
    car.advance(301)
    assert car.gate("ready_by") is OPEN
    car.says(signals.CHARGE, 79.0)
    car.advance(10)
    assert car.gate("ready_by") is OPEN
    car.says(signals.CHARGE, 78.9)
    assert car.gate("ready_by") is CLOSED


def test_unplugged_nothing_brings_the_charge_back() -> None:
    policy = Policy(parked_for_s=1, plug_required=False, departures=(BREAKFAST,))
    changes = {signals.CHARGING: False, signals.CABLE: False, signals.PACK_POWER: -400.0, signals.CHARGE: 80.5}
    car = FullCar(policy, changes=changes)
    car.advance(10)
    assert car.gate("ready_by") is CLOSED
    car.says(signals.CHARGE, 81.5)
    car.advance(301)
    assert car.gate("ready_by") is OPEN
    car.says(signals.CHARGE, 80.0)
    assert car.gate("ready_by") is CLOSED


def test_a_charger_that_waits_for_the_night_counts_as_far_as_the_owner_says() -> None:
    policy = Policy(parked_for_s=1, departures=(BREAKFAST,), charger_w=7_000)
    car = FullCar(policy, changes={signals.CHARGING: False, signals.PACK_POWER: -250.0})
    car.advance(10)
    assert car.gate("ready_by") is OPEN


def test_the_cars_own_timer_is_a_departure_to_its_own_limit() -> None:
    car = parked(pack_power=900.0)
    car.advance(300)
    assert car.gate("ready_by") is OPEN
    car.says(signals.TIMER_TIME, "2026-06-01T23:00:00")
    car.says(signals.TIMER_MODE, "END_TIME")
    assert (car.gate("ready_by"), car.reason("ready_by").limit) == (CLOSED, 80.0)
    car.says(signals.TIMER_MODE, "INACTIVE")
    car.advance(301)
    assert car.gate("ready_by") is OPEN


def test_a_timer_that_cannot_be_read_may_hide_a_departure() -> None:
    car = parked(timer_mode="END_TIME")
    assert car.gate("ready_by") is OPEN
    car.says(signals.TIMER_TIME, "half past seven")
    assert (car.gate("ready_by"), car.codes("ready_by")) == (CLOSED, ["signal_invalid"])


def test_while_nobody_knows_the_time_only_a_reached_target_lets_work_begin() -> None:
    policy = Policy(parked_for_s=1, departures=(BREAKFAST, Departure(at="12:00", target_percent=75, days=("fri",))))
    car = FullCar(policy, synchronised=False)
    car.advance(10)
    assert (car.gate("ready_by"), car.reason("ready_by").limit) == (CLOSED, 80.0)
    car.says(signals.CHARGE, 80.0)
    car.advance(301)
    assert car.gate("ready_by") is OPEN


LATE = Departure(at="23:00", target_percent=80)
"""Five hours after the car arrives."""


@pytest.mark.parametrize("path", [signals.PACK_POWER, signals.CHARGING, signals.CAPACITY])
@pytest.mark.parametrize("quality", [Quality.FAULT, Quality.NOT_AVAILABLE])
def test_what_the_inequality_counts_on_must_be_known(path: str, quality: Quality) -> None:
    """However strong the owner says the charger is: what the car measures may be less."""
    car = parked(Policy(parked_for_s=1, departures=(LATE,), charger_w=11_000))
    assert car.gate("ready_by") is OPEN
    lost = Sample(path, None, quality, group="car")
    car.tell(SignalsSeen(at_ms=car.now_ms, source="bus", samples=(lost,)))
    assert (car.gate("ready_by"), car.codes("ready_by")) == (CLOSED, [f"signal_{quality}"])
    car.says(signals.CHARGE, 80.0)
    car.advance(301)
    assert car.gate("ready_by") is OPEN, "the target is reached, so nothing is counted on"


def test_a_charge_limit_that_is_not_known_may_be_any() -> None:
    policy = Policy(parked_for_s=1, departures=(Departure(at="12:00", target_percent=60),))
    car = FullCar(policy, changes={signals.TIMER_MODE: "END_TIME", signals.CHARGE: 80.0})
    car.advance(10)
    assert car.gate("ready_by") is OPEN
    lost = Sample(signals.CHARGE_LIMIT, None, Quality.FAULT, group="car")
    car.tell(SignalsSeen(at_ms=car.now_ms, source="bus", samples=(lost,)))
    assert (car.gate("ready_by"), car.codes("ready_by")) == (CLOSED, ["signal_fault"])


def test_the_cars_own_timer_counts_before_anybody_knows_the_time() -> None:
    car = FullCar(synchronised=False, changes={signals.TIMER_MODE: "END_TIME"})
    car.advance(10)
    assert (car.gate("ready_by"), car.reason("ready_by").limit) == (CLOSED, 80.0)
    car.says(signals.CHARGE, 80.0)
    car.advance(301)
    assert car.gate("ready_by") is OPEN
    car.says(signals.TIMER_MODE, "INACTIVE")
    car.says(signals.CHARGE, 60.0)
    car.advance(301)
    assert car.gate("ready_by") is OPEN


def test_a_timer_without_a_time_may_mean_any() -> None:
    leaves = frozenset(CHARGING) - {signals.TIMER_TIME}
    car = FullCar(changes={signals.TIMER_MODE: "END_TIME"}, leaves=leaves)
    car.advance(10)
    assert (car.gate("ready_by"), car.reason("ready_by").limit) == (CLOSED, 80.0)


def test_without_a_departure_the_gate_is_open() -> None:
    car = parked(charging=False, pack_power=-500.0)
    assert car.gate("ready_by") is OPEN
    assert CHARGING[signals.TIMER_MODE] == "INACTIVE"
