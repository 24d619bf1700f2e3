"""Whether an observation shows what a condition asks for."""

from __future__ import annotations

import msgspec

from agent.explain import SENTENCES
from hil.rigs.observation import Observation
from hil.scenario.model import Condition

AT_LEAST, AT_MOST = "_at_least", "_at_most"


def holds(condition: Condition, seen: Observation) -> bool:
    """All that is given is so; a figure that nobody knows is neither at least nor at most anything."""
    return all(_holds(name, wanted, seen) for name, wanted in given(condition).items())


def given(condition: Condition) -> dict[str, object]:
    """What the condition says, by its keys."""
    values = msgspec.structs.asdict(condition)
    return {name: value for name, value in values.items() if value is not None}


def in_words(condition: Condition) -> str:
    """For people: `gate closed, reason occupied`."""
    words = []
    for name, value in given(condition).items():
        words.append(f"{name.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}")
    return ", ".join(words)


def _holds(name: str, wanted: object, seen: Observation) -> bool:
    if name == "reason":
        gate, _, code = str(wanted).partition(":")
        return any(why.gate == gate and code in {"", why.code} for why in seen.reasons)
    if name == "leased":
        return bool(seen.lease) is wanted
    if name == "explained":
        told = bool(seen.reasons) and all(why.code in SENTENCES for why in seen.reasons)
        return (seen.gate == "open" or told) is wanted
    for suffix in (AT_LEAST, AT_MOST):
        if name.endswith(suffix):
            value = getattr(seen, name.removesuffix(suffix))
            return value is not None and (value >= wanted if suffix == AT_LEAST else value <= wanted)
    return bool(getattr(seen, name) == wanted)
