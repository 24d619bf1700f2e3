"""Records the frames of a rig's buses as they are sent: `candump.log` (can-utils) and `frames.asc` (Vector)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import can

MOST_FRAMES = 200_000
"""Some five minutes of three buses; what comes after is not kept."""


class FrameLog:
    """A context manager: both files are whole when it is left."""

    def __init__(self, folder: Path, places: Mapping[str, tuple[str, int]]) -> None:
        self.candump, self.asc = folder / "candump.log", folder / "frames.asc"
        self._places = places
        self._closing = ExitStack()
        self._count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._writers = (can.CanutilsLogWriter(self.candump), can.ASCWriter(self.asc))
            for writer in self._writers:
                undo.callback(writer.stop)
            for channel, (name, (group, port)) in enumerate(self._places.items(), 1):
                bus = can.Bus(interface="udp_multicast", channel=group, port=port, hop_limit=0)
                undo.callback(bus.shutdown)
                notifier = can.Notifier(bus, [self._keeper(name, channel)])
                undo.callback(notifier.stop)
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _keeper(self, name: str, channel: int) -> can.Listener:
        log = self

        class Keeper(can.Listener):
            """Writes what it hears, under the bus's name (candump) and number (ASC)."""

            def on_message_received(self, message: can.Message) -> None:
                log.write(message, name, channel)

        return Keeper()

    def write(self, message: can.Message, name: str, channel: int) -> None:
        """Keep one frame."""
        self._count += 1
        if self._count > MOST_FRAMES:
            return
        with self._lock:
            message.channel = name
            self._writers[0](message)
            message.channel = channel
            self._writers[1](message)
