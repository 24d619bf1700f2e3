"""A recorded night: events, what was true, and what is needed to begin again. Replays open loop to the same states.

One JSON object a line (JSONL): first the header (policy, which leaves the car has, time zone, name, start), then one
line an event, with what was true at that moment where somebody knows it. The core has no clock and no randomness, so
the same lines always give the same states and the same effects; what the effects led to is in the lines that follow.
"""

from __future__ import annotations

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
from agent.simulate.promises import Broken, Truth, Watch

FORMAT = "driveway-recording/1"
T = TypeVar("T")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """How to begin. `note` is for people: where the recording comes from, and what it is said to show."""

    format: str = FORMAT
    name: str
    start_ms: int
    policy: Policy
    offered: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    zone: Zone = UTC
    note: str = ""

    def begin(self) -> State:
        """The state before the first event."""
        vehicle = Vehicle(offered=self.offered, absent=self.absent)
        return initial(self.name, self.policy, self.start_ms, vehicle=vehicle, zone=self.zone)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event, and what was true when it came."""

    event: EventType
    truth: Truth | None = None


class Recording(msgspec.Struct, frozen=True):
    """A night."""

    header: Header
    lines: tuple[Line, ...]


class Outcome(msgspec.Struct, frozen=True):
    """What came of a replay: the last state, how many events there were, and what they broke."""

    state: State
    events: int
    broken: tuple[Broken, ...]


Follow = Callable[[State, Line, State, tuple[EffectType, ...], Sequence[Broken]], None]
"""Called after each step: before, line, after, effects, and what the step broke."""


def write(path: Path, header: Header, lines: Iterable[Line]) -> None:
    """Write a recording; raises OSError."""
    with path.open("wb") as file:
        for one in (header, *lines):
            file.write(msgspec.json.encode(one) + b"\n")


def read(path: Path) -> Recording:
    """Read a recording; raises ConfigError for what is not one, and OSError."""
    with path.open("rb") as file:
        numbered = list(enumerate(file, start=1))
    if not numbered:
        raise ConfigError(f"{path} is empty", hint="a recording begins with its header")
    header = _decode(numbered[0][1], Header, path, 1)
    if header.format != FORMAT:
        raise ConfigError(f"{path} is a recording of format {header.format!r}", hint=f"this version reads {FORMAT}")
    lines = tuple(_decode(text, Line, path, number) for number, text in numbered[1:] if text.strip())
    return Recording(header, lines)


def replay(recording: Recording, follow: Follow | None = None) -> Outcome:
    """Feed the events to the core, in order, and check every promise after each."""
    state = recording.header.begin()
    watch = Watch(recording.header.policy)
    broken: list[Broken] = []
    for before, line, after, effects in steps(state, recording.lines):
        news = watch.saw(before, line.event, after, effects, line.truth)
        broken += news
        state = after
        if follow is not None:
            follow(before, line, after, effects, news)
    broken += watch.finish(state)
    return Outcome(state, len(recording.lines), tuple(broken))


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
            hint="recordings are written by `driveway-hil sim --trace-dir`",
        ) from error
