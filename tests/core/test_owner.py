"""The owner's word in the core: a pause runs out for good, `finish` finishes, and unwanted work is given back."""

from __future__ import annotations

import msgspec
import pytest

from agent.core.effects import EndPause, HandIn, OpenLease, Report, SendRequest, SettleHandIn
from agent.core.events import GrantSeen, HostSeen, OwnerMode, OwnerSaid, OwnerSet, SelfTested, Tick
from agent.core.findings import GateState
from agent.core.model import HandInKind, YieldReason
from agent.core.state import initial
from tests.core.stories import ready, until
from tests.core.world import POLICY, Shell, grant

WALL_MS = 1_800_000_000_000


def mode(shell: Shell) -> OwnerMode:
    return shell.state.owner.mode


def reports(shell: Shell, name: str) -> list[Report]:
    return [effect for effect in shell.effects if isinstance(effect, Report) and effect.name == name]


def ended(shell: Shell) -> list[EndPause]:
    return [effect for effect in shell.effects if isinstance(effect, EndPause)]


def host(at_ms: int, wall_ms: int, error_ms: int | None = 10) -> HostSeen:
    return HostSeen(at_ms=at_ms, wall_ms=wall_ms, wall_error_ms=error_ms)


def test_a_pause_runs_out_once_and_work_goes_on() -> None:
    shell = ready()
    ends_ms = shell.now_ms + 10_000
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.PAUSED, until_ms=ends_ms))
    assert shell.gate() is GateState.CLOSED
    assert shell.state.gates.reasons[0].clears_at_ms == ends_ms
    shell.advance(9_900)
    assert mode(shell) is OwnerMode.PAUSED
    assert ended(shell) == []
    shell.advance(20_000)
    assert mode(shell) is OwnerMode.AUTO
    assert shell.gate() is GateState.OPEN
    assert ended(shell) == [EndPause(until_ms=ends_ms, until_wall_ms=None)]
    assert len(reports(shell, "pause_ended")) == 1


def test_a_pause_until_a_wall_time_lasts_while_nobody_can_tell_the_time() -> None:
    """After a reboot only the wall time is left of it."""
    shell = Shell()
    shell.tell(OwnerSaid(at_ms=0, mode=OwnerMode.PAUSED, until_wall_ms=WALL_MS + 20_000))
    for _ in range(6):
        shell.tell(host(shell.now_ms, WALL_MS + 3_600_000, None))
        shell.advance(5_000)
    assert mode(shell) is OwnerMode.PAUSED
    shell = Shell()
    shell.tell(OwnerSaid(at_ms=0, mode=OwnerMode.PAUSED, until_wall_ms=WALL_MS + 20_000))
    shell.tell(host(0, WALL_MS))
    shell.advance(19_000)
    assert mode(shell) is OwnerMode.PAUSED
    shell.tell(host(shell.now_ms, WALL_MS + shell.now_ms))
    shell.advance(2_000)
    assert mode(shell) is OwnerMode.AUTO
    assert ended(shell) == [EndPause(until_ms=None, until_wall_ms=WALL_MS + 20_000)]


def test_a_pause_without_end_ends_by_the_owners_word_alone() -> None:
    shell = ready()
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.PAUSED))
    shell.tell(Tick(at_ms=shell.now_ms + 10**10))
    assert mode(shell) is OwnerMode.PAUSED
    shell.now_ms += 10**10
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.AUTO))
    assert mode(shell) is OwnerMode.AUTO
    assert ended(shell) == []


def test_finish_finishes_the_lease_at_work_and_takes_no_other() -> None:
    shell = ready()
    until(shell, OpenLease)
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.FINISH))
    assert shell.gate() is GateState.OPEN, "what is leased is worked on"
    until(shell, SettleHandIn)
    shell.settle_down()
    (hand_in,) = [effect for effect in shell.effects if isinstance(effect, HandIn)]
    assert hand_in.kind is HandInKind.RESULT
    assert shell.state.lease is None
    shell.advance(60_000)
    assert [reason.code for reason in shell.state.gates.reasons] == ["owner_finished"]
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == 1
    shell.tell(OwnerSaid(at_ms=shell.now_ms, mode=OwnerMode.AUTO))
    shell.advance(1_000)
    assert sum(isinstance(effect, SendRequest) for effect in shell.effects) == 2


def classes(shell: Shell, *names: str) -> None:
    shell.tell(OwnerSet(at_ms=shell.now_ms, schedule=(), price_floor_micro_per_kwh=0, workload_classes=names))


@pytest.mark.parametrize(
    ("wanted", "granted", "taken"),
    [((), "ocr", True), ((), "", True), (("ocr",), "ocr", True), (("ocr",), "speech", False), (("ocr",), "", False)],
)
def test_only_work_of_the_owners_classes_is_taken_on(wanted: tuple[str, ...], granted: str, taken: bool) -> None:
    shell = ready()
    classes(shell, *wanted)
    (request,) = [effect for effect in shell.waiting if isinstance(effect, SendRequest)]
    shell.waiting.clear()
    one = msgspec.structs.replace(grant(1), workload_class=granted)
    shell.tell(GrantSeen(at_ms=shell.now_ms, rid=request.rid, grant=one, retry_ms=0))
    assert any(isinstance(effect, OpenLease) for effect in shell.waiting) is taken
    given_back = [effect for effect in shell.waiting if isinstance(effect, HandIn)]
    assert [(one.kind, one.why) for one in given_back] == ([] if taken else [(HandInKind.YIELD, YieldReason.OWNER)])


def test_a_dispatcher_that_grants_unwanted_work_is_asked_again_later_without_growing_waits() -> None:
    shell = ready()
    classes(shell, "speech")
    shell.settle_down()  # grants job 1, which has no class
    assert shell.state.lease is None
    assert shell.state.fruitless == 0
    assert shell.state.ask_not_before_ms >= shell.now_ms + 7_000
    before = sum(isinstance(effect, SendRequest) for effect in shell.effects)
    for _ in range(60):
        shell.advance(1_000)
        shell.settle_down()
    asked = sum(isinstance(effect, SendRequest) for effect in shell.effects) - before
    assert 4 <= asked <= 8


def test_the_lease_at_work_is_not_ended_by_a_new_wish() -> None:
    shell = ready()
    until(shell, OpenLease)
    classes(shell, "speech")
    until(shell, SettleHandIn)
    first, *_ = [effect for effect in shell.effects if isinstance(effect, HandIn)]
    assert first.kind is HandInKind.RESULT


def test_the_gate_is_shut_until_the_self_test_passed_and_says_what_failed_once() -> None:
    shell = Shell(state=initial("unit-1", POLICY, 0, self_test_problem="it has not run yet"))
    shell.connect()
    shell.advance(5_000)
    assert [reason.code for reason in shell.state.gates.reasons] == ["self_test_failed"]
    for _ in range(3):
        shell.tell(SelfTested(at_ms=shell.now_ms, problem="the key is gone"))
        shell.advance(1_000)
    assert shell.state.gates.reasons[0].value == "the key is gone"
    assert len(reports(shell, "self_test_failed")) == 1
    shell.tell(SelfTested(at_ms=shell.now_ms, problem=""))
    shell.advance(1_000)
    assert shell.gate() is GateState.OPEN
    assert len(reports(shell, "self_test_passed")) == 1
