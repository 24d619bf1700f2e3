"""A restart hands out no budget again: what was spent is told to the shells, and given back to the next run."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import signals
from agent.core.awake import Awake
from agent.core.effects import KeepBudgets
from agent.core.energy import LOW_VOLTAGE_LIMITS
from agent.core.events import EventType, HostSeen, SignalValue, Stopping, StoreFailed, Unwritten
from agent.core.findings import GateState
from agent.core.kept import WRITE_EVERY_MS, after_reboot, everything_spent, kept_of
from agent.core.machine import step
from agent.core.model import Kept
from agent.core.policy import Policy
from agent.core.state import State, initial, resume
from agent.core.thermal_watch import Watch
from agent.core.walltime import DAY_MS
from agent.core.world import Owner
from tests.core.full_car import START_WALL_MS, FullCar

HOUR_MS = 3_600_000
POLICY = Policy(parked_for_s=1)
FOUR_HOURS = Policy(parked_for_s=1, work_hours_per_stay=4, energy_price_micro_per_kwh=300_000)


class Car(FullCar):
    """Keeps what it was asked to write, and can be a later run of the same agent."""

    def __init__(
        self, policy: Policy = POLICY, kept: Kept | None = None, changes: dict[str, SignalValue] | None = None
    ) -> None:
        self.written: list[tuple[int, Kept]] = []
        self._kept = kept
        super().__init__(policy, changes=changes)

    def tell(self, event: EventType) -> None:
        if self._kept is not None:
            self.state, self._kept = resume(self.state, (), (), Owner(), self._kept), None
        self.state, effects = step(self.state, event)
        self.written += [(self.now_ms, effect.kept) for effect in effects if isinstance(effect, KeepBudgets)]


def spent(state: State, taken_wh: float) -> State:
    """The same with so much of the low-voltage budget used up."""
    battery = state.battery
    low_voltage = msgspec.structs.replace(battery.low_voltage, taken_wh=taken_wh, taken_at_ms=state.now_ms)
    return msgspec.structs.replace(state, battery=msgspec.structs.replace(battery, low_voltage=low_voltage))


def rebooted(kept: Kept) -> Kept:
    return after_reboot(kept, 0)


def test_a_car_in_which_nothing_happens_writes_nothing() -> None:
    car = Car(changes={signals.CABLE: False, signals.CHARGING: False})
    car.advance(600)
    assert car.written == []


def test_what_is_taken_is_written_every_ten_seconds_and_no_longer_than_it_changes() -> None:
    car = Car(changes={signals.CABLE: False, signals.CHARGING: False})
    car.advance(30)
    car.state = spent(car.state, taken_wh=1.0)
    car.advance(600)
    at_ms = [at_ms for at_ms, _ in car.written]
    assert len(at_ms) >= 7
    assert all(later - earlier >= WRITE_EVERY_MS for earlier, later in itertools.pairwise(at_ms))
    taken_wh = [kept.taken_wh for _, kept in car.written]
    assert taken_wh == sorted(taken_wh, reverse=True)
    assert taken_wh[-1] == 0
    assert at_ms[-1] < 150_000, "1 Wh at 45 W is back after 80 s"


def test_the_last_is_written_when_the_agent_stops() -> None:
    car = Car()
    car.advance(30)
    car.state = spent(car.state, taken_wh=5.0)
    car.tell(Stopping(at_ms=car.now_ms))
    assert car.written[-1][1].taken_wh == 5.0


def test_what_the_disk_refused_is_written_when_it_takes_writes_again() -> None:
    car = Car()
    car.advance(30)
    before = len(car.written)
    assert before > 0
    car.tell(StoreFailed(at_ms=car.now_ms, detail="full", step=Unwritten.NOTE, key=None, index=None))
    car.advance(30)
    assert len(car.written) == before
    car.state = msgspec.structs.replace(car.state, store_problem="")
    car.advance(WRITE_EVERY_MS / 1000)
    assert len(car.written) == before + 1


# --- low voltage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reboot", [False, True])
def test_the_low_voltage_budget_stays_spent_until_the_battery_was_charged(reboot: bool) -> None:
    kept = Kept(at_ms=-60_000, taken_wh=29.0)
    car = Car(kept=rebooted(kept) if reboot else kept)
    assert car.state.battery.low_voltage.taken_wh_at(0) == 29.0
    car.advance(15 * 60)
    assert car.gate("low_voltage") is GateState.HOLD
    assert "low_voltage_budget" in car.codes("low_voltage")
    car.advance(15 * 60)
    assert car.gate("low_voltage") is GateState.OPEN, "14 Wh at 45 W are back after 19 minutes"


def test_without_a_sensor_of_the_current_a_converter_that_holds_the_battery_up_gives_back_too() -> None:
    state = resume(initial("unit-1", POLICY, 0), (), (), Owner(), Kept(taken_wh=30.0))
    limits = LOW_VOLTAGE_LIMITS["lead"]
    battery = state.battery.low_voltage.seen(14.0, None, limits, 0)
    assert battery.taken_wh_at(20 * 60_000) == pytest.approx(15.0)
    sagging = state.battery.low_voltage.seen(12.6, None, limits, 0)
    assert sagging.taken_wh_at(HOUR_MS) == 30.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_no_number_of_restarts_makes_what_was_taken_less(shares: list[float]) -> None:
    state = initial("unit-1", POLICY, 0)
    taken_wh = 0.0
    for share in shares:
        taken_wh += share
        state = spent(state, taken_wh=state.battery.low_voltage.taken_wh_at(state.now_ms) + share)
        state = resume(initial("unit-1", POLICY, 0), (), (), Owner(), rebooted(kept_of(state)))
        assert state.battery.low_voltage.taken_wh_at(0) >= taken_wh - 1e-9


# --- the plugged-in car -------------------------------------------------------------------------------------------


def test_a_plugged_in_car_may_not_drain_anew_after_a_restart() -> None:
    car = Car(changes={signals.CHARGE: 70.0})
    car.advance(60)
    kept = car.written[-1][1]
    assert kept.highest_percent == 70.0
    again = Car(kept=rebooted(kept), changes={signals.CHARGE: 67.5})
    again.advance(60)
    assert "net_drain" in again.codes("plugged")


def test_a_car_that_was_driven_meanwhile_needs_to_charge_a_little_and_no_more() -> None:
    car = Car(kept=Kept(highest_percent=90.0), changes={signals.CHARGE: 50.0})
    car.advance(60)
    assert "net_drain" in car.codes("plugged")
    car.says(signals.CHARGE, 51.5)
    car.advance(600)
    assert car.gate("plugged") is GateState.OPEN


def test_a_car_seen_unplugged_begins_again() -> None:
    car = Car(kept=Kept(highest_percent=90.0), changes={signals.CHARGE: 50.0, signals.CABLE: False})
    car.says(signals.CABLE, True)
    car.advance(600)
    assert car.gate("plugged") is GateState.OPEN


# --- keep-awake ---------------------------------------------------------------------------------------------------

USED = Awake(used_ms=HOUR_MS, used_wh=200.0, wakes=3, day_ms=0)


def test_the_day_goes_on_where_it_was_after_a_restart() -> None:
    state = msgspec.structs.replace(initial("unit-1", POLICY, 10 * HOUR_MS), awake=USED)
    later = resume(initial("unit-1", POLICY, 11 * HOUR_MS), (), (), Owner(), kept_of(state)).awake
    assert (later.used_ms, later.used_wh, later.wakes, later.day_ms) == (HOUR_MS, 200.0, 3, 0)
    assert later.step(POLICY, DAY_MS - 1, work=False, charging=False)[0].used_ms == HOUR_MS
    assert later.step(POLICY, DAY_MS, work=False, charging=False)[0].wakes == 0


@pytest.mark.parametrize(
    ("off_ms", "synchronised", "over"),
    [(15 * HOUR_MS, True, True), (13 * HOUR_MS, True, False), (15 * HOUR_MS, False, False)],
)
def test_time_off_counts_towards_the_day_once_the_clock_is_trusted(
    off_ms: int,
    synchronised: bool,
    over: bool,
) -> None:
    written = Kept(at_ms=10 * HOUR_MS, wall_ms=START_WALL_MS, awake_used_ms=HOUR_MS, awake_used_wh=200.0, awake_wakes=3)
    policy = msgspec.structs.replace(POLICY, keep_awake=True)
    state = resume(initial("unit-1", policy, 5_000), (), (), Owner(), after_reboot(written, 5_000))
    error_ms = 20 if synchronised else None
    host = HostSeen(at_ms=6_000, wall_ms=START_WALL_MS + off_ms + 1_000, wall_error_ms=error_ms)
    state, _ = step(state, host)
    assert (state.awake.wakes == 0) is over


# --- the stay -----------------------------------------------------------------------------------------------------


def test_hours_spent_of_the_stay_stay_spent() -> None:
    car = Car(FOUR_HOURS)
    car.advance(3 * 3_600, step_ms=5_000)
    spent_ms = car.state.stay.spent_ms(START_WALL_MS + car.now_ms)
    kept = car.written[-1][1]
    again = Car(FOUR_HOURS, kept=rebooted(kept))
    wall_ms = START_WALL_MS + 3 * HOUR_MS
    again.tell(HostSeen(at_ms=0, wall_ms=START_WALL_MS, wall_error_ms=20))
    left_ms = sum(slot.end_wall_ms - max(slot.start_wall_ms, wall_ms) for slot in again.state.stay.chosen)
    assert spent_ms == 3 * HOUR_MS
    assert again.state.stay.spent_ms(wall_ms) == 3 * HOUR_MS
    assert left_ms == HOUR_MS


def test_a_stay_that_is_over_begins_again() -> None:
    over = Kept(
        stay_begins_ms=START_WALL_MS - 2 * DAY_MS, stay_ends_ms=START_WALL_MS - DAY_MS, stay_used_ms=4 * HOUR_MS
    )
    car = Car(FOUR_HOURS, kept=over)
    car.advance(1)
    assert car.state.stay.used_ms == 0


# --- the thermal watch --------------------------------------------------------------------------------------------


def test_a_rest_goes_on_and_the_next_is_longer() -> None:
    watch = Watch(rests=3, rests_until_ms=200_000, allowed_w=20.0)
    state = initial("unit-1", POLICY, 100_000)
    state = msgspec.structs.replace(state, heat=msgspec.structs.replace(state.heat, watch=watch))
    state = resume(initial("unit-1", POLICY, 1_000), (), (), Owner(), after_reboot(kept_of(state), 1_000))
    assert (state.heat.watch.rests, state.heat.watch.rests_until_ms, state.heat.watch.allowed_w) == (3, 101_000, 20.0)


# --- what nobody can read -----------------------------------------------------------------------------------------


def test_what_nobody_can_read_is_spent_and_each_budget_has_its_way_back() -> None:
    policy = msgspec.structs.replace(FOUR_HOURS, keep_awake=True)
    car = Car(policy, kept=everything_spent(policy, 0))
    car.advance(60)
    assert "low_voltage_budget" in car.codes("low_voltage")
    assert "net_drain" in car.codes("plugged")
    assert "work_hours_used" in car.codes("tariff")
    assert car.state.awake.wakes == policy.keep_awake_budget_wakes
    car.says(signals.CHARGE, 72.0)
    car.advance(DAY_MS / 1000, step_ms=5_000)
    assert {car.gate(name) for name in ("low_voltage", "plugged", "tariff")} == {GateState.OPEN}
    assert car.state.awake.wakes == 0


def test_an_owner_without_work_hours_is_not_made_to_wait_for_a_stay() -> None:
    car = Car(POLICY, kept=everything_spent(POLICY, 0))
    car.advance(60)
    assert car.gate("tariff") is GateState.OPEN
