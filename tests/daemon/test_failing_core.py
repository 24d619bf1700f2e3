"""A core that raises: the worker is killed first, the daemon ends in order with status 1, and leaves one recording."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import daemon as daemon_module
from agent.config import Config
from agent.core.effects import EffectType, PauseTransfers, Report, StopWorker
from agent.core.events import EventType, Tick
from agent.core.machine import step as real_step
from agent.core.state import State
from agent.daemon import Daemon
from agent.errors import CoreError
from agent.hands import Hands
from agent.identity import establish
from agent.leaving import run_and_leave
from agent.recorder import SUFFIX, Recorder, Taken
from agent.simulate import recording
from agent.store import StoreThread
from tests.daemon.test_shutdown import PATIENCE_S, configured

Step = Callable[[State, EventType], tuple[State, tuple[EffectType, ...]]]
STEPS_BEFORE = 20


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


def failing_after(count: int, good: Step = real_step) -> Step:
    """A core with a bug that shows after so many steps, and from then on every time."""
    steps = 0

    def step(state: State, event: EventType) -> tuple[State, tuple[EffectType, ...]]:
        nonlocal steps
        steps += 1
        if steps > count:
            raise RuntimeError("a planted bug")
        return good(state, event)

    return step


def watch(monkeypatch: pytest.MonkeyPatch, done: list[str], **methods: tuple[type, str]) -> None:
    """Note each call of these methods under a name."""

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return real(*args, **kwargs)

        return wrapped

    for name, (kind, method) in methods.items():
        monkeypatch.setattr(kind, method, noted(name, getattr(kind, method)))


@pytest.mark.parametrize("count", [0, STEPS_BEFORE])
def test_it_ends_in_order_and_leaves_one_recording(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Also when the very first event, what an earlier run left, is what it fails on."""
    done: list[str] = []
    writers: list[threading.Thread] = []
    real_write = Taken.write

    def write(taken: Taken, *args: Any, **options: Any) -> Any:
        writers.append(threading.current_thread())
        done.append("recording")
        return real_write(taken, *args, reserve_bytes=0, **options)

    async def main() -> None:
        made = Daemon(config, await establish(config))
        async with asyncio.timeout(PATIENCE_S):
            await made.run()

    monkeypatch.setattr(daemon_module, "step", failing_after(count))
    monkeypatch.setattr(Taken, "write", write)
    watch(monkeypatch, done, hands=(Hands, "close"), store=(StoreThread, "close"))
    with capture_logs() as logs, pytest.raises(CoreError, match=r"the core failed on .*a planted bug") as raised:
        run_and_leave(main)
    assert "start the agent anew" in str(raised.value)
    assert done == ["hands", "store", "recording"], "what runs ends first"
    assert writers != [threading.main_thread()], "and never on the event loop"
    assert [log["event"] for log in logs].count("core_failed") == 1
    assert logs[-1]["event"] == "stopped"
    (left,) = (tmp_path / "state" / "recordings").iterdir()
    assert left.name.endswith(SUFFIX)
    read = recording.read(left)
    assert "a planted bug" in read.header.note
    before, failed = read.lines[:-1], read.lines[-1]
    assert recording.replay(recording.Recording(read.header, before)).differs == ()
    assert len(before) == count
    assert failed.effects == ()


def test_the_worker_is_killed_in_the_step_that_failed_and_nothing_is_decided_any_more(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        made = Daemon(config, await establish(config))
        made.emit(Tick(at_ms=made.state.now_ms))
        assert done == []
        before = made.state
        made.emit(Tick(at_ms=before.now_ms))
        assert done == [StopWorker(budget_ms=0, why="core_failed"), PauseTransfers()], "before it returns"
        assert made.state is before
        made.emit(Tick(at_ms=before.now_ms))
        assert len(done) == 2
        made.parts.store._pool.shutdown()

    done: list[EffectType] = []
    monkeypatch.setattr(daemon_module, "step", failing_after(1, lambda state, _event: (state, ())))
    monkeypatch.setattr(Hands, "perform", lambda _hands, effect: done.append(effect))
    asyncio.run(main())


def test_effects_are_carried_out_before_the_step_is_recorded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a recorder that fails costs the recording alone."""

    async def main() -> None:
        made = Daemon(config, await establish(config))
        for _ in range(2):
            made.emit(Tick(at_ms=made.state.now_ms))
        assert done == ["effect", "effect", "recorded"] * 2
        made.parts.store._pool.shutdown()

    def fail(*_: object) -> None:
        raise MemoryError

    done: list[str] = []
    two = (Report(name="one", fields={}), Report(name="two", fields={}))
    monkeypatch.setattr(daemon_module, "step", lambda state, _event: (state, two))
    monkeypatch.setattr(Hands, "perform", lambda _hands, _effect: done.append("effect"))
    watch(monkeypatch, done, recorded=(Recorder, "saw"))
    monkeypatch.setattr(Recorder, "_saw", fail)
    with capture_logs() as logs:
        asyncio.run(main())
    assert [log["event"] for log in logs].count("recording_dropped") == 1


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), MemoryError(), ValueError("a bug")])
def test_a_recording_that_cannot_be_written_keeps_nobody(
    config: Config, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await Daemon(config, await establish(config)).run()

    def write(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(daemon_module, "step", failing_after(3))
    monkeypatch.setattr(Taken, "write", write)
    with capture_logs() as logs, pytest.raises(CoreError, match="a planted bug"):
        run_and_leave(main)
    told = [log["event"] for log in logs]
    assert told.count("recording_not_written") == 1
    assert told[-1] == "stopped"


FAILING = """
import sys
from agent import daemon
from agent.cli.main import main

real, steps = daemon.step, []

def step(state, event):
    steps.append(event)
    if len(steps) > 30:
        raise RuntimeError("a planted bug")
    return real(state, event)

daemon.step = step
sys.exit(main(["run", "--config", "agent.toml"]))
"""


@pytest.mark.usefixtures("config")
def test_the_process_ends_with_status_1_and_a_plain_sentence(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", FAILING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last.startswith("driveway: the core failed on ")
    assert "RuntimeError('a planted bug'); this is a bug" in last
    assert not (tmp_path / "control.sock").exists()
