"""A shorter night that still breaks the same promise: delta debugging over the recorded events.

Chunks of events are left out, large ones first, and what remains is replayed open loop; what still breaks the promise
is kept. The result is one from which no single event can be left out, or the best found within a budget of replayed
events (not of time: the same failure shrinks to the same trace anywhere).

A shortened night must stay honest. Somebody's presence is only told with the very signal that shows it, so that
leaving the signal out leaves the person out; and where a promise is about a world that is good again, what made it
good stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

from agent.core.events import ComputeSeen, SignalsSeen, SourceHeard, Tick
from agent.core.machine import step
from agent.simulate.promises import Broken, Promise, Watch
from agent.simulate.recording import Header, Line, Recording

BUDGET_EVENTS = 400_000
WORLDLY = (Promise.CLEARS, Promise.READY_BY)
"""Promises about what the world was like: only what repeats, and the life of leases, may be left out of a night."""


def shrink(recording: Recording, broken: Broken, budget: int = BUDGET_EVENTS) -> Recording:
    """The recording, shorter, breaking the same promise; as it is where not even a replay of it does."""
    search = _Search(recording.header, _signature(broken), budget)
    lines = list(recording.lines)
    honest = [_honest(line) for line in lines]
    if search.breaks(honest):
        lines = honest
    elif not search.breaks(lines):
        return recording
    kept = [line for line in lines if not _may_go(broken, line)]
    movable = {id(line) for line in lines} - {id(line) for line in kept}
    lines = _minimise(lines, movable, search)
    return Recording(recording.header, tuple(lines))


class _Search:
    """Replays candidates and counts what that costs."""

    def __init__(self, header: Header, signature: tuple[str, str], budget: int) -> None:
        self._header, self._signature, self._budget = header, signature, budget

    @property
    def spent(self) -> bool:
        """No more replays."""
        return self._budget <= 0

    def breaks(self, lines: Sequence[Line]) -> bool:
        """Whether the first promise that these lines break is that one; the replay ends there."""
        state = self._header.begin()
        watch = Watch(self._header.policy)
        for line in lines:
            self._budget -= 1
            after, effects = step(state, line.event)
            news = watch.saw(state, line.event, after, effects, line.truth)
            if news:
                return any(_signature(one) == self._signature for one in news)
            state = after
        return any(_signature(one) == self._signature for one in watch.finish(state))


def _minimise(lines: list[Line], movable: set[int], search: _Search) -> list[Line]:
    """Zeller and Hildebrandt's ddmin over the lines that may go, by complements."""
    chunks = 2
    while True:
        places = [index for index, line in enumerate(lines) if id(line) in movable]
        if not places or search.spent:
            return lines
        size = max(1, -(-len(places) // chunks))
        shorter = _without_one_chunk(lines, places, size, search.breaks)
        if shorter is not None:
            lines, chunks = shorter, max(2, chunks - 1)
        elif size == 1:
            return lines
        else:
            chunks = min(len(places), chunks * 2)


def _without_one_chunk(
    lines: list[Line], places: list[int], size: int, breaks: Callable[[Sequence[Line]], bool]
) -> list[Line] | None:
    for first in range(0, len(places), size):
        gone = set(places[first : first + size])
        shorter = [line for index, line in enumerate(lines) if index not in gone]
        if breaks(shorter):
            return shorter
    return None


def _signature(broken: Broken) -> tuple[str, str]:
    """What makes two failures the same: the promise, and for reasons that do not clear, which reasons."""
    about = re.sub(r"[\d.]+", "#", broken.detail) if broken.name == Promise.CLEARS else ""
    return broken.name, about


def _honest(line: Line) -> Line:
    truth = line.truth
    if truth is None or truth.person is None or isinstance(line.event, SignalsSeen):
        return line
    return Line(line.event, msgspec.structs.replace(truth, person=None))


def _may_go(broken: Broken, line: Line) -> bool:
    if broken.name not in WORLDLY:
        return True
    if line.truth is not None and line.truth.ready_by_percent is not None:
        return False
    return isinstance(line.event, SourceHeard | Tick | ComputeSeen)
