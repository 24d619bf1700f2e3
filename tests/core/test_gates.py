"""Every gate, every way a signal can fail, and the timing between them."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import signals
from agent.core.events import (
    OwnerMode,
    OwnerSaid,
    Quality,
    Sample,
    SignalsSeen,
    SignalValue,
    SourceChanged,
    StoreFailed,
    Tick,
    Unwritten,
)
from agent.core.findings import GateState
from agent.core.gates import RULES, Gate
from agent.core.machine import world_of
from agent.core.policy import Policy
from agent.core.state import initial
from agent.core.thermal_watch import THROTTLE_REST_MS
from agent.core.world import Sight
from agent.explain import SENTENCES, sentence
from tests.core.world import PARKED, Shell, car, computer


def opened() -> Shell:
    shell = Shell()
    shell.advance(4_000)
    assert shell.gate() is GateState.OPEN
    return shell


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (signals.SPEED, 3.0, "moving"),
        (signals.SPEED, -3.0, "moving"),
        (signals.GEAR, 127.0, "gear_not_park"),
        (signals.GEAR, 0.0, "gear_not_park"),
        (signals.BRAKE, 100.0, "brake_pressed"),
        (signals.LOW_VOLTAGE_STATE, "ACC", "powered_for_driving"),
        (signals.DOOR_HANDLE, True, "door_handle_pulled"),
        *[(door, True, "door_open") for door in (*signals.DOORS, signals.TRUNK)],
        (signals.SEAT, "OCCUPIED", "seat_occupied"),
        (signals.DRIVER_PRESENT, True, "driver_present"),
        (signals.CABLE, False, "not_plugged_in"),
        (signals.CHARGE, 51.0, "charge_below_reserve"),
    ],
)
def test_one_sign_shuts_the_gate_at_once_and_says_why(path: str, value: SignalValue, code: str) -> None:
    shell = opened()
    shell.tell(car(shell.now_ms + 1, {path: value}))
    assert shell.gate() is GateState.CLOSED
    reason = shell.state.gates.reasons[0]
    assert (reason.code, reason.signal, reason.value, reason.since_ms) == (code, path, value, shell.now_ms + 1)
    assert code in SENTENCES
    assert sentence(reason)


@pytest.mark.parametrize("path", sorted(PARKED))
@pytest.mark.parametrize("quality", [Quality.UNKNOWN, Quality.INVALID, Quality.OUT_OF_RANGE])
def test_a_signal_that_is_not_good_counts_as_the_driver(path: str, quality: Quality) -> None:
    shell = opened()
    shell.tell(SignalsSeen(at_ms=shell.now_ms + 1, source="bus", samples=(Sample(path, None, quality),)))
    assert shell.gate() is GateState.CLOSED
    assert shell.state.gates.reasons[0].code == f"signal_{quality.value}"
    assert f"signal_{quality.value}" in SENTENCES


@pytest.mark.parametrize("path", sorted(PARKED))
@pytest.mark.parametrize("value", [math.nan, 17.0, "nonsense", True])
def test_no_absurd_value_is_taken_for_safe(path: str, value: SignalValue) -> None:
    shell = opened()
    shell.tell(car(shell.now_ms + 1, {path: value}))
    if (path, value) != (signals.CABLE, True):
        assert shell.gate() is GateState.CLOSED


@pytest.mark.parametrize("path", sorted(PARKED))
def test_a_signal_never_seen_keeps_the_gate_shut(path: str) -> None:
    shell = Shell()
    for _ in range(100):
        shell.now_ms += 100
        samples = tuple(Sample(one, value) for one, value in PARKED.items() if one != path)
        shell.tell(SignalsSeen(at_ms=shell.now_ms, source="bus", samples=samples))
        shell.tell(computer(shell.now_ms))
    assert [reason.code for reason in shell.state.gates.reasons] == ["signal_missing"]


def test_silence_shuts_the_gate_within_the_staleness_of_its_class() -> None:
    shell = opened()
    shell.tell(Tick(at_ms=shell.now_ms + signals.Staleness.GATE_EDGE.stale_ms))
    assert shell.gate() is GateState.OPEN
    shell.tell(Tick(at_ms=shell.now_ms + signals.Staleness.GATE_EDGE.stale_ms + 1))
    assert shell.gate() is GateState.CLOSED
    assert {reason.code for reason in shell.state.gates.reasons} == {"signal_stale"}


def test_a_dead_source_shuts_the_gate_at_once() -> None:
    shell = opened()
    shell.tell(SourceChanged(at_ms=shell.now_ms + 1, source="bus", alive=False, detail="interface down"))
    assert shell.state.gates.reasons[0].code == "signal_source_down"


def test_the_gate_opens_only_after_every_sign_agreed_for_long_enough() -> None:
    shell = Shell()
    shell.advance(2_900)
    assert shell.gate() is GateState.CLOSED
    waiting = shell.state.gates.reasons[0]
    assert waiting.code == "parked_not_long_enough"
    assert waiting.clears_at_ms == 100 + 3_000
    shell.changes = {signals.BRAKE: 100.0}
    shell.advance(100)
    shell.changes = {}
    shell.advance(3_000)
    assert shell.gate() is GateState.CLOSED, "one touch of the brake starts the wait again"
    shell.advance(100)
    assert shell.gate() is GateState.OPEN


def test_the_reserve_has_two_thresholds() -> None:
    shell = Shell(state=initial("unit-1", Policy(parked_for_s=3, net_drain_percent=100), 0))
    shell.advance(4_000)
    shell.connect()
    shell.changes = {signals.CHARGE: 53.0}
    shell.advance(1_000)
    assert shell.gate() is GateState.OPEN, "above the stopping threshold of 52"
    shell.changes = {signals.CHARGE: 52.0}
    shell.advance(100)
    assert shell.gate() is GateState.CLOSED
    shell.changes = {signals.CHARGE: 54.0}
    shell.advance(1_000)
    assert shell.gate() is GateState.CLOSED, "below the starting threshold of 55"
    shell.changes = {signals.CHARGE: 55.5}
    shell.advance(58_000)
    assert shell.state.gates.reasons[0].code == "settling", "not sooner than a minute after it shut"
    shell.advance(1_000)
    assert shell.gate() is GateState.OPEN


def heat_gate(shell: Shell) -> Gate:
    return next(gate for gate in shell.state.gates.gates if gate.name == "temperature")


def heat_codes(shell: Shell) -> list[str]:
    return [reason.code for reason in heat_gate(shell).reasons]


@pytest.mark.parametrize(
    ("die_c", "codes"),
    [
        (74.0, []),
        (87.9, []),
        (91.4, []),
        (91.6, ["die_hot"]),
        (95.0, ["die_hot", "die_rising"]),
        (95.1, ["die_above_limit", "die_hot", "die_rising"]),
    ],
)
def test_temperature_while_working(die_c: float, codes: list[str]) -> None:
    """Half way from target to limit the law is not holding the die; above the limit the computer is given back."""
    shell = opened()
    for second in range(1, 1_200):
        warm_c = min(die_c, 50.0 + 0.05 * second)
        shell.tell(computer(shell.now_ms + second * 1000, warm_c))
    assert heat_codes(shell) == codes
    shut = {"die_above_limit": GateState.CLOSED, "die_hot": GateState.HOLD}.get(codes[0] if codes else "")
    assert heat_gate(shell).state is (shut or GateState.OPEN)
    assert set(codes) <= set(SENTENCES)


def test_one_reading_above_the_limit_is_not_yet_two() -> None:
    shell = opened()
    shell.tell(computer(shell.now_ms + 1, 95.5))
    assert heat_gate(shell).state is not GateState.CLOSED
    shell.tell(computer(shell.now_ms + 501, 95.5))
    assert heat_gate(shell).state is GateState.CLOSED
    assert heat_codes(shell)[0] == "die_above_limit"


def test_a_hot_computer_does_not_start() -> None:
    shell = Shell(die_c=76.0)
    shell.advance(5_000)
    assert [reason.code for reason in shell.state.gates.reasons] == ["die_hot"]
    shell.die_c = 74.0
    shell.advance(600)
    assert shell.gate() is not GateState.OPEN, "one cooler reading may be noise"
    shell.advance(5_000)
    assert shell.gate() is GateState.OPEN


def test_a_lost_temperature_holds_and_then_closes() -> None:
    shell = opened()
    shell.die_c = None
    last_ms = shell.now_ms
    shell.advance(2_000)
    assert shell.gate() is GateState.OPEN
    assert shell.state.heat.waited(shell.now_ms, shell.state.policy).cap_w == 60.0
    shell.advance(100)
    assert [reason.code for reason in shell.state.gates.reasons] == ["temperature_late"]
    assert shell.state.heat.cap_w == shell.state.policy.power_idle_w
    shell.advance(last_ms + 3_100 - shell.now_ms)
    assert [reason.code for reason in shell.state.gates.reasons] == ["temperature_missing"]
    assert shell.gate() is GateState.CLOSED
    shell.die_c = 50.0
    shell.advance(11_000)
    assert shell.gate() is GateState.OPEN, "and there is a way back"


def test_a_throttled_platform_holds_for_a_while() -> None:
    shell = opened()
    shell.tell(msgspec.structs.replace(computer(shell.now_ms + 1), throttled=True))
    assert [reason.code for reason in shell.state.gates.reasons] == ["throttled"]
    assert shell.gate() is GateState.HOLD
    assert shell.state.gates.reasons[0].clears_at_ms == shell.now_ms + 1 + THROTTLE_REST_MS
    shell.advance(THROTTLE_REST_MS + 200)
    assert heat_gate(shell).state is GateState.OPEN


def test_no_lease_is_begun_that_would_end_above_the_limit() -> None:
    """A computer without a working sink: cool enough to start, but warming by 0.7 K a second."""
    shell = opened()
    for second in range(1, 36):
        for _ in range(10):
            shell.now_ms += 100
            shell.tell(car(shell.now_ms))
        shell.tell(computer(shell.now_ms, 50.0 + 0.7 * second, 8.0))
    assert heat_codes(shell) == ["die_rising"]
    assert shell.gate() is GateState.HOLD
    forecast_c = heat_gate(shell).reasons[0].value
    assert isinstance(forecast_c, float)
    assert forecast_c >= shell.state.policy.die_limit_c
    assert (shell.state.heat.die_c or 0.0) < shell.state.policy.die_start_c


def test_an_old_temperature_is_no_temperature() -> None:
    shell = opened()
    last_ms = shell.now_ms
    for late_ms in range(100, 3_200, 100):
        shell.tell(car(last_ms + late_ms))
    assert shell.state.gates.reasons[0].code == "temperature_stale"


def test_the_owner_and_the_disk_have_gates_too() -> None:
    shell = opened()
    shell.tell(StoreFailed(at_ms=shell.now_ms, detail="No space left on device", step=Unwritten.NOTE))
    assert shell.gate() is GateState.HOLD
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.PAUSED))
    assert [reason.code for reason in shell.state.gates.reasons] == ["owner_paused", "storage_failed"]


changes = st.dictionaries(
    st.sampled_from(sorted(PARKED)),
    st.one_of(st.booleans(), st.floats(-50, 150), st.sampled_from(["EMPTY", "OCCUPIED", "OFF", "ON", ""])),
    max_size=3,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(changes, st.integers(0, 40)), max_size=12))
def test_no_sequence_of_signals_opens_the_gate_early_or_leaves_it_shut_without_a_reason(
    script: list[tuple[dict[str, SignalValue], int]],
) -> None:
    """Whatever the car says: open needs 3 s of agreement, closed has a reason, and the gate never chatters."""
    shell = Shell()
    agreed_since_ms: int | None = None
    for spoken, steps in script:
        for _ in range(steps):
            shell.now_ms += 100
            shell.tell(car(shell.now_ms, spoken))
            shell.tell(computer(shell.now_ms))
            patient = [gate for gate in shell.state.gates.gates if RULES[gate.name].timing.patient]
            sight = Sight(world_of(shell.state), shell.state.policy)
            clear = all(not list(RULES[gate.name].look(sight, False)) for gate in patient)
            agreed_since_ms = (agreed_since_ms or shell.now_ms) if clear else None
            if shell.gate() is GateState.OPEN:
                assert agreed_since_ms is not None
                assert shell.now_ms - agreed_since_ms >= 3_000
            else:
                assert shell.state.gates.reasons


@pytest.mark.parametrize("state", list(GateState))
def test_a_gate_is_open_or_closed_or_holds_back_new_work(state: GateState) -> None:
    shell = Shell()
    shell.open_the_gate()
    gates = shell.state.gates
    changed = tuple(msgspec.structs.replace(one, state=state) if one.name == "parked" else one for one in gates.gates)
    gates = msgspec.structs.replace(gates, gates=changed)
    assert gates.is_open("parked") is (state is GateState.OPEN)
    assert gates.is_closed("parked") is (state is GateState.CLOSED)
