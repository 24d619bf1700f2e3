from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.core.events import EventType, SignalsSeen, SourceChanged
from agent.vehicle import listener as listener_module
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.listener import SILENT_MS, BusListener


class ManualClock:
    """A clock that only the test moves."""

    now_ms = 1_000

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 0


@pytest.fixture
def park(make_frame: Callable[..., Frame]) -> Frame:
    return make_frame("party", "DI_systemStatus", DI_gear=1)


def test_the_first_frame_says_that_the_bus_is_alive_before_what_it_carries(
    decoders: dict[str, Decoder], park: Frame
) -> None:
    events: list[EventType] = []
    listener = BusListener("party", decoders["party"], ManualClock(), events.append)
    listener.frame(park, 1_005)
    listener.frame(park, 1_010)
    alive, seen = events
    assert alive == SourceChanged(at_ms=1_005, source="party", alive=True)
    assert isinstance(seen, SignalsSeen)
    assert (seen.at_ms, seen.source) == (1_005, "party")


def test_a_loss_is_said_once_and_so_is_the_return(decoders: dict[str, Decoder], park: Frame) -> None:
    events: list[EventType] = []
    listener = BusListener("party", decoders["party"], ManualClock(), events.append)
    listener.lost("bus-off")
    listener.lost("no frames")
    listener.frame(park, 1_500)
    listener.frame(park, 1_600)
    changes = [(event.alive, event.detail) for event in events if isinstance(event, SourceChanged)]
    assert changes == [(False, "bus-off"), (True, "")]


def test_frames_that_are_dropped_keep_no_bus_alive(decoders: dict[str, Decoder]) -> None:
    events: list[EventType] = []
    BusListener("party", decoders["party"], ManualClock(), events.append).frame(Frame(0x7FF, bytes(8)), 1_000)
    assert events == []


def test_silence_is_said_once_after_two_seconds(
    decoders: dict[str, Decoder], park: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "WATCH_INTERVAL_S", 0)
    clock = ManualClock()
    events: list[EventType] = []
    listener = BusListener("party", decoders["party"], clock, events.append)

    async def watch() -> None:
        watching = asyncio.create_task(listener._watch_silence())
        listener.frame(park, clock.now_ms)
        for now_ms in (1_000 + SILENT_MS - 1, 1_000 + SILENT_MS, 1_000 + 2 * SILENT_MS):
            clock.now_ms = now_ms
            for _ in range(4):
                await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(watch())
    lost = [event for event in events if isinstance(event, SourceChanged) and not event.alive]
    assert lost == [
        SourceChanged(at_ms=1_000 + SILENT_MS, source="party", alive=False, detail="no frames for 2 s"),
    ]
