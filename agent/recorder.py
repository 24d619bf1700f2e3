"""The flight recorder: what went into the core and what came out, for the last hours, in bounded memory.

The core has no clock and no randomness, so the state at some moment and the events since then give every state and
every effect again: a bug that a car met in the field becomes a test (`driveway simulate FILE`). Events are kept in
segments, each beginning with the whole state; a full segment is compressed, and the oldest is dropped for a new one.
Nothing of this touches the disk until somebody asks for it (`driveway record`), or until the core itself fails.

A recording holds what the daemon knew: the car's signals, the owner's wishes, grants and verdicts. It holds no key and
nothing of what customers sent. It stays on the car until somebody who may read the state directory takes it away.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent import __version__
from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.policy import Policy
from agent.core.state import State

FORMAT = "driveway-recording/1"
SEGMENT_BYTES = 128 * 1024
MAX_BYTES = 2 * 1024 * 1024
"""Compressed: some hours of a car that works, a day of one that stands."""
FILES_MAX = 8
"""So many recordings lie in the folder; the oldest makes room."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a recording: the whole state, without what the gates looked at last (they look again)."""

    format: str = FORMAT
    name: str
    start_ms: int
    policy: Policy
    state: State
    note: str = ""


class RecordedStep(msgspec.Struct, frozen=True):
    """Every other line: one event, and what the core asked for."""

    event: EventType
    effects: Sequence[EffectType]


class _Segment:
    """Lines since one state, open while they are added to, then compressed."""

    def __init__(self, state: State) -> None:
        blank = msgspec.structs.replace(state, looked_at=None)
        self.start = zlib.compress(msgspec.json.encode(blank), 1)
        self.packed = b""
        self.lines: list[bytes] = []
        self.open_bytes = 0

    @property
    def size(self) -> int:
        return len(self.start) + len(self.packed) + self.open_bytes

    def add(self, line: bytes) -> None:
        self.lines.append(line)
        self.open_bytes += len(line)

    def close(self) -> None:
        self.packed = zlib.compress(b"".join(self.lines), 1)
        self.lines, self.open_bytes = [], 0


class Recorder:
    """Use from the event loop's thread; `max_bytes` bounds what is kept (one segment of grace)."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._segments: deque[_Segment] = deque()
        self._after: State | None = None

    def saw(self, before: State, event: EventType, after: State, effects: Sequence[EffectType]) -> None:
        """One step of the core. A `before` that is not what the last step left begins the recording anew."""
        if before is not self._after:
            self._segments.clear()
        if not self._segments or self._segments[-1].open_bytes >= self._segment_bytes:
            self._begin(before)
        self._segments[-1].add(msgspec.json.encode(RecordedStep(event, effects)) + b"\n")
        self._after = after

    def _begin(self, state: State) -> None:
        if self._segments:
            self._segments[-1].close()
        self._segments.append(_Segment(state))
        while len(self._segments) > 1 and sum(one.size for one in self._segments) > self._max_bytes:
            self._segments.popleft()

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return sum(one.size for one in self._segments)

    def taken(self) -> Taken:
        """What is kept now, apart from what goes on being recorded; cheap."""
        return Taken(tuple((one.start, one.packed, b"".join(one.lines)) for one in self._segments))


class Taken(msgspec.Struct, frozen=True):
    """A recording on its way to a file: of each segment the compressed state, the compressed lines, and open lines."""

    segments: tuple[tuple[bytes, bytes, bytes], ...]

    def text(self, note: str = "") -> bytes:
        """The recording as JSON lines; empty when nothing has happened yet. Takes a while: not for the event loop."""
        if not self.segments:
            return b""
        state = msgspec.json.decode(zlib.decompress(self.segments[0][0]), type=State)
        said = f"agent {__version__}" + (f": {note}" if note else "")
        start = Start(name=state.name, start_ms=state.now_ms, policy=state.policy, state=state, note=said)
        lines = [(zlib.decompress(packed) if packed else b"") + fresh for _, packed, fresh in self.segments]
        return b"".join([msgspec.json.encode(start) + b"\n", *lines])

    def write(self, folder: Path, wall_ms: int, note: str = "") -> Path:
        """Write it into `folder`, whole or not at all, and drop the oldest beyond FILES_MAX; raises OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{wall_ms:013d}.jsonl"
        part = path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_bytes(self.text(note))
        part.replace(path)
        for old in sorted(folder.glob("*.jsonl"))[:-FILES_MAX]:
            old.unlink(missing_ok=True)
        return path
