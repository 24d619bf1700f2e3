"""Judges a run by its observations: each expectation becomes a measurement with its limit. Pure.

An observation holds from its moment until the next one. `see` measures the time from its mark until the condition is so
for the first time; `always` and `never` measure how long it was otherwise, which may be no time at all. What could not
be judged, since the run never came to its mark, did not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import get_args

import msgspec

from hil.rigs.observation import Measurement, Observation
from hil.scenario.conditions import holds, in_words
from hil.scenario.model import (
    BEGIN,
    Condition,
    Count,
    Counter,
    Duration,
    Expectation,
    Extreme,
    Last,
    Quantity,
    unit_of,
)

UNTIL_END = "end"


class Strictness(msgspec.Struct, frozen=True):
    """How a rig stretches limits of time, and what it is called for the note."""

    rig: str
    time_factor: float = 1.0
    resolution_ms: int = 0

    def limit_ms(self, limit_ms: int) -> float:
        """The limit as it counts there."""
        return limit_ms * self.time_factor + self.resolution_ms

    def note(self, limit_ms: int) -> str:
        """Why it is not the scenario's own."""
        parts = []
        if self.time_factor != 1.0:
            parts.append(f"{self.rig} computes {self.time_factor:g} times slower")
        if self.resolution_ms:
            parts.append(f"it is looked at every {self.resolution_ms} ms")
        return f"{limit_ms} ms, but {' and '.join(parts)}" if parts else ""


def judge(
    expectations: Sequence[Expectation],
    seen: Sequence[Observation],
    marks: dict[str, int],
    strictness: Strictness,
) -> list[Measurement]:
    """A measurement for each expectation that is for this rig. `seen` is in the order of time, and not empty."""
    wanted = [one for one in expectations if not one.rigs or strictness.rig in one.rigs]
    return [_judge(one, seen, marks, strictness) for one in wanted]


def _judge(one: Expectation, seen: Sequence[Observation], marks: dict[str, int], strict: Strictness) -> Measurement:
    name = one.what or in_full(one)
    unit = unit_of(one.total) if one.total is not None else ("ms" if one.see is not None else "s")
    missing = [mark for mark in (one.after, one.until) if mark not in marks]
    if missing:
        return Measurement(
            name=name, value=None, unit=unit, held=False, detail=f"the run never came to {' and '.join(missing)!r}"
        )
    settle_ms = round(strict.limit_ms(one.settle_ms)) if one.settle_ms else 0
    from_ms, to_ms = marks[one.after] + settle_ms, marks[one.until]
    if one.see is not None:
        return _see(one, name, _within(seen, from_ms, to_ms), from_ms, strict)
    if one.total is not None:
        return _total(one, one.total, name, quantity(one.total, _within(seen, from_ms, to_ms), to_ms), strict)
    condition = one.always if one.always is not None else one.never
    assert condition is not None
    return _span(name, condition, _within(seen, from_ms, to_ms), to_ms, wanted=one.always is not None)


# --- the kinds ----------------------------------------------------------------------------------------------------


def _see(one: Expectation, name: str, window: Sequence[Observation], from_ms: int, strict: Strictness) -> Measurement:
    assert one.see is not None
    assert one.within_ms is not None
    condition = one.see
    limit_ms = strict.limit_ms(one.within_ms)
    found = next((look for look in window if holds(condition, look)), None)
    value = None if found is None else float(max(found.at_ms - from_ms, 0))
    return Measurement(
        name=name,
        value=value,
        unit="ms",
        at_most=limit_ms,
        relaxed=strict.note(one.within_ms),
        held=value is not None and value <= limit_ms,
        detail="" if found else f"never; at the end {_state_of(window[-1])}" if window else "nothing was seen",
    )


def _span(name: str, condition: Condition, window: Sequence[Observation], to_ms: int, *, wanted: bool) -> Measurement:
    """How long it was otherwise; once is too much, however short."""
    wrong = [(look, span_ms) for look, span_ms in spans(window, to_ms) if holds(condition, look) is not wanted]
    wrong_s = sum(span_ms for _, span_ms in wrong) / 1000
    detail = ""
    if wrong:
        look = wrong[0][0]
        detail = f"{len(wrong)} times, first at {look.at_ms / 1000:.3f} s: {_state_of(look)}"
    elif not window:
        detail = "nothing was seen"
    return Measurement(name=name, value=wrong_s, unit="s", at_most=0.0, held=not wrong and bool(window), detail=detail)


