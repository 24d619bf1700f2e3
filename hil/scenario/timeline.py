"""Plays a scenario on a rig: waits, stimuli, faults and their mends, in the order of time; marks what happened when.

A step that waits for something in vain ends the run: what comes after would not be what the scenario is about. So does
a promise that is broken on the way, where the rig finds that out at once. Limits of time are stretched by the rig's
`time_factor`.
"""

from __future__ import annotations

import datetime as dt
import heapq
import itertools
import zoneinfo
from collections.abc import Callable, Iterator

import msgspec

from agent.errors import DrivewayError
from hil.rigs.interface import Rig
from hil.scenario.conditions import holds, in_words
from hil.scenario.model import BEGIN, END, Daily, Scenario, Step

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY = dt.timedelta(days=1)


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a report tells of: `who` is `car` for what happens, `fault` for what goes wrong, and so on."""

    at_ms: int
    who: str
    what: str


class StuckError(DrivewayError):
    """A step waited in vain."""


class Timeline:
    """One run of a scenario; `marks` and `happened` are filled in on the way."""

    def __init__(self, scenario: Scenario, rig: Rig) -> None:
        self._scenario, self._rig = scenario, rig
        self._mends: list[tuple[int, int, str, Callable[[], None]]] = []
        self._count = itertools.count()
        self.marks: dict[str, int] = {BEGIN: 0}
        self.happened: list[Happened] = []

    def play(self) -> None:
        """From the beginning to the end. Raises StuckError, or what the rig raises."""
        latest_ms = 0
        for step in self._steps():
            due_ms = step.at_ms if step.at_ms is not None else latest_ms + step.after_ms
            self._wait(max(due_ms, self._rig.now_ms))
            if step.when is not None:
                self._wait_for(step)
            latest_ms = self._do(step)
        self._wait(max(self._scenario.length_ms, latest_ms))
        self.marks[END] = self._rig.now_ms

    def _steps(self) -> Iterator[Step]:
        if not self._scenario.daily:
            return iter(self._scenario.steps)
        daily = [step for one in self._scenario.daily for step in days_of(self._scenario, one)]
        return iter(sorted([*self._scenario.steps, *daily], key=lambda step: step.at_ms or 0))

    # --- waiting ------------------------------------------------------------------------------------------------

    def _wait(self, until_ms: int) -> None:
        """Let time pass, and mend what is due on the way."""
        while self._mends and self._mends[0][0] <= until_ms:
            due_ms, _, what, mend = heapq.heappop(self._mends)
            self._rig.wait(max(due_ms, self._rig.now_ms))
            mend()
            self._tell("mended", what)
        self._rig.wait(until_ms)

    def _wait_for(self, step: Step) -> None:
        """Until its condition holds; faults are mended meanwhile."""
        assert step.when is not None
        condition = step.when
        deadline_ms = self._rig.now_ms + round(step.timeout_ms * self._rig.time_factor)
        while True:
            mend_ms = self._mends[0][0] if self._mends else deadline_ms
            if self._rig.wait(min(mend_ms, deadline_ms), lambda seen: holds(condition, seen)):
                return
            if mend_ms <= deadline_ms and self._mends:
                self._wait(mend_ms)
                continue
            seen = self._rig.last
            reasons = ", ".join(f"{why.gate}:{why.code}" for why in seen.reasons) or "no reason"
            raise StuckError(
                f"line {step.line}: waited {step.timeout_ms / 1000:g} s in vain for {in_words(condition)}; "
                f"the gate is {seen.gate} ({reasons}), the agent {seen.state}"
            )

    # --- doing --------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> int:
        """What the step does; when it showed."""
        rig = self._rig
        at_ms = rig.now_ms
        if step.stimulus is not None:
            at_ms = rig.apply(step.stimulus)
            self._tell("car", told(step.stimulus), at_ms)
        elif step.fault is not None:
            mend = rig.begin_fault(step.fault)
            at_ms = rig.now_ms
            self._tell("fault", told(step.fault), at_ms)
            if step.lasts_ms is not None:
                item = (at_ms + step.lasts_ms, next(self._count), told(step.fault), mend)
                heapq.heappush(self._mends, item)
        if step.mark:
            self.marks[step.mark] = at_ms
        return at_ms

    def _tell(self, who: str, what: str, at_ms: int | None = None) -> None:
        self.happened.append(Happened(at_ms=self._rig.now_ms if at_ms is None else at_ms, who=who, what=what))


def days_of(scenario: Scenario, daily: Daily) -> Iterator[Step]:
    """The steps of each such day within the scenario; a local time that a change of clocks skips is an hour later."""
    setup = scenario.setup
    info = zoneinfo.ZoneInfo(setup.time_zone)
    begin = dt.datetime.fromisoformat(setup.begins).replace(tzinfo=info)
    at = dt.time.fromisoformat(daily.local_time)
    day = begin.date()
    while True:
        moment = dt.datetime.combine(day, at, info)
        at_ms = round((moment.timestamp() - begin.timestamp()) * 1000)
        if at_ms >= scenario.length_ms:
            return
        if at_ms >= 0 and DAYS[day.weekday()] in daily.days:
            yield Step(at_ms=at_ms, stimulus=daily.stimulus)
        day += DAY


def told(what: msgspec.Struct) -> str:
    """A stimulus or a fault in a few words: its tag, and what differs from its defaults."""
    values = msgspec.to_builtins(what)
    config = what.__struct_config__
    tag = values.pop(config.tag_field)
    defaults = {field.name: field.default for field in msgspec.structs.fields(what)}
    said = [f"{key} {value}" for key, value in values.items() if value != defaults[key]]
    return " ".join([str(tag).replace("_", " "), *said])
