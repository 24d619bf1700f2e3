"""When a worker hangs, by a simulated clock."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import wire
from agent.inference import watchdog
from agent.inference.launcher import WorkerProcess
from agent.inference.watchdog import FACTOR, FLOOR_MS, START_MS, Loading, Serving, Unbounded, Watch
from tests.inference.desk import Desk
from tests.inference.test_launcher import impostor


def serving(call_ms: float, duty_permille: int = 1000) -> Watch:
    return Watch(0, 0).is_up(500).began(Serving(call_ms), 1_000).paced(duty_permille)


def test_a_worker_that_is_heard_never_hangs() -> None:
    watch = serving(10.0)
    for now_ms in range(1_000, 1_000_000, 1_000):
        watch = watch.heard(now_ms)
        assert watch.verdict(now_ms + 999) == ""


def test_a_fast_package_is_given_the_floor() -> None:
    watch = serving(10.0)
    assert watch.verdict(1_000 + FLOOR_MS - 1) == ""
    assert watch.verdict(1_000 + FLOOR_MS) == f"hangs in a kernel for {FLOOR_MS} ms, expected 10"


def test_a_slow_package_is_given_many_times_what_it_was_measured_to_take() -> None:
    watch = serving(3_000.0)
    assert watch.verdict(1_000 + FACTOR * 3_000 - 1) == ""
    assert watch.verdict(1_000 + FACTOR * 3_000) == f"hangs in a kernel for {FACTOR * 3_000} ms, expected 3000"


def test_one_that_is_held_back_is_given_more() -> None:
    watch = serving(3_000.0, duty_permille=250)
    assert watch.due_ms == 1_000 + FACTOR * 12_000
    paused = serving(3_000.0, duty_permille=0)
    assert paused.due_ms == 1_000 + FACTOR * 30_000


def test_a_pace_is_no_sign_of_life_and_the_slowest_since_then_counts() -> None:
    """A kernel that hangs while the pace changes every second is found out all the same."""
    watch = serving(3_000.0)
    for duty_permille in (500, 250, 750, 1000) * 100:
        watch = watch.paced(duty_permille)
    assert watch.due_ms == 1_000 + FACTOR * 12_000
    assert watch.heard(2_000).due_ms == 2_000 + FACTOR * 3_000, "what was slow is over"


@pytest.mark.parametrize("greeted_ms", [500, START_MS - 1])
def test_it_may_take_as_long_to_load_as_its_package_says_however_much_it_says(greeted_ms: int) -> None:
    """From Hello on: what it took to start is not the package's."""
    watch = Watch(0, 0).began(Loading(limit_ms=60_000), 100)
    assert watch.due_ms == START_MS
    watch = watch.is_up(greeted_ms).heard(60_000)
    assert watch.verdict(greeted_ms + 59_999) == ""
    assert watch.verdict(greeted_ms + 60_000) == "loads for 60000 ms, more than the package's 60000"


def test_one_that_was_held_back_while_it_loaded_is_given_more() -> None:
    watch = Watch(0, 0).is_up(0).began(Loading(limit_ms=60_000), 0).paced(500).heard(1_000).paced(1000).heard(2_000)
    assert watch.due_ms == 120_000


def test_one_that_never_says_anything() -> None:
    watch = Watch(0, 0)
    assert watch.verdict(START_MS - 1) == ""
    assert watch.verdict(START_MS) == f"said nothing for {START_MS} ms after its start"


def test_what_has_no_measure_is_nobodys_to_judge() -> None:
    watch = Watch(0, 0).is_up(100)
    assert watch.doing == Unbounded()
    assert watch.due_ms is None
    assert watch.verdict(10**9) == ""


@given(
    st.lists(
        st.one_of(
            st.integers(0, 5_000),
            st.builds(Serving, call_ms=st.floats(0, 1e6)),
            st.builds(Loading, limit_ms=st.integers(0, 10**6)),
            st.builds(Unbounded),
        ),
        max_size=20,
    ),
    st.integers(0, 1000),
)
def test_it_hangs_when_it_is_due_and_not_before(
    steps: list[int | Loading | Serving | Unbounded], duty_permille: int
) -> None:
    """Whatever happened: the timer that is set to `due_ms` finds a verdict, and none is found earlier."""
    now_ms, watch = 0, Watch(0, 0).is_up(0).paced(duty_permille)
    for step in steps:
        if isinstance(step, int):
            now_ms += step
            watch = watch.heard(now_ms)
        else:
            watch = watch.began(step, now_ms)
    if watch.due_ms is None:
        assert watch.verdict(10**12) == ""
    else:
        assert watch.verdict(watch.due_ms) != ""
        assert watch.verdict(watch.due_ms - 1) == ""


# --- on processes ---------------------------------------------------------------------------------------------


def load(process: WorkerProcess, package: Path) -> None:
    process.load(package, executor="onnxruntime", threads=1, memory_mb=64, drain_ms=50)


LOADED = """
channel.sendall(wire.encode(wire.Loaded(executor="x", device="", micro_batch_ms=1.0, package_sha256="0" * 64,
                                        kernels_sha256="0" * 64, precision="float32", batch=(1,),
                                        golden_raw_sha256="0" * 64)))
"""


@pytest.mark.parametrize(
    ("story", "verdict"),
    [
        ("time.sleep(60)", "said nothing for "),
        ("hello()" + LOADED + "time.sleep(60)", "hangs in a kernel for "),
    ],
)
def test_a_worker_that_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, story: str, verdict: str
) -> None:
    monkeypatch.setattr(watchdog, "FLOOR_MS", 200)
    monkeypatch.setattr(watchdog, "START_MS", 200 if verdict.startswith("said") else 60_000)

    async def watch() -> None:
        desk = Desk()
        load(desk.launch(python=impostor(tmp_path, story)), tmp_path)
        expected, detail = await desk.end()
        assert not expected
        assert detail.startswith(verdict)
        assert "was killed by SIGKILL" in detail

    asyncio.run(watch())


def test_a_worker_that_beats_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It beats before the daemon looks: what waits in the socket is heard before the verdict."""
    monkeypatch.setattr(watchdog, "FLOOR_MS", 100)
    beat = "channel.sendall(wire.encode(wire.Beat()))"
    story = f"hello(); channel.recv(1000){LOADED}{beat}\nchannel.recv(100)\n{beat}\nsys.exit(7)"

    async def watch() -> None:
        desk = Desk()
        process = desk.launch(python=impostor(tmp_path, story))
        load(process, tmp_path)
        await desk.wait_for(wire.Loaded)
        watched = process._lookout
        due_ms = watched._watch.due_ms
        assert due_ms is not None
        process.pace(500)  # it answers with a beat, and with its end
        await desk.wait_for(wire.Beat)
        watched._judge()
        _, detail = await desk.end()
        assert detail.startswith("exited with status 7")

    asyncio.run(watch())
