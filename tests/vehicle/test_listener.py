from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.core.events import EventType, SignalsSeen, SourceChanged, SourceHeard
from agent.core.signals import Vehicle
from agent.vehicle.decoder import Decoder, Frame
from agent.vehicle.listener import REPEAT_MS, SILENT_MS, BusListener

DRIVER_DOOR = "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen"


class ManualClock:
    """A clock that only the test moves."""

    now_ms = 1_000

    def boot_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 0


@pytest.fixture
def events() -> list[EventType]:
    return []


@pytest.fixture
def listener(decoders: dict[str, Decoder], events: list[EventType]) -> BusListener:
    return BusListener("vehicle", decoders["vehicle"], ManualClock(), events.append)


@pytest.fixture
def closed(make_frame: Callable[..., Frame]) -> Frame:
    return make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=2, VCLEFT_rearLatchStatus=2)


@pytest.fixture
def opened(make_frame: Callable[..., Frame]) -> Frame:
    return make_frame("vehicle", "VCLEFT_doorStatus", VCLEFT_frontLatchStatus=1, VCLEFT_rearLatchStatus=2)


@pytest.fixture
def right(make_frame: Callable[..., Frame]) -> Frame:
    return make_frame(
        "vehicle",
        "VCRIGHT_doorStatus",
        VCRIGHT_frontLatchStatus=2,
        VCRIGHT_rearLatchStatus=2,
        VCRIGHT_trunkLatchStatus=2,
    )


def test_the_first_drain_says_that_the_bus_is_alive_and_then_all_its_news_in_one_event(
    listener: BusListener, events: list[EventType], closed: Frame, right: Frame
) -> None:
    listener.take([closed, right, closed], 1_005)
    alive, seen = events
    assert alive == SourceChanged(at_ms=1_005, source="vehicle", alive=True)
    assert isinstance(seen, SignalsSeen)
    assert (seen.at_ms, seen.source, len(seen.samples)) == (1_005, "vehicle", 6)
    assert {sample.group for sample in seen.samples} == {"VCLEFT_doorStatus", "VCRIGHT_doorStatus"}


def test_the_fastest_leaves_are_named_every_100_ms_even_when_looks_are_a_little_off(
    decoders: dict[str, Decoder], events: list[EventType], make_frame: Callable[..., Frame]
) -> None:
    listener = BusListener("party", decoders["party"], ManualClock(), events.append)
    looks = [1_000, 1_103, 1_200, 1_305, 1_399, 1_500]
    for at_ms in looks:
        listener.take([make_frame("party", "DI_systemStatus", DI_gear=1)], at_ms)
    assert [event.at_ms for event in events if isinstance(event, SourceHeard)] == looks[1:]
    assert REPEAT_MS == 100


def test_what_repeats_itself_is_named_at_times_and_news_at_once(
    listener: BusListener, events: list[EventType], closed: Frame, opened: Frame, right: Frame
) -> None:
    listener.take([closed, right], 1_000)
    events.clear()
    told: list[tuple[int, object]] = []
    for at_ms in range(1_020, 1_320, 20):
        listener.take([opened if at_ms >= 1_160 else closed, right], at_ms)
        told += [(at_ms, event) for event in events]
        events.clear()
    heard = [(at_ms, event.groups) for at_ms, event in told if isinstance(event, SourceHeard)]
    assert [at_ms for at_ms, _ in heard] == [1_020, 1_220]
    assert heard[0][1] == ("VCLEFT_doorStatus", "VCRIGHT_doorStatus")
    ((news_ms, seen),) = [(at_ms, event) for at_ms, event in told if isinstance(event, SignalsSeen)]
    assert news_ms == 1_160
    assert [(sample.path, sample.value) for sample in seen.samples] == [(DRIVER_DOOR, True)]


