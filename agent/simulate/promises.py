"""The promises, checked after every event: a second opinion on a night, kept apart from the code that it judges.

`Watch` sees each step from outside: what the core was told, what it asked for, and what is true. It keeps its own books
(who may be in the car, what the worker does, what is owed) and compares; it never asks a gate why it is open. What is
broken comes back at once, with the time and the figures, so that a simulation can stop there and a person can look.

The limits are the policy's; 100 ms for a vacate is the design's.
"""

from __future__ import annotations

from agent.core.effects import EffectType
from agent.core.events import EventType, SourceHeard
from agent.core.policy import Policy
from agent.core.state import State
from agent.simulate.books import Books
from agent.simulate.limits import Limits
from agent.simulate.presence import Presence
from agent.simulate.timing import Timekeeper
from agent.simulate.truth import Broken, Promise, Truth
from agent.simulate.wishes import Wishes
from agent.simulate.work import Work

__all__ = ["PROMISES", "Broken", "Promise", "Truth", "Watch"]

PROMISES: tuple[str, ...] = tuple(promise.value for promise in Promise)
VACATE_MS = 100
"""From the sign to no more work running."""


class Watch:
    """Watches one car from its first event on."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._work = Work()
        self._limits = Limits(policy)
        self._timekeeper = Timekeeper(policy)
        self._presence: Presence | None = None
        self._books: Books | None = None
        self._sign_ms: int | None = None
        self._late = False
        self._wishes = Wishes(policy)
        self._over = False

    def saw(
        self, before: State, event: EventType, after: State, effects: tuple[EffectType, ...], truth: Truth | None = None
    ) -> list[Broken]:
        """What this step broke: `event` took `before` to `after` and asked for `effects`."""
        if self._presence is None or self._books is None:
            self._presence = Presence(self._policy, before.vehicle, before.now_ms)
            self._books = Books(before)
            self._wishes.begin(before.owner)
        self._presence.happened(event)
        if isinstance(event, SourceHeard) and not effects:
            return []
        now_ms, work = after.now_ms, self._work
        truth = Truth(now_ms) if truth is None else truth
        broken: list[Broken] = []
        self._limits.happened(event, work)
        work.happened(event)
        work.ordered(effects, now_ms)
        self._books.saw(event, after, effects, work, broken)
        self._check_people(self._presence.sign(now_ms), truth, now_ms, broken)
        self._check_budget(now_ms, broken)
        why = self._wishes.against(event, now_ms)
        if why and (work.running or work.started):
            broken.append(Broken(Promise.ASKED, now_ms, f"at work although {why}"))
        self._limits.saw(truth, now_ms, work, broken)
        self._timekeeper.saw(before, after, work, broken, good=truth.good)
        return broken

    def finish(self, state: State) -> list[Broken]:
        """What is broken at the end of a night: an order to stop that was never carried out."""
        broken: list[Broken] = []
        self._check_budget(state.now_ms, broken)
        return broken

    def _check_people(self, sign: str, truth: Truth, now_ms: int, broken: list[Broken]) -> None:
        work = self._work
        if truth.person and not sign:
            sign = "somebody is there"
        if not sign:
            self._sign_ms, self._late = None, False
            return
        if work.started:
            broken.append(Broken(Promise.NOBODY_THERE, now_ms, f"{type(work.started[0]).__name__} begins: {sign}"))
        if not work.running:
            self._sign_ms = None
            return
        if self._sign_ms is None:
            self._sign_ms = now_ms
            broken.append(Broken(Promise.VACATES, now_ms, f"no StopWorker in the step of the sign: {sign}"))
        elif now_ms - self._sign_ms > VACATE_MS and work.computing and not self._late:
            self._late = True
            detail = f"at work {now_ms - self._sign_ms} ms after the sign: {sign}"
            broken.append(Broken(Promise.NOBODY_THERE, now_ms, detail))

    def _check_budget(self, now_ms: int, broken: list[Broken]) -> None:
        work = self._work
        if work.stop is not None and work.stop.budget_ms > self._policy.vacate_budget_ms:
            broken.append(Broken(Promise.VACATES, now_ms, f"a budget of {work.stop.budget_ms} ms"))
        over = work.stopped_ms is not None and work.computing and now_ms - work.stopped_ms > VACATE_MS
        if over and not self._over and work.stopped_ms is not None:
            broken.append(Broken(Promise.VACATES, now_ms, f"at work {now_ms - work.stopped_ms} ms after the order"))
        self._over = over
