"""The daily cap of a metered network: what counts, what it holds back, and what goes all the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.effects import RunSlice, SendHandIn, SendRequest, UploadSlice
from agent.core.events import BytesMoved, HostSeen, LinkChanged
from agent.core.findings import GateState
from agent.core.kept import after_reboot, everything_spent, kept_of
from agent.core.lease import Pending
from agent.core.model import HandInKind, JobKey
from agent.core.outlook import outlook
from agent.core.policy import Policy
from agent.core.state import initial, resume
from agent.core.traffic import Traffic, spent
from agent.core.walltime import DAY_MS
from agent.core.world import Owner
from tests.core.stories import until
from tests.core.world import SHA256, Shell

MB = 1_000_000
METERED = Policy(parked_for_s=3, metered_allowed=True, metered_daily_mb=2)


def metered(shell: Shell, value: bool | None) -> None:
    shell.tell(HostSeen(at_ms=shell.now_ms, wall_ms=0, wall_error_ms=None, metered=value))


def on_a_metered_network(value: bool | None = True) -> Shell:
    shell = Shell(state=initial("unit-1", METERED, 0))
    metered(shell, value)
    shell.open_the_gate()
    return shell


@pytest.mark.parametrize(("value", "counts"), [(True, True), (None, True), (False, False)])
def test_bytes_count_unless_the_network_is_known_to_be_free(value: bool | None, counts: bool) -> None:
    shell = on_a_metered_network(value)
    shell.tell(BytesMoved(at_ms=shell.now_ms, sent=300_000, received=200_000))
    assert shell.state.traffic.used_at(shell.now_ms) == (500_000 if counts else 0)
    assert outlook(shell.state).budget_bytes == (1_500_000 if counts else None)


def test_a_cap_that_is_used_up_holds_until_the_day_is_over() -> None:
    shell = on_a_metered_network()
    shell.waiting.clear()
    began_ms = shell.now_ms
    shell.tell(BytesMoved(at_ms=began_ms, sent=0, received=2 * MB))
    assert shell.gate() is GateState.HOLD
    (reason,) = shell.state.gates.reasons
    assert (reason.code, reason.value, reason.limit, reason.unit) == ("network_cap", 2.0, 2, "MB")
    assert reason.clears_at_ms == began_ms + DAY_MS
    shell.now_ms += DAY_MS - 5_000
    shell.advance(75_000)
    assert shell.gate() is GateState.OPEN
    assert isinstance(until(shell, SendRequest), SendRequest)


def test_a_free_network_opens_at_once_and_the_day_is_not_forgotten() -> None:
    shell = on_a_metered_network()
    shell.tell(BytesMoved(at_ms=shell.now_ms, sent=0, received=2 * MB))
    metered(shell, value=False)
    shell.advance(6_000)
    assert shell.gate() is GateState.OPEN
    metered(shell, value=True)
    assert shell.gate() is GateState.HOLD


def test_what_is_leased_goes_on_and_is_handed_in() -> None:
    shell = on_a_metered_network()
    until(shell, RunSlice)
    shell.tell(BytesMoved(at_ms=shell.now_ms, sent=0, received=5 * MB))
    sent = until(shell, SendHandIn)
    assert isinstance(sent, SendHandIn)
    assert sent.credit == 0, "and nothing more is asked for"


def test_no_upload_begins_and_one_that_is_owed_goes_when_the_day_is_over() -> None:
    shell = Shell(state=initial("unit-1", METERED, 0))
    key = JobKey("job7", 1)
    row = Pending(key, HandInKind.RESULT, SHA256, 0, missing=(0,))
    shell.state = resume(shell.state, (row,), (), Owner())
    metered(shell, value=True)
    shell.tell(BytesMoved(at_ms=0, sent=2 * MB, received=0))
    shell.connect()
    shell.advance(5_000)
    assert shell.state.gates.reasons[0].code == "network_cap"
    assert not any(isinstance(effect, UploadSlice) for effect in shell.effects)
    shell.now_ms = DAY_MS
    shell.advance(70_000)
    assert any(isinstance(effect, UploadSlice) for effect in shell.effects)


@given(st.lists(st.tuples(st.integers(0, 3 * DAY_MS), st.integers(-5, MB)), max_size=30))
def test_what_is_counted_in_a_day_is_what_was_moved_since_it_began(moved: list[tuple[int, int]]) -> None:
    traffic, now_ms = Traffic(), 0
    day: list[tuple[int, int]] = []
    for later_ms, moved_bytes in moved:
        now_ms += later_ms
        if day and now_ms - day[0][0] >= DAY_MS:
            first_ms = day[0][0] + (now_ms - day[0][0]) // DAY_MS * DAY_MS
            day = [(first_ms, 0)]
        if moved_bytes > 0:
            traffic = traffic.moved(moved_bytes, now_ms)
            day = (
                [*day, (now_ms, moved_bytes)]
                if any(size for _, size in day) or not day
                else [(day[0][0], 0), (now_ms, moved_bytes)]
            )
        assert traffic.used_at(now_ms) == sum(size for _, size in day)


def test_a_restart_gives_no_new_cap_and_a_reboot_none_either() -> None:
    shell = on_a_metered_network()
    shell.tell(BytesMoved(at_ms=shell.now_ms, sent=MB, received=MB))
    kept = kept_of(shell.state)
    assert kept.metered_used_bytes >= 2 * MB
    again = resume(initial("unit-1", METERED, shell.now_ms), (), (), Owner(), kept)
    assert spent(again.traffic, METERED, shell.now_ms, metered=True)
    assert not spent(again.traffic, METERED, shell.now_ms + DAY_MS, metered=True)
    other_boot = resume(initial("unit-1", METERED, 5_000), (), (), Owner(), after_reboot(kept, 5_000))
    assert spent(other_boot.traffic, METERED, 5_000 + DAY_MS // 2, metered=True)
    unread = resume(initial("unit-1", METERED, 0), (), (), Owner(), everything_spent(METERED, 0))
    assert spent(unread.traffic, METERED, 0, metered=None)


def test_a_cap_of_nothing_is_told_without_an_end() -> None:
    shell = Shell(state=initial("unit-1", Policy(parked_for_s=3, metered_daily_mb=0), 0))
    shell.tell(LinkChanged(at_ms=0, connected=True, broker="b:1"))
    shell.advance(5_000)
    (reason,) = shell.state.gates.reasons
    assert (reason.code, reason.clears_at_ms) == ("network_cap", None)
    metered(shell, value=False)
    shell.advance(6_000)
    assert shell.gate() is GateState.OPEN
