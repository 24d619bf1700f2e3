"""What the watch takes for a sign of a person, where sources are several and where nothing was heard for a while."""

from __future__ import annotations

from agent.core import signals
from agent.core.events import LeavesOffered, Sample, SignalsSeen, SourceHeard
from agent.core.policy import Policy
from agent.core.signals import Vehicle
from agent.simulate.presence import Presence
from tests.core.world import PARKED

DOOR = signals.DOORS[0]


def says(source: str, changes: dict[str, bool], at_ms: int = 0) -> SignalsSeen:
    values = {**PARKED, **changes} if source == "bus" else changes
    samples = tuple(Sample(path, value, group="g") for path, value in values.items())
    return SignalsSeen(at_ms=at_ms, source=source, samples=samples)


def parked() -> Presence:
    presence = Presence(Policy(parked_for_s=1), Vehicle(), 0)
    presence.happened(says("bus", {}))
    presence.sign(0)
    presence.happened(SourceHeard(at_ms=1_500, source="bus", groups=("g",), since_ms=0))
    assert presence.sign(1_500) == ""
    return presence


def test_one_source_that_sees_an_open_door_is_enough() -> None:
    presence = parked()
    presence.happened(says("can", {DOOR: True}, 1_500))
    presence.happened(says("bus", {}, 1_500))
    assert presence.sign(1_500) == DOOR
    presence.happened(says("can", {DOOR: False}, 1_500))
    assert presence.sign(1_500) == "only 0 ms of quiet"


def test_one_source_that_falls_silent_is_enough() -> None:
    presence = parked()
    presence.happened(says("can", {DOOR: False}, 1_500))
    presence.happened(SourceHeard(at_ms=2_100, source="bus", groups=("g",), since_ms=1_500))
    assert presence.sign(2_100) == "can/g silent for 600 ms"


def test_a_silence_at_which_nobody_looked_is_a_sign() -> None:
    presence = parked()
    presence.happened(SourceHeard(at_ms=9_000, source="bus", groups=("g",)))
    assert presence.sign(9_000) == "only 0 ms of quiet"


def test_a_leaf_that_one_source_offers_is_not_absent_for_another() -> None:
    presence = Presence(Policy(parked_for_s=1), Vehicle(offered=frozenset({DOOR})), 0)
    presence.happened(LeavesOffered(at_ms=0, source="broker", paths=(), absent=(DOOR,)))
    for event in (says("bus", {}), says("bus", {DOOR: True}, 10)):
        presence.happened(event)
    assert presence.sign(10) == DOOR