def _total(one: Expectation, total: Quantity, name: str, value: float | None, strict: Strictness) -> Measurement:
    at_most, relaxed = one.at_most, ""
    if total == "vacate_max_ms" and at_most is not None and strict.time_factor != 1.0:
        # The agent's own time, by its own clock.
        at_most, relaxed = at_most * strict.time_factor, strict.note(round(at_most))
    held = (
        value is not None and (one.at_least is None or value >= one.at_least) and (at_most is None or value <= at_most)
    )
    return Measurement(
        name=name,
        value=value,
        unit=unit_of(total),
        at_least=one.at_least,
        at_most=at_most,
        relaxed=relaxed,
        held=held,
        detail="" if value is not None else "nobody knows",
    )


def quantity(total: Quantity, window: Sequence[Observation], to_ms: int) -> float | None:
    """The figure over a window; None where nothing of it is known."""
    if not window:
        return None
    if total in {*get_args(Counter), *get_args(Last)}:
        value, start = getattr(window[-1], total), getattr(window[0], total) if total in get_args(Counter) else 0
        return None if value is None else float(value - start)
    if total in get_args(Extreme):
        return _extreme(total, window)
    if total in get_args(Duration):
        return sum(span_ms for look, span_ms in spans(window, to_ms) if _STATES[total](look)) / 1000
    assert total in get_args(Count)
    if total == "openings":
        return float(sum(was.gate != "open" and now.gate == "open" for was, now in pairwise(window)))
    return float(len({look.lease for look in window} - {""}))


_STATES: dict[str, Callable[[Observation], bool]] = {
    "open_s": lambda look: look.gate == "open",
    "hold_s": lambda look: look.gate == "hold",
    "closed_s": lambda look: look.gate == "closed",
    "linked_s": lambda look: look.linked,
}


def _extreme(total: str, window: Sequence[Observation]) -> float | None:
    if total == "vacate_max_ms":
        return window[-1].vacate_max_ms
    stem, _, unit = total.rpartition("_")
    name, _, which = stem.rpartition("_")
    values = [value for look in window if (value := getattr(look, f"{name}_{unit}")) is not None]
    if not values:
        return None
    return float(max(values) if which == "max" else min(values))


# --- windows ------------------------------------------------------------------------------------------------------


def _within(seen: Sequence[Observation], from_ms: int, to_ms: int) -> list[Observation]:
    """What was so from then until then; the look before the beginning is what was so when it began."""
    before = [look for look in seen if look.at_ms <= from_ms]
    after = [look for look in seen if from_ms < look.at_ms <= to_ms]
    first = [msgspec.structs.replace(before[-1], at_ms=from_ms)] if before else []
    return first + after


def spans(window: Sequence[Observation], to_ms: int) -> Iterator[tuple[Observation, int]]:
    """Each look, and for how long it was so."""
    for look, following in pairwise(window):
        yield look, following.at_ms - look.at_ms
    if window:
        yield window[-1], max(to_ms - window[-1].at_ms, 0)


# --- words --------------------------------------------------------------------------------------------------------


def in_full(one: Expectation) -> str:
    """An expectation that has no words of its own."""
    since = "" if one.after == BEGIN else f" after {one.after}"
    if one.see is not None and one.within_ms is not None:
        return f"{in_words(one.see)} within {_time(one.within_ms)}{since}"
    until = "" if one.until == UNTIL_END else f" until {one.until}"
    if one.always is not None:
        return f"always {in_words(one.always)}{since}{until}"
    if one.never is not None:
        return f"never {in_words(one.never)}{since}{until}"
    return f"{str(one.total).replace('_', ' ')}{since}{until}"


def _time(duration_ms: int) -> str:
    for unit, length_ms in (("h", 3_600_000), ("min", 60_000), ("s", 1_000)):
        if duration_ms >= length_ms and duration_ms % length_ms == 0:
            return f"{duration_ms // length_ms} {unit}"
    return f"{duration_ms} ms"


def _state_of(look: Observation) -> str:
    reasons = ", ".join(f"{why.gate}:{why.code}" for why in look.reasons)
    return f"gate {look.gate}{f' ({reasons})' if reasons else ''}, {look.state}"
