"""What the simulated car says to the guest, and hears from it, over virtio-serial ports: its frames and its sensors.

The other ends are `guest/frames.sh` (candump lines, played onto the virtual CAN buses by can-utils) and
`guest/sensors.py`. Neither end waits for the other: a guest that is off, frozen or slow loses frames, as a bus whose
listener is off; after a restart everything is said again.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import can

from hil.car.sysfs import SensorTree
from hil.car.utilisation import Meter

BUSES = {"party": "vcan0", "vehicle": "vcan1", "energy": "vcan2"}
"""Which virtual CAN interface of the guest is which bus of the car."""
BUFFER_BYTES = 8 * 1024
"""Frames that wait in this process, 40 bytes each. What the guest does not take in time is late, so worth nothing."""
RECONNECT_S = 0.25
SENSORS_S, ALL_SENSORS_S = 0.4, 4.0
"""Between two looks for changed sensors, and between two times that all of them are said."""


class Port:
    """One port; connects when it can, and never waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._waiting = b""
        self._tried_s = float("-inf")
        self.dropped = 0
        """Lines that nobody took."""

    def say(self, line: bytes) -> None:
        """Send a line, or drop it."""
        if len(self._waiting) + len(line) > BUFFER_BYTES:
            self.dropped += 1
        else:
            self._waiting += line
        self._flush()

    def hear(self) -> bytes:
        """What has arrived since the last time."""
        heard = b""
        if self._socket is not None:
            with contextlib.suppress(BlockingIOError):
                try:
                    heard = self._socket.recv(65_536)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                if not heard:
                    self._hang_up()
        return heard

    def close(self) -> None:
        """Say no more."""
        self._hang_up()

    def _flush(self) -> None:
        if self._socket is None and not self._connect():
            self._waiting = b""
            self.dropped += 1
            return
        assert self._socket is not None
        try:
            self._waiting = self._waiting[self._socket.send(self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up()

    def _connect(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._tried_s < RECONNECT_S:
            return False
        self._tried_s = now_s
        fresh = socket.socket(socket.AF_UNIX)
        fresh.setblocking(False)
        fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        try:
            fresh.connect(str(self._path))
        except OSError:
            fresh.close()
            return False
        self._socket, self._waiting = fresh, b"\n" + self._waiting  # ends half a line of an earlier connection
        return True

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._waiting = None, b""


class PlayedBus(can.BusABC):
    """One bus of the car, as lines of a candump log that the guest plays onto `interface`. Nothing is received."""

    def __init__(self, port: Port, interface: str) -> None:
        super().__init__(channel=interface)
        self._port, self._interface = port, interface

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Send one frame."""
        del timeout
        identifier = f"{msg.arbitration_id:08X}" if msg.is_extended_id else f"{msg.arbitration_id:03X}"
        line = f"({time.time():.6f}) {self._interface} {identifier}#{msg.data.hex().upper()}\n"
        self._port.say(line.encode("ascii"))


class GuestSensors(SensorTree):
    """The computer's sensors: kept here as files, and said to the guest when they change."""

    def __init__(self, root: Path, port: Port) -> None:
        super().__init__(root)
        self._root, self._port = root, port
        self._said: dict[Path, str] = {}
        self._looked_s = self._said_all_s = float("-inf")

    def write(self, die_c: float, sink_c: float, power_w: float) -> None:
        """Show these temperatures and this power."""
        super().write(die_c, sink_c, power_w)
        now_s = time.monotonic()
        if now_s - self._looked_s < SENSORS_S:
            return
        self._looked_s = now_s
        if now_s - self._said_all_s >= ALL_SENSORS_S:
            self._said_all_s = now_s
            self._said.clear()
        for file in self._root.rglob("*"):
            if file.is_file() and (text := file.read_text("ascii").strip()) != self._said.get(file):
                self._said[file] = text
                self._port.say(f"{file.relative_to(self._root)} {text}\n".encode("ascii"))


class GuestMeter(Meter):
    """How busy the guest's computer is, by the CPU time of the inference workers that the guest counts."""

    def __init__(self, port: Port, cores: int) -> None:
        self._port, self._cores = port, cores
        self._waiting = b""
        self._used_us: int | None = None
        self._at_s = time.monotonic()
        self._share = 0.0

    def measure(self) -> float:
        """The busy share (0..1) of all cores, between the last two answers."""
        self._port.say(b"?\n")
        *lines, self._waiting = (self._waiting + self._port.hear()).split(b"\n")
        if lines and lines[-1].isdigit():
            used_us, now_s = int(lines[-1]), time.monotonic()
            elapsed_us = (now_s - self._at_s) * 1e6 * self._cores
            # The first answer, or one from a guest that was started anew, has nothing before it.
            before_us = used_us if self._used_us is None or used_us < self._used_us else self._used_us
            self._share = min((used_us - before_us) / elapsed_us, 1.0) if elapsed_us > 0 else 0.0
            self._used_us, self._at_s = used_us, now_s
        return self._share
