"""A KUKSA databroker in Python: what kuksa.val.v2 promises and what its Rust source does, over real gRPC.

The real one cannot be built everywhere, so this is what the agent's client is measured and tested against. It keeps the
real one's habits that a client has to survive: a subscription buffers `buffer_size` + 1 messages and then drops the
oldest without a word; a sample interval drops what comes too soon; an ONCHANGE leaf takes an equal value for no news,
leaving its time; the last value of a provider that died stays for ever; identifiers are new with every start; one
leaf that a token may not read fails a whole GetValues, while a subscription leaves it out.

    python -m hil.bench.databroker --address 127.0.0.1:55555 --hz 10

serves a parked car whose gate edges are all published 10 times a second, until it is stopped: what the idle bench
needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from kuksa.val.v2 import types_pb2, val_pb2, val_pb2_grpc

Plain = float | bool | str | None
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MAX_BUFFER_SIZE = 1_000
SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 100),  # as Rust's HTTP/2, which minds no pings
    ("grpc.http2.max_ping_strikes", 0),
)
_DRIVER = "Vehicle.Cabin.Seat.Row1.DriverSide"
_BATTERY = "Vehicle.Powertrain.TractionBattery"
_CHARGING = f"{_BATTERY}.Charging"
_PORT = f"{_CHARGING}.ChargingPort"


class Spec(msgspec.Struct, frozen=True):
    """A leaf as a VSS file has it."""

    path: str
    data_type: str
    unit: str = ""
    on_change: bool = False


VSS_6_0: tuple[Spec, ...] = (
    Spec("Vehicle.Speed", "FLOAT", "km/h"),
    Spec("Vehicle.Powertrain.Transmission.SelectedGear", "INT8"),
    Spec("Vehicle.Chassis.Brake.PedalPosition", "UINT8", "percent"),
    Spec("Vehicle.LowVoltageSystemState", "STRING"),
    Spec(f"{_DRIVER}.OccupancyStatus", "STRING"),
    *(
        Spec(f"Vehicle.Cabin.Door.Row{row}.{side}Side.IsOpen", "BOOLEAN")
        for row in (1, 2)
        for side in ("Driver", "Passenger")
    ),
    Spec("Vehicle.Body.Trunk.Rear.IsOpen", "BOOLEAN"),
    Spec(f"{_BATTERY}.StateOfCharge.Current", "FLOAT", "percent"),
    Spec(f"{_PORT}.AnyPosition.IsChargingCableConnected", "BOOLEAN"),
    Spec(f"{_BATTERY}.Temperature.Average", "FLOAT", "Celsius"),
    Spec("Vehicle.LowVoltageBattery.CurrentVoltage", "FLOAT", "V"),
    Spec("Vehicle.LowVoltageBattery.CurrentCurrent", "FLOAT", "A"),
    Spec("Vehicle.Exterior.AirTemperature", "FLOAT", "Celsius"),
    Spec("Vehicle.CurrentLocation.Latitude", "DOUBLE", "degrees"),
    Spec("Vehicle.CurrentLocation.Longitude", "DOUBLE", "degrees"),
    Spec("Vehicle.VehicleIdentification.VIN", "STRING"),
    Spec("Vehicle.Occupant.Row1.DriverSide.Identifier.Subject", "STRING"),
    Spec(f"{_CHARGING}.Location.Latitude", "DOUBLE", "degrees"),
    Spec(f"{_CHARGING}.EvseId", "STRING"),
    Spec("Vehicle.Driveway.DriverPresent", "BOOLEAN"),
    Spec("Vehicle.Driveway.DoorHandlePulled", "BOOLEAN"),
    Spec("Vehicle.Driveway.KeepAwakeUntil", "STRING"),
)
"""The leaves of a plain car in the names of VSS 6.0, among them some that nobody may ask for."""

PARKED: dict[str, Plain] = {
    "Vehicle.Speed": 0.0,
    "Vehicle.Powertrain.Transmission.SelectedGear": 126,
    "Vehicle.Chassis.Brake.PedalPosition": 0,
    "Vehicle.LowVoltageSystemState": "LOCK",
    f"{_DRIVER}.OccupancyStatus": "EMPTY",
    **{f"Vehicle.Cabin.Door.Row{row}.{side}Side.IsOpen": False for row in (1, 2) for side in ("Driver", "Passenger")},
    "Vehicle.Body.Trunk.Rear.IsOpen": False,
    f"{_BATTERY}.StateOfCharge.Current": 80.0,
    f"{_PORT}.AnyPosition.IsChargingCableConnected": True,
    f"{_BATTERY}.Temperature.Average": 21.7,
    "Vehicle.LowVoltageBattery.CurrentVoltage": 14.1,
    "Vehicle.LowVoltageBattery.CurrentCurrent": 0.5,
    "Vehicle.Exterior.AirTemperature": 18.0,
    "Vehicle.Driveway.DriverPresent": False,
    "Vehicle.Driveway.DoorHandlePulled": False,
}
"""A car that is parked, empty and plugged in."""

FIELDS = {
    "BOOLEAN": "bool",
    "STRING": "string",
    "INT8": "int32",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint32",
    "UINT16": "uint32",
    "UINT64": "uint64",
    "FLOAT": "float",
    "DOUBLE": "double",
}
"""In which field of a Value the broker keeps a data type."""


@dataclass
class Entry:
    """One leaf in the broker's memory."""

    spec: Spec
    id: int
    point: types_pb2.Datapoint = field(default_factory=types_pb2.Datapoint)

    def metadata(self) -> types_pb2.Metadata:
        """What ListMetadata says of it."""
        data_type = types_pb2.DataType.Value(f"DATA_TYPE_{self.spec.data_type}")
        entry_type = types_pb2.ENTRY_TYPE_SENSOR
        return types_pb2.Metadata(
            path=self.spec.path, id=self.id, data_type=data_type, entry_type=entry_type, unit=self.spec.unit
        )


