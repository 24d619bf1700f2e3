from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.core.effects import (
    HandIn,
    KeepBudgets,
    RecordVacate,
    Report,
    RunSlice,
    SendRequest,
    SettleHandIn,
    StopWorker,
)
from agent.core.events import ComputeSeen
from agent.core.findings import GateState
from agent.simulate.counterpart import Supposed
from agent.simulate.rehearsal import SLEEP_AFTER_MS
from tests.simulate.nights import BATTERY, DOOR, HANDLE, POLICY, SPEED, Row, Step, parked, rehearse

START_MS = round(dt.datetime(2026, 3, 28, 20, tzinfo=dt.UTC).timestamp() * 1000)
CABLE = f"{BATTERY}.Charging.ChargingPort.AnyPosition.IsChargingCableConnected"
CHARGE = f"{BATTERY}.StateOfCharge.Current"


def effects(steps: list[Step], kind: type) -> list[tuple[int, object]]:
    return [(after.now_ms, effect) for _, _, after, those in steps for effect in those if isinstance(effect, kind)]


def changes(steps: list[Step]) -> list[tuple[int, GateState]]:
    return [
        (after.now_ms, after.gates.state)
        for before, _, after, _ in steps
        if after.gates.state is not before.gates.state
    ]


def codes(steps: list[Step]) -> set[str]:
    return {reason.code for _, _, after, _ in steps for reason in after.gates.reasons}


# --- closed loop -----------------------------------------------------------------------------------------------------


def test_a_parked_car_works_and_is_given_back_when_the_handle_is_pulled() -> None:
    _, steps = rehearse(parked((200.5, HANDLE, "true"), (201, DOOR, "true"), end_s=210), start_wall_ms=START_MS)
    opened = [at_ms for at_ms, state in changes(steps) if state is GateState.OPEN]
    assert opened[0] >= 10_000
    slices = effects(steps, RunSlice)
    assert 150 < len(slices) < 190, "a slice a second, less what leases and loading take"
    assert max(at_ms for at_ms, _ in slices) < 200_500
    (stopped_ms, stop), *more = effects(steps, StopWorker)
    assert (stopped_ms, more) == (200_500, [])
    assert isinstance(stop, StopWorker)
    ((_, vacate),) = effects(steps, RecordVacate)
    assert isinstance(vacate, RecordVacate)
    assert (vacate.cause, vacate.idle_ms, vacate.gone_ms) == ("door_handle_pulled", 20, 60)


def test_what_was_finished_is_handed_in_and_paid_although_the_trace_ends_there() -> None:
    supposed = Supposed(slice_s=1.0, load_s=2.0, slice_price_micro=7)
    _, steps = rehearse(parked((60, HANDLE, "true"), end_s=60), start_wall_ms=START_MS, supposed=supposed)
    done = sum(len(lease) for lease in _slices_by_lease(steps).values())
    paid = [effect for _, effect in effects(steps, SettleHandIn)]
    assert done > 30
    assert sum(one.paid_micro for one in paid if isinstance(one, SettleHandIn)) == 7 * done
    assert len(paid) == len(effects(steps, HandIn))


def _slices_by_lease(steps: list[Step]) -> dict[str, set[int]]:
    """What the core itself counts as durable, lease by lease."""
    done: dict[str, set[int]] = {}
    for _, _, after, _ in steps:
        if after.lease is not None:
            done.setdefault(str(after.lease.key), set()).update(after.lease.done)
    return done


def test_twice_the_slice_is_half_the_slices() -> None:
    one, two = (
        len(effects(rehearse(parked(), supposed=Supposed(slice_s=slice_s, load_s=2.0))[1], RunSlice))
        for slice_s in (1.0, 2.0)
    )
    assert two == pytest.approx(one / 2, rel=0.1)


