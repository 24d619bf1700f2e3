from __future__ import annotations

import asyncio
import math
import threading

import pytest

from agent.core.events import ComputeSeen, EventType
from agent.telemetry.reader import ReaderSource, plausible_die_c, plausible_power_w
from tests.conftest import FixedClock


class Scripted:
    """A reader that says what it was asked, and where it was asked it."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.closed = threading.Event()

    def read(self, at_ms: int) -> ComputeSeen:
        assert not self.closed.is_set()
        self.threads.append(threading.current_thread().name)
        return ComputeSeen(at_ms=at_ms, die_c=50.0, power_w=None, sensor="scripted")

    def close(self) -> None:
        self.closed.set()


def test_it_emits_again_and_again_until_it_is_cancelled_and_then_lets_go() -> None:
    reader, clock = Scripted(), FixedClock()

    async def main() -> list[EventType]:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        reading = asyncio.create_task(ReaderSource(reader, 1, clock).run(events.put_nowait))
        received = [await asyncio.wait_for(events.get(), 5) for _ in range(3)]
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return received

    received = asyncio.run(main())
    assert [event.at_ms for event in received] == [clock.boot_ms()] * 3
    assert len(set(reader.threads)) == 1, "one thread, so that two readings never overlap"
    assert reader.threads[0] != threading.main_thread().name, "a sensor that hangs must not hang the daemon"
    assert reader.closed.wait(5)


class Moments(Scripted):
    """A reader whose sensor shows only the moment."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def read(self, at_ms: int) -> ComputeSeen:
        self.log.append("read")
        return super().read(at_ms)

    def sample(self) -> None:
        assert not self.closed.is_set()
        self.log.append("sample")
        self.threads.append(threading.current_thread().name)


@pytest.mark.parametrize("working", [True, False])
def test_power_is_sampled_between_readings_while_there_is_a_worker_and_only_then(working: bool) -> None:
    reader = Moments()

    async def main() -> None:
        events: asyncio.Queue[EventType] = asyncio.Queue()
        source = ReaderSource(reader, 60, FixedClock(), lambda: working)
        reading = asyncio.create_task(source.run(events.put_nowait))
        for _ in range(3):
            await asyncio.wait_for(events.get(), 5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())
    assert reader.closed.wait(5)
    between = "".join(word[0] for word in reader.log).split("r")[1:3]
    assert all(between) if working else not any(between)
    assert len(set(reader.threads)) == 1, "never two at a time"


@pytest.mark.parametrize(("said", "believed"), [(None, None), (-40.1, None), (-40.0, -40.0), (150.1, None), (0.0, 0.0)])
def test_a_die_is_as_warm_as_silicon_can_be(said: float | None, believed: float | None) -> None:
    assert plausible_die_c(said) == believed


@pytest.mark.parametrize(("said", "believed"), [(None, None), (0.0, None), (-1.0, None), (5000.1, None), (0.1, 0.1)])
def test_a_computer_that_reads_itself_draws_something(said: float | None, believed: float | None) -> None:
    assert plausible_power_w(said) == believed


def test_what_is_no_number_is_no_reading() -> None:
    assert plausible_die_c(math.nan) is None
    assert plausible_power_w(math.nan) is None
