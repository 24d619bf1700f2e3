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
from agent.core.looks import computer, driver, energy, market, owner
from agent.core.model import YieldReason
from agent.core.policy import Policy
from agent.core.world import Due, Sight, World

EVERYTHING = frozenset(World.__struct_fields__)

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
    reads: frozenset[str]
    """The fields of the world that it looks at; as long as they stand still, so does its answer until it is due."""


def reads(*fields: str) -> frozenset[str]:
    """Fields of `World`."""
    return frozenset(fields)


RULES: dict[str, Rule] = {
    "parked": Rule(driver.parked, Timing(patient=True), YieldReason.DRIVER, reads("vehicle")),
    "occupied": Rule(driver.occupied, Timing(patient=True), YieldReason.DRIVER, reads("vehicle")),
    "shared": Rule(driver.shared, Timing(min_closed_s=30), YieldReason.DRIVER, reads("vehicle")),
    "reserve": Rule(energy.reserve, Timing(min_closed_s=60), YieldReason.ENERGY, reads("vehicle")),
    "plugged": Rule(energy.plugged, Timing(min_closed_s=30), YieldReason.ENERGY, reads("vehicle", "battery")),
    "ready_by": Rule(
        energy.ready_by,
        Timing(min_closed_s=300),
        YieldReason.ENERGY,
        reads("vehicle", "battery", "compute", "wall", "zone", "stay"),
    ),
    "pack": Rule(energy.pack, Timing(min_closed_s=300), YieldReason.ENERGY, reads("vehicle")),
    "powered": Rule(energy.powered, Timing(min_closed_s=30), YieldReason.ENERGY, reads("vehicle")),
    "low_voltage": Rule(
        energy.low_voltage, Timing(min_closed_s=60, min_hold_s=10), YieldReason.ENERGY, reads("vehicle", "battery")
    ),
    "temperature": Rule(
        computer.temperature,
        Timing(min_closed_s=10, min_hold_s=5),
        YieldReason.THERMAL,
        reads("heat", "compute", "leased", "slice_ms"),
    ),
    "ambient": Rule(computer.ambient, Timing(min_closed_s=300), YieldReason.THERMAL, reads("vehicle")),
    "owner": Rule(owner.owner, Timing(), YieldReason.OWNER, reads("vehicle", "owner", "wall", "leased")),
    "consent": Rule(owner.consent, Timing(), YieldReason.OWNER, reads("owner")),
    "schedule": Rule(market.schedule, Timing(min_closed_s=60), YieldReason.OWNER, reads("wall", "zone")),
    "tariff": Rule(
        market.tariff,
        Timing(min_closed_s=300, min_open_s=300),
        YieldReason.ENERGY,
        reads("wall", "stay", "prices", "battery", "zone"),
    ),
    "demand": Rule(
        market.demand, Timing(min_closed_s=60), YieldReason.ENERGY, reads("demand_until_ms", "demand_detail")
    ),
    "clock": Rule(market.clock, Timing(min_hold_s=60), YieldReason.OWNER, reads("wall", "prices")),
    "network": Rule(
        computer.network,
        Timing(min_hold_s=5),
        YieldReason.FAULT,
        reads("leased", "metered", "traffic", "pace", "offline_since_ms"),
    ),
    "storage": Rule(computer.storage, Timing(), YieldReason.FAULT, reads("store_problem")),
    "self_test": Rule(computer.self_test, Timing(), YieldReason.FAULT, reads("self_test_problem", "accelerator")),
    "update": Rule(
        computer.update, Timing(), YieldReason.SHUTDOWN, reads("update_pending", "update_since_ms", "leased")
    ),
    "agent": Rule(computer.agent, Timing(), YieldReason.SHUTDOWN, reads("stopping")),
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
    """All gates together, and the worst state of all; `dues` say when each must be looked at without news.

    The first of them is at `stale_ms` for age, at `look_ms` for anything else.
    """

    gates: tuple[Gate, ...]
    state: GateState
    dues: tuple[Due, ...]
    stale_ms: int = 0
    look_ms: int = 0

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it is not open, most severe first."""
        reasons = [reason for gate in self.gates for reason in gate.reasons]
        return tuple(sorted(reasons, key=lambda reason: -SEVERITY[reason.state]))

    def is_open(self, name: str) -> bool:
        """Whether the gate of this name is open."""
        return any(gate.name == name and gate.state is GateState.OPEN for gate in self.gates)

    def is_closed(self, name: str) -> bool:
        """Whether the gate of this name is shut, and not only holding back new work."""
        return any(gate.name == name and gate.state is GateState.CLOSED for gate in self.gates)

    @property
    def due_ms(self) -> int:
        """Until then, nothing changes without news."""
        return min(self.stale_ms, self.look_ms)


def shut(now_ms: int) -> Gates:
    """All gates closed, as they are before anything is known."""
    return Gates(tuple(Gate(name, GateState.CLOSED, now_ms) for name in RULES), GateState.CLOSED, (Due(),) * len(RULES))


def begin_again(gates: Gates, now_ms: int) -> Gates:
    """The gates after the car turned out to have more leaves than was known: those that read them know nothing yet.

    Without this a gate that was open for want of anything to read would count its minimum times from the first moment
    in which its leaf is known to exist and has no value yet. A gate that has found something before goes on as it is.
    """
    settled = tuple(
        gate
        if gate.tightened_ms is not None or "vehicle" not in RULES[gate.name].reads
        else Gate(gate.name, GateState.CLOSED, now_ms)
        for gate in gates.gates
    )
    return msgspec.structs.replace(gates, gates=settled, dues=(Due(),) * len(settled), stale_ms=0, look_ms=0)


def evaluate(gates: Gates, world: World, policy: Policy, changed: frozenset[str] = EVERYTHING) -> Gates:
    """The gates after another look at the world, of which these fields have changed since the last one.

    A gate is asked again only if something that it reads has changed, or if it is due. `vehicle` means that some leaf
    said something new; that leaves were only heard again keeps an open gate open, and is news to any other.
    """
    sight = Sight(world, policy)
    settled, dues = [], []
    for gate, due in zip(gates.gates, gates.dues, strict=True):
        rule = RULES[gate.name]
        quiet = changed.isdisjoint(rule.reads) and (gate.state is GateState.OPEN or "vehicle" not in rule.reads)
        if quiet and sight.now_ms < due.look_ms:
            fresh = due if sight.now_ms < due.stale_ms else due.heard(world.vehicle)
            if sight.now_ms < fresh.stale_ms:
                settled.append(gate)
                dues.append(fresh)
                continue
        sight.begin()
        after = _settle(gate, rule, sight)
        if after.state is not gate.state:
            sight.again(sight.now_ms + 1)  # from here on the other of two thresholds counts
        settled.append(after)
        dues.append(sight.due)
    worst = max((gate.state for gate in settled), key=SEVERITY.__getitem__)
    stale_ms, look_ms = min(due.stale_ms for due in dues), min(due.look_ms for due in dues)
    return Gates(tuple(settled), worst, tuple(dues), stale_ms, look_ms)


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
