"""Reads a SocketCAN interface through the kernel's broadcast manager (CAN_BCM): wake-ups on changes only.

One RX_SETUP per message gives the kernel the mapped bits as a content mask. From then on it reports a frame only when
one of those bits changed, not more often than every 20 ms, and watches the message itself: when none has come for the
time that the strictest of its leaves allows, it says RX_TIMEOUT, and the message's leaves are unknown from that moment
on. Everything between is silence, so every 100 ms this source vouches for the messages that have been reported and
have not timed out.

    struct bcm_msg_head: opcode, flags, count, ival1 (s, us), ival2 (s, us), can_id, nframes      of linux/can/bcm.h
    RX_SETUP     ival1 = timeout, ival2 = throttle, frames = the mask, or the multiplexer's mask and one mask a page
    RX_CHANGED   one frame                RX_TIMEOUT   none

What it cannot do, against the raw socket: it does not see that a counter stands still or that a checksum fails in a
frame whose mapped bits stay the same, and it watches a multiplexed message as a whole, not page by page. When this
process did not run for a second (the computer slept), the kernel's timers did not run either; and a report for which
the kernel had no room is never repeated. After both, everything is set up anew, and nothing is vouched for until it is
reported again.

RX_SETUP is a message to the kernel about receiving. It is the only thing ever written to the socket, and no frame
leaves the computer by it; opcodes that send (TX_SETUP, TX_SEND) are not in this file.

This has been proved against hand-built kernel layouts and over a socket pair, never on a real interface.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Literal

import msgspec

from agent.core.signals import ANY_STALE_MS, LEAVES
from agent.errors import ConfigError
from agent.ports import Clock
from agent.vehicle.decoder import Decoder, Dropped
from agent.vehicle.drain import Rounds, keep_draining
from agent.vehicle.layout import BoundMessage
from agent.vehicle.listener import REPEAT_MS, BusListener, BusSource
from agent.vehicle.socketcan import CAN_FRAME, CANFD_FRAME, parse_can_frame

HEAD = struct.Struct("@IIIllllII0q")
"""`struct bcm_msg_head` as this machine lays it out; frames follow, aligned to eight bytes."""
RX_SETUP, RX_TIMEOUT, RX_CHANGED = 5, 11, 12
SETTIMER, STARTTIMER, RX_CHECK_DLC, RX_ANNOUNCE_RESUME, CAN_FD = 0x01, 0x02, 0x40, 0x100, 0x800
THROTTLE_MS = 20
SLEPT_MS = 1_000
MULTIPLEX_BYTES = 8
CLASSIC_BYTES = 8


class Report(msgspec.Struct, frozen=True):
    """What the broadcast manager says: a changed frame, or (`raw_frame` None) that none came in time."""

    key: int
    raw_frame: bytes | None


def open_bcm(interface: str) -> socket.socket:
    """A broadcast manager's socket on `interface`. Raises OSError."""
    can = socket.socket(socket.AF_CAN, socket.SOCK_DGRAM, socket.CAN_BCM)
    try:
        can.setblocking(False)
        can.connect((interface,))
    except OSError:
        can.close()
        raise
    return can


def rx_setup(message: BoundMessage) -> bytes:
    """The RX_SETUP that has this message watched. Raises ConfigError for one that cannot be."""
    frames = [_mask_frame(message, mask) for mask in _masks(message)]
    flags = SETTIMER | STARTTIMER | RX_CHECK_DLC | RX_ANNOUNCE_RESUME | (CAN_FD if _is_fd(message) else 0)
    timeout = divmod(timeout_ms(message) * 1000, 1_000_000)
    throttle = divmod(THROTTLE_MS * 1000, 1_000_000)
    return HEAD.pack(RX_SETUP, flags, 0, *timeout, *throttle, message.key, len(frames)) + b"".join(frames)


def timeout_ms(message: BoundMessage) -> int:
    """How long the message may be missing: as long as the strictest of its leaves may be old."""
    leaves = [LEAVES.get(signal.path) for group in message.groups for signal in group.signals]
    return min(ANY_STALE_MS if leaf is None else leaf.staleness.stale_ms for leaf in leaves)


def parse_report(raw: bytes) -> Report | None:
    """What the broadcast manager said; None for anything but a change or a timeout."""
    if len(raw) < HEAD.size:
        return None
    opcode, _flags, _count, _s1, _us1, _s2, _us2, can_id, frames = HEAD.unpack_from(raw)
    body = raw[HEAD.size :]
    if opcode == RX_TIMEOUT:
        return Report(can_id, None)
    if opcode == RX_CHANGED and frames == 1 and len(body) in {CAN_FRAME.size, CANFD_FRAME.size}:
        return Report(can_id, body)
    return None


