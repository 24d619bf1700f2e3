"""A recorded night: events, what was true, and what is needed to begin again. Replays open loop to the same states.

One JSON object a line (JSONL): first the header (policy, which leaves the car has, time zone, name, start), then one
line an event, with what was true at that moment where somebody knows it. The core has no clock and no randomness, so
the same lines always give the same states and the same effects; what the effects led to is in the lines that follow.

A daemon's flight recorder (`agent.recorder`) writes the same format from the middle of its life, compressed by gzip:
its header holds the whole state, and each line the effects too, so that a replay shows whether this version decides as
that one did. Whether a file is compressed shows in its first bytes, never in its name.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.signals import Vehicle
from agent.core.state import State, initial
from agent.core.walltime import UTC, Zone
from agent.errors import ConfigError
from agent.recorder import FORMAT
from agent.simulate.promises import Broken, Truth, Watch

T = TypeVar("T")
GZIP = b"\x1f\x8b"
"""What a compressed file begins with."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How to begin: anew, or with `state`. `note` is for people: where it comes from, and what it is said to show."""

    format: str = FORMAT
    name: str
    start_ms: int
    policy: Policy
    offered: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    zone: Zone = UTC
    note: str = ""
    state: State | None = None

    def begin(self) -> State:
        """The state before the first event."""
        if self.state is not None:
            return self.state
        vehicle = Vehicle(offered=self.offered, absent=self.absent)
        return initial(self.name, self.policy, self.start_ms, vehicle=vehicle, zone=self.zone)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event, what was true when it came, and what the core asked for, each where somebody wrote it down."""

    event: EventType
    truth: Truth | None = None
    effects: tuple[EffectType, ...] | None = None


class Recording(msgspec.Struct, frozen=True):
    """A night."""

    header: Header
    lines: tuple[Line, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What came of a replay: the last state, how many events there were, and what they broke.

    `differs` are the numbers of the lines whose effects are not those that were recorded.
    """

    state: State
    events: int
    broken: tuple[Broken, ...]
    differs: tuple[int, ...] = ()


Follow = Callable[[State, Line, State, tuple[EffectType, ...], Sequence[Broken]], None]
"""Called after each step: before, line, after, effects, and what the step broke."""


def write(path: Path, header: Header, lines: Iterable[Line]) -> None:
    """Write a recording; raises OSError."""
    with path.open("wb") as file:
        for one in (header, *lines):
            file.write(msgspec.json.encode(one) + b"\n")


def read(path: Path) -> Recording:
    """Read a recording; raises ConfigError for what is not one, and OSError."""
    numbered = list(enumerate(_texts(path), start=1))
    if not numbered:
        raise ConfigError(f"{path} is empty", hint="a recording begins with its header")
    header = _decode(numbered[0][1], Header, path, 1)
    if header.format != FORMAT:
        raise ConfigError(f"{path} is a recording of format {header.format!r}", hint=f"this version reads {FORMAT}")
    lines = tuple(_decode(text, Line, path, number) for number, text in numbered[1:] if text.strip())
    return Recording(header, lines)


def _texts(path: Path) -> list[bytes]:
    """The file's lines, unpacked; raises ConfigError for what is compressed and damaged, and OSError."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if not packed:
            return list(file)
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return list(unpacked)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ConfigError(f"{path} is damaged: {error}", hint="it was cut off, or is no whole gzip file") from error


def replay(recording: Recording, follow: Follow | None = None) -> Outcome:
    """Feed the events to the core, in order, and check every promise after each."""
    state = recording.header.begin()
    watch = Watch(recording.header.policy)
    broken: list[Broken] = []
    differs: list[int] = []
    for number, (before, line, after, effects) in enumerate(steps(state, recording.lines), start=2):
        if line.effects is not None and line.effects != effects:
            differs.append(number)
        news = watch.saw(before, line.event, after, effects, line.truth)
        broken += news
        state = after
        if follow is not None:
            follow(before, line, after, effects, news)
    broken += watch.finish(state)
    return Outcome(state, len(recording.lines), tuple(broken), tuple(differs))


def steps(state: State, lines: Iterable[Line]) -> Iterator[tuple[State, Line, State, tuple[EffectType, ...]]]:
    """Every step of a recording: the state before, the line, the state after, and the effects."""
    for line in lines:
        after, effects = step(state, line.event)
        yield state, line, after, effects
        state = after


def _decode(text: bytes, kind: type[T], path: Path, number: int) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}, line {number} is not a {kind.__name__.lower()} of a recording: {error}",
            hint="recordings are written by `driveway record` and by `driveway-hil sim --trace-dir`",
        ) from error
