"""What a gate says: its state, and why, in a form that a person and a program can read.

A finding is what one look shows; a reason is a finding with its history: since when it stands, and when it should
clear, where that can be known.
"""

from __future__ import annotations

import enum

import msgspec

from agent.core.events import SignalValue


class GateState(enum.StrEnum):
    """What a gate lets through, from everything to nothing. `hold` starts no new slice and keeps the worker warm."""

    OPEN = "open"
    HOLD = "hold"
    CLOSED = "closed"


SEVERITY = {GateState.OPEN: 0, GateState.HOLD: 1, GateState.CLOSED: 2}


class Finding(msgspec.Struct, frozen=True):
    """One thing that speaks against running, as seen now; `clears_at_ms` where that can be known."""

    code: str
    signal: str
    value: SignalValue | None
    limit: SignalValue | None
    unit: str = ""
    state: GateState = GateState.CLOSED
    clears_at_ms: int | None = None


class Reason(msgspec.Struct, frozen=True):
    """Why a gate is not open: the signal, its value, its limit, since when, and when it should clear if known."""

    code: str
    gate: str
    state: GateState
    signal: str
    value: SignalValue | None
    limit: SignalValue | None
    unit: str
    since_ms: int
    clears_at_ms: int | None = None
