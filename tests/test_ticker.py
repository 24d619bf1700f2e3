from __future__ import annotations

import asyncio

import pytest

from agent.core.events import ComputerSlept, EventType, Tick
from agent.ticker import LONGEST_MS, SHORTEST_MS, Ticker


class Loop:
    """Time, and the timers that were set: what a ticker asks of the event loop and of the clock."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.due_ms = 1_000_000
        self.set: list[float] = []
        self.set_for_s = 0.0
        self.ticks: list[int] = []

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 0

    def emit(self, event: EventType) -> None:
        assert isinstance(event, Tick)
        self.ticks.append(event.at_ms)

    def time(self) -> float:
        return self.now_ms / 1000

    def when(self) -> float:
        return self.set_for_s

    def call_later(self, delay_s: float, _callback: object) -> Loop:
        self.set.append(delay_s)
        self.set_for_s = self.time() + delay_s
        return self

    def cancel(self) -> None:
        self.set.append(-1)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture
def ticker(loop: Loop) -> Ticker:
    return Ticker(loop.emit, loop, lambda: loop.due_ms)


def test_it_sleeps_until_something_is_due(loop: Loop, ticker: Ticker) -> None:
    loop.due_ms = 1_250
    ticker._tick()
    assert loop.ticks == [1_000]
    assert loop.set == [0.250]


def test_it_never_sleeps_longer_than_a_second_and_never_spins(loop: Loop, ticker: Ticker) -> None:
    ticker._tick()
    loop.due_ms = 0
    ticker._tick()
    assert loop.set == [LONGEST_MS / 1000, SHORTEST_MS / 1000]


def test_what_comes_forward_sets_the_timer_anew_and_what_goes_back_does_not(loop: Loop, ticker: Ticker) -> None:
    loop.due_ms = 1_500
    ticker._tick()
    ticker.settle()
    loop.due_ms = 1_900
    ticker.settle()
    assert loop.set == [0.5]
    loop.now_ms, loop.due_ms = 1_100, 1_300
    ticker.settle()
    assert loop.set == [0.5, -1, 0.2]


def test_a_sleep_of_the_computer_is_told_before_the_tick_and_once(loop: Loop) -> None:
    events: list[EventType] = []
    asleep_s = [7.0]
    ticker = Ticker(events.append, loop, lambda: loop.due_ms, lambda: asleep_s[0])
    ticker._tick()
    asleep_s[0] += 0.4
    ticker._tick()
    asleep_s[0] += 3_600
    loop.now_ms += 3_600_000
    ticker._tick()
    ticker._tick()
    now_ms = loop.now_ms
    assert events == [
        Tick(at_ms=1_000),
        Tick(at_ms=1_000),
        ComputerSlept(at_ms=now_ms, slept_ms=3_600_000),
        Tick(at_ms=now_ms),
        Tick(at_ms=now_ms),
    ]


def test_before_it_runs_nothing_is_set(loop: Loop, ticker: Ticker) -> None:
    ticker.settle()
    assert loop.set == []


def test_it_ticks_when_due_and_leaves_no_timer_behind() -> None:
    ticks: list[EventType] = []

    class Clock:
        def boot_ms(self) -> int:
            return round(asyncio.get_running_loop().time() * 1000)

        def wall_ms(self) -> int:
            return 0

    async def main() -> None:
        clock = Clock()
        ticker = Ticker(ticks.append, clock, clock.boot_ms)
        running = asyncio.create_task(ticker.run())
        while len(ticks) < 3:  # noqa: ASYNC110 - time is what is tested
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        count = len(ticks)
        await asyncio.sleep(0.05)
        assert len(ticks) == count

    asyncio.run(main())


def test_how_late_a_tick_came_and_was_decided_is_told(loop: Loop) -> None:
    told: list[tuple[float, float]] = []

    def slow(_event: EventType) -> None:
        loop.now_ms += 30

    ticker = Ticker(slow, loop, lambda: loop.due_ms, on_tick=lambda now_s, late_s: told.append((now_s, late_s)))
    ticker._tick()
    loop.now_ms += 1_400  # it was set for a second
    ticker._tick()
    assert [round(late_s, 3) for _, late_s in told] == [0.03, 0.43]
    assert [now_s for now_s, _ in told] == [1.03, 2.46]
