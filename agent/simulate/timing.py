"""No flapping, every stop has a reason, every reason clears: what the gates say, held against their own rules.

The minimum times are checked on the changes of state alone, and written down here a second time (docs/policy.md tells
them): a watch that took them from the gates would believe whatever they are changed to. Where a gate has two
thresholds, `agent.simulate.limits` checks besides that nothing starts again between the two.
"""

from __future__ import annotations

import msgspec

from agent.core.effects import StopWorker
from agent.core.findings import SEVERITY, GateState, Reason
from agent.core.gates import Gate
from agent.core.policy import Policy
from agent.core.state import State
from agent.simulate.truth import Broken, Promise
from agent.simulate.work import Work

CLEARS_SLACK_MS = 10_000
"""A reason that said when it clears is gone, or says another time, so soon after (a word of the host every few seconds
may be what it waits for). It counts from the first look after that time: a computer that slept was not looking."""
GOOD_FOR_MS = 1_800_000
"""A world that has been good for half an hour lets the computer work: the longest minimum time of a gate is shorter."""


class Times(msgspec.Struct, frozen=True):
    """How long a gate stays closed, held and open at least, in seconds; `patient`: closed for `parked_for_s` too."""

    closed_s: float = 0.0
    held_s: float = 1.0
    open_s: float = 0.0
    patient: bool = False


TIMES = {
    "parked": Times(patient=True),
    "occupied": Times(patient=True),
    "shared": Times(closed_s=30),
    "reserve": Times(closed_s=60),
    "plugged": Times(closed_s=30),
    "ready_by": Times(closed_s=300),
    "pack": Times(closed_s=300),
    "powered": Times(closed_s=30),
    "low_voltage": Times(closed_s=60, held_s=10),
    "temperature": Times(closed_s=10, held_s=5),
    "ambient": Times(closed_s=300),
    "owner": Times(),
    "consent": Times(),
    "schedule": Times(closed_s=60),
    "tariff": Times(closed_s=300, open_s=300),
    "demand": Times(closed_s=60),
    "clock": Times(held_s=60),
    "network": Times(held_s=5),
    "storage": Times(),
    "self_test": Times(),
    "update": Times(),
    "agent": Times(),
}
"""Every gate's minimum times."""


class Change:
    """When a gate last tightened and last opened, by its states alone."""

    __slots__ = ("opened_ms", "tightened_ms")

    def __init__(self) -> None:
        self.tightened_ms: int | None = None
        self.opened_ms: int | None = None


class Timekeeper:
    """Watches the gates' states and reasons."""

    def __init__(self, policy: Policy) -> None:
        self._parked_ms = round(policy.parked_for_s * 1000)
        self._changes = {name: Change() for name in TIMES}
        self._good_since_ms: int | None = None
        self._good_told = False
        self._overdue: dict[tuple[str, str], int] = {}

    def saw(self, before: State, after: State, work: Work, broken: list[Broken], *, good: bool | None) -> None:
        """Check one step."""
        now_ms = after.now_ms
        if after.gates is not before.gates:
            for was, gate in zip(before.gates.gates, after.gates.gates, strict=True):
                if gate is not was:
                    self._check_gate(was, gate, now_ms, broken)
        if after.gates.state is GateState.CLOSED and work.running:
            broken.append(Broken(Promise.VACATES, now_ms, "the gate is closed and the worker was not told to stop"))
        if work.stop is not None:
            self._check_stop(work.stop, now_ms, broken)
        if good is not None:
            self._check_good(after, broken, good=good)

    def _check_gate(self, was: Gate, gate: Gate, now_ms: int, broken: list[Broken]) -> None:
        if gate.state is not was.state:
            self._check_change(was, gate, now_ms, broken)
        if gate.state is GateState.OPEN:
            return
        if not any(reason.state is gate.state and reason.code for reason in gate.reasons):
            broken.append(Broken(Promise.REASON, now_ms, f"{gate.name} is {gate.state} and no reason says why"))
        for reason in gate.reasons:
            if not (reason.signal and reason.gate == gate.name and reason.since_ms <= now_ms):
                broken.append(
                    Broken(Promise.REASON, now_ms, f"{gate.name}: {reason.code} does not say what it is about")
                )
            if reason.clears_at_ms is not None:
                self._check_clears(reason, now_ms, broken)

    def _check_clears(self, reason: Reason, now_ms: int, broken: list[Broken]) -> None:
        which = (reason.gate, reason.code)
        if reason.clears_at_ms is None or now_ms <= reason.clears_at_ms:
            self._overdue.pop(which, None)
            return
        first_ms = self._overdue.setdefault(which, now_ms)
        if now_ms - first_ms > CLEARS_SLACK_MS:
            self._overdue[which] = now_ms + GOOD_FOR_MS  # told; once more if it stays for long
            late_ms = now_ms - reason.clears_at_ms
            broken.append(Broken(Promise.CLEARS, now_ms, f"{reason.code}: should have cleared {late_ms} ms ago"))

    def _check_change(self, was: Gate, gate: Gate, now_ms: int, broken: list[Broken]) -> None:
        times, change = TIMES[gate.name], self._changes[gate.name]
        if SEVERITY[gate.state] > SEVERITY[was.state]:
            since_ms, least_s = change.opened_ms, times.open_s
            change.tightened_ms = now_ms
        else:
            since_ms, least_s = change.tightened_ms, self._least_s(was.state, times)
        if gate.state is GateState.OPEN:
            change.opened_ms = now_ms
        if since_ms is not None and was.state is not gate.state and now_ms - since_ms < round(least_s * 1000):
            detail = f"{gate.name} was {was.state} for {now_ms - since_ms} ms, not {least_s} s"
            broken.append(Broken(Promise.FLAPPING, now_ms, detail))

    def _least_s(self, state: GateState, times: Times) -> float:
        if state is GateState.HOLD:
            return times.held_s
        return max(times.closed_s, self._parked_ms / 1000 if times.patient else 0.0)

    def _check_stop(self, stop: StopWorker, now_ms: int, broken: list[Broken]) -> None:
        if not stop.why:
            broken.append(Broken(Promise.REASON, now_ms, "the worker is stopped and nobody says why"))

    def _check_good(self, after: State, broken: list[Broken], *, good: bool) -> None:
        """Once nothing speaks against it for long enough, it works."""
        now_ms = after.now_ms
        if not good:
            self._good_since_ms, self._good_told = None, False
            return
        if self._good_since_ms is None:
            self._good_since_ms = now_ms
        if now_ms - self._good_since_ms < GOOD_FOR_MS or self._good_told:
            return
        if after.gates.state is not GateState.OPEN:
            self._good_told = True
            codes = ", ".join(f"{reason.gate}:{reason.code}" for reason in after.gates.reasons)
            broken.append(Broken(Promise.CLEARS, now_ms, f"{codes or 'no reason'}: half an hour after all was well"))
