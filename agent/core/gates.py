"""May we run? Every gate answers open, hold or closed, and says why. All together are as open as the least open one.

A gate tightens at the first finding against it, and loosens only after a time without one: `open_after` what its
findings need to be believed gone, and never sooner than `min_closed_s` after it last tightened. Gates that guard money
and not the car also stay open for `min_open_s`, whatever is found. So between two openings of a gate at least its
minimum times pass, whatever the input; that is what "no flapping" means here, and a property test holds it to that.
Thresholds that move (charge, temperature) come in pairs besides.

A look is taken when something changed, or when `due_ms` says that age or a wait alone would change the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agent.core.findings import SEVERITY, Finding, GateState, Reason
from agent.core.looks import computer, driver, energy, owner
from agent.core.model import YieldReason
from agent.core.policy import Policy
from agent.core.world import FAR_MS, Sight, World

Look = Callable[[Sight, bool], Iterable[Finding]]
"""A gate's look: what speaks against running; the flag says whether the gate is open now (for the two thresholds)."""


class Timing(msgspec.Struct, frozen=True):
    """A gate's minimum times, in seconds. `patient` gates open only after `parked_for_s` without a finding.

    `min_hold_s` is how long a hold lasts at least; a gate without `min_open_s` shuts at once.
    """

    min_closed_s: float = 0.0
    min_hold_s: float = 1.0
    min_open_s: float = 0.0
    patient: bool = False


class Rule(msgspec.Struct, frozen=True):
    """One gate: how it looks, its minimum times, and what a lease that it ends is given back for."""

    look: Look
    timing: Timing
    why: YieldReason


RULES: dict[str, Rule] = {
    "parked": Rule(driver.parked, Timing(patient=True), YieldReason.DRIVER),
    "occupied": Rule(driver.occupied, Timing(patient=True), YieldReason.DRIVER),
    "shared": Rule(driver.shared, Timing(min_closed_s=30), YieldReason.DRIVER),
    "plugged": Rule(energy.plugged, Timing(min_closed_s=30), YieldReason.ENERGY),
    "reserve": Rule(energy.reserve, Timing(min_closed_s=60), YieldReason.ENERGY),
    "temperature": Rule(computer.temperature, Timing(min_closed_s=10, min_hold_s=5), YieldReason.THERMAL),
    "ambient": Rule(computer.ambient, Timing(min_closed_s=300), YieldReason.THERMAL),
    "owner": Rule(owner.owner, Timing(), YieldReason.OWNER),
    "consent": Rule(owner.consent, Timing(), YieldReason.OWNER),
    "network": Rule(computer.network, Timing(min_hold_s=5), YieldReason.FAULT),
    "storage": Rule(computer.storage, Timing(), YieldReason.FAULT),
    "self_test": Rule(computer.self_test, Timing(), YieldReason.FAULT),
    "update": Rule(computer.update, Timing(), YieldReason.SHUTDOWN),
    "agent": Rule(computer.agent, Timing(), YieldReason.SHUTDOWN),
}
"""Every gate, in the order people are told about them."""


class Gate(msgspec.Struct, frozen=True):
    """One gate's present state. `better_since_ms`: since when less was found than keeps it as tight as it is."""

    name: str
    state: GateState
    since_ms: int
    better_since_ms: int | None = None
    tightened_ms: int | None = None
    reasons: tuple[Reason, ...] = ()


