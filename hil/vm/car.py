"""`python -m hil.vm.car --dir DIR --ports DIR`: the simulated car around a vehicle in a VM, until SIGTERM.

The car of `hil.car`, with the same control socket (`DIR/control.sock`). Its frames go to the guest's virtual CAN buses,
its sensors into the guest's tree, and how busy its computer is comes from the guest (`hil.vm.ports`).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import can
import msgspec

from agent.clock import SystemClock
from agent.errors import DrivewayError
from hil.car.body import DRIVING, PARKED
from hil.car.car import Car, CarOptions
from hil.car.control import ControlSocket
from hil.car.plant import PlantParameters
from hil.vm.ports import BUSES, GuestMeter, GuestSensors, PlayedBus, Port

START_S = 20.0


class CarProcess:
    """The car as a child process, around a machine's ports. A context manager; it outlives restarts of the machine."""

    def __init__(
        self, folder: Path, ports: Path, *, start: str = "parked", soc_percent: float = 62.0, ambient_c: float = 20.0
    ) -> None:
        self._folder = folder
        self._command = [sys.executable, "-m", "hil.vm.car", "--dir", str(folder), "--ports", str(ports)]
        self._command += ["--start", start, "--soc", str(soc_percent), "--ambient", str(ambient_c)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "control.sock").unlink(missing_ok=True)
        with (self._folder / "car.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + START_S
        while not (self._folder / "control.sock").exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.__exit__()
                raise DrivewayError(f"the car did not start: {(self._folder / 'car.log').read_text('utf-8')[-300:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def do(self, what: str, **arguments: object) -> dict[str, Any]:
        """One order (`hil.car.control`); raises DrivewayError when the car refuses."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_S)
            connection.connect(str(self._folder / "control.sock"))
            connection.sendall(msgspec.json.encode({"do": what, **arguments}) + b"\n")
            with connection.makefile("rb") as answers:
                answer: dict[str, Any] = msgspec.json.decode(answers.readline())
        if not answer["ok"]:
            raise DrivewayError(f"the car would not {what}: {answer.get('error', '')}")
        return answer


def main() -> int:
    """Run the car; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m hil.vm.car", description="A simulated car around a VM.")
    parser.add_argument("--dir", type=Path, required=True, help="folder for the control socket and the sensor tree")
    parser.add_argument("--ports", type=Path, required=True, help="folder of the machine's virtio-serial sockets")
    parser.add_argument("--cores", type=int, default=2, help="of the guest")
    parser.add_argument("--start", choices=("parked", "driving"), default="driving", help="parked means plugged in")
    parser.add_argument("--soc", type=float, default=62.0, help="state of charge at the start, in percent")
    parser.add_argument("--ambient", type=float, default=20.0, help="air temperature in degrees Celsius")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(_run(options))
    except DrivewayError as error:
        print(f"hil.vm.car: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with ExitStack() as closing:
        frames, sensors = Port(options.ports / "frames.sock"), Port(options.ports / "sensors.sock")
        buses: dict[str, can.BusABC] = {}
        for port in (frames, sensors):
            closing.callback(port.close)
        for name, interface in BUSES.items():
            buses[name] = bus = PlayedBus(frames, interface)
            closing.callback(bus.shutdown)
        car = Car(
            body=PARKED if options.start == "parked" else DRIVING,
            options=CarOptions(
                soc_percent=options.soc,
                ambient_c=options.ambient,
                charger_w=11_000.0,
                parameters=PlantParameters(),
            ),
            buses=buses,
            sensors=GuestSensors(options.dir / "sysfs", sensors),
            meter=GuestMeter(sensors, options.cores),
            clock=SystemClock(),
        )
        control = options.dir / "control.sock"
        server = await ControlSocket(car).serve(control)
        living, stopping = asyncio.create_task(car.run()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((living, stopping), return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
        finally:
            living.cancel()
            stopping.cancel()
            server.close()
            control.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
