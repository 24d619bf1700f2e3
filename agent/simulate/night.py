"""Keeps account of a night while it is played: the gate's timeline, what stood in the way, the work, the money.

It sees steps and nothing else, so a rehearsal and the replay of a recording are counted alike. Energy and its cost are
the core's own account of its leases; what was paid is the dispatcher's.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from agent.core import signals
from agent.core.effects import EffectType, HandIn, RecordVacate, RunSlice, SettleHandIn
from agent.core.events import ComputeSeen, EventType, SignalsSeen, SliceFailed, SliceStored, WorkerGone, WorkerIdle
from agent.core.findings import GateState
from agent.core.model import JobKey
from agent.core.signals import ALIASES, LEAVES
from agent.core.state import State
from agent.explain import sentence
from agent.simulate.promises import Broken

Code = tuple[str, str]
"""A reason: its gate, and its code."""
DRIVER_GATES = frozenset({"parked", "occupied"})
OPEN_TEXT = "Nothing stands in the way."


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A time during which the gate said the same: its state, and the reason that came first."""

    from_ms: int
    to_ms: int
    state: GateState
    gate: str
    code: str
    text: str


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One reason over the whole night: how long it stood in the way, and how long nothing else did.

    Several gates may give it (a leaf that is missing, a wait): `gates` are those that did.
    """

    code: str
    gates: tuple[str, ...]
    ms: int
    alone_ms: int


class Vacate(msgspec.Struct, frozen=True, kw_only=True):
    """The computer was given back: when, why, and how long after the sign it was idle and free (ms)."""

    at_ms: int
    cause: str
    idle_ms: int
    gone_ms: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A whole night, in milliseconds from its start and in millionths of the currency."""

    start_ms: int
    end_ms: int
    spans: tuple[Span, ...]
    standing: tuple[Standing, ...]
    gate_ms: dict[GateState, int]
    computing_ms: int
    slices: int
    leases: int
    energy_micro_wh: int
    computer_micro_wh: float
    paid_micro: int
    cost_micro: float
    unsettled_slices: int
    vacates: tuple[Vacate, ...]
    highest_die_c: float | None
    lowest_charge_percent: float | None
    ever_parked: bool
    never_seen: tuple[str, ...]
    """Leaves that the gates read on this car, and of which nobody ever said a word."""
    broken: tuple[Broken, ...]


