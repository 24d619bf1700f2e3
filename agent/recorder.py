"""The flight recorder: what went into the core and what came out, for the last hours, in bounded memory.

The core has no clock and no randomness, so the state at some moment and the events since then give every state and
every effect again: a bug that a car met in the field becomes a test (`driveway simulate FILE`). Events are kept in
segments, each beginning with the whole state; the oldest is dropped for a new one. Every line is compressed as it
comes, so that no step pays for those before it. Recording never raises: what cannot be recorded ends the recording,
which begins anew with the next step. Nothing of this touches the disk until somebody asks for it (`driveway record`),
or until the core itself fails; and then not the part of the disk that is reserved for what was earned.

A recording holds what the daemon knew: the car's signals, the owner's wishes, grants and verdicts. It holds no key, no
token and no secret of an address (`agent.redaction`), and nothing of what customers sent. It stays on the car until
somebody who may read the state directory takes it away.
"""

from __future__ import annotations

import errno
import gzip
import threading
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
from agent.disk import RESERVE_BYTES, has_room
from agent.log import logger
from agent.redaction import Redaction

FORMAT = "driveway-recording/1"
SUFFIX = ".jsonl.gz"
SEGMENT_BYTES = 128 * 1024
"""Of lines, before they are compressed."""
MAX_BYTES = 2 * 1024 * 1024
"""Compressed: some hours of a car that works, a day of one that stands."""
FILES_MAX = 8
"""So many recordings lie in the folder; the oldest makes room."""
FAST = 1
"""zlib's level: a third more bytes than the usual one, for a quarter of its time."""

_writing = threading.Lock()
"""One file is written at a time, whoever asks: there is one unfinished one at most."""


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


class Written(msgspec.Struct, frozen=True):
    """A recording on the disk."""

    path: Path
    size_bytes: int


class _Segment:
    """A state and the lines since then, compressed as they come."""

    def __init__(self, state: bytes) -> None:
        self.state = zlib.compress(state, FAST)
        self.line_bytes = 0
        self.size = len(self.state)
        self._stream = zlib.compressobj(FAST)
        self._packed: list[bytes] = []

    def add(self, line: bytes) -> None:
        self.line_bytes += len(line)
        self._keep(self._stream.compress(line))

    def close(self) -> None:
        self._keep(self._stream.flush())
        self._packed = [b"".join(self._packed)]

    def lines(self) -> tuple[bytes, ...]:
        """The compressed lines of a closed segment."""
        return tuple(self._packed)

    def lines_so_far(self) -> tuple[bytes, ...]:
        """Those of one that goes on."""
        return (*self._packed, self._stream.copy().flush())

    def _keep(self, packed: bytes) -> None:
        if packed:
            self._packed.append(packed)
            self.size += len(packed)


class Recorder:
    """Use from the event loop's thread; `max_bytes` bounds what is kept (one segment of grace)."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._max_bytes, self._segment_bytes = max_bytes, segment_bytes
        self._segments: deque[_Segment] = deque()
        self._after: State | None = None
        self._encoder = msgspec.json.Encoder()
        self._redaction = Redaction()
        self._complained = False

    def saw(self, before: State, event: EventType, after: State, effects: Sequence[EffectType]) -> None:
        """One step of the core. A `before` that is not what the last step left begins the recording anew.

        Never raises: what came before a step that cannot be recorded is dropped, which is logged once.
        """
        try:
            self._saw(before, event, effects)
            self._after = after
        except Exception as error:  # noqa: BLE001 - as the docstring says
            self._segments.clear()
            self._after = None
            if not self._complained:
                self._complained = True
                logger().error("recording_dropped", event_type=type(event).__name__, error=repr(error))

    def _saw(self, before: State, event: EventType, effects: Sequence[EffectType]) -> None:
        if before is not self._after:
            self._segments.clear()
        if not self._segments or self._segments[-1].line_bytes >= self._segment_bytes:
            self._begin(before)
        self._segments[-1].add(self._encoded(RecordedStep(event, effects)) + b"\n")

    def _begin(self, state: State) -> None:
        if self._segments:
            self._segments[-1].close()
        self._segments.append(_Segment(self._encoded(msgspec.structs.replace(state, looked_at=None))))
        while len(self._segments) > 1 and self.size > self._max_bytes:
            self._segments.popleft()

    def _encoded(self, what: msgspec.Struct) -> bytes:
        return self._redaction.of(self._encoder.encode(what))

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return sum(one.size for one in self._segments)

    def taken(self) -> Taken:
        """What is kept now, apart from what goes on being recorded; cheap."""
        if not self._segments:
            return Taken()
        *closed, last = self._segments
        return Taken(self._segments[0].state, (*(one.lines() for one in closed), last.lines_so_far()))


class Taken(msgspec.Struct, frozen=True):
    """A recording on its way to a file: the first segment's state, and every segment's lines; compressed."""

    state: bytes = b""
    segments: tuple[tuple[bytes, ...], ...] = ()

    @property
    def size(self) -> int:
        """About the bytes that it will have on the disk."""
        return len(self.state) + sum(len(part) for parts in self.segments for part in parts)

    def write(self, folder: Path, wall_ms: int, note: str = "", *, reserve_bytes: int = RESERVE_BYTES) -> Written:
        """Write it into `folder`, whole or not at all, and drop the oldest beyond FILES_MAX; raises OSError.

        That is an OSError too where it would touch the disk's reserve. Takes a while: not for the event loop.
        """
        with _writing:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not has_room(folder, self.size, reserve_bytes):
                raise OSError(errno.ENOSPC, "the disk is nearly full")
            path, part = folder / f"{wall_ms:013d}{SUFFIX}", folder / "unfinished"
            part.unlink(missing_ok=True)
            part.touch(mode=0o600)
            try:
                with part.open("wb") as file:
                    self._write_to(gzip.GzipFile("", "wb", FAST, file, wall_ms // 1000), note)
                size_bytes = part.stat().st_size
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            for old in sorted(one for one in folder.iterdir() if one.name.endswith((SUFFIX, ".jsonl")))[:-FILES_MAX]:
                old.unlink(missing_ok=True)
            return Written(path, size_bytes)

    def _write_to(self, file: gzip.GzipFile, note: str) -> None:
        """One segment after the other, so that never all of it is in memory."""
        with file:
            if not self.segments:
                return
            state = msgspec.json.decode(zlib.decompress(self.state), type=State)
            said = f"agent {__version__}" + (f": {note}" if note else "").encode("utf-8", "replace").decode()
            start = Start(name=state.name, start_ms=state.now_ms, policy=state.policy, state=state, note=said)
            file.write(msgspec.json.encode(start) + b"\n")
            for parts in self.segments:
                file.write(zlib.decompress(b"".join(parts)))