def test_slow_leaves_are_named_as_often_as_they_need_it(
    decoders: dict[str, Decoder], events: list[EventType], make_frame: Callable[..., Frame]
) -> None:
    listener = BusListener("energy", decoders["energy"], ManualClock(), events.append)
    for at_ms in range(1_000, 6_000, 20):
        frame = make_frame("energy", "DW_ambientStatus", DW_ambientTemperature=200)
        listener.take([frame, make_frame("energy", "DW_chargeStatus")], at_ms)
    heard = [event for event in events if isinstance(event, SourceHeard)]
    assert 5 <= len(heard) <= 12, "about once a second each"


def test_a_leaf_that_changes_twice_within_one_drain_is_said_twice(
    listener: BusListener, events: list[EventType], closed: Frame, opened: Frame
) -> None:
    listener.take([closed], 1_000)
    events.clear()
    listener.take([opened, closed], 1_020)
    seen = [event for event in events if isinstance(event, SignalsSeen)]
    assert [[(sample.path, sample.value) for sample in event.samples] for event in seen] == [
        [(DRIVER_DOOR, True)],
        [(DRIVER_DOOR, False)],
    ]


def test_the_vehicle_stays_fresh_by_what_is_heard_and_grows_stale_without(
    listener: BusListener, events: list[EventType], closed: Frame
) -> None:
    """The listener and the core agree on what a group is."""
    for at_ms in range(1_000, 3_000, 20):
        listener.take([closed], at_ms)
    vehicle = Vehicle()
    for event in events:
        match event:
            case SignalsSeen():
                vehicle = vehicle.seen(event)
            case SourceHeard():
                vehicle = vehicle.repeated(event)
            case SourceChanged():
                vehicle = vehicle.changed(event)
            case _:
                pytest.fail(f"unexpected {event}")
    assert len([event for event in events if isinstance(event, SignalsSeen)]) == 1
    assert vehicle.read(DRIVER_DOOR, 3_000).problem == ""
    assert vehicle.read(DRIVER_DOOR, 3_000 + 501).problem == "stale"


def test_a_loss_is_said_once_and_so_is_the_return(
    listener: BusListener, events: list[EventType], closed: Frame
) -> None:
    listener.lost("bus-off")
    listener.lost("no frames")
    listener.take([closed], 1_500)
    listener.take([closed], 1_600)
    changes = [(event.alive, event.detail) for event in events if isinstance(event, SourceChanged)]
    assert changes == [(False, "bus-off"), (True, "")]
    assert listener.counts == {"frames": 2, "losses": 1}


def test_frames_that_are_dropped_keep_no_bus_alive(listener: BusListener, events: list[EventType]) -> None:
    listener.take([Frame(0x7FF, bytes(8))], 1_000)
    assert events == []


def test_what_somebody_else_vouches_for_is_named_as_heard(listener: BusListener, events: list[EventType]) -> None:
    listener.vouch([], 1_100)
    assert events == []
    listener.vouch(["VCLEFT_doorStatus"], 1_100)
    assert events == [
        SourceChanged(at_ms=1_100, source="vehicle", alive=True),
        SourceHeard(at_ms=1_100, source="vehicle", groups=("VCLEFT_doorStatus",)),
    ]


def test_silence_is_said_once_after_two_seconds(
    decoders: dict[str, Decoder], closed: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch sleeps until silence could have lasted long enough, so a bus that lives wakes nobody."""
    clock = ManualClock()
    events: list[EventType] = []
    listener = BusListener("vehicle", decoders["vehicle"], clock, events.append)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now_ms += round(seconds * 1000)
        if len(slept) == 1:
            listener.take([closed], clock.now_ms - 500)
        if len(slept) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(listener._watch_silence())
    lost = [event for event in events if isinstance(event, SourceChanged) and not event.alive]
    assert lost == [SourceChanged(at_ms=2_500 + SILENT_MS, source="vehicle", alive=False, detail="no frames for 2 s")]
    assert slept[:2] == [2.0, 1.5]
