"""A time that is certainly past: what raises it, what does not, and what a clock that was set back meets."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trust.catalogue_client import LONGEST_WINDOW_MS
from agent.trust.time_floor import (
    AHEAD_MS,
    BEHIND_MS,
    BUILT_MS,
    DISPATCHER_MS,
    KEEP_STEP_MS,
    LEAST_BUILT_MS,
    TimeFloor,
    built_ms,
)

ROOT = Path(__file__).parents[2]
HOUR_MS = 3_600_000
NOW_MS = BUILT_MS + 100 * 24 * HOUR_MS


class Clock:
    def __init__(self, wall_ms: int = NOW_MS) -> None:
        self.wall, self.boot = wall_ms, 5_000

    def wall_ms(self) -> int:
        return self.wall

    def boot_ms(self) -> int:
        return self.boot

    def passes(self, ms: int) -> None:
        self.wall += ms
        self.boot += ms


def floor(clock: Clock, kept: list[int] | None = None) -> TimeFloor:
    return TimeFloor(clock, (kept if kept is not None else []).append)


def test_a_clock_that_is_right_is_what_counts() -> None:
    assert floor(Clock()).now_ms() == NOW_MS


def test_a_clock_at_1970_counts_as_the_day_this_version_was_made() -> None:
    one = floor(Clock(0))
    assert one.now_ms() == BUILT_MS
    assert one.behind_ms() == BUILT_MS


def test_a_signed_time_raises_it_and_boot_time_carries_it_on() -> None:
    clock = Clock(0)
    one = floor(clock)
    assert one.saw(NOW_MS, clock_trusted=False)
    clock.boot += HOUR_MS
    assert one.floor_ms == NOW_MS + HOUR_MS == one.now_ms()


def test_an_older_signed_time_changes_nothing() -> None:
    one = floor(Clock(0))
    one.saw(NOW_MS, clock_trusted=False)
    assert one.saw(NOW_MS - 1, clock_trusted=False)
    assert one.floor_ms == NOW_MS


def test_a_clock_that_is_ahead_leaves_nothing_behind() -> None:
    clock = Clock(NOW_MS + 1_000 * HOUR_MS)
    one = floor(clock)
    assert one.now_ms() == clock.wall
    clock.wall = NOW_MS
    assert one.now_ms() == NOW_MS


def test_a_time_from_the_future_is_not_believed_while_the_clock_can_be() -> None:
    one = floor(Clock())
    assert not one.saw(NOW_MS + AHEAD_MS + 1, clock_trusted=True)
    assert one.floor_ms == BUILT_MS
    assert one.saw(NOW_MS + AHEAD_MS, clock_trusted=True)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_dispatchers_word_alone_carries_it_so_far_and_no_further(trusted: bool) -> None:
    """A stolen key tells of the year 9999: earning is shut for a month, not for ever, and a catalogue reopens it."""
    far_ms = NOW_MS + 1_000 * 365 * 24 * HOUR_MS
    one = floor(Clock(far_ms if trusted else 0))
    for _ in range(3):
        assert not one.told(far_ms, clock_trusted=trusted)
        assert one.floor_ms == BUILT_MS + DISPATCHER_MS
    assert one.saw(NOW_MS, clock_trusted=False)
    assert one.told(NOW_MS + HOUR_MS, clock_trusted=False)
    assert one.floor_ms == NOW_MS + HOUR_MS
    one.told(far_ms, clock_trusted=trusted)
    assert one.floor_ms == NOW_MS + DISPATCHER_MS


def test_over_a_restart_it_is_carried_no_further() -> None:
    kept: list[int] = []
    floor(Clock(0), kept).told(NOW_MS + 10**12, clock_trusted=False)
    assert kept == [BUILT_MS + DISPATCHER_MS]
    again = floor(Clock(0))
    again.restore(kept[-1])
    again.told(NOW_MS + 10**12, clock_trusted=False)
    assert again.floor_ms == BUILT_MS + DISPATCHER_MS


def test_a_dispatchers_word_shows_that_any_catalogue_we_have_is_over() -> None:
    one = floor(Clock(0))
    one.saw(NOW_MS, clock_trusted=False)
    one.told(NOW_MS + 365 * 24 * HOUR_MS, clock_trusted=False)
    assert one.now_ms() > NOW_MS + LONGEST_WINDOW_MS


def test_a_dispatchers_word_from_the_future_is_not_believed_while_the_clock_can_be() -> None:
    one = floor(Clock(BUILT_MS))
    assert not one.told(BUILT_MS + AHEAD_MS + 1, clock_trusted=True)
    assert one.floor_ms == BUILT_MS


def test_a_clock_that_was_set_back_is_noticed() -> None:
    clock = Clock()
    one = floor(clock)
    one.saw(NOW_MS, clock_trusted=True)
    assert one.behind_ms() == 0
    clock.wall -= BEHIND_MS - 1
    assert one.behind_ms() == 0
    clock.wall -= 1
    assert one.behind_ms() == BEHIND_MS
    clock.wall += BEHIND_MS
    assert one.behind_ms() == 0


def test_it_is_kept_when_it_has_risen_by_an_hour_and_restored_as_it_was() -> None:
    kept: list[int] = []
    clock = Clock(0)
    one = floor(clock, kept)
    one.saw(NOW_MS, clock_trusted=False)
    one.saw(NOW_MS + KEEP_STEP_MS - 1, clock_trusted=False)
    assert kept == [NOW_MS]
    clock.boot += KEEP_STEP_MS
    one.keep()
    assert kept == [NOW_MS, NOW_MS + 2 * KEEP_STEP_MS - 1]
    again: list[int] = []
    other = floor(Clock(0), again)
    other.restore(kept[-1])
    assert other.floor_ms == kept[-1]
    other.keep()
    assert again == []


@given(
    st.lists(st.tuples(st.sampled_from(["saw", "told", "wall", "passes"]), st.integers(0, 4 * NOW_MS), st.booleans()))
)
def test_it_only_rises(steps: list[tuple[str, int, bool]]) -> None:
    clock = Clock()
    one = floor(clock)
    before_ms = one.floor_ms
    for step, ms, trusted in steps:
        match step:
            case "saw":
                one.saw(ms, clock_trusted=trusted)
            case "told":
                one.told(ms, clock_trusted=trusted)
            case "wall":
                clock.wall = ms
            case _:
                clock.passes(ms)
        assert one.floor_ms >= before_ms
        assert one.now_ms() >= max(clock.wall, one.floor_ms)
        before_ms = one.floor_ms


# --- when this version was made -----------------------------------------------------------------------------------

LATER_S = LEAST_BUILT_MS // 1000 + 86_400


@pytest.mark.parametrize(
    ("text", "found_ms"),
    [
        (f"{LATER_S}\n", 1000 * LATER_S),
        (f"{LATER_S}", 1000 * LATER_S),
        ("1580601600\n", LEAST_BUILT_MS),
        ("", LEAST_BUILT_MS),
        ("soon", LEAST_BUILT_MS),
        ("9" * 20, LEAST_BUILT_MS),
        ("\u0661" * 10, LEAST_BUILT_MS),
    ],
)
def test_what_packaging_wrote_counts_unless_it_makes_no_sense(tmp_path: Path, text: str, found_ms: int) -> None:
    (tmp_path / "built_s").write_text(text, "utf-8")
    assert built_ms(tmp_path / "built_s") == found_ms


def test_a_checkout_falls_back_on_what_stands_in_the_code(tmp_path: Path) -> None:
    assert built_ms(tmp_path / "none") == LEAST_BUILT_MS == BUILT_MS


def test_a_wheel_knows_when_it_was_made(tmp_path: Path) -> None:
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(LATER_S)}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "installed", [one for one in files.namelist() if one.startswith("agent/")])
    ask = "from agent.trust import time_floor; print(time_floor.BUILT_MS, time_floor.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path / "installed", capture_output=True, check=True, text=True
    )
    assert told.stdout.split() == [str(1000 * LATER_S), str(tmp_path / "installed/agent/trust/time_floor.py")]