class Gates(msgspec.Struct, frozen=True):
    """All gates together. A new look is due at `stale_ms` for age, at `look_ms` for anything else."""

    gates: tuple[Gate, ...]
    stale_ms: int = 0
    look_ms: int = 0

    @property
    def state(self) -> GateState:
        """The worst state of all."""
        return max((gate.state for gate in self.gates), key=SEVERITY.__getitem__)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not open, most severe first."""
        reasons = [reason for gate in self.gates for reason in gate.reasons]
        return tuple(sorted(reasons, key=lambda reason: -SEVERITY[reason.state]))

    @property
    def due_ms(self) -> int:
        """Until then, nothing changes without news."""
        return min(self.stale_ms, self.look_ms)


def shut(now_ms: int) -> Gates:
    """All gates closed, as they are before anything is known."""
    return Gates(tuple(Gate(name, GateState.CLOSED, now_ms) for name in RULES))


def evaluate(gates: Gates, world: World, policy: Policy) -> Gates:
    """The gates after another look at the world."""
    sight = Sight(world, policy)
    settled = tuple(_settle(gate, RULES[gate.name], sight) for gate in gates.gates)
    return Gates(settled, min(sight.stale_ms, FAR_MS), min(sight.look_ms, FAR_MS))


def _settle(gate: Gate, rule: Rule, sight: Sight) -> Gate:
    """The gate after a look: tightened at once, loosened when its times allow."""
    now_ms = sight.now_ms
    findings = tuple(rule.look(sight, gate.state is GateState.OPEN))
    if not findings and gate.state is GateState.OPEN:
        return gate
    found = max((finding.state for finding in findings), key=SEVERITY.__getitem__, default=GateState.OPEN)
    if SEVERITY[found] > SEVERITY[gate.state]:
        shuts_ms = gate.since_ms + round(rule.timing.min_open_s * 1000)
        if gate.state is GateState.OPEN and now_ms < shuts_ms:
            sight.again(shuts_ms)
            return gate
        return Gate(gate.name, found, now_ms, None, now_ms, _reasons(gate, findings, now_ms))
    if found is gate.state:
        return Gate(gate.name, found, gate.since_ms, None, gate.tightened_ms, _reasons(gate, findings, now_ms))
    better_since_ms = now_ms if gate.better_since_ms is None else gate.better_since_ms
    loosens_ms = _loosens_ms(gate, rule.timing, better_since_ms, sight.policy)
    if now_ms >= loosens_ms:
        return Gate(gate.name, found, now_ms, None, gate.tightened_ms, _reasons(gate, findings, now_ms))
    sight.again(loosens_ms)
    waits = _waiting(gate, rule.timing, better_since_ms, loosens_ms, now_ms)
    reasons = _reasons(gate, (waits, *findings), now_ms)
    return Gate(gate.name, gate.state, gate.since_ms, better_since_ms, gate.tightened_ms, reasons)


def _loosens_ms(gate: Gate, timing: Timing, better_since_ms: int, policy: Policy) -> int:
    """When the gate may loosen, if nothing more is found until then."""
    least_s = timing.min_closed_s if gate.state is GateState.CLOSED else timing.min_hold_s
    earliest_ms = 0 if gate.tightened_ms is None else gate.tightened_ms + round(least_s * 1000)
    patience_s = policy.parked_for_s if timing.patient and gate.state is GateState.CLOSED else 0.0
    return max(earliest_ms, better_since_ms + round(patience_s * 1000))


def _waiting(gate: Gate, timing: Timing, better_since_ms: int, loosens_ms: int, now_ms: int) -> Finding:
    """The reason of a gate that waits to loosen; its limit does not change while it waits, so it stays one reason."""
    code = f"{gate.name}_not_long_enough" if timing.patient else "settling"
    waited_s, wait_s = (now_ms - better_since_ms) / 1000, (loosens_ms - better_since_ms) / 1000
    return Finding(code, gate.name, waited_s, wait_s, "s", gate.state, loosens_ms)


def _reasons(gate: Gate, findings: tuple[Finding, ...], now_ms: int) -> tuple[Reason, ...]:
    since = {(reason.code, reason.signal): reason.since_ms for reason in gate.reasons}
    return tuple(
        Reason(
            code=finding.code,
            gate=gate.name,
            state=finding.state,
            signal=finding.signal,
            value=finding.value,
            limit=finding.limit,
            unit=finding.unit,
            since_ms=since.get((finding.code, finding.signal), now_ms),
            clears_at_ms=finding.clears_at_ms,
        )
        for finding in findings
    )
