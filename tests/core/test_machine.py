"""A lease from the request to the verdict, and the driver, the heat and the end in between."""

from __future__ import annotations

import itertools

import msgspec

from agent.core.effects import (
    HandIn,
    OpenLease,
    RecordVacate,
    RunSlice,
    SendHandIn,
    SendRequest,
    SetPace,
    SetPowerLimit,
    SettleHandIn,
    StartWorker,
    StopWorker,
)
from agent.core.events import EventType, GrantSeen, Stopping, Tick, WorkerGone, WorkerIdle, WorkerReady
from agent.core.findings import GateState
from agent.core.machine import as_of, step
from agent.core.model import HandInKind, JobKey, YieldReason
from agent.core.state import WorkerPhase
from agent.core.thermal import duty_permille
from tests.core.stories import DOOR, ready, until
from tests.core.world import Shell, car, computer, grant


def test_the_whole_life_of_a_lease() -> None:
    shell = ready()
    until(shell, SettleHandIn)
    shell.carry_out()
    order: list[type] = [type(effect) for effect in shell.effects]
    life: list[type] = [SendRequest, OpenLease, StartWorker, RunSlice, HandIn, SendHandIn, SettleHandIn]
    for earlier, later in itertools.pairwise(life):
        assert order.index(earlier) < order.index(later)
    assert [effect.index for effect in shell.effects if isinstance(effect, RunSlice)][:3] == [0, 1, 2]
    assert shell.settled[JobKey("job1", 1)] == {0, 1, 2}


def test_the_verdict_carries_the_next_grant_and_the_worker_stays_warm() -> None:
    shell = ready()
    for _ in range(60):
        shell.carry_out()
    assert len(shell.settled) >= 3
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == 1
    assert sum(isinstance(effect, StartWorker) for effect in shell.effects) == 1


def test_the_driver_stops_the_worker_in_the_same_step() -> None:
    shell = ready()
    until(shell, RunSlice)
    effects = shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    stop = next(effect for effect in effects if isinstance(effect, StopWorker))
    assert stop.budget_ms == shell.state.policy.vacate_budget_ms
    assert shell.state.worker.phase is WorkerPhase.STOPPING


def test_a_slow_model_is_killed_not_drained() -> None:
    shell = ready()
    until(shell, StartWorker)
    shell.waiting.clear()
    shell.tell(WorkerReady(at_ms=shell.now_ms, pid=1, executor="x", device="cpu", package="ocr", micro_batch_ms=61.0))
    effects = shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    assert [effect.budget_ms for effect in effects if isinstance(effect, StopWorker)] == [0]


def test_a_vacate_is_timed_from_the_sign_to_idle_and_gone() -> None:
    shell = ready()
    until(shell, RunSlice)
    sign_ms = shell.now_ms + 1
    shell.tell(car(sign_ms, {DOOR: True}))
    shell.tell(WorkerIdle(at_ms=sign_ms + 12, pid=1))
    effects = shell.tell(WorkerGone(at_ms=sign_ms + 40, pid=1, expected=True, detail=""))
    assert RecordVacate(cause="door_open", idle_ms=12, gone_ms=40) in effects
    assert shell.state.vacating is None


def test_what_was_finished_is_kept_and_the_rest_given_back_when_the_driver_comes() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.carry_out(lambda effect: isinstance(effect, RunSlice))
    until(shell, RunSlice)
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    shell.carry_out(lambda effect: isinstance(effect, StopWorker))
    until(shell, HandIn)
    hand_in = next(effect for effect in shell.effects if isinstance(effect, HandIn))
    assert (hand_in.kind, hand_in.why, hand_in.detail) == (HandInKind.YIELD, YieldReason.DRIVER, "door_open")
    shell.settle_down()
    assert shell.settled[hand_in.grant.key] == {0}


def test_no_new_slice_on_hold_and_the_worker_stays() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.tell(msgspec.structs.replace(computer(shell.now_ms + 1), throttled=True))
    assert shell.gate() is GateState.HOLD
    shell.carry_out(lambda effect: isinstance(effect, RunSlice))
    shell.now_ms += 1
    assert not any(isinstance(effect, RunSlice | StopWorker) for effect in shell.waiting)
    assert shell.state.worker.phase is WorkerPhase.READY


def test_a_lease_ends_its_ttl_after_it_was_asked_for_not_after_it_came() -> None:
    shell = ready()
    request = shell.waiting.pop()
    assert isinstance(request, SendRequest)
    assert shell.state.asking is not None
    asked_ms = shell.state.asking.sent_ms
    shell.advance(5_000)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=grant(1, ttl_ms=20_000), retry_ms=0))
    assert shell.state.lease is not None
    assert shell.state.lease.expires_ms == asked_ms + 20_000 - 10, "less what the two clocks may differ by"
    until(shell, RunSlice)
    shell.waiting.clear()
    shell.advance(asked_ms + 20_000 - shell.now_ms)
    assert isinstance(until(shell, StopWorker), StopWorker)
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.EXPIRED


