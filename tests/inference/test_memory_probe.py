"""Whether the memory has come back: a computer whose free memory is a story, and a clock that is moved by sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.inference import memory_probe
from agent.inference.memory_probe import LOOKS_MS, Held, MemoryProbe, available_bytes

GIB = 1024**3


class Told:
    """The log."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, name: str, **fields: object) -> None:
        self.lines.append(("info", name, fields))

    def warning(self, name: str, **fields: object) -> None:
        self.lines.append(("warning", name, fields))


class Computer:
    """So much is free: before, while the package is loaded, and `after(ms)` the worker's end."""

    def __init__(self, before: int | None, loaded: int | None, after: Callable[[float], int | None]) -> None:
        self._before, self._loaded, self._after = before, loaded, after
        self.now_s, self._gone_s = 50.0, 50.0
        self._asked = 0
        self.looks = 0

    def free_bytes(self) -> int | None:
        self._asked += 1
        if self._asked <= 2:
            return self._before if self._asked == 1 else self._loaded
        self.looks += 1
        return self._after(round((self.now_s - self._gone_s) * 1000))

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def story(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryProbe, list[tuple[str, str, Any]]]:
    """One worker's life on it; the probe, and the lines of the log."""
    told = Told()
    monkeypatch.setattr(memory_probe, "logger", lambda: told)

    async def life() -> MemoryProbe:
        probe = MemoryProbe(computer.free_bytes, sleep=computer.sleep, now_s=lambda: computer.now_s)
        probe.launched()
        assert probe._before is not None
        await probe._before
        probe.loaded()
        assert probe._loaded is not None
        await probe._loaded
        probe.gone()
        if probe._watching is not None:
            await probe._watching
        await probe.close()
        return probe

    return asyncio.run(life()), told.lines


def test_memory_that_is_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, lines = story(Computer(8 * GIB, 6 * GIB, lambda _: 8 * GIB), monkeypatch)
    assert probe.returned_ms == 0
    assert lines == [("info", "memory_returned", {"after_ms": 0, "held_mb": 2048})]


def test_memory_that_comes_back_within_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    after = lambda ms: 8 * GIB if ms >= 150 else 6 * GIB  # noqa: E731 - a story
    probe, lines = story(Computer(8 * GIB, 6 * GIB, after), monkeypatch)
    assert probe.returned_ms == 200
    assert [level for level, _, _ in lines] == ["info"]


def test_memory_that_comes_back_late_is_warned_of_once_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    after = lambda ms: 8 * GIB if ms >= 4_000 else 7 * GIB  # noqa: E731 - a story
    probe, lines = story(Computer(8 * GIB, 6 * GIB, after), monkeypatch)
    assert probe.returned_ms == 5_000
    assert lines == [
        ("warning", "memory_not_returned", {"after_ms": 1_000, "missing_mb": 819}),
        ("info", "memory_returned", {"after_ms": 5_000, "held_mb": 2048}),
    ]


def test_memory_that_never_comes_back_is_warned_of_once_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    computer = Computer(8 * GIB, 6 * GIB, lambda _: 6 * GIB)
    probe, lines = story(computer, monkeypatch)
    assert probe.returned_ms is None
    assert [name for _, name, _ in lines] == ["memory_not_returned"]
    assert computer.looks == len(LOOKS_MS)


@pytest.mark.parametrize(
    ("before", "loaded"), [(8 * GIB, 8 * GIB - 1024**2), (6 * GIB, 8 * GIB), (None, 6 * GIB), (8 * GIB, None)]
)
def test_where_there_is_nothing_to_be_seen_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, before: int | None, loaded: int | None
) -> None:
    computer = Computer(before, loaded, lambda _: 0)
    probe, lines = story(computer, monkeypatch)
    assert (probe.returned_ms, lines, computer.looks) == (None, [], 0)


def test_a_card_that_answers_no_more_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    computer = Computer(8 * GIB, 6 * GIB, lambda _: None)
    _, lines = story(computer, monkeypatch)
    assert (lines, computer.looks) == ([], 1)


def test_a_worker_that_never_loaded_held_nothing() -> None:
    async def life() -> None:
        probe = MemoryProbe(lambda: 8 * GIB)
        probe.gone()
        probe.launched()
        probe.gone()
        assert probe._watching is None
        await probe.close()

    asyncio.run(life())


def test_the_next_worker_ends_the_watch() -> None:
    async def life() -> None:
        probe = MemoryProbe(lambda: 8 * GIB)
        probe.launched()
        probe.loaded()
        probe.gone()
        watching = probe._watching
        assert watching is not None
        probe.launched()
        await asyncio.wait([watching])
        assert watching.cancelled()
        await probe.close()

    asyncio.run(life())


def test_nine_tenths_are_enough() -> None:
    held = Held(1000, 0)
    assert held.missing_bytes(899) == 1
    assert held.missing_bytes(900) == 0


def test_what_the_kernel_says_is_available(tmp_path: Path) -> None:
    ours = available_bytes()
    assert ours is not None
    assert ours > 1024**2
    meminfo = tmp_path / "meminfo"
    for content, expected in [
        ("MemTotal: 9 kB\nMemAvailable:  7 kB\n", 7 * 1024),
        ("MemAvailable: x", None),
        ("", None),
    ]:
        meminfo.write_text(content)
        assert available_bytes(meminfo) == expected
    assert available_bytes(tmp_path / "none") is None
