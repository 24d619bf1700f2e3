"""`driveway status | signals`: what the agent does, and what the car says. Why it does not do more: `agent.cli.why`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.owner import owner_said
from agent.cli.terminal import Screen, cut, screen, span, wrap
from agent.cli.text import print_json, shown, table, value
from agent.cli.when import local_text
from agent.cli.why import figure

STATE_COLOUR = {
    "running": "green",
    "ready": "green",
    "blocked": "yellow",
    "yielding": "yellow",
    "paused": "yellow",
    "fault": "red",
}
LABEL = 10
"""Columns of the labels."""
EXACT_S = 120.0
"""Ages up to this are told with a digit after the point."""


def status(options: argparse.Namespace) -> int:
    """Print the whole status."""
    data = ask(socket_path(options.socket, options.config), "status")
    if options.json:
        print_json(data)
    else:
        on = screen()
        print("\n".join(on.show(line) for line in status_lines(shown(data), on)))
    return exits.DEGRADED if data.get("state") == "fault" or data.get("refused_packages") else exits.FINE


def signals(options: argparse.Namespace) -> int:
    """Print every signal with its age, its quality and what it must say for work."""
    path = socket_path(options.socket, options.config)
    data = ask(path, "signals")
    if options.json:
        print_json(data)
        return exits.FINE
    on = screen()
    rows = [
        (
            one["path"],
            figure(one["value"], one["unit"], one["path"]),
            one.get("wanted", "") or "-",
            "-" if one["age_ms"] is None else _age(one["age_ms"] / 1000),
            one["source"] or "-",
            one["problem"].replace("_", " ") or "good",
        )
        for one in shown(data)
    ]
    lines = table(("SIGNAL", "VALUE", "FOR WORK", "AGE", "SOURCE", "QUALITY"), rows).splitlines()
    if on.ansi and max(map(len, lines)) > on.columns:
        lines = [line for row in rows for line in _signal(row, on)]
    lines += [f"source {_source_text(source)}" for source in shown(ask(path, "status"))["sources"]]
    print("\n".join(on.show(line) for line in lines))
    return exits.FINE


def _signal(row: tuple[str, ...], on: Screen) -> list[str]:
    """A signal on a terminal that is too narrow for the table: its name, and below it what is known."""
    path, said, wanted, age, source, quality = row
    wants = "" if wanted == "-" else f", for work: {wanted}"
    lines = [f"  {said}{wants}; {age} old, {source}" if age != "-" else f"  never heard{wants}"]
    colour = "green" if quality == "good" else "yellow"
    return [
        *wrap(path, on.columns, "  "),
        *(part for line in lines for part in wrap("  " + line.strip(), on.columns, "  ")),
        f"  {on.paint(cut(quality, on.columns - 2), colour)}",
    ]


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < EXACT_S else span(seconds)


def status_lines(data: dict[str, Any], on: Screen) -> Iterator[str]:
    """The status, a fact a line; what a daemon of another version does not tell is left out."""
    for label, tell in ROWS:
        try:
            told = tell(data)
        except (KeyError, TypeError, AttributeError, ValueError):
            continue
        for text in told:
            name = label if text is told[0] else ""
            lines = wrap(f"{'x' * LABEL}{text}", on.columns, " " * LABEL if on.columns > LABEL * 4 else "  ")
            first = lines[0][LABEL:]
            if label == "state":
                first = on.paint(first, STATE_COLOUR.get(data["state"], "yellow"))
            yield on.paint(name.ljust(LABEL), "grey") + first
            yield from lines[1:]


def _state(data: dict[str, Any]) -> list[str]:
    return [f"{data['state']} (gate {data['gate']})"]


def _reasons(data: dict[str, Any]) -> list[str]:
    """The first reasons, and what else keeps it idle; `why` has the rest."""
    reasons = data["reasons"]
    lines = [f"{reason['state']} by {reason['gate']}: {reason['text']}" for reason in reasons[:3]]
    idle = [cause for cause in data.get("idle", []) if cause.get("blocks", True) and not reasons]
    lines += [cause["text"] for cause in idle[:2]]
    if not idle and data["waiting"]:
        lines.append(data["waiting"])
    if lines:
        more = f"{len(reasons) - 3} more reasons, and what to do" if len(reasons) > 3 else "What to do"
        lines.append(f"{more}: driveway why")
    return lines


def _owner(data: dict[str, Any]) -> list[str]:
    return [] if data["owner"]["mode"] == "auto" else [owner_said(data["owner"])]


def _awake(data: dict[str, Any]) -> list[str]:
    return [data["awake"]["text"]] if data["awake"]["text"] else []


def _lease(data: dict[str, Any]) -> list[str]:
    lease = data["lease"]
    if lease is None:
        return []
    done = f"{lease['slices_done']} of {lease['slices_wanted']} slices, {lease['phase']}"
    return [f"{lease['job']} epoch {lease['epoch']}: {done}"]


def _worker(data: dict[str, Any]) -> list[str]:
    worker = data["worker"]
    if worker is None:
        return []
    builds = f" ({worker['building']}, {worker['done_permille'] // 10} %)" if worker["building"] else ""
    return [f"pid {value(worker['pid'])}, {worker['phase']}, {worker['executor']} {worker['package']}{builds}"]


def _computer(data: dict[str, Any]) -> list[str]:
    computer = data["computer"]
    if computer is None:
        return []
    die, power = value(computer["die_c"], "°C"), value(computer["power_w"], "W")
    return [f"{die}, {power} of {value(data['power_cap_w'], 'W')} allowed ({computer['sensor']})"]


def _earnings(data: dict[str, Any]) -> list[str]:
    earned = data["earnings"]
    spent = f"{earned['gross']:.6f} paid, {earned['energy_cost']:.6f} for {data['energy_wh']:.3f} Wh"
    return [f"{earned['net']:.6f} {earned['currency']} net ({spent})"]


def _vacates(data: dict[str, Any]) -> list[str]:
    vacate = data["vacate"]
    if not vacate["count"]:
        return []
    times = f"p50 {vacate['p50_ms']} ms, p99 {vacate['p99_ms']} ms, max {vacate['max_ms']} ms"
    return [f"{vacate['count']}: {times}"]


def _refused(data: dict[str, Any]) -> list[str]:
    lines = [f"package {name}: {detail}" for name, detail in data["refused_packages"].items()]
    messages = {**data["refused_messages"], **data["link"].get("dropped", {})}
    if messages:
        lines.append(f"messages: {', '.join(f'{why} {count}' for why, count in messages.items())}")
    return lines


def _catalogue(data: dict[str, Any]) -> list[str]:
    return [] if data.get("catalogue") is None else [_catalogue_text(data["catalogue"])]


def _accelerator_text(accelerator: dict[str, Any]) -> str:
    """What runs the engines, or what is missing of it; and what has still to be built."""
    found = " ".join(part for part in (accelerator["executor"], accelerator["version"]) if part) or "-"
    device = f" on {accelerator['device']}" if accelerator["device"] else ""
    why = f": {accelerator['detail']}" if accelerator["detail"] else ""
    missing = accelerator["plans_missing"]
    plans = f"; plans to be built: {missing}" if missing else ""
    return f"{found}{device}, {accelerator['state']}{why}{plans}"


def _catalogue_text(catalogue: dict[str, Any]) -> str:
    """Until when it is good, and what is wrong with it or with the clock that judges it."""
    if catalogue["timestamp"] is None:
        text = "none yet: nothing may run"
    elif catalogue["expired"]:
        text = f"expired {local_text(catalogue['expires_at'])}: nothing new is taken on"
    else:
        text = f"good until {local_text(catalogue['expires_at'])}, {catalogue['packages']} packages"
    if catalogue["clock_behind_s"]:
        text += f"; this computer's clock is at least {catalogue['clock_behind_s']} s behind"
    return f"{text}; {catalogue['error']}" if catalogue["error"] else text


def _ledger_text(ledger: dict[str, Any]) -> str:
    """How long it is, and how much of it the dispatcher witnessed; or what is wrong with it."""
    if ledger["dispute"]:
        return f"IN DISPUTE: {ledger['dispute']}"
    text = f"{ledger['size']} leaves, {ledger['witnessed']} witnessed, root {ledger['root'][:16]}..."
    if ledger["unpaid_since"]:
        since = local_text(ledger["unpaid_since"])
        text += f"; hand-ins wait for the witness since {since}"
    return text


def _link_text(link: dict[str, Any]) -> str:
    """Where it is connected to, or what stands in the way."""
    if link["connected"]:
        return f"connected to {link['broker']}"
    tried = f" (attempt {link['attempts']})" if link["attempts"] > 1 else ""
    return f"down: {link['detail'] or '-'}{tried}"


def _source_text(source: dict[str, Any]) -> str:
    """Whether it is heard, and everything that was counted besides what is well."""
    counts = dict(source["counts"])
    heard = f"{counts.pop('frames')} frames" if "frames" in counts else "heard"
    odd = "".join(f", {name.replace('_', ' ')} {count}" for name, count in counts.items())
    return f"{source['name']}: {heard if source['alive'] else 'lost: ' + source['detail']}{odd}"


ROWS: tuple[tuple[str, Callable[[dict[str, Any]], list[str]]], ...] = (
    ("state", _state),
    ("", _reasons),
    ("owner", _owner),
    ("awake", _awake),
    ("lease", _lease),
    ("worker", _worker),
    ("engine", lambda data: [_accelerator_text(data["accelerator"])]),
    ("computer", _computer),
    ("source", lambda data: [_source_text(source) for source in data["sources"]]),
    ("link", lambda data: [_link_text(data["link"])]),
    ("outbox", lambda data: [f"{data['outbox']['pending']} hand-ins wait for a verdict"]),
    ("ledger", lambda data: [_ledger_text(data["ledger"])]),
    ("catalogue", _catalogue),
    ("earnings", _earnings),
    ("vacates", _vacates),
    ("refused", _refused),
    ("version", lambda data: [data["version"]]),
)
"""What is told, in this order: a label, and its lines (none: nothing to tell)."""