def test_a_car_that_drives_is_never_worked_on() -> None:
    _, steps = rehearse(parked((0, SPEED, "50"), end_s=600))
    assert changes(steps) == []
    assert effects(steps, SendRequest) == []
    assert "moving" in codes(steps)


def test_a_network_that_is_down_gives_no_work_and_one_that_comes_back_does() -> None:
    _, steps = rehearse(parked((0, "network", "down"), (200, "network", "up"), end_s=260))
    assert min(at_ms for at_ms, _ in effects(steps, RunSlice)) > 200_000
    assert "network_offline" in codes(steps)


def test_a_metered_network_and_a_pause_hold_the_work() -> None:
    _, steps = rehearse(parked((0, "network", "metered"), end_s=120))
    assert "network_metered" in codes(steps)
    assert effects(steps, RunSlice) == []
    _, steps = rehearse(parked((60, "owner", "paused"), (120, "owner", "auto"), end_s=180))
    at = [at_ms for at_ms, _ in effects(steps, RunSlice)]
    assert [one for one in at if 60_000 <= one < 120_000] == []
    assert min(at) < 60_000
    assert max(at) > 120_000


def test_consent_is_supposed_until_it_is_withdrawn() -> None:
    policy = msgspec.structs.replace(POLICY, consent_required_version=3)
    _, steps = rehearse(parked((60, "owner", "consent 0"), end_s=120), policy)
    at = [at_ms for at_ms, _ in effects(steps, RunSlice)]
    assert at
    assert max(at) < 60_000


# --- the computer ----------------------------------------------------------------------------------------------------


def test_the_modelled_die_follows_the_work_and_the_air_and_stays_below_its_limit() -> None:
    highest, work = {}, {}
    for air_c in ("20", "48"):
        rehearsal, steps = rehearse(parked((0, "ambient_c", air_c), end_s=2_400))
        readings = [event.die_c for _, event, _, _ in steps if isinstance(event, ComputeSeen) and event.die_c]
        highest[air_c], work[air_c] = max(readings), len(effects(steps, RunSlice))
        assert rehearsal.computer.energy_wh > 8 * 2_400 / 3600
    assert highest["20"] == pytest.approx(20 + (0.6 + 0.25) * 60, abs=3), (
        "full power settles at P times R above the air"
    )
    assert highest["20"] + 15 < highest["48"] < POLICY.die_limit_c
    assert work["48"] < work["20"], "the law paces the work"


def test_a_recorded_die_is_read_as_recorded() -> None:
    rows = (("0", "45"), ("100", "97"), ("200", "NA"))
    _, steps = rehearse(parked(*((float(time), "compute.die_c", value) for time, value in rows)))
    assert {event.die_c for _, event, _, _ in steps if isinstance(event, ComputeSeen)} >= {45.0, 97.0, None}
    assert {"die_above_limit", "temperature_missing"} <= codes(steps)
    assert max(at_ms for at_ms, _ in effects(steps, RunSlice)) <= 103_000


def test_recorded_power_is_what_is_metered() -> None:
    rehearsal, _ = rehearse(parked((0, "compute.power_w", "36"), (0, SPEED, "50"), end_s=3_600))
    assert rehearsal.computer.energy_wh == pytest.approx(36, abs=0.1)
    assert rehearsal.state.meter.total_micro_wh == pytest.approx(36e6, rel=0.01)


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_silent_car_sleeps_and_its_computer_with_it() -> None:
    rehearsal, steps = rehearse(parked((100, "source", "lost"), (3_700, "source", "alive"), end_s=3_800))
    assert rehearsal.asleep_ms == pytest.approx(3_600_000 - SLEEP_AFTER_MS, abs=1_000)
    times = [after.now_ms for _, _, after, _ in steps]
    assert [at_ms for at_ms in times if 165_000 < at_ms < 3_699_000] == []
    assert max(at_ms for at_ms, _ in effects(steps, RunSlice)) > 3_700_000, "and goes on when it wakes"
    assert "signal_source_down" in codes(steps)