def test_the_gate_state_that_is_signed_is_that_of_the_work() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.carry_out()
    shell.tell(car(shell.now_ms + 1, {DOOR: True}))
    shell.carry_out(lambda effect: isinstance(effect, StopWorker))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.facts.gate_state == "open"


def test_power_that_was_not_measured_is_not_signed_as_zero_of_a_sensor() -> None:
    shell = ready()
    shell.tell(computer(shell.now_ms, power_w=None))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.facts.sensor == "none"


def test_stopping_hands_in_what_is_done_and_ends_the_worker() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.carry_out()
    until(shell, RunSlice)
    shell.tell(Stopping(at_ms=shell.now_ms))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    assert hand_in.why is YieldReason.SHUTDOWN
    shell.settle_down()
    assert shell.state.worker.phase is WorkerPhase.ABSENT
    assert shell.state.lease is None


def test_heat_slows_the_worker_down() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.tell(computer(shell.now_ms + 1, 84.0))
    cap_w = shell.state.heat.cap_w
    assert 8.0 < cap_w < 60.0
    paces = [effect.duty_permille for effect in shell.effects if isinstance(effect, SetPace)]
    assert paces == [duty_permille(cap_w, shell.state.policy)]
    limits = [effect.limit_w for effect in shell.effects if isinstance(effect, SetPowerLimit)]
    assert limits == [60.0, cap_w]


def test_a_temperature_that_is_late_pauses_the_worker_before_the_gate_closes() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.die_c = None
    shell.advance(2_100)
    assert [effect for effect in shell.effects if isinstance(effect, SetPace)][-1] == SetPace(duty_permille=0)
    assert [effect for effect in shell.effects if isinstance(effect, SetPowerLimit)][-1] == SetPowerLimit(limit_w=8.0)
    assert shell.gate() is GateState.HOLD
    assert not any(isinstance(effect, StopWorker) for effect in shell.effects)
    shell.advance(1_000)
    stops = [effect for effect in shell.effects if isinstance(effect, StopWorker)]
    assert [stop.why for stop in stops] == ["temperature_missing"]


def test_a_computer_whose_power_is_not_measured_gets_no_limit_in_watts() -> None:
    shell = Shell()
    shell.connect()
    for _ in range(41):
        shell.now_ms += 100
        shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms, 50.0, None))
    until(shell, RunSlice)
    shell.tell(computer(shell.now_ms + 1, 92.0, None))
    assert any(isinstance(effect, SetPace) for effect in shell.effects)
    assert not any(isinstance(effect, SetPowerLimit) for effect in shell.effects)


def test_power_that_does_not_follow_its_cap_stops_the_work() -> None:
    shell = ready()
    until(shell, RunSlice)
    for second in range(1, 12):
        for _ in range(10):
            shell.now_ms += 100
            shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms, 88.0 + second / 10, 60.0))
    stops = [effect.why for effect in shell.effects if isinstance(effect, StopWorker)]
    assert stops == ["power_not_obeyed"]
    assert shell.state.lease is not None
    assert shell.state.lease.ending is YieldReason.THERMAL


def test_the_length_of_a_slice_is_remembered_for_the_forecast() -> None:
    shell = ready()
    until(shell, RunSlice)
    shell.now_ms += 700
    shell.carry_out(lambda effect: isinstance(effect, RunSlice))
    assert shell.state.slice_ms == 700


def test_energy_is_what_was_measured_while_the_lease_ran() -> None:
    shell = ready()
    until(shell, RunSlice)
    start_ms = shell.now_ms
    for second in range(1, 11):
        shell.tell(car(start_ms + second * 1000))
        shell.tell(computer(start_ms + second * 1000, power_w=36.0))
        shell.tell(Tick(at_ms=start_ms + second * 1000))
    shell.now_ms = start_ms + 10_000
    shell.tell(car(shell.now_ms, {DOOR: True}))
    hand_in = until(shell, HandIn)
    assert isinstance(hand_in, HandIn)
    # the first second rises from 20 W to 36 W, then nine seconds at 36 W
    assert abs(hand_in.facts.energy_micro_wh - (28 * 1 + 36 * 9) / 3600 * 1e6) < 3


def test_the_same_events_give_the_same_effects() -> None:
    shell = ready()
    shell.settle_down(40)
    events: list[EventType] = [car(100), computer(100), Tick(at_ms=200)]
    one = Shell().state
    two = Shell().state
    for event in events:
        one, first = step(one, event)
        two, second = step(two, event)
        assert first == second
    assert one == two


def test_who_asks_sees_the_gates_as_of_now() -> None:
    """Most events decide nothing, so a wait that is shown must not be as old as the last decision."""
    shell = Shell()
    shell.advance(1_000)
    waits = [reason for reason in as_of(shell.state, 1_300).gates.reasons if reason.code == "parked_not_long_enough"]
    assert [reason.value for reason in waits] == [1.2]
