"""`python -m hil.car --dir DIR`: runs one simulated car until SIGTERM.

DIR gets `control.sock` (see `hil.car.control`) and `sysfs/`, the computer's sensors. When the car is ready, one line
of JSON on standard output says where they are.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import can
import msgspec

from agent.clock import SystemClock
from agent.errors import ConfigError, DrivewayError
from hil.car.body import DRIVING, PARKED
from hil.car.car import Car, CarOptions
from hil.car.control import ControlSocket
from hil.car.frames import RECIPES
from hil.car.plant import PlantParameters
from hil.car.sysfs import SensorTree
from hil.car.utilisation import UtilisationMeter

GROUP = "239.74.163.2"
"""A multicast group of the administratively scoped range; frames stay in the host."""
FIRST_PORT = 43113


def main(arguments: list[str] | None = None) -> int:
    """Run the car; the exit status."""
    options = _parser().parse_args(arguments)
    options.dir.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(_run(options))
    except DrivewayError as error:
        print(f"hil.car: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    folder: Path = options.dir
    with ExitStack() as closing:
        buses: dict[str, can.BusABC] = {}
        for text in options.bus or _default_buses():
            name, bus = _open_bus(text)
            buses[name] = bus
            closing.callback(bus.shutdown)
        car = Car(
            body=PARKED if options.start == "parked" else DRIVING,
            options=CarOptions(
                soc_percent=options.soc,
                ambient_c=options.ambient,
                charger_w=options.charger_kw * 1000,
                parameters=PlantParameters(charge_limit_percent=options.charge_limit),
            ),
            buses=buses,
            sensors=SensorTree(folder / "sysfs"),
            meter=UtilisationMeter(options.computer_pid_file),
            clock=SystemClock(),
        )
        control = folder / "control.sock"
        server = await ControlSocket(car).serve(control)
        living = asyncio.create_task(car.run())
        ready = {"ready": True, "control": str(control), "sysfs": str(folder / "sysfs"), "buses": sorted(buses)}
        print(msgspec.json.encode(ready).decode(), flush=True)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((living, stopping), return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
        finally:
            living.cancel()
            stopping.cancel()
            server.close()
            control.unlink(missing_ok=True)


def _open_bus(text: str) -> tuple[str, can.BusABC]:
    """The bus of one `NAME=INTERFACE:CHANNEL[:PORT]`. Raises ConfigError."""
    name, _, place = text.partition("=")
    interface, channel, port = [*place.split(":"), "", ""][:3]
    if name not in RECIPES or not channel:
        raise ConfigError(f"bus {text!r} is not NAME=INTERFACE:CHANNEL[:PORT]", hint=f"names: {', '.join(RECIPES)}")
    try:
        if interface == "udp_multicast":
            return name, can.Bus(interface=interface, channel=channel, port=int(port), hop_limit=0)
        return name, can.Bus(interface=interface, channel=channel)
    except (can.CanError, OSError, ValueError) as error:
        raise ConfigError(f"bus {text!r} cannot be opened: {error}") from error


def _default_buses() -> list[str]:
    return [f"{name}=udp_multicast:{GROUP}:{FIRST_PORT + index}" for index, name in enumerate(RECIPES)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hil.car", description="A simulated car on CAN buses.")
    parser.add_argument("--dir", type=Path, required=True, help="folder for the control socket and the sensor tree")
    parser.add_argument(
        "--bus",
        action="append",
        metavar="NAME=INTERFACE:CHANNEL[:PORT]",
        help=f"a bus ({', '.join(RECIPES)}); repeatable; default: all, on udp_multicast {GROUP} from port {FIRST_PORT}",
    )
    parser.add_argument("--start", choices=("parked", "driving"), default="parked", help="parked means plugged in")
    parser.add_argument("--soc", type=float, default=62.0, help="state of charge at the start, in percent")
    parser.add_argument("--charge-limit", type=float, default=80.0, help="percent")
    parser.add_argument("--ambient", type=float, default=20.0, help="air temperature in degrees Celsius")
    parser.add_argument(
        "--charger-kw", type=float, choices=(0.0, 2.3, 7.4, 11.0), default=11.0, help="AC power on offer"
    )
    parser.add_argument("--computer-pid-file", type=Path, help="the daemon's pid file: its workers are the load")
    return parser


if __name__ == "__main__":
    sys.exit(main())
