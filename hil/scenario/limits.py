"""Limits of time that follow from the policy: a sum of what must pass, so that a changed policy moves the limit. Pure.

    within = "gate.pack + work"   the gate's own waiting time, then what it takes until something computes
    within = "policy.keep_warm_s + 2 s"

A term is one of four: `gate.NAME` (so long the gate stays shut after the last finding against it: its minimum time, or
`parked_for_s` for a patient one, whichever is longer), `policy.KEY` (a time of the policy, its unit in its name),
`work` (an open gate until something computes: an answer to a question for work, and a worker that starts), or a number
with its unit (`500 ms`, `2 s`, `3 min`, `1 h`).
"""

from __future__ import annotations

import re

from agent.core.gates import RULES
from agent.core.policy import Policy

UNIT_MS = {"ms": 1, "s": 1_000, "min": 60_000, "minutes": 60_000, "h": 3_600_000}
PLAIN = re.compile(r"(\d+(?:\.\d+)?) (ms|s|min|h)")


def sum_ms(text: str, policy: Policy) -> int:
    """The sum in milliseconds. Raises ValueError with the term that is not understood."""
    return sum(_term_ms(term.strip(), policy) for term in text.split("+"))


def _term_ms(term: str, policy: Policy) -> int:
    if plain := PLAIN.fullmatch(term):
        return round(float(plain[1]) * UNIT_MS[plain[2]])
    if term == "work":
        return policy.request_timeout_ms + policy.worker_start_timeout_ms
    kind, _, name = term.partition(".")
    if kind == "gate":
        return _shut_ms(name, policy)
    if kind == "policy":
        return _policy_ms(name, policy)
    raise ValueError(f"{term!r} is no time: gate.NAME, policy.KEY, work, or a number with its unit (2 s)")


def _shut_ms(gate: str, policy: Policy) -> int:
    if gate not in RULES:
        raise ValueError(f"no gate is called {gate!r}: {', '.join(RULES)}")
    timing = RULES[gate].timing
    patience_s = policy.parked_for_s if timing.patient else 0.0
    return round(max(timing.min_closed_s, timing.min_hold_s, patience_s) * 1_000)


def _policy_ms(key: str, policy: Policy) -> int:
    unit = key.rpartition("_")[2]
    value = getattr(policy, key, None)
    if unit not in UNIT_MS or isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the policy has no time {key!r}")
    return round(value * UNIT_MS[unit])
