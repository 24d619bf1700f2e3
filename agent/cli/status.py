"""`driveway status | why | signals`: what the agent does, and why it does not do more."""

from __future__ import annotations

import argparse
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.owner import owner_said
from agent.cli.text import paint, print_json, shown, table, value
from agent.cli.when import local_text

STATE_COLOUR = {
    "running": "green",
    "ready": "green",
    "blocked": "yellow",
    "yielding": "yellow",
    "paused": "yellow",
    "fault": "red",
}


GEAR = "Vehicle.Powertrain.Transmission.SelectedGear"
GEARS = {126.0: "P", 127.0: "D", 0.0: "N", -1.0: "R", None: "-"}


def status(options: argparse.Namespace) -> int:
    """Print the whole status."""
    data = ask(socket_path(options.socket, options.config), "status")
    if options.json:
        print_json(data)
    else:
        print(_status_text(shown(data)))
    return exits.DEGRADED if data["state"] == "fault" or data["refused_packages"] else exits.FINE


def why(options: argparse.Namespace) -> int:
    """Print why the gate is not open."""
    path = socket_path(options.socket, options.config)
    reasons = ask(path, "why")
    if options.json:
        print_json(reasons)
        return exits.FINE
    for reason in shown(reasons):
        print(_reason_text(reason))
    if not reasons:
        print(f"Nothing is in the way: the gate is open. {shown(ask(path, 'status')['waiting'])}".rstrip())
    return exits.FINE


def signals(options: argparse.Namespace) -> int:
    """Print every signal with its age and quality."""
    data = ask(socket_path(options.socket, options.config), "signals")
    if options.json:
        print_json(data)
        return exits.FINE
    rows = [
        (
            one["path"],
            GEARS.get(one["value"], "") if one["path"] == GEAR else value(one["value"], one["unit"]),
            "-" if one["age_ms"] is None else f"{one['age_ms'] / 1000:.1f} s",
            one["source"] or "-",
            one["problem"] or "good",
        )
        for one in data
    ]
    print(table(("SIGNAL", "VALUE", "AGE", "SOURCE", "QUALITY"), rows))
    for source in ask(socket_path(options.socket, options.config), "status")["sources"]:
        print(_source_text(shown(source)))
    return exits.FINE


def _reason_text(reason: dict[str, Any]) -> str:
    clears = "" if reason["clears_at"] is None else f" It should clear at {local_text(reason['clears_at'])}."
    mark = paint(reason["state"], "red" if reason["state"] == "closed" else "yellow")
    return f"{mark:<6} {reason['gate']}: {reason['text']} Since {local_text(reason['since'])}.{clears}"


def _status_text(data: dict[str, Any]) -> str:
    lines = [
        f"state     {paint(data['state'], STATE_COLOUR[data['state']])} (gate {data['gate']})",
        *[f"          {_reason_text(reason)}" for reason in data["reasons"][:3]],
    ]
    if data["waiting"]:
        lines.append(f"          {data['waiting']}")
    if len(data["reasons"]) > 3:
        lines.append(f"          and {len(data['reasons']) - 3} more: driveway why")
    if data["owner"]["mode"] != "auto":
        lines.append(f"owner     {owner_said(data['owner'])}")
    if data["awake"]["text"]:
        lines.append(f"awake     {data['awake']['text']}")
    lease, worker, computer, vacate = data["lease"], data["worker"], data["computer"], data["vacate"]
    if lease is not None:
        lines.append(
            f"lease     {lease['job']} epoch {lease['epoch']}: "
            f"{lease['slices_done']} of {lease['slices_wanted']} slices, {lease['phase']}"
        )
    if worker is not None:
        builds = f" ({worker['building']}, {worker['done_permille'] // 10} %)" if worker["building"] else ""
        lines.append(
            f"worker    pid {value(worker['pid'])}, {worker['phase']}, {worker['executor']} {worker['package']}{builds}"
        )
    lines.append(f"engine    {_accelerator_text(data['accelerator'])}")
    if computer is not None:
        lines.append(
            f"computer  {value(computer['die_c'], '°C')}, {value(computer['power_w'], 'W')} of {data['power_cap_w']} W "
            f"allowed ({computer['sensor']})"
        )
    lines += [f"source    {_source_text(source)}" for source in data["sources"]]
    link = data["link"]
    lines.append(f"link      {_link_text(link)}")
    lines.append(f"outbox    {data['outbox']['pending']} hand-ins wait for a verdict")
    lines += _trust_lines(data)
    earned = data["earnings"]
    lines.append(
        f"earnings  {earned['net']:.6f} {earned['currency']} net ({earned['gross']:.6f} paid, "
        f"{earned['energy_cost']:.6f} for {data['energy_wh']:.3f} Wh)"
    )
    if vacate["count"]:
        times = f"p50 {vacate['p50_ms']} ms, p99 {vacate['p99_ms']} ms, max {vacate['max_ms']} ms"
        lines.append(f"vacates   {vacate['count']}: {times}")
    lines += [f"refused   package {name}: {detail}" for name, detail in data["refused_packages"].items()]
    messages = {**data["refused_messages"], **link["dropped"]}
    if messages:
        lines.append(f"refused   messages: {', '.join(f'{why} {count}' for why, count in messages.items())}")
    return "\n".join(lines)


def _accelerator_text(accelerator: dict[str, Any]) -> str:
    """What runs the engines, or what is missing of it; and what has still to be built."""
    found = " ".join(part for part in (accelerator["executor"], accelerator["version"]) if part) or "-"
    device = f" on {accelerator['device']}" if accelerator["device"] else ""
    why = f": {accelerator['detail']}" if accelerator["detail"] else ""
    missing = accelerator["plans_missing"]
    plans = f"; plans to be built: {missing}" if missing else ""
    return f"{found}{device}, {accelerator['state']}{why}{plans}"


def _trust_lines(data: dict[str, Any]) -> list[str]:
    """What was done, and what may be done."""
    lines = [f"ledger    {_ledger_text(data['ledger'])}"]
    if data["catalogue"] is not None:
        lines.append(f"catalogue {_catalogue_text(data['catalogue'])}")
    return lines


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
        return f"{paint('in dispute', 'red')}: {ledger['dispute']}"
    text = f"{ledger['size']} leaves, {ledger['witnessed']} witnessed, root {ledger['root'][:16]}…"
    if ledger["unpaid_since"]:
        since = local_text(ledger["unpaid_since"])
        text += f"; {paint('hand-ins wait for the witness', 'yellow')} since {since}"
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
