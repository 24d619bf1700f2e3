"""The rungs of a worker's end, in their order and in time: by a simulated clock, and on processes that will not go."""

from __future__ import annotations

import asyncio
import heapq
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.inference.enclosure import PENDING
from agent.inference.ladder import FREED_MS, Ladder
from agent.inference.launcher import WorkerProcess
from tests.inference.desk import PATIENCE_S, Desk
from tests.inference.test_launcher import impostor
from tests.inference.ways import Way

TERM, KILL = signal.SIGTERM, signal.SIGKILL


class Timer:
    def __init__(self, when_s: float) -> None:
        self._when_s, self.cancelled = when_s, False

    def when(self) -> float:
        return self._when_s

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """The event loop as a ladder needs it, with time that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._waiting: list[tuple[float, int, Timer, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when_s: float, call: Callable[..., object], *arguments: object) -> Timer:
        timer = Timer(when_s)
        heapq.heappush(self._waiting, (when_s, len(self._waiting), timer, lambda: call(*arguments)))
        return timer

    def passes(self, ms: float) -> None:
        until_s = self.now_s + ms / 1000
        while self._waiting and self._waiting[0][0] <= until_s:
            self.now_s, _, timer, call = heapq.heappop(self._waiting)
            if not timer.cancelled:
                call()
        self.now_s = until_s


class Scene:
    """A ladder over a process that takes note of its signals, with the ms of each since the beginning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.signals: list[tuple[int, signal.Signals]] = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self.clock)
        monkeypatch.setattr(signal, "pidfd_send_signal", self._signalled)
        self.ladder = Ladder(3, lambda: None)

    def _signalled(self, descriptor: int, number: signal.Signals) -> None:
        assert descriptor == 3
        self.signals.append((round((self.clock.now_s - 100) * 1000), number))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def test_first_it_is_asked_and_killed_when_the_budget_is_spent(scene: Scene) -> None:
    scene.ladder.stop_within(60)
    assert scene.signals == []
    scene.clock.passes(10_000)
    assert scene.signals == [(54, TERM), (60, KILL)]


def test_without_a_budget_it_is_killed_at_once(scene: Scene) -> None:
    scene.ladder.stop_within(0)
    assert scene.signals == [(0, KILL)]


def test_one_that_computes_no_more_has_time_to_free(scene: Scene) -> None:
    scene.ladder.stop_within(60)
    scene.clock.passes(50)
    scene.ladder.computes_no_more()
    scene.clock.passes(10_000)
    assert scene.signals == [(FREED_MS, KILL)]


def test_saying_so_again_gains_nothing(scene: Scene) -> None:
    scene.ladder.stop_within(60)
    scene.clock.passes(50)
    for _ in range(20):
        scene.ladder.computes_no_more()
        scene.clock.passes(100)
    assert scene.signals == [(FREED_MS, KILL)]


def test_saying_so_unasked_changes_nothing(scene: Scene) -> None:
    scene.ladder.computes_no_more()
    scene.ladder.stop_within(60)
    scene.clock.passes(10_000)
    assert scene.signals == [(54, TERM), (60, KILL)]


def test_while_it_frees_only_a_kill_is_heeded(scene: Scene) -> None:
    scene.ladder.stop_within(60)
    scene.ladder.computes_no_more()
    scene.ladder.stop_within(10)
    scene.clock.passes(100)
    assert scene.signals == []
    scene.ladder.stop_within(0)
    assert scene.signals == [(100, KILL)]


def test_once_it_is_gone_nothing_is_signalled(scene: Scene) -> None:
    scene.ladder.stop_within(60)
    scene.ladder.close()
    scene.clock.passes(10_000)
    assert scene.signals == []


@given(budgets_ms=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), min_size=1, max_size=8))
def test_the_tightest_budget_is_kept(budgets_ms: list[tuple[int, int]]) -> None:
    """Whatever is said in whatever order: it is killed when the first budget is spent, and terminated before or not."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        scene = Scene(monkeypatch)
        due_ms, now_ms = 10**9, 0
        for budget_ms, pause_ms in budgets_ms:
            if now_ms < due_ms:
                scene.ladder.stop_within(budget_ms)
                due_ms = min(due_ms, now_ms + budget_ms)
            scene.clock.passes(pause_ms)
            now_ms += pause_ms
        scene.clock.passes(1_000)
    assert scene.signals[-1] == (due_ms, KILL)
    assert all(number is TERM and at_ms <= due_ms for at_ms, number in scene.signals[:-1])


# --- on processes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("story", "how"),
    [
        ("hello(); time.sleep(60)", "was killed by SIGTERM"),
        ("import signal; signal.signal(15, signal.SIG_IGN); hello(); time.sleep(60)", "was killed by SIGKILL"),
    ],
)
def test_one_that_does_not_heed_stop(tmp_path: Path, way: Way, story: str, how: str) -> None:
    async def watch() -> None:
        desk = Desk(way)
        process = desk.launch(python=impostor(tmp_path, story))
        await desk.wait_for(wire.Hello)
        process.stop(300)
        expected, detail = await desk.end()
        assert expected
        assert detail.startswith(how)

    asyncio.run(watch())


async def group_state(process: WorkerProcess) -> str:
    """What became of its control group, which is made beside it."""
    async with asyncio.timeout(PATIENCE_S):
        while PENDING in process.confinement:  # noqa: ASYNC110 - it tells nobody when it is made
            await asyncio.sleep(0.01)
    return next(one.state for one in process.confinement if one.name == "cgroup")


def test_a_child_that_a_worker_left_ends_with_it(tmp_path: Path) -> None:
    """Where the platform has a group for the worker; the cage lets none be made, but an impostor has no cage."""
    note = tmp_path / "child"
    story = f"child = os.fork() or time.sleep(60); open({str(note)!r}, 'w').write(str(child)); hello(); time.sleep(60)"

    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=impostor(tmp_path, story))
        await desk.wait_for(wire.Hello)
        if (state := await group_state(process)) != "enforced":
            process.stop(0)
            await process.gone()
            pytest.skip(f"cgroup: {state}")
        child = os.pidfd_open(int(note.read_text()))
        try:
            process.stop(0)
            await desk.end()
            ended, _, _ = select.select([child], [], [], PATIENCE_S)
            assert ended
        finally:
            os.close(child)

    asyncio.run(watch())
