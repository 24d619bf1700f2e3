"""`driveway why`: the gate that is shut, the signal, its value, its limit, when it should clear, and what to do.

Where every gate is open it goes on with what else keeps the agent idle. A daemon of an earlier version says less; what
it does not say is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.terminal import Screen, screen, span, wrap
from agent.cli.text import print_json, shown, value
from agent.cli.when import local_text, wall_s

UNITS = {"celsius": "°C", "watt": "W"}
STATE_COLOUR = {"closed": "red", "hold": "yellow", "open": "green"}
GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
GEARS = {126.0: "P", 127.0: "D", 0.0: "N", -1.0: "R", None: "-"}
INDENT = "    "
FIELD = 8
"""Columns of a field's name."""


def why(options: argparse.Namespace) -> int:
    """Print why it does not work, or work more."""
    path = socket_path(options.socket, options.config)
    reasons = ask(path, "why")
    if options.json:
        print_json(reasons)
        return exits.FINE
    status = shown(ask(path, "status"))
    on, now_s = screen(), time.time()
    print("\n".join(on.show(line) for line in explained(shown(reasons), status, on, now_s)))
    return exits.FINE


def explained(reasons: list[dict[str, Any]], status: dict[str, Any], on: Screen, now_s: float) -> Iterator[str]:
    """Everything as lines of at most the screen's columns (a long word alone is broken)."""
    causes = status.get("idle", [])
    blocking = [cause for cause in causes if cause.get("blocks", True)]
    if reasons:
        state = reasons[0]["state"]
        gates = len({reason["gate"] for reason in reasons})
        head = f"The gate is {state}: {gates} of its parts say{'s' if gates == 1 else ''} so."
        yield from _painted(wrap(head, on.columns), on, STATE_COLOUR.get(state, "yellow"))
        for reason in reasons:
            yield ""
            yield from _entry(reason["gate"], reason, on, now_s)
    else:
        yield from _painted(wrap(_open(status, blocking), on.columns), on, "green")
    if causes:
        if reasons:
            yield ""
            yield from wrap("Besides the gate:", on.columns)
        for cause in causes:
            yield ""
            yield from _entry(cause["code"].replace("_", " "), cause, on, now_s)
    elif not reasons and status.get("waiting"):
        yield from wrap(status["waiting"], on.columns)


def _open(status: dict[str, Any], blocking: list[Any]) -> str:
    """What to say where no gate is in the way."""
    lease = status.get("lease")
    if lease is not None:
        return (
            f"Nothing is in the way: the gate is open, and lease {lease['job']} epoch {lease['epoch']} is at work "
            f"({lease['slices_done']} of {lease['slices_wanted']} slices)."
        )
    if blocking or status.get("waiting"):
        return "Nothing is in the way: the gate is open. The agent has no work all the same:"
    return "Nothing is in the way: the gate is open."


def _entry(name: str, of: dict[str, Any], on: Screen, now_s: float) -> Iterator[str]:
    """One reason or cause: a sentence, and its figures as far as there are any."""
    level = of.get("state", "")
    first, *rest = wrap(f"{name}{f' ({level})' if level else ''}: {of['text']}", on.columns, "  ")
    yield on.paint(first, "bold")
    yield from (on.paint(line, "bold") for line in rest)
    if of.get("signal"):
        yield from _field("signal", of["signal"], on)
    if of.get("value") is not None or of.get("limit") is not None:
        unit = of.get("unit", "")
        said = figure(of.get("value"), unit, of.get("signal", ""))
        limit = of.get("limit")
        held = "" if limit is None else f" (limit: {figure(limit, unit, of.get('signal', ''))})"
        yield from _field("value", said + held, on)
    if of.get("since"):
        yield from _field("since", f"{local_text(of['since'])} ({ago(of['since'], now_s)})", on)
    clears = of.get("clears_at")
    expects = of.get("expects", "")
    if clears:
        when = f"at {local_text(clears)}, in {span(wall_s(clears) - now_s)}."
        expects = when if "gate" in of else f"{when} {expects}"
    if expects:
        yield from _field("clears", expects, on)
    if of.get("next_step"):
        yield from _field("do", of["next_step"], on)


def _field(name: str, text: str, on: Screen) -> Iterator[str]:
    head = f"{INDENT}{name.ljust(FIELD)}" if on.columns >= len(INDENT) * 2 + FIELD * 4 else f"  {name}: "
    lines = wrap(f"{'x' * len(head)} {text}", on.columns, " " * len(head) if len(head) > FIELD else INDENT)
    for number, line in enumerate(lines):
        yield on.paint(head, "grey") + line[len(head) + 1 :] if number == 0 else line


def _painted(lines: list[str], on: Screen, colour: str) -> Iterator[str]:
    return (on.paint(line, colour) for line in lines)


def figure(found: Any, unit: str, signal: str = "") -> str:
    """A value or a limit with its unit, as people write it."""
    if signal == GEAR and found in GEARS:
        return GEARS[found]
    if isinstance(found, float) and 0 < abs(found) < 1:
        return f"{found:.3g} {UNITS.get(unit, unit)}".rstrip()
    if isinstance(found, int | float) and not isinstance(found, bool):
        return value(float(found), UNITS.get(unit, unit))
    return value(found)


def ago(stamp: str, now_s: float) -> str:
    """How long ago that was."""
    return f"{span(now_s - wall_s(stamp))} ago"