class Subscription:
    """The buffer between the broker and one subscriber."""

    def __init__(self, request: val_pb2.SubscribeRequest, may_read: Callable[[str], bool], interval_s: float) -> None:
        self.paths = frozenset(request.signal_paths)
        self.buffer: deque[dict[str, types_pb2.Datapoint]] = deque(maxlen=request.buffer_size + 1)
        self.news = asyncio.Event()
        self.closed = False
        self.dropped = 0
        self._may_read, self._interval_s = may_read, interval_s
        self._emitted_s = time.monotonic()

    def offer(self, points: Mapping[str, types_pb2.Datapoint], *, first: bool = False) -> None:
        """Buffer what of these it subscribed to; what does not fit, or comes too soon, is gone without a word."""
        wanted = {path: point for path, point in points.items() if path in self.paths and self._may_read(path)}
        now_s = time.monotonic()
        if not wanted:
            return
        if not first and self._interval_s and now_s - self._emitted_s < self._interval_s:
            self.dropped += 1
            return
        self._emitted_s = now_s
        self.dropped += len(self.buffer) == self.buffer.maxlen
        self.buffer.append(wanted)
        self.news.set()

    def close(self) -> None:
        """End it without an error, as the broker does."""
        self.closed = True
        self.news.set()


class Databroker(val_pb2_grpc.VALServicer):  # type: ignore[misc]  # the generated class has no types
    """The broker's state and its service. `tokens` says which paths a token may read; None lets everybody in."""

    def __init__(self, specs: Iterable[Spec] = VSS_6_0, first_id: int = 0) -> None:
        ids = itertools.count(first_id)
        self.entries = {spec.path: Entry(spec, next(ids)) for spec in specs}
        self.subscriptions: list[Subscription] = []
        self.requests: list[val_pb2.SubscribeRequest] = []
        self.asked: set[str] = set()
        """Every path that a client ever asked a value of."""
        self.actuated: list[tuple[str, str]] = []
        self.tokens: dict[str, frozenset[str]] | None = None
        self.imposed_interval_s = 0.0
        self._server: grpc.aio.Server | None = None

    # --- the provider's side ------------------------------------------------------------------------------------

    def publish(self, values: Mapping[str, Plain]) -> None:
        """What a provider sends in one message; None takes a value away."""
        seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
        changed = {}
        for path, plain in values.items():
            entry = self.entries[path]
            value = types_pb2.Value() if plain is None else _value(entry.spec.data_type, plain)
            if entry.spec.on_change and entry.point.HasField("value") and entry.point.value == value:
                continue
            stamp = Timestamp(seconds=seconds, nanos=nanos)
            entry.point = types_pb2.Datapoint(timestamp=stamp, value=None if plain is None else value)
            changed[path] = entry.point
        for subscription in self.subscriptions:
            subscription.offer(changed)

    # --- the service --------------------------------------------------------------------------------------------

    async def serve(self, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
        """Begin to serve at `address` (host:port, port 0 for any, or unix:/path); returns the address in use."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        val_pb2_grpc.add_VALServicer_to_server(self, self._server)
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """End at once, as a process that is killed."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def ListMetadata(  # noqa: N802 - the service's name
        self, request: val_pb2.ListMetadataRequest, context: Context
    ) -> val_pb2.ListMetadataResponse:
        """Every leaf below the root; a token's scopes do not matter here."""
        await self._scopes(context)
        listed = [one.metadata() for path, one in self.entries.items() if path.startswith(f"{request.root}.")]
        if not listed:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Specified root branch does not exist")
        return val_pb2.ListMetadataResponse(metadata=listed)

    async def GetValue(  # noqa: N802 - the service's name
        self, request: val_pb2.GetValueRequest, context: Context
    ) -> val_pb2.GetValueResponse:
        """One value."""
        points = await self._read([request.signal_id], context)
        return val_pb2.GetValueResponse(data_point=points[0])

    async def GetValues(  # noqa: N802 - the service's name
        self, request: val_pb2.GetValuesRequest, context: Context
    ) -> val_pb2.GetValuesResponse:
        """Values in the order asked for, or none at all."""
        return val_pb2.GetValuesResponse(data_points=await self._read(request.signal_ids, context))

    async def Subscribe(  # noqa: N802 - the service's name
        self, request: val_pb2.SubscribeRequest, context: Context
    ) -> AsyncIterator[val_pb2.SubscribeResponse]:
        """All values at once, then changes."""
        scopes = await self._scopes(context)
        self.requests.append(request)
        self.asked |= set(request.signal_paths)
        if not request.signal_paths or request.buffer_size > MAX_BUFFER_SIZE:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no path, or a buffer above 1000")
        if any(path not in self.entries for path in request.signal_paths):
            await context.abort(grpc.StatusCode.NOT_FOUND, "Path not found")
        interval_s = max(request.filter.min_sample_interval.interval_ms / 1000, self.imposed_interval_s)
        subscription = Subscription(request, lambda path: scopes is None or path in scopes, interval_s)
        subscription.offer({path: entry.point for path, entry in self.entries.items()}, first=True)
        self.subscriptions.append(subscription)
        try:
            while True:
                while subscription.buffer:
                    yield val_pb2.SubscribeResponse(entries=subscription.buffer.popleft())
                if subscription.closed:
                    return
                subscription.news.clear()
                await subscription.news.wait()
        finally:
            self.subscriptions.remove(subscription)

    async def Actuate(  # noqa: N802 - the service's name
        self, request: val_pb2.ActuateRequest, context: Context
    ) -> val_pb2.ActuateResponse:
        """Note the wish; whether anybody provides the actuator is up to the test."""
        scopes = await self._scopes(context)
        path = request.signal_id.path
        if path not in self.entries:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Invalid path: {path}")
        if scopes is not None and f"actuate:{path}" not in scopes:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "Permission denied")
        self.actuated.append((path, request.value.string))
        return val_pb2.ActuateResponse()

    async def _read(self, signals: Iterable[types_pb2.SignalID], context: Context) -> list[types_pb2.Datapoint]:
        scopes = await self._scopes(context)
        points = []
        for signal in signals:
            self.asked.add(signal.path)
            entry = self.entries.get(signal.path)
            if entry is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "Path not found")
            if scopes is not None and signal.path not in scopes:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"Permission denied(id: {entry.id})")
            points.append(entry.point)
        return points

    async def _scopes(self, context: Context) -> frozenset[str] | None:
        """What the call's token may do; aborts a call without a valid one."""
        if self.tokens is None:
            return None
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        scopes = self.tokens.get(str(sent).removeprefix("Bearer "))
        if scopes is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated")
        return scopes