def test_the_wall_clock_is_the_traces_and_is_not_believed_where_it_has_none() -> None:
    rehearsal, _ = rehearse(parked(end_s=120), start_wall_ms=START_MS)
    assert rehearsal.state.wall.problem == ""
    assert rehearsal.state.wall.wall_ms(rehearsal.state.now_ms) == START_MS + 120_000
    rehearsal, _ = rehearse(parked(end_s=120))
    assert rehearsal.state.wall.problem == "clock_unset"
    rehearsal, _ = rehearse(parked((60, "clock", "7200"), end_s=70), start_wall_ms=START_MS)
    assert rehearsal.state.wall.problem == "clock_jumped"
    rehearsal, _ = rehearse(parked((60, "clock", "unkept"), end_s=70), start_wall_ms=START_MS)
    assert rehearsal.state.wall.problem == "clock_unsynchronised"


def test_recorded_prices_are_the_cores_curve() -> None:
    rows = ((0.0, "price_micro_per_kwh", "300000"), (3_600.0, "price_micro_per_kwh", "-5000"))
    rehearsal, _ = rehearse(parked(*rows, end_s=3_700), start_wall_ms=START_MS)
    assert [slot.price_micro_per_kwh for slot in rehearsal.state.prices.slots] == [300_000, -5_000]


times = st.integers(0, 600).map(lambda tenths: tenths / 10)
news = st.sampled_from(
    [
        (HANDLE, "true"),
        (HANDLE, "false"),
        (DOOR, "true"),
        (DOOR, "false"),
        (DOOR, "NA"),
        (SPEED, "0"),
        (SPEED, "7"),
        (CABLE, "true"),
        (CABLE, "false"),
        (CHARGE, "80"),
        (CHARGE, "51"),
        ("network", "up"),
        ("network", "down"),
        ("owner", "paused"),
        ("owner", "auto"),
        ("demand", "15"),
        ("source", "lost"),
        ("source", "alive"),
        ("ambient_c", "45"),
        ("compute.die_c", "80"),
        ("compute.die_c", "91"),
        ("compute.die_c", "40"),
        ("clock", "100"),
    ]
)
nights = st.lists(st.tuples(times, news).map(lambda one: (one[0], *one[1])), max_size=8)


@settings(max_examples=60, deadline=None)
@given(nights)
@example([(0.1, "compute.die_c", "60")])
@example([(20.4, HANDLE, "true"), (22.3, HANDLE, "false")])
@example([(20.4, "demand", "15"), (31.7, "network", "down")])
def test_ticking_every_100_ms_would_change_nothing(rows: list[Row]) -> None:
    """Waking exactly when the core says so gives the same gates at the same times, and the same orders."""
    policy = msgspec.structs.replace(POLICY, parked_for_s=3.0)
    lazy, steady = (
        rehearse(parked(*rows, end_s=75), policy, start_wall_ms=START_MS, extra_tick_ms=tick_ms)[1]
        for tick_ms in (None, 100)
    )
    assert len(steady) > len(lazy)
    assert changes(lazy) == changes(steady)
    assert orders(lazy) == orders(steady)


def orders(steps: list[Step]) -> list[tuple[int, object]]:
    """What was asked for; not what the log and the notes of the budgets say, which ride along with other steps."""
    return [
        (after.now_ms, effect)
        for _, _, after, those in steps
        for effect in those
        if not isinstance(effect, Report | KeepBudgets)
    ]


@settings(max_examples=10, deadline=None)
@given(nights)
def test_the_same_night_gives_the_same_steps(rows: list[Row]) -> None:
    first, second = (rehearse(parked(*rows, end_s=60))[1] for _ in range(2))
    assert msgspec.json.encode([one[1:] for one in first[-50:]]) == msgspec.json.encode(
        [one[1:] for one in second[-50:]]
    )
    assert [(event, those) for _, event, _, those in first] == [(event, those) for _, event, _, those in second]
