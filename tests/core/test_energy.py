"""The meter and its money, the filters, and what the work takes out of the small battery."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import signals
from agent.core.effects import HandIn, RunSlice
from agent.core.energy import LOW_VOLTAGE_LIMITS, Battery, LowPass, LowVoltage, Meter, Rate
from agent.core.events import ComputeSeen, PriceSlot, PricesSeen, Sample, SignalsSeen
from agent.core.findings import GateState
from agent.core.lease import Lease, Phase
from agent.core.policy import Policy
from agent.core.signals import Vehicle
from agent.core.state import WorkerPhase, WorkerState
from tests.core.full_car import START_WALL_MS, FullCar
from tests.core.stories import DOOR, ready, until
from tests.core.world import car, computer, grant

LEAD = LOW_VOLTAGE_LIMITS["lead"]
HOUR_MS = 3_600_000


def seen(at_ms: int, power_w: float | None, energy_mj: int | None = None) -> ComputeSeen:
    return ComputeSeen(at_ms=at_ms, die_c=50.0, power_w=power_w, sensor="simulated", energy_mj=energy_mj)


# --- the meter ----------------------------------------------------------------------------------------------------


def test_power_is_integrated_and_what_is_not_measured_is_not_zero() -> None:
    meter = Meter()
    for at_ms, power_w in ((0, 20.0), (1_000, 40.0), (2_000, None), (3_000, 40.0), (4_000, 40.0), (14_000, 40.0)):
        meter = meter.read(seen(at_ms, power_w))
    assert meter.total_micro_wh == pytest.approx((30 + 40) / 3600 * 1e6)
    assert meter.unmeasured_ms == 2_000 + 10_000


def test_a_sensors_own_counter_misses_nothing_between_two_readings() -> None:
    meter = Meter()
    for at_ms, energy_mj in ((0, 1_000_000), (60_000, 1_360_000), (61_000, 1_396_000), (62_000, 5_000)):
        meter = meter.read(seen(at_ms, 36.0, energy_mj))
    assert meter.total_micro_wh == pytest.approx((360 + 36) / 3600 * 1e6 + 36 / 3600 * 1e6), "the last by its power"
    assert meter.unmeasured_ms == 0


@pytest.mark.parametrize(
    ("plugged", "overhead", "micro"),
    [
        (True, False, 60 * 300_000 / 0.9 / 1e3),
        (True, True, (60 + 200) * 300_000 / 0.9 / 1e3),
        (False, True, (60 + 200) * (300_000 / 0.9 + 48_000) / 1e3),
    ],
)
def test_an_hour_at_sixty_watts(plugged: bool, overhead: bool, micro: float) -> None:
    rate = Rate.of(Policy(), 300_000, plugged=plugged, overhead=overhead)
    meter = Meter()
    for second in range(0, 3_601, 5):
        meter = meter.read(seen(second * 1000, 60.0), rate)
    assert meter.cost_micro == pytest.approx(micro)


def test_a_lease_pays_the_price_of_its_time() -> None:
    """Ten minutes at 60 W, the second half at a negative price; the car charges, so its overhead is sunk."""
    full = FullCar()
    slots = (PriceSlot(START_WALL_MS + 300_000, START_WALL_MS + HOUR_MS, -100_000),)
    full.tell(PricesSeen(at_ms=0, issued_wall_ms=START_WALL_MS, expires_wall_ms=START_WALL_MS + HOUR_MS, slots=slots))
    lease = Lease(grant=grant(1, ttl_ms=HOUR_MS), expires_ms=HOUR_MS, phase=Phase.RUNNING, started_ms=0)
    full.state = msgspec.structs.replace(full.state, lease=lease)
    full.advance(600, power_w=60.0)
    kwh = 60 / 1000 * 300 / 3600 / 0.9
    assert full.state.spent.cost_micro == pytest.approx(kwh * 270_000 - kwh * 100_000, abs=40)
    full.says(signals.CHARGING, False)
    before = full.state.meter.cost_micro
    full.advance(300, power_w=60.0)
    assert full.state.meter.cost_micro - before == pytest.approx(
        -100_000 * (60 + 200) / 1000 * 300 / 3600 / 0.9, abs=40
    )


def test_the_hand_in_says_what_the_lease_cost() -> None:
    """Nine seconds of 36 W and the second before, of 28 W, at 0.27 USD per kWh; and 200 W for keeping the car awake."""
    shell = ready()
    until(shell, RunSlice)
    for _ in range(10):
        shell.now_ms += 1_000
        shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms, power_w=36.0))
    shell.tell(car(shell.now_ms, {DOOR: True}))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    kwh = (28 * 1 + 36 * 9 + 200 * 10) / 3600 / 1000
    assert hand_in.facts.cost_micro == pytest.approx(kwh * 270_000 / 0.9, abs=2)


# --- filters ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 200_000), st.floats(-1e4, 1e4)), min_size=1, max_size=20),
    st.integers(0, 1_000_000),
)
def test_repeating_a_value_changes_no_filter(steps: list[tuple[int, float]], wait_ms: int) -> None:
    silent = talkative = LowPass(0.0, 0.0, 0, 45.0)
    now_ms, value = 0, 0.0
    for span_ms, following in steps:
        for part in range(1, 5):
            talkative = talkative.seen(value, now_ms + span_ms * part // 5)
        now_ms, value = now_ms + span_ms, following
        silent, talkative = silent.seen(value, now_ms), talkative.seen(value, now_ms)
    assert silent.at(now_ms + wait_ms) == talkative.at(now_ms + wait_ms)


@settings(max_examples=200, deadline=None)
@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(0, 3_000_000), st.floats(-100, 100))
def test_a_filter_says_whether_it_will_cross(start: float, value: float, now_ms: int, limit: float) -> None:
    one = LowPass(value, start, 0, 45.0)
    later = [one.at(at_ms) < limit for at_ms in range(now_ms, now_ms + 600_000, 1_000)]
    assert one.will_cross(limit, now_ms) is (later[0] is not later[-1])
    assert one.next_ms(now_ms) > now_ms
    assert one.at(one.next_ms(now_ms) - 1) == one.at(now_ms)


def test_a_step_is_followed_as_a_first_order_low_pass_does() -> None:
    one = LowPass(0.0, 0.0, 0, 45.0).seen(10.0, 1_000)
    assert one.at(46_000) == pytest.approx(10 * (1 - math.exp(-1)))
    assert one.at(1_000_000) == 10.0


# --- the low-voltage budget ---------------------------------------------------------------------------------------


def test_only_what_the_work_takes_is_counted_and_charging_gives_it_back() -> None:
    battery = LowVoltage().seen(12.0, -10.0, LEAD, 0)
    assert battery.taken_wh_at(HOUR_MS) == 0, "nobody works"
    battery = battery.works(LEAD, HOUR_MS, working=True)
    assert battery.taken_wh_at(HOUR_MS + 900_000) == pytest.approx(30)
    battery = battery.seen(14.0, 10.0, LEAD, HOUR_MS + 900_000)
    assert battery.taken_wh_at(HOUR_MS + 900_000 + 360_000) == pytest.approx(30 - 14)
    assert battery.taken_wh_at(3 * HOUR_MS) == 0, "never below nothing"


def test_a_converter_that_holds_up_a_full_battery_gives_credit() -> None:
    battery = LowVoltage(taken_wh=20.0).seen(13.6, 0.0, LEAD, 0)
    assert battery.taken_wh_at(HOUR_MS // 3) == pytest.approx(5)
    resting = LowVoltage(taken_wh=20.0).seen(12.7, 0.0, LEAD, 0)
    assert resting.taken_wh_at(HOUR_MS) == 20, "resting is not being charged"


def test_the_budget_shuts_the_gate_at_the_moment_it_is_used_up() -> None:
    """30 Wh at 13.0 V and 1.5 A (which is not enough to hold the gate by itself) last 5,538 s."""
    full = FullCar()
    full.advance(10)
    full.state = msgspec.structs.replace(full.state, worker=WorkerState(phase=WorkerPhase.READY))
    full.says(signals.LOW_VOLTAGE, 13.0)
    full.says(signals.LOW_VOLTAGE_CURRENT, -1.5)
    full.advance(5_530, step_ms=10_000)
    assert full.gate("low_voltage") is GateState.OPEN
    full.advance(10)
    assert full.gate("low_voltage") is GateState.CLOSED
    assert full.state.gates.reasons[0].code == "low_voltage_budget"
    full.says(signals.LOW_VOLTAGE, 13.8)
    full.says(signals.LOW_VOLTAGE_CURRENT, 2.0)
    full.advance(1_100, step_ms=10_000)
    assert full.gate("low_voltage") is GateState.HOLD, "half of it must be given back: 20 minutes at 45 W"
    full.advance(300, step_ms=10_000)
    assert full.gate("low_voltage") is GateState.OPEN


def test_the_charge_before_a_drive_is_not_held_against_the_car_after_it() -> None:
    """Cable and charge are told anew in the same moment, after hours in which nothing was heard."""
    vehicle, battery, policy = Vehicle(), Battery(), Policy()
    for at_ms, plugged, charge in ((0, False, 80.0), (1_000, False, 80.0), (7_200_000, True, 55.0)):
        samples = (Sample(signals.CABLE, plugged), Sample(signals.CHARGE, charge))
        vehicle = vehicle.seen(SignalsSeen(at_ms=at_ms, source="bus", samples=samples))
        battery = battery.seen(vehicle, policy, at_ms)
    assert battery.highest_at(7_200_000) == 55.0