def _masks(message: BoundMessage) -> list[int]:
    """The content mask; for a multiplexed message the multiplexer's mask, and each page's value and mask in one."""
    always = 0 if message.every_page is None else message.every_page.mask
    selector = message.multiplexer
    if selector is None:
        return [always]
    if selector.mask(message.length) >> 8 * MULTIPLEX_BYTES:
        raise ConfigError(f"message {message.name} is multiplexed beyond byte 8", hint='read its bus with mode = "raw"')
    masks = [selector.mask(message.length)]
    for value in sorted(message.known_pages if always else message.pages):
        order: Literal["big", "little"] = "big" if selector.big_endian else "little"
        field = int.from_bytes((value << selector.shift).to_bytes(message.length, order), "little")
        masks.append(field | always | (message.pages[value].mask if value in message.pages else 0))
    return masks


def _mask_frame(message: BoundMessage, mask: int) -> bytes:
    layout, size = (CANFD_FRAME, 64) if _is_fd(message) else (CAN_FRAME, CLASSIC_BYTES)
    return layout.pack(message.key, message.length, mask.to_bytes(size, "little"))


def _is_fd(message: BoundMessage) -> bool:
    return message.length > CLASSIC_BYTES


class BcmSource(BusSource):
    """A vehicle source over a broadcast manager's socket."""

    def __init__(
        self, name: str, decoder: Decoder, clock: Clock, open_socket: Callable[[], socket.socket], rounds: Rounds
    ) -> None:
        super().__init__(name, decoder, clock)
        self._open_socket, self._rounds = open_socket, rounds
        self._setups = [rx_setup(message) for message in decoder.messages.values()]

    async def keep_open(self, listener: BusListener) -> None:
        """Receive until cancelled; after a sleep of the computer, anew."""
        while True:
            reader = BcmReader(listener, self._setups)
            async with asyncio.TaskGroup() as group:
                draining = group.create_task(keep_draining(self._open_socket, reader, self.clock, self._rounds))
                await self._vouch_while_it_may(reader)
                draining.cancel()

    async def _vouch_while_it_may(self, reader: BcmReader) -> None:
        """Returns when this process did not run for a while, or a report was lost."""
        beat_ms = self.clock.boot_ms()
        while True:
            await asyncio.sleep(REPEAT_MS / 1000)
            now_ms = self.clock.boot_ms()
            if now_ms - beat_ms > SLEPT_MS or reader.missed:
                return
            beat_ms = now_ms
            reader.vouch(now_ms)


class BcmReader:
    """What the broadcast manager says, for a listener (`agent.vehicle.drain.Reader`)."""

    def __init__(self, listener: BusListener, setups: list[bytes]) -> None:
        self._listener = listener
        self._setups = setups
        self._groups: dict[int, set[str]] = {}
        """By message: the groups that were reported and may be vouched for."""
        self.missed = False

    def opened(self, channel: socket.socket) -> None:
        """Have every message watched. Raises OSError."""
        self._groups.clear()
        for setup in self._setups:
            channel.send(setup)

    def drained(self, datagrams: list[bytes], at_ms: int) -> None:
        """Reports in their order."""
        for raw in datagrams:
            report = parse_report(raw)
            if report is None:
                self._listener.decoder.dropped[Dropped.MALFORMED] += 1
            elif report.raw_frame is None:
                self._listener.counted["timeouts"] += 1
                self._groups.pop(report.key, None)
                self._listener.silenced(report.key, at_ms)
            else:
                self._changed(report.key, report.raw_frame, at_ms)

    def vouch(self, at_ms: int) -> None:
        """Name what the kernel has reported and not called lost."""
        self._listener.vouch([group for groups in self._groups.values() for group in groups], at_ms)

    def overflowed(self, count: int) -> None:
        """A change was lost, and will not be said again: everything must be set up anew."""
        self._listener.counted["overflowed"] += count
        self._groups.clear()
        self.missed = True

    def lost(self, detail: str) -> None:
        """The interface went."""
        self._groups.clear()
        self._listener.lost(detail)

    def _changed(self, key: int, raw_frame: bytes, at_ms: int) -> None:
        frame = parse_can_frame(raw_frame)
        if frame is None:
            self._listener.decoder.dropped[Dropped.MALFORMED] += 1
            return
        groups = self._listener.take([frame], at_ms)
        if groups:
            self._groups.setdefault(key, set()).update(groups)
        else:
            self._groups.pop(key, None)  # refused: its message is vouched for no longer
