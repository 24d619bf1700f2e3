"""One night to one report: plays a trace against a policy, or a recording again, and watches the promises meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from agent.core.effects import EffectType
from agent.core.events import EventType
from agent.core.policy import Policy
from agent.core.state import State
from agent.core.walltime import Zone
from agent.simulate import recording
from agent.simulate.counterpart import Supposed
from agent.simulate.night import Night
from agent.simulate.promises import Broken, Truth, Watch
from agent.simulate.recording import Line, Recording
from agent.simulate.rehearsal import Rehearsal
from agent.simulate.report import Heading, Report, make_report
from agent.simulate.trace import Trace


def rehearse(trace: Trace, policy: Policy, policy_name: str, zone: Zone, supposed: Supposed) -> Report:
    """Play a trace in closed loop. Raises TraceError where the trace turns out to be none while it is read."""
    promises = Watch(policy)

    def watch(before: State, event: EventType, after: State, effects: tuple[EffectType, ...]) -> None:
        # What was recorded is not of this policy's making, so it cannot break this policy's promise.
        die_c = None if computer.records_die or computer.records_power else computer.die_c
        broken = promises.saw(before, event, after, effects, Truth(after.now_ms, die_c=die_c))
        night.saw(before, event, after, effects, broken)

    rehearsal = Rehearsal(trace, policy, zone, supposed, watch)
    computer = rehearsal.computer
    night = Night(rehearsal.state)
    last = rehearsal.run()
    measured = [
        name for name, told in (("temperature", computer.records_die), ("power", computer.records_power)) if told
    ]
    remarks = list(trace.remarks)
    if measured:
        remarks.append(f"The computer's {' and '.join(measured)}: as recorded, whatever the work here.")
    if trace.start_wall_ms is None:
        remarks.append(
            "The trace does not tell when it was, so prices and departures are read pessimistically: --start."
        )
    heading = Heading(
        trace=trace.name,
        kind=trace.kind,
        policy=policy_name,
        currency=policy.currency,
        zone=zone,
        start_wall_ms=trace.start_wall_ms,
        asleep_ms=rehearsal.asleep_ms,
        supposed=supposed,
        remarks=tuple(remarks),
    )
    return make_report(heading, night.account(last, promises.finish(last)))


def replay(recorded: Recording, name: str) -> Report:
    """Play a recording again, open loop: the same events under the policy they were recorded with."""
    night = Night(recorded.header.begin())
    told = 0

    def follow(
        before: State, line: Line, after: State, effects: tuple[EffectType, ...], broken: Sequence[Broken]
    ) -> None:
        nonlocal told
        told += len(broken)
        night.saw(before, line.event, after, effects, list(broken))

    outcome = recording.replay(recorded, follow)
    last = outcome.state
    remarks = [recorded.header.note] if recorded.header.note else []
    if outcome.differs:
        remarks.append(
            f"This version decides otherwise than the one that recorded it: {len(outcome.differs)} of {outcome.events} "
            f"steps ask for something else, the first at line {outcome.differs[0]}."
        )
    heading = Heading(
        trace=name,
        kind="recording",
        policy="the policy it was recorded with",
        currency=last.policy.currency,
        zone=recorded.header.zone,
        start_wall_ms=None if last.wall.problem else last.wall.offset_ms,
        remarks=tuple(remarks),
    )
    return make_report(heading, night.account(last, list(outcome.broken[told:])))
