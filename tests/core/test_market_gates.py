"""The schedule, the tariff, the grid's orders and the clock, as gates: when they shut, and when they open again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.core import signals
from agent.core.events import DemandSeen, OwnerSet, PriceSlot, PricesSeen
from agent.core.findings import GateState
from agent.core.policy import Departure, Policy, TariffZone, Window
from agent.zones import zone_named
from tests.core.full_car import START_WALL_MS, FullCar

OPEN, HOLD, CLOSED = GateState.OPEN, GateState.HOLD, GateState.CLOSED
MINUTE_S = 60
HOUR_MS = 3_600_000
NIGHT = TariffZone(start="00:00", end="06:00", price_micro_per_kwh=100_000)


def car_with(synchronised: bool = True, zone: str = "UTC", **policy: Any) -> FullCar:
    """At 18:00 UTC."""
    return FullCar(Policy(parked_for_s=1, **policy), zone_named(zone), synchronised=synchronised)


def test_the_schedule_shuts_at_once_and_says_when_it_opens() -> None:
    car = car_with(
        zone="Europe/Berlin", schedule=(Window(start="19:00", end="20:30"), Window(start="23:15", end="06:00"))
    )
    car.advance(30 * MINUTE_S - 1)
    assert car.gate("schedule") is OPEN, "20:29:59 in Berlin"
    car.advance(1)
    reason = car.reason("schedule")
    assert (car.gate("schedule"), reason.code, reason.value) == (CLOSED, "outside_schedule", "20:30")
    assert reason.clears_at_ms == (2 * 60 + 45 + 30) * 60_000
    car.advance(165 * MINUTE_S - 1, step_ms=60_000)
    assert car.gate("schedule") is CLOSED
    car.advance(1)
    assert car.gate("schedule") is OPEN


def test_an_owner_who_changes_the_schedule_is_obeyed_at_once() -> None:
    car = car_with()
    car.advance(5)
    never = (Window(days=("sun",), start="01:00", end="02:00"),)
    car.tell(OwnerSet(at_ms=car.now_ms, schedule=never, price_floor_micro_per_kwh=0, workload_classes=()))
    assert car.gate("schedule") is CLOSED


def test_the_tariff_waits_for_the_cheap_hours() -> None:
    car = car_with(tariff_zones=(NIGHT,), work_hours_per_stay=4)
    reason = car.reason("tariff")
    assert (reason.code, reason.value, reason.limit, reason.unit) == ("tariff_waiting", 0.27, 0.1, "USD/kWh")
    assert reason.clears_at_ms == 6 * HOUR_MS
    car.advance(6 * 3600 - 1, step_ms=60_000)
    assert car.gate("tariff") is CLOSED
    car.advance(1)
    assert car.gate("tariff") is OPEN
    car.advance(4 * 3600, step_ms=60_000)
    assert (car.gate("tariff"), car.reason("tariff").code) == (CLOSED, "work_hours_used")
    assert car.reason("tariff").clears_at_ms == 24 * HOUR_MS


def test_the_end_of_a_stay_begins_the_next() -> None:
    car = car_with(tariff_zones=(NIGHT,), work_hours_per_stay=1, departures=(Departure(at="07:00", target_percent=60),))
    car.advance(7 * 3600 + 600, step_ms=60_000)
    assert car.reason("tariff").code == "work_hours_used"
    car.advance(6 * 3600, step_ms=60_000)
    assert car.reason("tariff").code == "tariff_waiting", "tomorrow night"


def test_work_that_does_not_pay_is_not_done() -> None:
    zones = (TariffZone(start="19:00", end="20:00", price_micro_per_kwh=500_000),)
    car = car_with(tariff_zones=zones, payout_micro_per_kwh=400_000)
    assert car.gate("tariff") is OPEN
    car.advance(3600, step_ms=10_000)
    reason = car.reason("tariff")
    assert (reason.code, reason.value, reason.limit, reason.clears_at_ms) == ("unprofitable", 0.5, 0.36, 2 * HOUR_MS)
    car.advance(3600, step_ms=10_000)
    assert car.gate("tariff") is OPEN


def test_a_curve_that_makes_work_dear_shuts_the_gate_no_sooner_than_its_minimum() -> None:
    car = car_with(payout_micro_per_kwh=400_000)
    car.advance(60)
    slot = PriceSlot(START_WALL_MS, START_WALL_MS + HOUR_MS, 900_000)
    expires = START_WALL_MS + 2 * HOUR_MS
    car.tell(PricesSeen(at_ms=car.now_ms, issued_wall_ms=START_WALL_MS, expires_wall_ms=expires, slots=(slot,)))
    assert car.gate("tariff") is OPEN
    car.advance(239)
    assert car.gate("tariff") is OPEN
    car.advance(1)
    assert (car.gate("tariff"), car.reason("tariff").code) == (CLOSED, "unprofitable")


def test_a_higher_floor_counts_against_the_price() -> None:
    car = car_with(payout_micro_per_kwh=400_000)
    car.advance(400)
    car.tell(OwnerSet(at_ms=car.now_ms, schedule=(), price_floor_micro_per_kwh=200_000, workload_classes=()))
    assert car.reason("tariff").code == "unprofitable"


def test_the_grid_is_obeyed_within_one_step() -> None:
    car = car_with()
    car.advance(5)
    car.tell(DemandSeen(at_ms=car.now_ms, stop_for_ms=600_000, detail="frequency"))
    reason = car.reason("demand")
    assert (car.gate("demand"), reason.code, reason.value) == (CLOSED, "demand_response", "frequency")
    assert reason.clears_at_ms == car.now_ms + 600_000
    car.advance(599)
    assert car.gate("demand") is CLOSED
    car.advance(1)
    assert car.gate("demand") is OPEN
    car.tell(DemandSeen(at_ms=car.now_ms, stop_for_ms=600_000))
    car.advance(61)
    car.tell(DemandSeen(at_ms=car.now_ms, stop_for_ms=0))
    assert car.gate("demand") is OPEN, "taken back"


# --- a clock that nobody keeps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ({}, OPEN),
        ({"schedule": (Window(),)}, HOLD),
        ({"tariff_zones": (NIGHT,)}, OPEN),
        ({"tariff_zones": (NIGHT,), "work_hours_per_stay": 4}, HOLD),
        ({"tariff_zones": (NIGHT,), "payout_micro_per_kwh": 400_000}, OPEN),
        ({"departures": (Departure(at="07:00", target_percent=60),)}, OPEN),
    ],
)
def test_the_clock_holds_only_what_hangs_on_it(policy: dict[str, Any], state: GateState) -> None:
    car = car_with(synchronised=False, **policy)
    car.advance(5)
    assert car.gate("clock") is state
    assert car.state.gates.state is state
    assert car.codes("clock") == ([] if state is OPEN else ["clock_unsynchronised"])


def test_without_a_clock_energy_is_as_dear_as_it_gets() -> None:
    dear = TariffZone(start="03:00", end="03:15", price_micro_per_kwh=900_000)
    car = car_with(synchronised=False, tariff_zones=(dear,), payout_micro_per_kwh=400_000)
    assert (car.reason("tariff").code, car.reason("tariff").value) == ("unprofitable", 0.9)
    car.tell(car.host())
    car.advance(301)
    assert car.gate("tariff") is OPEN


def test_a_jump_holds_until_the_clock_has_stood_still() -> None:
    car = car_with(schedule=(Window(),))
    car.advance(5)
    car.tell(car.host(wall_ms=START_WALL_MS + 5_000_000))
    reason = car.reason("clock")
    assert (car.gate("clock"), reason.code, reason.clears_at_ms) == (HOLD, "clock_jumped", 605_000)
    car.advance(601)
    car.tell(car.host(wall_ms=START_WALL_MS + 5_000_000 + 601_000))
    assert car.gate("clock") is OPEN


def test_a_clock_that_is_lost_does_not_lay_the_stay_out_anew() -> None:
    car = car_with(tariff_zones=(NIGHT,), work_hours_per_stay=1)
    before = car.state.stay
    car.advance(5)
    car.tell(car.host(synchronised=False))
    car.advance(60)
    car.tell(car.host())
    assert car.state.stay is before


def test_the_cars_timer_is_remembered_while_the_car_does_not_say() -> None:
    car = car_with()
    car.says(signals.TIMER_MODE, "END_TIME")
    ends_ms = car.state.stay.ends_ms
    assert ends_ms == START_WALL_MS + 13 * HOUR_MS + HOUR_MS // 2
    car.says(signals.TIMER_TIME, 7.0)
    assert car.state.stay.ends_ms == ends_ms
    assert msgspec.structs.asdict(car.state.stay)["departures"][0].target_percent is None
