"""Plays a recorded night against a policy, in virtual time and closed loop. Pure: the same night, the same answer.

The core is the one that runs in the car. It is told what the trace recorded; what it asks for is answered by
`agent.simulate.counterpart`, and its computer is `agent.simulate.computer`. Nothing waits: time goes from one moment at
which something happens to the next (a stimulus, an answer, a reading, a deadline of the core's own), so a night takes
seconds. Ticks come exactly when the core says that time alone would change something, which gives what ticking every
100 ms gives.

A computer whose car has been silent for a minute and that has nothing left to do sleeps: no readings and no ticks,
until the trace goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_never

from agent.core import signals
from agent.core.effects import EffectType
from agent.core.events import (
    ConsentSeen,
    DemandSeen,
    EventType,
    HostSeen,
    OwnerSaid,
    PricesSeen,
    SignalsSeen,
    SourceChanged,
    SourceHeard,
    Tick,
)
from agent.core.findings import GateState
from agent.core.machine import step
from agent.core.policy import Policy
from agent.core.state import State, WorkerPhase, initial
from agent.core.walltime import Zone
from agent.simulate.computer import Box, Computer
from agent.simulate.counterpart import Counterpart, Supposed
from agent.simulate.trace import ClockSet, NetworkSet, Quantity, Recorded, Stimulus, Trace

READ_MS, LEAST_READ_MS = 1_000, 50
"""The computer's sensors are read this often; more often where the policy's patience with an old reading is shorter."""
HOST_MS = 60_000
"""The host says its wall clock this often."""
CLOCK_ERROR_MS = 50
SLEEP_AFTER_MS = 60_000
FINISH_MS = 5_000
"""After the last stimulus, what is being stopped and handed in gets this long to end."""

Watcher = Callable[[State, EventType, State, tuple[EffectType, ...]], None]
"""Called after each step: before, event, after, effects."""


class Rehearsal:
    """One night against one policy. `watch` sees every step."""

    def __init__(self, trace: Trace, policy: Policy, zone: Zone, supposed: Supposed, watch: Watcher) -> None:
        self._trace, self._watch = trace, watch
        self.state = initial("rehearsal", policy, 0, vehicle=trace.vehicle, zone=zone)
        self.computer = Computer(Box(policy.power_idle_w, supposed.work_w))
        self._counterpart = Counterpart(policy, supposed, self.computer)
        self._air_recorded = False
        self._sources: dict[str, bool] = {}
        self._silent_since_ms: int | None = 0
        self._clock_error_ms, self._clock_kept = 0, True
        self._connected, self._metered = True, False
        self._read_ms: int | None = None
        self._host_ms = 0
        self.asleep_ms = 0
        """How long the computer slept."""

    def run(self, extra_tick_ms: int | None = None) -> State:
        """Play the night to its end; the last state.

        `extra_tick_ms` ticks that often besides, which changes nothing; it is how that claim is tested.
        """
        self._begin()
        stimuli = iter(self._trace.stimuli)
        coming = next(stimuli, None)
        while coming is not None:
            now_ms = coming.at_ms
            if self._may_sleep():
                self._sleep(coming.at_ms)
            else:
                now_ms = min(now_ms, self._due_ms())
                if extra_tick_ms is not None:
                    now_ms = min(now_ms, (self.state.now_ms // extra_tick_ms + 1) * extra_tick_ms)
            self._moment(now_ms)
            while coming is not None and coming.at_ms <= now_ms:
                self._stimulate(coming)
                coming = next(stimuli, None)
            self._answers(now_ms)
            if extra_tick_ms is not None:
                self._tell(Tick(at_ms=now_ms))
        self._finish()
        return self.state

    # --- time --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """What the daemon knows when it starts. The owner has agreed to the terms, until told otherwise."""
        self._tell_host(0)
        if self._trace.prices:
            first, last = self._trace.prices[0], self._trace.prices[-1]
            self._tell(
                PricesSeen(
                    at_ms=0,
                    issued_wall_ms=first.start_wall_ms,
                    expires_wall_ms=last.end_wall_ms,
                    slots=self._trace.prices,
                )
            )
        self._tell(ConsentSeen(at_ms=0, version=self.state.policy.consent_required_version))
        self._tell(self._counterpart.connect(0, connected=True))

    def _due_ms(self) -> int:
        """The next moment at which something happens by itself."""
        wakes_ms = self.state.wakes_ms if self._trace.holding else self.state.due_ms
        dues = [self._read_due_ms(), self._host_ms, max(wakes_ms, self.state.now_ms + 1)]
        answer_ms = self._counterpart.due_ms
        if answer_ms is not None:
            dues.append(answer_ms)
        return max(self.state.now_ms, min(dues))

    def _moment(self, now_ms: int) -> None:
        """Everything that happens at this moment by itself: first what repeats, so that nothing is older than it is."""
        since_ms = self.state.now_ms  # a source that holds its values has said them all the time
        heard_ms = max(since_ms, now_ms - 1)
        for source in self._trace.holding:
            if self._sources.get(source):
                self._tell(SourceHeard(at_ms=heard_ms, source=source, groups=(source,), since_ms=since_ms))
        if now_ms >= self._host_ms:
            self._tell_host(now_ms)
        if now_ms >= self._read_due_ms():
            self._read(now_ms)
        if self.state.wakes_ms <= now_ms or self.state.due_ms <= now_ms:
            self._tell(Tick(at_ms=now_ms))

    def _read_due_ms(self) -> int:
        """When the computer's sensors are read next."""
        if self._read_ms is None:
            return 0
        return self._read_ms + max(LEAST_READ_MS, min(READ_MS, self.state.policy.compute_stale_ms // 2))

    def _read(self, now_ms: int) -> None:
        self._read_ms = now_ms
        self._tell(self.computer.reading(now_ms))

    def _answers(self, now_ms: int) -> None:
        while (event := self._counterpart.answer(now_ms)) is not None:
            self._tell(event)

    def _tell_host(self, now_ms: int) -> None:
        """The wall clock; of a trace that does not tell when it was recorded, one that nobody ever set."""
        start_wall_ms = self._trace.start_wall_ms
        kept = self._clock_kept and start_wall_ms is not None
        self._host_ms = now_ms + HOST_MS
        self._tell(
            HostSeen(
                at_ms=now_ms,
                wall_ms=(start_wall_ms or 0) + now_ms + self._clock_error_ms,
                wall_error_ms=CLOCK_ERROR_MS if kept else None,
                metered=self._metered,
            )
        )

    def _tell(self, event: EventType) -> None:
        before = self.state
        self.state, effects = step(before, event)
        self._watch(before, event, self.state, effects)
        for effect in effects:
            self._counterpart.take(effect, self.state.now_ms)

    # --- the trace ---------------------------------------------------------------------------------------------------

    def _stimulate(self, stimulus: Stimulus) -> None:
        match stimulus:
            case Recorded():
                self._record(stimulus)
            case ClockSet(error_ms=error_ms, kept=kept):
                self._clock_error_ms, self._clock_kept = error_ms, kept
                self._tell_host(stimulus.at_ms)
            case NetworkSet(connected=connected, metered=metered):
                self._metered = metered
                self._tell_host(stimulus.at_ms)
                if connected != self._connected:
                    self._connected = connected
                    self._tell(self._counterpart.connect(stimulus.at_ms, connected=connected))
            case SourceChanged(source=source, alive=alive):
                self._sources[source] = alive
                if any(self._sources.values()):
                    self._silent_since_ms = None
                elif self._silent_since_ms is None:
                    self._silent_since_ms = stimulus.at_ms
                self._tell(stimulus)
            case SignalsSeen():
                self._feel(stimulus)
                self._tell(stimulus)
            case SourceHeard() | OwnerSaid() | ConsentSeen() | DemandSeen():
                self._tell(stimulus)
            case _:
                assert_never(stimulus)

    def _record(self, stimulus: Recorded) -> None:
        """A recorded quantity replaces the modelled one from its first row on, and is read at once."""
        match stimulus.quantity:
            case Quantity.AMBIENT_C:
                self._air_recorded = True
                if stimulus.value is not None:
                    self.computer.air(stimulus.value, stimulus.at_ms)
                return
            case Quantity.DIE_C:
                self.computer.record_die(stimulus.value, stimulus.at_ms)
            case Quantity.POWER_W:
                self.computer.record_power(stimulus.value, stimulus.at_ms)
            case _:
                assert_never(stimulus.quantity)
        self._read(stimulus.at_ms)

    def _feel(self, seen: SignalsSeen) -> None:
        """The computer stands in the air that the car measures, where the trace says nothing better."""
        if self._air_recorded:
            return
        for sample in map(signals.canonical, seen.samples):
            if sample.path == signals.AMBIENT and isinstance(sample.value, float):
                self.computer.air(sample.value, seen.at_ms)

    # --- sleep and the end -------------------------------------------------------------------------------------------

    def _may_sleep(self) -> bool:
        state, since_ms = self.state, self._silent_since_ms
        busy = state.lease is not None or state.worker.phase is not WorkerPhase.ABSENT
        return since_ms is not None and not busy and state.now_ms - since_ms >= SLEEP_AFTER_MS

    def _sleep(self, until_ms: int) -> None:
        self.asleep_ms += until_ms - self.state.now_ms
        self.computer.advance(until_ms, asleep=True)
        self._read_ms = None
        self._host_ms = until_ms

    def _finish(self) -> None:
        """What is being stopped is stopped, and what is finished is handed in; no new work begins for it."""
        end_ms = self.state.now_ms + FINISH_MS
        for now_ms in self._last_answers(end_ms):
            self._answers(now_ms)

    def _last_answers(self, end_ms: int) -> Iterator[int]:
        while self.state.gates.state is GateState.CLOSED:
            due_ms = self._counterpart.due_ms
            if due_ms is None or due_ms > end_ms:
                return
            yield max(due_ms, self.state.now_ms)
