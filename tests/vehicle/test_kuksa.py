"""The databroker's client against a real gRPC server that hides the driver in every way the real one is known to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kuksa.val.v2 import types_pb2, val_pb2

from agent.clock import SystemClock
from agent.core.events import EventType, LeavesOffered, Quality, SignalsSeen
from agent.core.findings import GateState
from agent.core.signals import ALIASES, LEAVES, SEAT
from agent.vehicle import kuksa
from agent.vehicle.databroker import DatabrokerConfig
from agent.vehicle.kuksa_channel import Door, LostError
from hil.bench.databroker import PARKED, VSS_6_0, Spec
from hil.certificates import Authority

from .databroker import DOOR, LIMIT_S, AwkwardBroker, Car

TRUNK = "Vehicle.Body.Trunk.Rear.IsOpen"
Play = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(autouse=True)
def patient_polls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not look like a hanging broker, except where the test is about that."""
    if "hang" not in request.node.name:
        monkeypatch.setattr(kuksa, "POLL_DEADLINE_S", 5.0)


@asynccontextmanager
async def drive(
    broker: AwkwardBroker,
    credentials: grpc.ServerCredentials | None = None,
    *,
    token: Path | None = None,
    **table: Any,
) -> AsyncIterator[Car]:
    """A served broker and a watching car."""
    await broker.start(credentials)
    # 2 s of silence instead of 0.5: the heartbeat comes from this very process, which may be busy
    config = DatabrokerConfig(address=broker.address, **({"heartbeat_silent_ms": 2_000} | table))
    try:
        async with Car(config, Door(broker.address, token)).watching() as car:
            yield car
    finally:
        broker.lose_provider()
        broker.running.set()
        await broker.stop()