def _value(data_type: str, plain: float | bool | str) -> types_pb2.Value:  # noqa: FBT001 - a value may be a truth
    name = FIELDS[data_type]
    whole = name.removeprefix("u") in {"int32", "int64"}
    return types_pb2.Value(**{name: int(plain) if whole else plain})


async def publish_parked(broker: Databroker, hz: float) -> None:
    """Publish a parked car: gate edges `hz` times a second, four leaves in a message; the rest once a second."""
    slow = [path for path in PARKED if path.startswith((_BATTERY, "Vehicle.LowVoltageBattery", "Vehicle.Exterior"))]
    edges = [path for path in PARKED if path not in slow]
    broker.publish(PARKED)
    for beat in itertools.count(1):
        await asyncio.sleep(1 / hz)
        for first in range(0, len(edges), 4):
            broker.publish({path: PARKED[path] for path in edges[first : first + 4]})
        if beat % round(hz) == 0:
            broker.publish({path: PARKED[path] for path in slow})


def main() -> None:
    """Serve until stopped; prints the address in use first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:0", help="host:port or unix:/path (default: any free port)")
    parser.add_argument("--hz", type=float, default=10.0, help="how often gate edges are published")
    parser.add_argument("--on-change", action="store_true", help="all leaves but the speed are ONCHANGE")
    options = parser.parse_args()

    async def serve() -> None:
        specs = VSS_6_0
        if options.on_change:
            specs = tuple(msgspec.structs.replace(one, on_change=one.path != "Vehicle.Speed") for one in VSS_6_0)
        broker = Databroker(specs)
        print(await broker.serve(options.address), flush=True)
        try:
            await publish_parked(broker, options.hz)
        finally:
            await broker.stop()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
