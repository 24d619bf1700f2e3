"""The table of docs/scenarios.md: every scenario, the rigs that are able to play it, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence

from hil.rigs.registry import RIGS, rig_named
from hil.scenario.model import Scenario

HEAD = f"| scenario | {' | '.join(RIGS)} | proves | what it shows |"
RULE = f"|---|{'---|' * len(RIGS)}---|---|"


def markdown(scenarios: Sequence[Scenario]) -> str:
    """The whole table, whatever this machine has."""
    kinds = [rig_named(name) for name in RIGS]
    lines = [HEAD, RULE]
    for one in scenarios:
        marks = " | ".join("" if kind.unsuited(one) else "yes" for kind in kinds)
        lines.append(f"| `{one.name}` | {marks} | {', '.join(one.proves)} | {one.title} |")
    return "\n".join(lines) + "\n"
