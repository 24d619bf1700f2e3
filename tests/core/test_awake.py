"""Keep-awake as a lease: renewed while there is work, let go at once after, never beyond a budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import signals
from agent.core.awake import LEASE_MS, LINGER_MS, RENEW_MS, Awake
from agent.core.effects import EffectType, KeepAwake, Report, RunSlice
from agent.core.events import HostSeen
from agent.core.policy import Policy
from agent.core.state import initial
from agent.core.walltime import DAY_MS
from tests.core.stories import DOOR, until
from tests.core.world import Shell

ALLOWED = Policy(keep_awake=True)


def asked(awake: Awake, now_ms: int, policy: Policy = ALLOWED, *, work: bool = True, charging: bool = False) -> Awake:
    return awake.step(policy, now_ms, work=work, charging=charging)[0]


def test_it_is_renewed_every_two_seconds_while_there_is_work() -> None:
    awake, wishes = Awake(), []
    for now_ms in range(0, 10_000, 100):
        awake, for_ms = awake.step(ALLOWED, now_ms, work=True, charging=False)
        wishes += [] if for_ms is None else [(now_ms, for_ms)]
    assert wishes == [(at_ms, LEASE_MS) for at_ms in range(0, 10_000, RENEW_MS)]
    assert awake.due_ms == 10_000
    assert (awake.used_ms, awake.wakes) == (9_900, 1)


def test_it_is_let_go_a_little_after_the_work() -> None:
    awake = asked(Awake(), 0)
    assert asked(awake, LINGER_MS - 1, work=False).held
    awake, for_ms = awake.step(ALLOWED, LINGER_MS, work=False, charging=False)
    assert (awake.held, for_ms) == (False, 0)
    assert awake.step(ALLOWED, LINGER_MS + 1, work=False, charging=False)[1] is None, "once"


def test_a_policy_that_no_longer_allows_it_lets_go() -> None:
    assert asked(Awake(), 0).step(Policy(), 1, work=True, charging=False)[1] == 0
    assert Awake().step(Policy(), 1, work=True, charging=False)[1] is None


@pytest.mark.parametrize(
    ("policy", "held_s", "refused"),
    [
        (Policy(keep_awake=True, keep_awake_budget_minutes=2), 120, "keep_awake_minutes"),
        (Policy(keep_awake=True, keep_awake_budget_wh=10, awake_overhead_w=200), 180, "keep_awake_energy"),
    ],
)
def test_a_budget_that_is_used_up_lets_go_until_the_next_day(policy: Policy, held_s: int, refused: str) -> None:
    awake, now_ms = Awake(), 0
    while (awake := asked(awake, now_ms, policy)).held:
        now_ms += 500
    assert (now_ms, awake.refused) == (held_s * 1000, refused)
    assert asked(awake, now_ms + 1, policy, charging=True).held, "it costs nothing while the car charges"
    assert awake.due_ms == DAY_MS
    awake = asked(awake, DAY_MS, policy)
    assert (awake.held, awake.refused, awake.used_ms) == (True, "", 0)


def test_only_so_many_wakes_a_day() -> None:
    policy, awake = Policy(keep_awake=True, keep_awake_budget_wakes=2), Awake()
    for number in range(2):
        awake = asked(awake, number * 60_000, policy)
        assert awake.held
        awake = asked(awake, number * 60_000 + 30_000, policy, work=False)
    awake = asked(awake, 200_000, policy)
    assert (awake.held, awake.refused) == (False, "keep_awake_wakes")


def test_while_the_car_charges_nothing_is_counted() -> None:
    awake = asked(Awake(), 0, charging=True)
    awake = asked(awake, 3_600_000, charging=True)
    awake = asked(awake, 3_601_000)
    assert awake.used_ms == 0
    assert asked(awake, 3_602_000).used_ms == 1_000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4_000_000), st.booleans(), st.booleans()), max_size=80))
def test_no_day_takes_more_than_its_budgets(moves: list[tuple[int, bool, bool]]) -> None:
    """Asked at least every two seconds while held, as the plan does; counted here from outside."""
    policy = Policy(keep_awake=True, keep_awake_budget_minutes=5, keep_awake_budget_wakes=3)
    awake, now_ms, held_ms, wakes = Awake(), 0, 0, 0
    for wait_ms, work, charging in moves:
        end_ms = now_ms + wait_ms
        while now_ms < end_ms:
            before, was_held, was_free = now_ms, awake.held, awake.free
            now_ms = min(end_ms, awake.due_ms) if awake.held else end_ms
            if now_ms // DAY_MS != before // DAY_MS:
                held_ms = wakes = 0
            held_ms += now_ms - max(before, now_ms // DAY_MS * DAY_MS) if was_held and not was_free else 0
            awake = asked(awake, now_ms, policy, work=work, charging=charging)
            wakes += awake.held and not awake.free and (was_free or not was_held)
            assert held_ms <= 5 * 60_000 + RENEW_MS
            assert wakes == awake.wakes <= 3


def effects_of(shell: Shell, kind: type[EffectType]) -> list[EffectType]:
    return [effect for effect in shell.effects if isinstance(effect, kind)]


def clock(shell: Shell, error_ms: int | None = 10, ahead_ms: int = 0) -> None:
    """The host's word on its wall clock."""
    wall_ms = 1_790_000_000_000 + shell.now_ms + ahead_ms
    shell.tell(HostSeen(at_ms=shell.now_ms, wall_ms=wall_ms, wall_error_ms=error_ms))


