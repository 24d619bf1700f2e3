"""CAN frames in, VSS samples out: pure, whatever the frames travelled on.

A frame is dropped, and counted by reason, when it is not ours, is no data frame, is shorter than its message or
fails its checksum. A dropped frame says nothing, so its leaves grow stale and the gates shut by age. A payload that
cannot be decoded says something is wrong: all its leaves become invalid at once.

Decoding costs ten times more than comparing. So a payload whose mapped bits have not changed is not decoded again;
its samples are still repeated as fresh, at most every 100 ms, since age is how the gates know that a source lives.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

import msgspec
from cantools.database import DecodeError

from agent.core.events import Sample
from agent.vehicle.binding import EXTENDED_FLAG, BoundMessage

REPEAT_MS = 100
"""An unchanged leaf is repeated this often: a fifth of the age at which the fastest gate stops believing it."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One CAN frame as it was received; `can_id` without flags."""

    can_id: int
    data: bytes
    extended: bool = False
    remote: bool = False
    error: bool = False


class Dropped(enum.StrEnum):
    """Why a frame said nothing."""

    FOREIGN = "foreign"
    REMOTE = "remote"
    ERROR = "error"
    SHORT = "short"
    CHECKSUM = "checksum"
    MALFORMED = "malformed"


class Decoder:
    """The decoder of one bus. Not thread-safe; time is given, never read."""

    def __init__(self, messages: Iterable[BoundMessage]) -> None:
        self._messages = {message.key: message for message in messages}
        self._latest: dict[tuple[int, int], _Latest] = {}
        self.dropped: Counter[Dropped] = Counter()
        self.undecodable = 0
        """Payloads that the DBC cannot explain."""
        self.surprises = 0
        """Values that the profile does not mention."""

    @property
    def keys(self) -> tuple[int, ...]:
        """The ids it wants (with CAN_EFF_FLAG where extended), for the kernel's filter."""
        return tuple(self._messages)

    def decode(self, frame: Frame, now_ms: int) -> tuple[Sample, ...] | None:
        """The samples of one frame; empty when it has nothing new to say, None when it was dropped. Never raises."""
        message = self._messages.get(frame.can_id | EXTENDED_FLAG if frame.extended else frame.can_id)
        if (reason := _refuse(frame, message)) is not None or message is None:
            self.dropped[reason or Dropped.FOREIGN] += 1
            return None
        data = frame.data[: message.length]
        payload = int.from_bytes(data, "little")
        slot = (message.key, payload & message.multiplexer_mask)
        visible = payload & message.change_mask
        latest = self._latest.get(slot)
        if latest is None or latest.visible != visible:
            samples = self._decode(message, data)
        elif now_ms - latest.said_ms >= REPEAT_MS:
            samples = latest.samples
        else:
            return ()
        self._latest[slot] = _Latest(visible, samples, now_ms)
        return samples

    def _decode(self, message: BoundMessage, data: bytes) -> tuple[Sample, ...]:
        try:
            decoded = message.message.decode_simple(data)
        except DecodeError:
            self.undecodable += 1
            return tuple(signal.invalid() for signal in message.signals)
        samples = []
        for signal in message.signals:
            value = decoded.get(signal.mapping.signal)
            if value is not None:  # None: another page of a multiplexed message
                self.surprises += signal.is_surprise(value)
                samples.append(signal.sample(value))
        return tuple(samples)


class _Latest(msgspec.Struct, frozen=True, gc=False):
    """The last payload of one message (of one page, if it is multiplexed) and what it meant."""

    visible: int
    samples: tuple[Sample, ...]
    said_ms: int


def _refuse(frame: Frame, message: BoundMessage | None) -> Dropped | None:
    if frame.error:
        return Dropped.ERROR
    if message is None:
        return Dropped.FOREIGN
    if frame.remote:
        return Dropped.REMOTE
    if len(frame.data) < message.length:
        return Dropped.SHORT
    if message.checksum_byte is not None and not _checksum_holds(frame, message.checksum_byte):
        return Dropped.CHECKSUM
    return None


def _checksum_holds(frame: Frame, position: int) -> bool:
    """Tesla's checksum: the low byte of the sum of the id's two bytes and all data bytes but the checksum's own."""
    total = (frame.can_id & 0xFF) + (frame.can_id >> 8 & 0xFF) + sum(frame.data) - frame.data[position]
    return total & 0xFF == frame.data[position]
