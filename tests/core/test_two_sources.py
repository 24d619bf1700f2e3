"""Two sources tell of the same leaf, a CAN profile and a databroker: both must tell, and tell the same."""

from __future__ import annotations

import pytest

from agent.core import signals
from agent.core.events import LeavesOffered, Quality, Sample, SignalsSeen, SignalValue, SourceChanged, SourceHeard
from agent.core.signals import Vehicle
from agent.core.state import initial
from tests.core.world import POLICY, Shell, car

DOOR = signals.DOORS[0]


def says(source: str, value: SignalValue | None, path: str = DOOR, at_ms: int = 0) -> SignalsSeen:
    quality = Quality.UNKNOWN if value is None else Quality.GOOD
    return SignalsSeen(at_ms=at_ms, source=source, samples=(Sample(path, value, quality, group="g", period_ms=100),))


def told(*events: SignalsSeen) -> Vehicle:
    vehicle = Vehicle()
    for event in events:
        vehicle = vehicle.seen(event)
    return vehicle


def test_a_broker_that_says_shut_does_not_silence_the_bus_that_says_open() -> None:
    shell = Shell()
    shell.open_the_gate()
    shell.tell(says("can", value=True, at_ms=shell.now_ms))
    assert shell.gate().value == "closed"
    for _ in range(60):
        shell.now_ms += 100
        shell.tell(car(shell.now_ms))  # the third: every signal of a parked car, this door among them
        shell.tell(says("broker", value=False, at_ms=shell.now_ms))
        shell.tell(SourceHeard(at_ms=shell.now_ms, source="can", groups=("g",)))
        shell.advance(0)
        assert shell.gate().value == "closed"
    assert ("signal_contradictory", DOOR) in {(one.code, one.signal) for one in shell.state.gates.reasons}


@pytest.mark.parametrize("order", [("can", "broker"), ("broker", "can")])
def test_who_knows_nothing_counts_more_than_who_says_that_all_is_well(order: tuple[str, str]) -> None:
    words: dict[str, SignalValue | None] = {"can": False, "broker": None}
    vehicle = told(*(says(source, words[source]) for source in order))
    assert vehicle.read(DOOR, 0).problem == "unknown"
    assert vehicle.word(DOOR) is None


def test_each_source_grows_old_by_itself_and_goes_by_itself() -> None:
    vehicle = told(says("can", value=False), says("broker", value=False))
    assert vehicle.read(DOOR, 100).value is False
    alone = vehicle.repeated(SourceHeard(at_ms=1_000, source="broker", groups=("g",)))
    assert alone.read(DOOR, 1_000).problem == "stale"
    down = vehicle.changed(SourceChanged(at_ms=50, source="can", alive=False))
    assert down.read(DOOR, 50).problem == "source_down"
    both = alone.repeated(SourceHeard(at_ms=1_100, source="can", groups=("g",))).read(DOOR, 1_200)
    assert (both.value, both.age_ms, both.expires_ms) == (False, 200, 1_501), "as young as the older of the two"


def test_one_source_that_speaks_again_is_no_second_one() -> None:
    vehicle = told(says("can", value=True), says("can", value=False))
    assert (vehicle.read(DOOR, 0).value, vehicle.witnesses) == (False, {})


def test_numbers_may_differ_by_their_rounding_and_the_worse_counts() -> None:
    charge, speed = signals.CHARGE, signals.SPEED
    assert told(says("can", 70.4, charge), says("broker", 70.0, charge)).read(charge, 0).value == 70.0
    assert told(says("can", -0.6, speed), says("broker", 0.0, speed)).read(speed, 0).value == -0.6
    assert told(says("can", 70.4, charge), says("broker", 60.0, charge)).read(charge, 0).problem == "contradictory"


def test_two_sources_that_differ_do_not_say_that_it_is_charging() -> None:
    state = initial("unit", POLICY, 0, vehicle=told(says("can", True, signals.CHARGING)))
    assert state.charging
    vehicle = told(says("can", True, signals.CHARGING), says("broker", False, signals.CHARGING))
    assert not initial("unit", POLICY, 0, vehicle=vehicle).charging


@pytest.mark.parametrize("bus_first", [True, False])
def test_a_broker_without_a_leaf_does_not_take_it_from_the_bus(*, bus_first: bool) -> None:
    bus = LeavesOffered(at_ms=0, source="can", paths=(signals.BELT,))
    broker = LeavesOffered(at_ms=0, source="broker", paths=(signals.SPEED,), absent=(signals.BELT,))
    vehicle = Vehicle()
    for event in (bus, broker) if bus_first else (broker, bus):
        vehicle = vehicle.offers(event)
    assert vehicle.reads(signals.BELT)
