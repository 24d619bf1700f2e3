"""How long a databroker is believed: in virtual time, with the core behind it, so that bounds are exact."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kuksa.val.v2 import types_pb2

from agent.core.events import ComputeSeen, EventType, LeavesOffered, SignalsSeen, SourceChanged, SourceHeard, Tick
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.signals import AMBIENT, CHARGE, DOORS, HOOD, SPEED
from agent.core.state import initial
from agent.vehicle.databroker import DatabrokerConfig, ProviderConfig
from agent.vehicle.kuksa_leaves import EDGE, SLOW, resolve
from agent.vehicle.kuksa_mirror import Mirror
from hil.bench.databroker import PARKED, VSS_6_0, Databroker, Plain

POLL_MS, BEAT_MS = 250, 100
DOOR = DOORS[0]


class Night:
    """A broker's memory, a mirror of it and the core, in virtual milliseconds."""

    def __init__(self, config: DatabrokerConfig | None = None, values: Mapping[str, Plain] = PARKED) -> None:
        self.config = config or DatabrokerConfig(address="unix:/broker")
        self.mirror = Mirror(self.config)
        self.broker = Databroker()
        self.stamp = 0
        self.now_ms = 1_000
        self.polling = self.streaming = self.beating = True
        self.events: list[EventType] = []
        self.state = initial("car", Policy(parked_for_s=2, reserve_percent=20), self.now_ms)
        metadata = [entry.metadata() for entry in self.broker.entries.values()]
        self.names = resolve(metadata, self.config.absent, self.mirror.heartbeats)
        self.take([ComputeSeen(at_ms=self.now_ms, die_c=40.0, power_w=10.0, sensor="simulated")])
        self.publish(values)
        self.take(self.mirror.begin(self.names, self.now_ms))
        self.take(self.mirror.streamed(self.points(), self.now_ms))

    def points(self) -> list[tuple[str, types_pb2.Datapoint]]:
        return [(name.asked, self.broker.entries[name.asked].point) for name in self.names]

    def take(self, events: list[EventType]) -> None:
        for event in events:
            self.events.append(event)
            self.state, _ = step(self.state, event)

    def publish(self, values: Mapping[str, Plain], *, stream: bool = False) -> None:
        """A provider publishes; with `stream`, the subscription brings it at once."""
        self.broker.publish(values)
        for path in values:
            self.stamp += 1
            self.broker.entries[path].point.timestamp.nanos = self.stamp
        if stream:
            entries = self.broker.entries
            self.take(self.mirror.streamed([(path, entries[path].point) for path in values], self.now_ms))

    def run(self, for_ms: int) -> None:
        """Time passes: heartbeats, polls (all leaves once a second) and ticks."""
        for _ in range(for_ms // 10):
            self.now_ms += 10
            if self.beating and self.now_ms % BEAT_MS == 0:
                self.publish({SPEED: 0.0}, stream=self.streaming)
            if self.polling and self.now_ms % POLL_MS == 0:
                groups = (EDGE, SLOW) if self.now_ms % 1_000 == 0 else (EDGE,)
                asked = {name.asked for name in self.names if name.group in groups}
                points = [one for one in self.points() if one[0] in asked]
                self.take(self.mirror.polled(points, groups, self.mirror.turn, self.now_ms))
            self.take([Tick(at_ms=self.now_ms)])

    @property
    def gate(self) -> GateState:
        states = {one.name: one.state for one in self.state.gates.gates}
        return GateState.OPEN if states["parked"] is states["occupied"] is GateState.OPEN else GateState.CLOSED

    def until_shut_ms(self) -> int:
        """How long it takes to shut from now on; fails when it does not within 5 s."""
        begun_ms = self.now_ms
        while self.gate is GateState.OPEN:
            assert self.now_ms - begun_ms < 5_000, "the driver is hidden"
            self.run(10)
        return self.now_ms - begun_ms

    def codes(self) -> set[str]:
        return {reason.code for reason in self.state.gates.reasons}


@pytest.fixture
def night() -> Night:
    """A parked car whose gate is open."""
    night = Night()
    night.run(4_000)
    assert night.gate is GateState.OPEN, night.codes()
    return night


def test_an_edge_on_the_stream_shuts_the_gate_in_the_same_step(night: Night) -> None:
    night.publish({DOOR: True}, stream=True)
    assert night.gate is GateState.CLOSED
    assert "door_open" in night.codes()


@pytest.mark.parametrize("late_ms", [0, 120, 240])
def test_an_edge_that_the_stream_dropped_shuts_the_gate_with_the_next_poll(night: Night, late_ms: int) -> None:
    night.run(late_ms)
    night.publish({DOOR: True})
    assert night.until_shut_ms() <= POLL_MS
    assert "door_open" in night.codes()


def test_a_provider_that_died_shuts_the_gate_half_a_second_after_its_last_heartbeat(night: Night) -> None:
    night.beating = False
    assert night.until_shut_ms() <= 510
    night.run(1_000)
    losses = [event for event in night.events if isinstance(event, SourceChanged) and not event.alive]
    assert [event.detail for event in losses] == [f"{SPEED} was not published for 0.5 s"]
    night.run(60_000)
    assert night.state.vehicle.read(CHARGE, night.now_ms).value is None


def test_a_provider_that_died_and_a_stream_that_is_silent_shut_the_gate_as_well(night: Night) -> None:
    night.streaming = False
    night.run(2_000)
    assert night.gate is GateState.OPEN
    night.beating = False
    assert night.until_shut_ms() <= 500 + POLL_MS


def test_a_patient_configuration_does_not_keep_the_edges_of_a_dead_provider_fresh() -> None:
    night = Night(DatabrokerConfig(address="unix:/broker", heartbeat_silent_ms=5_000))
    night.run(4_000)
    assert night.gate is GateState.OPEN
    night.beating = False
    assert night.until_shut_ms() <= 510
    assert "signal_stale" in night.codes()


def test_a_broker_that_answers_nothing_shuts_the_gate_by_age_alone(night: Night) -> None:
    night.polling = night.streaming = False
    assert night.until_shut_ms() <= 510
    assert "signal_stale" in night.codes()


def test_a_poll_that_is_answered_only_on_the_second_try_does_not_shut_the_gate(night: Night) -> None:
    """250 ms to the poll that is late, 200 ms until it is given up, and 190 ms for the next."""
    night.polling = False
    night.run(640)
    night.polling = True
    night.run(2_000)
    (opened_ms,) = [one.since_ms for one in night.state.gates.gates if one.name == "occupied"]
    assert night.gate is GateState.OPEN
    assert opened_ms < night.now_ms - 2_640, "it shut in between"


def test_a_broker_that_is_lost_shuts_the_gate_at_once_and_says_so_once(night: Night) -> None:
    night.take(night.mirror.lost("the databroker cannot be reached: connection refused", night.now_ms))
    assert night.gate is GateState.CLOSED
    assert "signal_source_down" in night.codes()
    assert night.mirror.lost("the databroker cannot be reached: timed out", night.now_ms) == []
    assert night.mirror.lost("the databroker refuses the token", night.now_ms) != []


def test_leaves_that_never_change_stay_fresh_while_the_heartbeat_goes_on(night: Night) -> None:
    before = len(night.events)
    night.run(120_000)
    assert night.gate is GateState.OPEN
    news = [event for event in night.events[before:] if not isinstance(event, Tick)]
    assert {type(event) for event in news} == {SourceHeard}
    assert len(news) <= 120 * 8
    assert night.state.vehicle.read(AMBIENT, night.now_ms).value == 18.0


def test_a_new_session_believes_nothing_before_two_heartbeats() -> None:
    night = Night(values=PARKED | {DOOR: True})
    assert [type(event) for event in night.events] == [ComputeSeen, LeavesOffered]
    night.publish({SPEED: 0.0}, stream=True)
    assert not any(isinstance(event, SignalsSeen) for event in night.events)
    night.now_ms += 100
    night.publish({SPEED: 0.0}, stream=True)
    kinds = [type(event) for event in night.events[2:]]
    assert kinds == [SignalsSeen, SourceChanged]
    assert night.state.vehicle.read(DOOR, night.now_ms).value is True


def test_a_heartbeat_that_is_too_slow_is_lost_once_and_never_found() -> None:
    night = Night()
    night.beating = False
    for _ in range(20):
        night.run(1_000)
        night.publish({SPEED: 0.0}, stream=True)
    changes = [event for event in night.events if isinstance(event, SourceChanged)]
    assert [change.alive for change in changes] == [False]


def test_a_poll_that_the_stream_overtook_does_not_undo_it(night: Night) -> None:
    turn, stale = night.mirror.turn, night.points()
    stale = [(path, types_pb2.Datapoint.FromString(one.SerializeToString())) for path, one in stale]
    night.publish({DOOR: True}, stream=True)
    night.take(night.mirror.polled(stale, (EDGE, SLOW), turn, night.now_ms))
    assert night.state.vehicle.read(DOOR, night.now_ms).value is True


def test_the_brokers_clock_is_never_believed(night: Night) -> None:
    """It jumps a day back and then stays: what is published is seen all the same, and what died is found out."""
    night.stamp = -500_000_000
    night.publish({DOOR: True})
    assert night.until_shut_ms() <= POLL_MS
    night.publish({DOOR: False}, stream=True)
    night.run(4_000)
    assert night.gate is GateState.OPEN


def test_each_provider_has_its_own_heart() -> None:
    handle = "Vehicle.Driveway.DoorHandlePulled"
    body = ProviderConfig(name="body", leaves=("Vehicle.Cabin.Door", handle), heartbeat=handle)
    night = Night(DatabrokerConfig(address="unix:/broker", provider=(body,)))
    night.run(4_000)
    lost = [event.source for event in night.events if isinstance(event, SourceChanged) and not event.alive]
    assert lost == ["databroker/body"]
    assert night.state.vehicle.read(SPEED, night.now_ms).value == 0.0
    assert night.state.vehicle.read(DOOR, night.now_ms).problem == "missing"


def test_a_heartbeat_that_the_broker_does_not_have_is_named() -> None:
    night = Night(DatabrokerConfig(address="unix:/broker", heartbeat="Vehicle.Driveway.Beat"))
    night.run(1_000)
    losses = [event.detail for event in night.events if isinstance(event, SourceChanged)]
    assert losses == ["the databroker has no readable Vehicle.Driveway.Beat, its heartbeat"]


def test_what_the_broker_lists_is_binding_and_what_the_configuration_calls_absent_is_not() -> None:
    night = Night(DatabrokerConfig(address="unix:/broker", absent=(HOOD, AMBIENT)))
    (offered,) = [event for event in night.events if isinstance(event, LeavesOffered)]
    assert set(offered.paths) == set(PARKED) - {AMBIENT}
    assert not night.state.vehicle.reads(AMBIENT)
    assert night.state.vehicle.reads(CHARGE)
    night.take([LeavesOffered(at_ms=night.now_ms, source="databroker", paths=(HOOD,))])
    assert night.state.vehicle.reads(HOOD), "one source has what another calls absent"
    assert not night.state.vehicle.reads(AMBIENT)
    night.take([LeavesOffered(at_ms=night.now_ms, source="databroker", paths=())])
    assert night.state.vehicle.reads(HOOD), "what was offered once stays binding"


POINTS = st.lists(
    st.tuples(
        st.sampled_from([spec.path for spec in VSS_6_0] + ["Vehicle.Nowhere", ""]),
        st.builds(
            lambda value, seconds: types_pb2.Datapoint(value=value, timestamp={"seconds": seconds}),
            st.one_of(
                st.none(),
                st.builds(types_pb2.Value, bool=st.booleans()),
                st.builds(types_pb2.Value, float=st.floats(width=32)),
                st.builds(types_pb2.Value, string=st.text(max_size=200)),
                st.builds(types_pb2.Value, uint64=st.integers(0, 2**64 - 1)),
            ),
            st.integers(0, 3),
        ),
    ),
    max_size=6,
)


@given(st.lists(st.tuples(st.sampled_from(["stream", "poll", "watch", "lost", "begin"]), POINTS), max_size=12))
def test_nothing_that_a_broker_says_raises_or_is_told_of_a_source_that_is_down(
    script: list[tuple[str, list[tuple[str, types_pb2.Datapoint]]]],
) -> None:
    night = Night()
    alive = False
    for what, points in script:
        night.now_ms += 100
        match what:
            case "stream":
                events = night.mirror.streamed(points, night.now_ms)
            case "poll":
                events = night.mirror.polled(points, (EDGE,), night.mirror.turn, night.now_ms)
            case "watch":
                events = night.mirror.watch(night.now_ms)
            case "lost":
                events = night.mirror.lost("gone", night.now_ms)
            case _:
                events = night.mirror.begin(night.names, night.now_ms)
        for event in events:
            if isinstance(event, SourceChanged):
                assert event.alive is not alive or not event.alive
                alive = event.alive
            elif isinstance(event, SourceHeard):
                assert alive
        night.take(events)
