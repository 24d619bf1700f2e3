from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.core.events import EventType, SignalsSeen, SourceChanged
from agent.vehicle.binding import bind_bus
from agent.vehicle.decoder import Frame
from agent.vehicle.drain import Rounds
from agent.vehicle.profile import Profile
from agent.vehicle.source import BusConfig, build_source

MakeFrame = Callable[..., Frame]


def line(at_s: float, interface: str, frame: Frame) -> str:
    return f"({at_s:.6f}) {interface} {frame.can_id:03X}#{frame.data.hex()}\n"


def play(
    path: Path, profiles: tuple[Profile, ...], recorded_as: str = ""
) -> tuple[list[tuple[float, EventType]], dict[str, int]]:
    """Every event until the log has ended, with the loop's time since the start."""
    told: list[tuple[float, EventType]] = []
    bus = BusConfig(name="party", interface="candump", channel=path.name, recorded_as=recorded_as)
    source = build_source(bus, bind_bus("party", profiles), SystemClock(), path.parent, Rounds())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        ended = asyncio.Event()

        def emit(event: EventType) -> None:
            told.append((loop.time() - started_s, event))
            if isinstance(event, SourceChanged) and not event.alive:
                ended.set()

        playing = asyncio.create_task(source.run(emit))
        await asyncio.wait_for(ended.wait(), 10)
        await asyncio.sleep(0)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing

    asyncio.run(main())
    return told, source.counts


def test_a_log_is_played_at_its_own_pace_and_its_end_is_a_loss(
    tmp_path: Path, profiles: tuple[Profile, ...], make_frame: MakeFrame
) -> None:
    path = tmp_path / "night.log"
    gears = [(100.0, 1), (100.001, 4), (100.2, 1), (99.0, 4), (99.1, 1)]
    path.write_text(
        "garbage\n"
        + "".join(line(at_s, "can0", make_frame("party", "DI_systemStatus", DI_gear=gear)) for at_s, gear in gears)
    )
    told, counts = play(path, profiles)
    seen = [(at_s, event.samples[0].value) for at_s, event in told if isinstance(event, SignalsSeen)]
    assert [value for _, value in seen] == [126.0, 127.0, 126.0, 127.0, 126.0]
    assert seen[2][0] - seen[0][0] >= 0.15, "0.2 s in the log, but for the drains"
    assert seen[4][0] - seen[3][0] >= 0.05
    lost = told[-1][1]
    assert isinstance(lost, SourceChanged)
    assert lost.detail == "the log night.log has ended"
    assert (counts["bad_lines"], counts["frames"]) == (1, 5)


def test_one_bus_of_a_log_of_several_is_picked(
    tmp_path: Path, profiles: tuple[Profile, ...], make_frame: MakeFrame
) -> None:
    path = tmp_path / "night.log"
    ours, other = (make_frame("party", "DI_systemStatus", DI_gear=gear) for gear in (1, 4))
    path.write_text(line(1.0, "can1", ours) + line(1.0, "can0", other))
    told, _ = play(path, profiles, "can1")
    (seen,) = [event for _, event in told if isinstance(event, SignalsSeen)]
    assert seen.samples[0].value == 126.0


def test_a_log_that_is_not_there_is_a_loss_with_its_reason(tmp_path: Path, profiles: tuple[Profile, ...]) -> None:
    told, _ = play(tmp_path / "none.log", profiles)
    ((_, lost),) = told
    assert isinstance(lost, SourceChanged)
    assert "none.log" in lost.detail
