"""When systemd hears what: by a rule that is pure, with the ticker, and by the datagrams that arrive."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agent.core.events import EventType, Tick
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.state import State, WorkerPhase, WorkerState, initial
from agent.sd import Notifier
from agent.selftest import NOT_YET
from agent.supervision import FED_SHARE, LATE_SHARE, STATUS_EVERY_S, Feeding, Supervision
from agent.ticker import Ticker
from tests.test_ticker import Loop

WATCHDOG_S = 10.0


class Manager:
    """A service manager: what its socket was told."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """What came since the last time."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    one = Manager(tmp_path)
    yield one
    one.close()


class Agent:
    """A daemon's state, as far as its supervisor hears of it."""

    def __init__(self, manager: Manager, watchdog_s: float | None = WATCHDOG_S) -> None:
        self.state: State = initial("unit-1", Policy(), 0, self_test_problem=NOT_YET)
        self.state, _ = step(self.state, Tick(at_ms=1_000))
        self.supervision = Supervision(Notifier(manager.address), watchdog_s, lambda: self.state)

    def tested(self, problem: str) -> None:
        self.state = msgspec.structs.replace(self.state, self_test_problem=problem)


@pytest.fixture
def agent(manager: Manager) -> Iterator[Agent]:
    one = Agent(manager)
    yield one
    one.supervision.close()


def test_it_is_ready_when_its_self_test_is_over_and_a_tick_was_on_time(manager: Manager, agent: Agent) -> None:
    agent.supervision.ticked(0.0, 0.0)
    assert "READY=1" not in manager.heard(), "it has tested nothing yet"
    agent.tested("")
    agent.supervision.ticked(1.0, WATCHDOG_S)
    assert "READY=1" not in manager.heard(), "it decides, but ten seconds late"
    agent.supervision.ticked(2.0, 0.01)
    assert "READY=1" in manager.heard()
    agent.supervision.ticked(3.0, 0.01)
    assert "READY=1" not in manager.heard(), "once is enough"


def test_a_self_test_that_failed_does_not_keep_it_from_saying_why(manager: Manager, agent: Agent) -> None:
    agent.tested("the key does not sign")
    agent.supervision.ticked(0.0, 0.0)
    assert "READY=1" in manager.heard()


def test_the_status_is_the_gate_in_words_and_only_when_it_changes(manager: Manager, agent: Agent) -> None:
    agent.supervision.ticked(0.0, 0.0)
    (status,) = [line for line in manager.heard() if line.startswith("STATUS=")]
    first = agent.state.gates.reasons[0]
    assert status.startswith(f"STATUS=blocked: {first.gate}: ")
    for second in range(1, 20):
        agent.supervision.ticked(float(second), 0.0)
    assert not [line for line in manager.heard() if line.startswith("STATUS=")]


def test_a_gate_that_flaps_is_told_once_a_second_and_its_last_state_is_told(manager: Manager, agent: Agent) -> None:
    shut, gates = agent.state, msgspec.structs.replace(agent.state.gates, gates=(), state=GateState.OPEN)
    open_ = msgspec.structs.replace(shut, gates=gates)
    for tenth in range(50):
        agent.state = (shut, open_)[tenth % 2]
        agent.supervision.ticked(tenth / 10, 0.0)
    said = [line for line in manager.heard() if line.startswith("STATUS=")]
    assert 2 <= len(said) <= 5 / STATUS_EVERY_S + 1
    agent.state = open_
    agent.supervision.ticked(10.0, 0.0)
    agent.supervision.ticked(12.0, 0.0)
    said += [line for line in manager.heard() if line.startswith("STATUS=")]
    assert said[-1] == "STATUS=ready: the gate is open"


def test_stopping_is_said(manager: Manager, agent: Agent) -> None:
    agent.supervision.stopping()
    assert manager.heard() == ["STOPPING=1"]


def test_a_watchdog_that_ticks_cannot_feed_is_told() -> None:
    with capture_logs() as logs:
        Supervision(Notifier(), 1.5, lambda: initial("unit-1", Policy(), 0))
    assert [(one["event"], one["watchdog_s"]) for one in logs] == [("watchdog_too_short", 1.5)]


# --- the rule -------------------------------------------------------------------------------------------------

times = st.floats(min_value=0.01, max_value=1.0)
lateness = st.floats(min_value=0.0, max_value=60.0)


@given(watchdog_s=st.floats(2.0, 120.0), ticks=st.lists(st.tuples(times, lateness), max_size=200))
def test_a_late_tick_never_feeds_and_timely_ones_always_feed_in_time(
    watchdog_s: float, ticks: list[tuple[float, float]]
) -> None:
    """Ticks come at most a second apart; while all of those since the last feeding are on time, it is not starved."""
    feeding, now_s, all_timely_since_s = Feeding(watchdog_s), 0.0, 0.0
    for gap_s, late_s in ticks:
        now_s += gap_s
        due = feeding.is_due(now_s, late_s)
        if late_s > watchdog_s * LATE_SHARE:
            assert not due
            all_timely_since_s = now_s
        if due:
            assert feeding.fed_s is None or now_s - feeding.fed_s >= watchdog_s * FED_SHARE
            feeding = feeding.fed(now_s)
        last_fed_s = 0.0 if feeding.fed_s is None else feeding.fed_s
        if last_fed_s >= all_timely_since_s:
            assert now_s - last_fed_s < watchdog_s


@given(ticks=st.lists(times, min_size=1, max_size=100), late_s=st.floats(0.51, 60.0))
def test_a_loop_that_is_always_late_starves_it(ticks: list[float], late_s: float) -> None:
    feeding, now_s = Feeding(WATCHDOG_S), 0.0
    for gap_s in ticks:
        now_s += gap_s + late_s
        assert not feeding.is_due(now_s, late_s)


# --- with the ticker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stuck_in", ["the decision", "another callback", "nothing", "a worker"])
def test_a_loop_that_is_stuck_starves_the_watchdog_and_a_busy_worker_does_not(
    manager: Manager, agent: Agent, monkeypatch: pytest.MonkeyPatch, stuck_in: str
) -> None:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)

    def decide(_event: EventType) -> None:
        loop.now_ms += 2_000 if stuck_in == "the decision" else 1

    agent.tested("")
    if stuck_in == "a worker":
        agent.state = msgspec.structs.replace(agent.state, worker=WorkerState(phase=WorkerPhase.READY))
    one = Ticker(decide, loop, lambda: loop.due_ms, slept_s=lambda: 0.0, on_tick=agent.supervision.ticked)
    one._tick()
    manager.heard()
    fed = 0
    for _ in range(60):
        loop.now_ms = round(loop.when() * 1000) + (2_000 if stuck_in == "another callback" else 0)
        loop.due_ms = loop.now_ms + 60_000
        one._tick()
        fed += manager.heard().count("WATCHDOG=1")
    if stuck_in in {"nothing", "a worker"}:
        assert 60 / (WATCHDOG_S * FED_SHARE) / 2 <= fed <= 60 / (WATCHDOG_S * FED_SHARE)
    else:
        assert fed == 0
