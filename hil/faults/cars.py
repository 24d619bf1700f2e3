"""The cars of a fault run, in one light process: `python -m hil.faults.cars --dir DIR --cars K`.

Each car stands parked and plugged in on three buses of its own (`DIR/{car}.{bus}`, Unix datagram sockets that take
`struct can_frame`, see `agent.vehicle.unixgram`), with every message that the profiles read ten times a second: twice
as often as the gates need, and a fifth of what a real car sends, so that a rig of two cores has its time for the
protocol. What people do to a car comes as lines on standard input, `{"car": 0, "do": "open_door"}`, and shows at once;
an empty car with its doors shut goes back to rest at once, too, for which a real one takes a minute.
"""

from __future__ import annotations

import argparse
import itertools
import os
import select
import sys
import time
from pathlib import Path

import msgspec

from hil.bench.bus import CAN_FRAME, UnixBus
from hil.car.body import PARKED, Action, Body, act
from hil.car.frames import Encoder, View, encoders
from hil.car.plant import PlantInputs, PlantParameters, initial_state, step
from hil.car.power_state import LEAVE_ACCESSORY_AFTER_S, after_quiet
from hil.car.sysfs import SensorTree

TICK_S = 0.1
NOT_READ = frozenset({"DI_torque", "UI_warning", "VCRIGHT_status", "ID3F5VCFRONT_lighting"})
"""Messages of the simulated car that no profile asks for."""
CHARGE_PERCENT, AIR_C, CHARGER_W = 62.0, 20.0, 11_000.0


class Order(msgspec.Struct, frozen=True):
    """One line on standard input."""

    car: int
    do: Action


class Frames:
    """Every frame of a car in a given body, encoded once; only counters and checksums are new each time."""

    def __init__(self) -> None:
        self._encoders = {
            bus: [one for one in some if one.recipe.message not in NOT_READ] for bus, some in encoders().items()
        }
        self._payloads: dict[Body, dict[str, list[tuple[Encoder, bytes]]]] = {}

    def of(self, body: Body) -> dict[str, list[tuple[Encoder, bytes]]]:
        """Encoders and payloads of each bus."""
        if body not in self._payloads:
            view = _view(body)
            self._payloads[body] = {
                bus: [(one, one.payload(view)) for one in some] for bus, some in self._encoders.items()
            }
        return self._payloads[body]


class ParkedCar:
    """One car's three buses."""

    def __init__(self, folder: Path, number: int, frames: Frames) -> None:
        self.body = PARKED
        self._frames = frames
        self._buses = {bus: UnixBus(folder / f"{number}.{bus}") for bus in frames.of(PARKED)}
        self._counts: dict[tuple[str, str], itertools.count[int]] = {}

    def done(self, action: Action) -> None:
        """Somebody does this to the car; it shows at once."""
        body = act(self.body, action)
        settled = after_quiet(body.power_state, body.cabin(), LEAVE_ACCESSORY_AFTER_S, charging=True)
        self.body = msgspec.structs.replace(body, power_state=settled)
        self.send()

    def send(self) -> None:
        """Every message once."""
        for bus, messages in self._frames.of(self.body).items():
            for encoder, payload in messages:
                # Pages of a multiplexed message share its counter, as they share its id.
                counter = self._counts.setdefault((bus, encoder.recipe.message), itertools.count())
                frame = encoder.frame(payload, next(counter))
                data = bytes(frame.data)
                self._buses[bus].send_raw(CAN_FRAME.pack(frame.arbitration_id, len(data), data))


def _view(body: Body) -> View:
    parameters = PlantParameters()
    inputs = PlantInputs(
        ambient_c=AIR_C,
        charger_w=CHARGER_W if body.plugged_in else 0.0,
        utilisation=0.0,
        awake=True,
        speed_kmh=body.speed_kmh,
    )
    plant = step(initial_state(parameters, CHARGE_PERCENT, AIR_C), inputs, 0.0, parameters)
    return View(body=body, plant=plant, parameters=parameters, ambient_c=AIR_C)


def run(folder: Path, cars: int) -> None:
    """Send until standard input ends."""
    frames = Frames()
    fleet = [ParkedCar(folder, number, frames) for number in range(cars)]
    sensors = SensorTree(folder / "sysfs")
    sensors.write(45.0, 40.0, 8.0)
    print("ready", flush=True)
    os.set_blocking(sys.stdin.fileno(), False)
    orders, due_s = b"", time.monotonic()
    while True:
        for car in fleet:
            car.send()
        due_s = max(due_s + TICK_S, time.monotonic())
        while (wait_s := due_s - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], wait_s)[0]:
                if not (read := os.read(sys.stdin.fileno(), 4096)):
                    return
                *lines, orders = (orders + read).split(b"\n")
                for order in (msgspec.json.decode(line, type=Order) for line in lines):
                    fleet[order.car].done(order.do)


def main() -> int:
    """Send until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m hil.faults.cars", description="Parked cars on Unix sockets.")
    parser.add_argument("--dir", type=Path, required=True, help="where the sockets and the sensors are")
    parser.add_argument("--cars", type=int, required=True)
    options = parser.parse_args()
    run(options.dir, options.cars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