class Night:
    """Sees every step of one night."""

    def __init__(self, state: State) -> None:
        self._start_ms = self._now_ms = state.now_ms
        self._spans: list[Span] = []
        self._standing: dict[str, list[int]] = {}
        self._gates: dict[str, set[str]] = {}
        self._gate_ms: Counter[GateState] = Counter()
        self._codes: tuple[Code, ...] = ()
        self._shown: Span | None = None
        self._since_ms = state.now_ms
        self._state = state.gates.state
        self._computing_since_ms: int | None = None
        self._computing_ms = 0
        self._slices = self._leases = 0
        self._unsettled: Counter[JobKey] = Counter()
        self._energy_micro_wh = self._paid_micro = 0
        self._cost_micro = 0.0
        self._vacates: list[Vacate] = []
        self._highest_die_c: float | None = None
        self._lowest_charge: float | None = None
        self._ever_parked = False
        self._broken: list[Broken] = []

    def saw(
        self, before: State, event: EventType, after: State, effects: tuple[EffectType, ...], broken: list[Broken]
    ) -> None:
        """Count one step and what it broke."""
        self._now_ms = after.now_ms
        self._broken += broken
        self._happened(event)
        for effect in effects:
            self._ordered(effect, after.now_ms)
        if after.gates is not before.gates or self._shown is None:
            self._looked(after)

    def account(self, last: State, broken: list[Broken]) -> Account:
        """The whole night, ending with this state."""
        self._close_span(last.now_ms)
        if self._shown is not None:
            self._spans.append(msgspec.structs.replace(self._shown, to_ms=last.now_ms))
        self._computing(None, last.now_ms)
        standing = [
            Standing(code=code, gates=tuple(sorted(self._gates[code])), ms=ms, alone_ms=alone_ms)
            for code, (ms, alone_ms) in self._standing.items()
        ]
        return Account(
            start_ms=self._start_ms,
            end_ms=last.now_ms,
            spans=tuple(self._spans),
            standing=tuple(sorted(standing, key=lambda one: (-one.alone_ms, -one.ms, one.code))),
            gate_ms={state: self._gate_ms[state] for state in GateState},
            computing_ms=self._computing_ms,
            slices=self._slices,
            leases=self._leases,
            energy_micro_wh=self._energy_micro_wh,
            computer_micro_wh=last.meter.total_micro_wh,
            paid_micro=self._paid_micro,
            cost_micro=self._cost_micro,
            unsettled_slices=self._unsettled.total(),
            vacates=tuple(self._vacates),
            highest_die_c=self._highest_die_c,
            lowest_charge_percent=self._lowest_charge,
            ever_parked=self._ever_parked,
            never_seen=tuple(path for path in LEAVES if last.vehicle.reads(path) and path not in last.vehicle.known),
            broken=(*self._broken, *broken),
        )

    # --- events and effects ------------------------------------------------------------------------------------------

    def _happened(self, event: EventType) -> None:
        match event:
            case SliceStored(key=key):
                self._slices += 1
                self._unsettled[key] += 1
                self._computing(None, event.at_ms)
            case SliceFailed() | WorkerIdle() | WorkerGone():
                self._computing(None, event.at_ms)
            case ComputeSeen(die_c=float(die_c)):
                self._highest_die_c = die_c if self._highest_die_c is None else max(self._highest_die_c, die_c)
            case SignalsSeen():
                for sample in event.samples:
                    if ALIASES.get(sample.path, sample.path) == signals.CHARGE and isinstance(sample.value, float):
                        low = self._lowest_charge
                        self._lowest_charge = sample.value if low is None else min(low, sample.value)
            case _:
                pass

    def _ordered(self, effect: EffectType, now_ms: int) -> None:
        match effect:
            case RunSlice():
                self._computing(now_ms, now_ms)
            case HandIn(facts=facts):
                self._leases += 1
                self._energy_micro_wh += facts.energy_micro_wh
                self._cost_micro += facts.cost_micro
            case SettleHandIn(key=key):
                self._paid_micro += effect.paid_micro
                self._unsettled.pop(key, None)
            case RecordVacate():
                vacate = Vacate(at_ms=now_ms, cause=effect.cause, idle_ms=effect.idle_ms, gone_ms=effect.gone_ms)
                self._vacates.append(vacate)
            case _:
                pass

    def _computing(self, since_ms: int | None, now_ms: int) -> None:
        if self._computing_since_ms is not None:
            self._computing_ms += now_ms - self._computing_since_ms
        self._computing_since_ms = since_ms

    # --- the gate ----------------------------------------------------------------------------------------------------

    def _looked(self, after: State) -> None:
        """The gates took another look: note what has changed of what they say."""
        gates, now_ms = after.gates, after.now_ms
        state = gates.state
        reasons = gates.reasons if state is not GateState.OPEN else ()
        codes = tuple(dict.fromkeys((reason.gate, reason.code) for reason in reasons))
        if not self._ever_parked:
            away = [gate.state for gate in gates.gates if gate.name in DRIVER_GATES]
            self._ever_parked = GateState.CLOSED not in away
        if codes == self._codes and state is self._state and self._shown is not None:
            return
        self._close_span(now_ms)
        self._codes, self._state, self._since_ms = codes, state, now_ms
        first = codes[0] if codes else ("", "")
        shown = self._shown
        if shown is not None and (shown.state, shown.gate, shown.code) == (state, *first):
            return
        if shown is not None:
            self._spans.append(msgspec.structs.replace(shown, to_ms=now_ms))
        text = sentence(reasons[0]) if reasons else OPEN_TEXT
        self._shown = Span(from_ms=now_ms, to_ms=now_ms, state=state, gate=first[0], code=first[1], text=text)

    def _close_span(self, now_ms: int) -> None:
        span_ms = now_ms - self._since_ms
        self._since_ms = now_ms
        self._gate_ms[self._state] += span_ms
        if not span_ms:
            return
        codes = {code for _, code in self._codes}
        for gate, code in self._codes:
            self._gates.setdefault(code, set()).add(gate)
        for code in codes:
            standing = self._standing.setdefault(code, [0, 0])
            standing[0] += span_ms
            standing[1] += span_ms if len(codes) == 1 else 0