def test_nothing_is_wished_for_while_the_clock_that_says_until_when_may_be_wrong() -> None:
    shell = Shell(state=initial("unit-1", Policy(parked_for_s=3, keep_awake=True), 0))
    shell.open_the_gate()
    until(shell, RunSlice)
    assert shell.state.awake.refused == "keep_awake_clock", "nobody said what time it is"
    clock(shell, error_ms=None)
    shell.advance(3_000)
    assert effects_of(shell, KeepAwake) == []
    clock(shell)
    shell.advance(3_000)
    assert {wish.for_ms for wish in shell.effects if isinstance(wish, KeepAwake)} == {LEASE_MS}
    assert shell.state.awake.refused == ""
    held = len(effects_of(shell, KeepAwake))
    clock(shell, ahead_ms=DAY_MS)
    assert effects_of(shell, KeepAwake)[held:] == [KeepAwake(for_ms=0)], "a clock that jumped: let go at once"
    shell.advance(3_000)
    assert len(effects_of(shell, KeepAwake)) == held + 1
    reports = [effect for effect in shell.effects if isinstance(effect, Report)]
    assert [one for one in reports if one.name == "keep_awake_refused"] == [
        Report(name="keep_awake_refused", fields={"reason": "keep_awake_clock"})
    ] * 2


def test_the_plan_keeps_the_car_awake_for_its_lease_and_not_for_the_driver() -> None:
    shell = Shell(state=initial("unit-1", Policy(parked_for_s=3, keep_awake=True, keep_awake_budget_minutes=1), 0))
    clock(shell)
    shell.open_the_gate()
    until(shell, RunSlice)
    assert effects_of(shell, KeepAwake)[0] == KeepAwake(for_ms=LEASE_MS)
    shell.advance(10_000)
    held = effects_of(shell, KeepAwake)
    assert len(held) == 6
    assert {effect.for_ms for effect in held if isinstance(effect, KeepAwake)} == {LEASE_MS}
    shell.advance(55_000)
    assert effects_of(shell, Report)[-1] == Report(name="keep_awake_refused", fields={"reason": "keep_awake_minutes"})
    assert shell.state.awake.refused == "keep_awake_minutes"
    assert effects_of(shell, KeepAwake)[-1] == KeepAwake(for_ms=0)
    assert shell.state.gates.reasons == (), "the car is awake: it goes on"
    shell.changes = {DOOR: True}
    shell.advance(100)
    assert effects_of(shell, KeepAwake)[-1] == KeepAwake(for_ms=0)


def test_without_the_owners_word_nothing_is_asked() -> None:
    shell = Shell()
    shell.open_the_gate()
    until(shell, RunSlice)
    shell.advance(10_000)
    assert effects_of(shell, KeepAwake) == []
    assert signals.CHARGING not in shell.state.vehicle.known
