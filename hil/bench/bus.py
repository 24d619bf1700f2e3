"""A car's buses with all their traffic, over Unix datagram sockets: 3,000 frames a second; the agent wants a tenth.

    python -m hil.bench.bus --dir DIR [--frames-per-s 3000]

sends to DIR/party.bus, DIR/vehicle.bus and DIR/energy.bus (`agent.vehicle.unixgram`): every message of the simulated
car at its own period, and frames of ids that nobody asked for in between, up to the total. It begins silent; SIGUSR1
has the car drive and SIGUSR2 has it stand parked and plugged in, until it is stopped. A socket that is not there yet,
or full, costs a frame and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import can

from agent.clock import SystemClock
from agent.vehicle.unixgram import car_path
from hil.car.body import DRIVING, PARKED, Body
from hil.car.frames import RECIPES, View, encoders
from hil.car.plant import PlantInputs, PlantParameters, initial_state, step
from hil.car.transmitter import Transmitter

TICK_S = 0.010
CAN_FRAME = struct.Struct("=IB3x8s")
FOREIGN_IDS = range(0x600, 0x660)
"""Ids of no profile; a real bus has a hundred of them."""


class UnixBus(can.BusABC):
    """Sends `struct can_frame` to a path, if somebody is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(channel=str(path))
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        car_path(path).unlink(missing_ok=True)
        self._socket.bind(str(car_path(path)))
        self.sent = 0
        self.not_taken = 0

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Send one frame."""
        del timeout
        self.send_raw(CAN_FRAME.pack(msg.arbitration_id, len(msg.data), bytes(msg.data)))

    def send_raw(self, frame: bytes) -> None:
        """Send the bytes of one frame."""
        try:
            self._socket.sendto(frame, self._path)
            self.sent += 1
        except OSError:
            self.not_taken += 1

    def shutdown(self) -> None:
        """Send no more."""
        super().shutdown()
        self._socket.close()


class Orders:
    """What the car is to be, as signals say it; None while its buses are silent."""

    def __init__(self) -> None:
        self.body: Body | None = None
        signal.signal(signal.SIGUSR1, lambda *_: self._become(DRIVING))
        signal.signal(signal.SIGUSR2, lambda *_: self._become(PARKED))

    def _become(self, body: Body) -> None:
        self.body = body


def send_for_ever(folder: Path, frames_per_s: int) -> None:
    """Send until killed."""
    orders = Orders()
    buses = {name: UnixBus(folder / f"{name}.bus") for name in RECIPES}
    transmitter = Transmitter(buses, encoders(), SystemClock())
    foreign = _foreign(list(buses.values()))
    views = {body: _view(body) for body in (DRIVING, PARKED)}
    started_s, total = time.monotonic(), 0
    print("ready", flush=True)
    for tick in itertools.count(1):
        if orders.body is None:
            total += round(TICK_S * frames_per_s)
        else:
            before = _count(buses)
            transmitter.send_due(views[orders.body])
            total += _count(buses) - before
            for _ in range(round(tick * TICK_S * frames_per_s) - total):
                next(foreign)
                total += 1
        time.sleep(max(0.0, started_s + tick * TICK_S - time.monotonic()))


def _count(buses: dict[str, UnixBus]) -> int:
    return sum(bus.sent + bus.not_taken for bus in buses.values())


def _foreign(buses: list[UnixBus]) -> Iterator[None]:
    """Each step sends one frame that nobody asked for, on the next bus."""
    for count, (can_id, bus) in enumerate(zip(itertools.cycle(FOREIGN_IDS), itertools.cycle(buses), strict=False)):
        bus.send_raw(CAN_FRAME.pack(can_id, 8, count.to_bytes(8, "little")))
        yield


def _view(body: Body) -> View:
    parameters = PlantParameters()
    inputs = PlantInputs(
        ambient_c=21.5,
        charger_w=11_000.0 if body.plugged_in else 0.0,
        utilisation=0.0,
        awake=True,
        speed_kmh=body.speed_kmh,
    )
    plant = step(initial_state(parameters, 62.0, 21.5), inputs, 0.0, parameters)
    return View(body=body, plant=plant, parameters=parameters, ambient_c=21.5)


def main() -> int:
    """Send until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m hil.bench.bus", description="A car's buses with all their traffic."
    )
    parser.add_argument("--dir", type=Path, required=True, help="where the sockets are")
    parser.add_argument("--frames-per-s", type=int, default=3_000)
    options = parser.parse_args()
    send_for_ever(options.dir, options.frames_per_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
