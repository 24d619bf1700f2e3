"""An update of the agent: a lease at work ends before it, nothing new begins, and the owner and the car come first."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import signals, update_wait
from agent.core.effects import HandIn, RunSlice, SendHandIn, SendRequest
from agent.core.events import HostSeen, LinkChanged
from agent.core.findings import GateState
from agent.core.model import HandInKind
from agent.core.policy import Policy, Window
from agent.core.state import initial
from agent.core.update_wait import HOUR_MS, Told, Waiting, latest_ms, waits_for
from tests.core.stories import DOOR, check, until
from tests.core.world import POLICY, Shell

NOON_MS = 1_767_268_800_000
"""2026-01-01T12:00Z, a Thursday."""
TOLD = Told("1.2.3", NOON_MS)


def host(shell: Shell, *, update: bool, wall_error_ms: int | None = 10) -> HostSeen:
    return HostSeen(at_ms=shell.now_ms, wall_ms=NOON_MS, wall_error_ms=wall_error_ms, update_pending=update)


def working(policy: Policy = POLICY) -> Shell:
    """A lease is at work: its first slice is under way."""
    shell = Shell(state=initial("unit-1", policy, 0))
    shell.open_the_gate()
    until(shell, RunSlice)
    return shell


def with_policy(**changes: object) -> Policy:
    return msgspec.structs.replace(POLICY, **changes)


def test_a_lease_at_work_comes_to_its_end_and_nothing_new_begins() -> None:
    shell = working()
    shell.tell(host(shell, update=True))
    asked = sum(isinstance(effect, SendRequest) for effect in shell.effects)
    for _ in range(10):
        shell.advance(2_000)
        shell.settle_down()
    assert shell.settled
    assert len(shell.settled) == 1
    (slices,) = shell.settled.values()
    assert slices == {0, 1, 2}, "all of it, not what was finished when the update came"
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == asked
    assert all(effect.credit == 0 for effect in shell.effects if isinstance(effect, SendHandIn))
    assert shell.gate() is GateState.HOLD
    assert [reason.code for reason in shell.state.gates.reasons] == ["update_pending"]
    shell.tell(host(shell, update=False))
    shell.advance(5_000)
    shell.settle_down()
    assert shell.granted > 1, "work goes on when no update waits any more"


def test_a_lease_that_takes_longer_than_its_drain_is_given_back_with_what_is_finished() -> None:
    shell = working(with_policy(update_drain_s=10.0))
    shell.carry_out(lambda effect: isinstance(effect, RunSlice))
    until(shell, RunSlice)  # and this one takes for ever
    shell.tell(host(shell, update=True))
    shell.advance(9_000)
    assert shell.gate() is GateState.OPEN
    shell.advance(2_000)
    assert shell.gate() is GateState.CLOSED
    assert [reason.code for reason in shell.state.gates.reasons] == ["update_overdue"]
    shell.settle_down()
    given_back = [effect for effect in shell.effects if isinstance(effect, HandIn)]
    assert [effect.kind for effect in given_back] == [HandInKind.YIELD]
    (slices,) = shell.settled.values()
    assert 0 in slices
    assert 2 not in slices


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({DOOR: True}, "not parked and empty"),
        ({signals.SEAT: "OCCUPIED"}, "not parked and empty"),
        ({signals.SPEED: 30.0}, "not parked and empty"),
        ({signals.CABLE: False}, "not plugged in"),
    ],
)
def test_the_car_comes_first(changes: dict[str, bool | float | str], why: str) -> None:
    shell = Shell(state=initial("unit-1", with_policy(update_plugged=True), 0))
    shell.tell(host(shell, update=True))
    shell.advance(5_000)
    shell.settle_down()
    assert waits_for(shell.state, TOLD, NOON_MS) == Waiting()
    shell.changes = dict(changes)
    shell.advance(500)
    for told in (TOLD, Told("1.2.3", NOON_MS, at_once=True)):
        waiting = waits_for(shell.state, told, NOON_MS)
        assert why in waiting.why
        assert not waiting.for_word


def test_just_after_the_driver_left_it_waits_as_long_as_work_does() -> None:
    shell = Shell()
    shell.changes = {DOOR: True}
    shell.advance(5_000)
    shell.changes = {}
    shell.advance(1_000)
    assert "not parked and empty" in waits_for(shell.state, TOLD, NOON_MS).why
    shell.advance(4_000)
    assert waits_for(shell.state, TOLD, NOON_MS).why == ""


def parked(policy: Policy, *, clock: bool = True) -> Shell:
    shell = Shell(state=initial("unit-1", policy, 0))
    shell.tell(host(shell, update=False, wall_error_ms=10 if clock else None))
    shell.advance(5_000)
    return shell


def test_a_deferral_counts_until_its_end_and_no_longer_than_the_policy_lets_it() -> None:
    state = parked(with_policy(update_defer_max_h=10.0)).state
    deferred = Told("1.2.3", NOON_MS, until_wall_ms=NOON_MS + 3 * HOUR_MS)
    assert waits_for(state, deferred, NOON_MS + 3 * HOUR_MS - 1).for_word
    assert waits_for(state, deferred, NOON_MS + 3 * HOUR_MS) == Waiting()
    assert latest_ms(state, TOLD) == NOON_MS + 10 * HOUR_MS
    for_ever = Told("1.2.3", NOON_MS, until_wall_ms=2**53)
    assert waits_for(state, for_ever, NOON_MS + 10 * HOUR_MS - 1).for_word
    assert waits_for(state, for_ever, NOON_MS + 10 * HOUR_MS) == Waiting()


def test_the_owners_hours() -> None:
    nights = with_policy(update_schedule=(Window(start="22:00", end="06:00"),))
    state = parked(nights).state
    assert "outside the owner's hours" in waits_for(state, TOLD, NOON_MS).why
    assert waits_for(state, TOLD, NOON_MS + 11 * HOUR_MS) == Waiting()
    assert waits_for(state, Told("1.2.3", NOON_MS, at_once=True), NOON_MS) == Waiting()
    lost = parked(nights, clock=False).state
    assert lost.wall.problem
    assert "the clock is not to be trusted" in waits_for(lost, TOLD, NOON_MS + 11 * HOUR_MS).why


moves = st.lists(
    st.sampled_from(["time", "do", "do", "do", "driver", "leaves", "offline", "online", "update", "none", "long"]),
    max_size=80,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(moves)
def test_it_may_never_be_replaced_inside_a_lease_or_while_somebody_is_there(script: list[str]) -> None:
    lives(script)


def lives(script: list[str]) -> None:
    """A car in which this happens, one thing after the other; at no moment may the agent be replaced too early."""
    shell = working(with_policy(update_drain_s=20.0))
    for move in script:
        match move:
            case "time":
                shell.advance(700)
            case "long":
                shell.advance(6_000)
            case "do":
                shell.carry_out()
            case "driver" | "leaves":
                shell.changes = {DOOR: True} if move == "driver" else {}
                shell.advance(300)
            case "offline":
                shell.tell(LinkChanged(at_ms=shell.now_ms, connected=False, broker="b:1"))
            case "online":
                shell.connect()
            case _:
                shell.tell(host(shell, update=move == "update"))
        check(shell)
        words = (TOLD, Told("1.2.3", NOON_MS, at_once=True), Told("1.2.3", 0, until_wall_ms=NOON_MS + HOUR_MS))
        if not all(waits_for(shell.state, told, NOON_MS).why for told in words):
            assert shell.state.lease is None, "inside a lease"
            assert not shell.state.left_over
            assert not shell.changes, "somebody is there"
            assert not shell.disk, "slices of a lease that is open"
    shell.changes = {}
    shell.connect()
    shell.tell(host(shell, update=True))
    for _ in range(30):
        shell.advance(2_000)
        shell.settle_down(20)
    assert waits_for(shell.state, TOLD, NOON_MS) == Waiting(), "and in the end it may"


@pytest.mark.parametrize(
    ("blind_to", "script", "says"),
    [
        ("_work", ["time"], "inside a lease"),
        ("_car", ["update", *(["do"] * 3 + ["time"]) * 4, "driver", *["do"] * 4, "time"], "somebody is there"),
    ],
)
def test_a_switch_inside_a_lease_or_beside_the_driver_would_be_found(
    blind_to: str, script: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives(script)
    monkeypatch.setattr(update_wait, blind_to, lambda _state: "")
    with pytest.raises(AssertionError, match=says):
        lives(script)
