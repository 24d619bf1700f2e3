"""What a supervisor (systemd) hears of the daemon: that it can decide, what it decided, that it lives, that it ends.

* READY when it really can decide: the store is open and the control socket listens (nothing ticks before), the first
  self-test is over, and a tick has come on time. A self-test that failed is no reason to be silent: the gate is shut
  then, and the daemon is there to say why. Whether a release is good is for `driveway doctor` to judge.
* STATUS is the gate in words, when it has become another, and not more often than once a second.
* WATCHDOG is fed from the decision loop's own ticks and from nowhere else, and only by a tick that was on time: it
  came when it was set for and was decided quickly. A loop that is stuck, or always late, starves it, and systemd starts
  the daemon anew. A worker that is busy, hangs or is killed has no part in it.
* STOPPING on the way out.

Ticks come at least once a second (`agent.ticker`), so a watchdog of two seconds can be fed; one that is shorter is told
of in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from agent import sd
from agent.core.findings import GateState
from agent.core.state import State
from agent.explain import sentence
from agent.log import logger
from agent.selftest import NOT_YET
from agent.ticker import LONGEST_MS
from agent.view import activity

SHORTEST_WATCHDOG_S = 2 * LONGEST_MS / 1000
STATUS_EVERY_S = 1.0
LATE_SHARE = 1 / 20
"""A tick is late beyond this share of the watchdog's time: half a second of ten. It grows with the time that a slow
computer is given, and is far more than a promise of 100 ms leaves: a loop that is that late breaks the promise."""
FED_SHARE = 1 / 4
"""Fed so often at most: systemd asks for half the time, and a tick may be a second away."""


class Feeding(msgspec.Struct, frozen=True):
    """When the watchdog is fed. Pure; seconds of any clock that only runs forward."""

    watchdog_s: float
    fed_s: float | None = None

    def is_due(self, now_s: float, late_s: float) -> bool:
        """Whether a tick at `now_s` that was `late_s` late in coming and being decided feeds it."""
        if late_s > self.watchdog_s * LATE_SHARE:
            return False
        return self.fed_s is None or now_s - self.fed_s >= self.watchdog_s * FED_SHARE

    def fed(self, now_s: float) -> Feeding:
        """It was."""
        return Feeding(self.watchdog_s, now_s)


class Supervision:
    """Tells the supervisor. Use on the event loop's thread; nothing here waits or raises."""

    def __init__(self, notifier: sd.Notifier, watchdog_s: float | None, state: Callable[[], State]) -> None:
        self._notifier, self._state = notifier, state
        self._feeding = None if watchdog_s is None else Feeding(watchdog_s)
        self._is_ready = False
        self._told: tuple[str, ...] = ()
        self._told_s = float("-inf")
        if watchdog_s is not None and watchdog_s < SHORTEST_WATCHDOG_S:
            logger().warning("watchdog_too_short", watchdog_s=watchdog_s, shortest_s=SHORTEST_WATCHDOG_S)

    @classmethod
    def of_this_process(cls, state: Callable[[], State]) -> Supervision:
        """As the environment says; without systemd all of it goes nowhere."""
        return cls(sd.Notifier.of(os.environ), sd.watchdog_s(os.environ, os.getpid()), state)

    def ticked(self, now_s: float, late_s: float) -> None:
        """A tick was decided, and that was `late_s` after it should have come."""
        if not self._notifier.is_heard:
            return
        state = self._state()
        feeding = self._feeding
        on_time = feeding is None or late_s <= feeding.watchdog_s * LATE_SHARE
        if not self._is_ready and on_time and state.self_test_problem != NOT_YET:
            self._is_ready = self._notifier.ready()
        if feeding is not None and feeding.is_due(now_s, late_s) and self._notifier.alive():
            self._feeding = feeding.fed(now_s)
        if now_s - self._told_s >= STATUS_EVERY_S:
            self._tell(state, now_s)

    def stopping(self) -> None:
        """The daemon ends."""
        self._notifier.stopping()

    def close(self) -> None:
        """Nothing more is said."""
        self._notifier.close()

    def _tell(self, state: State, now_s: float) -> None:
        """The gate in words, where it has become another: a value that moves below the same limit is none."""
        doing, first = activity(state), next(iter(state.gates.reasons), None)
        key = (doing,) if first is None else (doing, first.gate, first.code)
        if key == self._told:
            return
        if first is not None:
            text = f"{doing}: {first.gate}: {sentence(first)}"
        else:
            text = f"{doing}: the gate is {'open' if state.gates.state is GateState.OPEN else 'not asked yet'}"
        if self._notifier.status(text):
            self._told, self._told_s = key, now_s
