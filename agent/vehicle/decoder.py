"""CAN frames in, VSS samples out: pure, whatever the frames travelled on.

A frame is dropped, and counted by reason, when it is not ours, is no data frame, has not its message's length, fails
its checksum, or repeats its message's counter: a counter that stands still means a sender that has frozen with its
last frame on the bus. A dropped frame says nothing, so its leaves grow stale and the gates shut by age. A payload that
cannot be decoded says something is wrong: all its leaves become invalid at once.

Only what changed is said: a group whose mapped bits are what they were is named as heard and not decoded again, and of
a group that changed, only the leaves that say something else.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

import msgspec

from agent.core.events import Quality, Sample
from agent.vehicle.checksum import e2e_profile_2, summed
from agent.vehicle.layout import EXTENDED_FLAG, Bits, BoundGroup, BoundMessage, BoundSignal, Checksum, Meaning


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
    LENGTH = "length"
    CHECKSUM = "checksum"
    FROZEN = "frozen"
    MALFORMED = "malformed"


class Heard(msgspec.Struct, frozen=True, gc=False):
    """What one frame said: its groups are fresh, and `samples` are the leaves that changed."""

    groups: tuple[str, ...]
    samples: tuple[Sample, ...] = ()


UNREADABLE = Meaning(None, Quality.INVALID)


class _Track:
    """What is remembered of one message. Frames come by the hundred a second, so what never changes is at hand."""

    def __init__(self, message: BoundMessage) -> None:
        self.message = message
        self.has_big_endian = message.has_big_endian
        self.count: int | None = None
        always = () if message.every_page is None else (message.every_page,)
        self.groups = {page: (*always, group) for page, group in message.pages.items()}
        self.other_page = always
        """The groups of a frame whose page nobody asked for, and of every frame of a message without pages."""
        self.unchanged = Heard(tuple(group.name for group in always))


class Decoder:
    """The decoder of one bus. Not thread-safe, and without a clock.

    `counters` says whether counters are watched: a source that only hands on what changed cannot do that.
    """

    def __init__(self, messages: Iterable[BoundMessage], *, counters: bool = True) -> None:
        self.messages = {message.key: message for message in messages}
        self._tracks = {key: _Track(message) for key, message in self.messages.items()}
        self._watches_counters = counters
        self._visible: dict[str, int] = {}
        self._said: dict[str, Meaning] = {}
        self.dropped: Counter[Dropped] = Counter()
        self.frames = 0
        """Frames that were decoded or compared."""
        self.undecodable = 0
        """Payloads that the DBC cannot explain."""
        self.surprises = 0
        """Values that the profile does not mention."""
        self.jumps = 0
        """Counters that went on by more than one: frames were lost."""

    @property
    def keys(self) -> tuple[int, ...]:
        """The ids it wants (with CAN_EFF_FLAG where extended), for the kernel's filter."""
        return tuple(self.messages)

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        """Everything that is heard together."""
        return tuple(group for message in self.messages.values() for group in message.groups)

    @property
    def counts(self) -> dict[str, int]:
        """Every count that is not zero, dropped frames by reason."""
        counts = {"frames": self.frames, **{f"dropped_{why}": count for why, count in sorted(self.dropped.items())}}
        counts |= {"undecodable": self.undecodable, "surprises": self.surprises, "counter_jumps": self.jumps}
        return {name: count for name, count in counts.items() if count}

    def decode(self, frame: Frame) -> Heard | None:
        """What one frame says; None when it was dropped. Never raises."""
        track = self._tracks.get(frame.can_id | EXTENDED_FLAG if frame.extended else frame.can_id)
        if track is None or frame.error:
            self.dropped[Dropped.ERROR if frame.error else Dropped.FOREIGN] += 1
            return None
        message = track.message
        if (reason := _refuse(frame, message)) is not None:
            self.dropped[reason] += 1
            return None
        little = int.from_bytes(frame.data, "little")
        big = int.from_bytes(frame.data, "big") if track.has_big_endian else 0
        if message.counter is not None and self._is_frozen(track, message.counter, little, big):
            self.dropped[Dropped.FROZEN] += 1
            return None
        self.frames += 1
        groups = track.other_page
        if message.multiplexer is not None:
            page = message.multiplexer.raw(little, big)
            if page not in message.known_pages:
                return self._unreadable(message)
            groups = track.groups.get(page, groups)
        return self._compare(track, groups, little, big)

    def _compare(self, track: _Track, groups: tuple[BoundGroup, ...], little: int, big: int) -> Heard:
        """Decode the groups whose bits have changed."""
        samples: list[Sample] = []
        for group in groups:
            visible = little & group.mask
            if self._visible.get(group.name) != visible:
                self._visible[group.name] = visible
                self._read(group, little, big, samples)
        if not samples and groups is track.other_page:
            return track.unchanged
        return Heard(tuple([group.name for group in groups]), tuple(samples))

    def silenced(self, key: int) -> tuple[Sample, ...]:
        """What to say when the message is known to have stopped: nobody knows its leaves any more."""
        message = self.messages.get(key)
        return () if message is None else self._say_all(message, Meaning(None, Quality.UNKNOWN))

    def _read(self, group: BoundGroup, little: int, big: int, samples: list[Sample]) -> None:
        for signal in group.signals:
            meaning = signal.meaning(signal.bits.raw(little, big))
            self.surprises += meaning.surprise
            self._say(signal, meaning, samples)

    def _say(self, signal: BoundSignal, meaning: Meaning, samples: list[Sample]) -> None:
        said = self._said.get(signal.path)
        if said is None or not signal.same(said, meaning):
            self._said[signal.path] = meaning
            samples.append(signal.sample(meaning))

    def _unreadable(self, message: BoundMessage) -> Heard:
        self.undecodable += 1
        samples = self._say_all(message, UNREADABLE)
        return Heard(tuple([group.name for group in message.groups]), samples)

    def _say_all(self, message: BoundMessage, meaning: Meaning) -> tuple[Sample, ...]:
        samples: list[Sample] = []
        for group in message.groups:
            self._visible.pop(group.name, None)  # the next good payload is news, whatever it says
            for signal in group.signals:
                self._say(signal, meaning, samples)
        return tuple(samples)

    def _is_frozen(self, track: _Track, counter: Bits, little: int, big: int) -> bool:
        """Whether the counter stands still; counts its jumps."""
        if not self._watches_counters:
            return False
        now, before = counter.raw(little, big), track.count
        track.count = now
        if before is None or now == (before + 1 & (1 << counter.bits) - 1):
            return False
        self.jumps += now != before
        return now == before


def _refuse(frame: Frame, message: BoundMessage) -> Dropped | None:
    if frame.remote:
        return Dropped.REMOTE
    if len(frame.data) != message.length:
        return Dropped.LENGTH
    if message.checksum is not None and not _checksum_holds(frame, message.checksum):
        return Dropped.CHECKSUM
    return None


def _checksum_holds(frame: Frame, checksum: Checksum) -> bool:
    if checksum.kind == "sum":
        return frame.data[checksum.byte] == summed(frame.can_id, frame.data, checksum.byte)
    return frame.data[checksum.byte] == e2e_profile_2(frame.data, checksum.data_ids)