def test_a_parked_car_opens_the_gate_and_a_door_shuts_it(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            broker.publish({DOOR: True})
            await car.until_shut()
            assert ("door_open", DOOR) in car.reasons()
            request = broker.requests[0]
            assert request.buffer_size == 1_000
            assert not request.HasField("filter")

    play(story())


def test_an_edge_that_a_full_buffer_drops_is_found_by_the_poll(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            broker.publish({DOOR: True})
            for number in range(1_001):
                broker.publish({TRUNK: False, "Vehicle.Chassis.Brake.PedalPosition": number % 2})
            assert broker.subscriptions[0].dropped
            assert all(DOOR not in message for message in broker.subscriptions[0].buffer)
            await car.until(lambda: ("door_open", DOOR) in car.reasons())

    play(story())


def test_an_edge_that_a_sample_interval_drops_is_found_by_the_poll(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.imposed_interval_s = 3_600
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            broker.publish({DOOR: True})
            await car.until_shut()
            assert ("door_open", DOOR) in car.reasons()
            assert broker.subscriptions[0].dropped

    play(story())


def test_a_provider_that_died_hides_nobody_behind_its_last_values(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker, heartbeat_silent_ms=500) as car:
            await car.until_open()
            broker.lose_provider()
            polls = broker.polls
            await car.until_shut()
            await car.until(lambda: bool(car.losses))
            assert "Vehicle.Speed was not published for 0.5 s" in car.losses
            assert broker.polls > polls, "the broker itself goes on answering"
            broker.provide(PARKED | {DOOR: True})
            await car.until(lambda: ("door_open", DOOR) in car.reasons())

    play(story())


def test_values_found_on_arrival_are_not_believed_without_a_living_provider(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.publish(PARKED)
        async with drive(broker) as car:
            await car.until(lambda: broker.polls > 3)
            assert not any(isinstance(event, SignalsSeen) for event in car.events)
            assert car.gate is GateState.CLOSED

    play(story())


def test_leaves_that_are_not_refreshed_stay_fresh_by_the_heartbeat_and_their_edge_is_seen(play: Play) -> None:
    async def story() -> None:
        specs = [msgspec.structs.replace(spec, on_change=spec.path != "Vehicle.Speed") for spec in VSS_6_0]
        broker = AwkwardBroker(specs)
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            opened, events = broker.polls, len(car.events)
            broker.publish(PARKED)
            await car.until(lambda: broker.polls > opened + 4)  # a second: twice what makes an edge stale
            changes = [one for one in car.events[events:] if isinstance(one, SignalsSeen)]
            assert changes == []
            await car.until_open()  # and not shut for good, as it were if only what is published stayed fresh
            broker.publish({DOOR: True})
            await car.until_shut()

    play(story())


def test_a_broker_that_hangs_is_lost(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide(hz=50)
        async with drive(broker) as car:
            await car.until_open()
            broker.hang()
            broker.publish({DOOR: True})
            await car.until_shut()
            await car.until(lambda: any("does not answer in time" in loss for loss in car.losses))

    play(story())


def test_a_stopped_broker_process_that_hangs_is_lost_and_found_again(play: Play) -> None:
    async def story() -> None:
        command = [sys.executable, "-m", "hil.bench.databroker", "--hz", "20"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - it is the test's own
        assert process.stdout is not None
        try:
            address = (await asyncio.to_thread(process.stdout.readline)).strip()
            config = DatabrokerConfig(address=address, heartbeat_silent_ms=2_000)
            async with Car(config, Door(address)).watching() as car:
                await car.until_open()
                os.kill(process.pid, signal.SIGSTOP)
                await car.until_shut()
                await car.until(lambda: bool(car.losses))
                os.kill(process.pid, signal.SIGCONT)
                await car.until_open()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    play(story())


def test_a_broker_that_dies_is_lost_at_once_and_read_anew_after_its_restart(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            successor = await broker.reborn()
            try:
                await car.until(lambda: any("databroker" in loss for loss in car.losses))
                assert car.gate is GateState.CLOSED
                successor.provide(PARKED | {DOOR: True})
                await car.until(lambda: ("door_open", DOOR) in car.reasons())
                successor.publish({DOOR: False})
                await car.until_open()
            finally:
                successor.lose_provider()
                await successor.stop()

    play(story())


def scopes(*more: str) -> frozenset[str]:
    return frozenset({*PARKED, *more})


def test_a_token_that_expires_shuts_the_gate_and_its_successor_opens_it(play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.tokens = {"old": scopes()}
        broker.provide()
        token = tmp_path / "token"
        token.write_text("old\n")
        async with drive(broker, token=token) as car:
            await car.until_open()
            broker.expire("old")
            await car.until_shut()
            await car.until(lambda: any("refuses the token" in loss for loss in car.losses))
            broker.tokens["new"] = scopes()
            token.write_text("new\n")
            await car.until_open()

    play(story())


def test_a_token_renewed_in_time_is_taken_up_without_a_loss(play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.tokens = {"old": scopes(), "new": scopes()}
        broker.provide()
        token = tmp_path / "token"
        token.write_text("old")
        async with drive(broker, token=token) as car:
            await car.until_open()
            fresh = tmp_path / "fresh"
            fresh.write_text("new")
            fresh.replace(token)
            await car.until(lambda: len(broker.requests) == 2)
            await car.until(lambda: len(broker.subscriptions) == 1)
            del broker.tokens["old"]
            broker.publish({DOOR: True})
            await car.until(lambda: ("door_open", DOOR) in car.reasons())
            assert car.losses == []

    play(story())


def test_one_leaf_that_the_token_may_not_read_does_not_lose_the_others(play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        broker = AwkwardBroker([*VSS_6_0, Spec("Vehicle.Body.Hood.IsOpen", "BOOLEAN")])
        broker.tokens = {"token": scopes() - {"Vehicle.Exterior.AirTemperature"}}
        broker.provide()
        token = tmp_path / "token"
        token.write_text("token")
        async with drive(broker, token=token) as car:
            await car.until_open()
            assert set(car.offered.paths) == set(PARKED) - {"Vehicle.Exterior.AirTemperature"}

    play(story())


def test_without_a_token_file_the_source_says_so_and_goes_on_trying(play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.tokens = {"token": scopes()}
        broker.provide()
        token = tmp_path / "token"
        async with drive(broker, token=token) as car:
            await car.until(lambda: any("cannot read the token" in loss for loss in car.losses))
            token.write_text("token")
            await car.until_open()

    play(story())


def test_a_broker_with_a_certificate_is_believed_only_if_its_authority_is_ours(play: Play, tmp_path: Path) -> None:
    ours, foreign = Authority(tmp_path / "ours").issue("unit"), Authority(tmp_path / "foreign").issue("unit")
    credentials = grpc.ssl_server_credentials([(Path(ours.key).read_bytes(), Path(ours.certificate).read_bytes())])

    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker, credentials) as car:
            await car.until(lambda: any("cannot be reached" in loss for loss in car.losses))  # in clear
            for ca, opens in ((Path(foreign.ca), False), (Path(ours.ca), True)):
                door = Door(broker.address, ca=ca)
                async with Car(DatabrokerConfig(address=broker.address), door).watching() as other:
                    await (other.until_open() if opens else other.until(lambda: bool(other.losses)))
                    assert (other.gate is GateState.OPEN) is opens

    play(story())


def test_a_source_that_fails_while_it_is_cancelled_ends_all_the_same(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_session: object) -> None:
        try:
            await asyncio.sleep(LIMIT_S)
        finally:
            raise LostError("the databroker cannot be reached")

    monkeypatch.setattr(kuksa._Session, "run", fail)

    async def story() -> None:
        source = kuksa.DatabrokerSource(DatabrokerConfig(address="unix:/broker"), SystemClock(), Door("unix:/broker"))
        events: list[EventType] = []
        task = asyncio.create_task(source.run(events.append))
        await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=LIMIT_S)
        task.cancel()
        assert ended
        assert task.cancelled()
        assert events == []

    play(story())


def test_a_unix_socket_serves_as_well(play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.address = f"unix:{tmp_path / 'broker.sock'}"
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()

    play(story())


def test_names_of_an_older_vss_are_understood(play: Play) -> None:
    older = {
        "Vehicle.Cabin.Seat.Row1.DriverSide.OccupancyStatus": "Vehicle.Cabin.Seat.Row1.DriverSide.IsOccupied",
        "Vehicle.Powertrain.TractionBattery.Charging.ChargingPort.AnyPosition.IsChargingCableConnected": (
            "Vehicle.Powertrain.TractionBattery.Charging.IsChargingCableConnected"
        ),
    }
    boolean = [Spec(older[one.path], "BOOLEAN") if one.path in older else one for one in VSS_6_0]

    async def story() -> None:
        broker = AwkwardBroker(boolean)
        values = {older.get(path, path): value for path, value in PARKED.items()} | {older[SEAT]: False}
        broker.provide(values)
        async with drive(broker) as car:
            await car.until_open()
            broker.publish({older[SEAT]: True})
            await car.until(lambda: ("seat_occupied", SEAT) in car.reasons())

    play(story())


def test_nothing_private_is_ever_asked_for(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker, heartbeat="Vehicle.Driveway.KeepAwakeUntil") as car:
            await car.until(lambda: broker.polls > 5)
            assert set(PARKED) <= broker.asked
            assert broker.asked <= set(LEAVES) | set(ALIASES) | {"Vehicle.Driveway.KeepAwakeUntil"}
            assert broker.actuated == []
            assert car.gate is GateState.CLOSED

    play(story())


def test_a_broker_without_our_leaves_is_lost_with_a_reason(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker([Spec("Vehicle.CurrentLocation.Latitude", "DOUBLE")])
        async with drive(broker) as car:
            await car.until(lambda: any("no leaf that the agent may read" in loss for loss in car.losses))
            assert broker.asked == set()

    play(story())


def test_an_answer_to_another_question_ends_the_session_and_shuts_the_gate(play: Play) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        broker.provide()
        async with drive(broker) as car:
            await car.until_open()
            broker.answers.append(val_pb2.GetValuesResponse(data_points=[types_pb2.Datapoint()]))
            await car.until_shut()
            assert any("another question" in loss for loss in car.losses)
            await car.until_open()

    play(story())


VALUES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"bool": st.booleans()}),
    st.fixed_dictionaries({"string": st.text(max_size=300)}),
    st.fixed_dictionaries({"float": st.floats(width=32)}),
    st.fixed_dictionaries({"double": st.floats()}),
    st.fixed_dictionaries({"int32": st.integers(-(2**31), 2**31 - 1)}),
    st.fixed_dictionaries({"uint64": st.integers(0, 2**64 - 1)}),
    st.fixed_dictionaries({"bool_array": st.just(types_pb2.BoolArray(values=[True]))}),
)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(VALUES, st.integers(0, 2**40)), min_size=len(PARKED), max_size=len(PARKED)))
def test_no_answer_of_a_broker_ends_the_source(play: Play, drawn: list[tuple[dict[str, Any], int]]) -> None:
    async def story() -> None:
        broker = AwkwardBroker()
        for (value, seconds), entry in zip(drawn, broker.entries.values(), strict=False):
            entry.point = types_pb2.Datapoint(value=types_pb2.Value(**value) if value else None)
            entry.point.timestamp.seconds = seconds
        broker.provide({})
        async with drive(broker) as car:
            await car.until(lambda: broker.polls > 1)
            assert not any("could not be used" in loss for loss in car.losses), car.losses
            broker.publish(PARKED)
            await car.until_open()

    play(story())


def test_offered_leaves_without_a_value_keep_the_gate_shut_until_they_are_declared_absent(play: Play) -> None:
    hood = Spec("Vehicle.Body.Hood.IsOpen", "BOOLEAN")

    async def story(*absent: str) -> Car:
        broker = AwkwardBroker([*VSS_6_0, hood])
        broker.provide()
        async with drive(broker, absent=absent) as car:
            await car.until(lambda: car.state.vehicle.read(DOOR, car.state.now_ms).value is False)
            await (car.until_open() if absent else car.until(lambda: ("signal_unknown", hood.path) in car.reasons()))
            return car

    assert play(story()).gate is GateState.CLOSED
    car = play(story(hood.path))
    assert isinstance(car.events[0], LeavesOffered)
    assert car.events[0].absent == (hood.path,)
    seen = [one for event in car.events if isinstance(event, SignalsSeen) for one in event.samples]
    assert all(one.path != hood.path and one.quality is Quality.GOOD for one in seen)
