"""`driveway pause | resume | finish | consent | owner`: the owner's word, and what it comes to.

Each prints what holds after it, in local time. What is said stays said over restarts and reboots.
"""

from __future__ import annotations

import argparse
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.text import print_json
from agent.cli.when import local_text, window_text


def pause(options: argparse.Namespace) -> int:
    """Stop working: until a time, for a while, or until resumed."""
    ends = {}
    if options.until is not None:
        ends["until_wall_ms"] = options.until
    if options.lasts is not None:
        ends["for_ms"] = options.lasts
    data = _ask(options, "pause", pause=ends)
    if data is not None:
        print(f"P{owner_said(data)[1:]}.")
        if options.until is not None and data["clock_problem"]:
            print("Nobody keeps this computer's clock: that is the time as it has it now.")
    return exits.FINE


def resume(options: argparse.Namespace) -> int:
    """Work again."""
    if _ask(options, "resume") is not None:
        print("Resumed; the gates decide again. `driveway why` says what is in the way.")
    return exits.FINE


def finish(options: argparse.Namespace) -> int:
    """Finish the lease at work, and then stop."""
    if _ask(options, "finish") is not None:
        print("The lease at work is finished, then nothing more until `driveway resume`.")
    return exits.FINE


def consent(options: argparse.Namespace) -> int:
    """Show what was agreed to, agree to the terms in force, or take it back."""
    if options.accept is not None:
        data = _ask(options, "consent_accept", version=options.accept)
    else:
        data = _ask(options, "consent_withdraw" if options.withdraw else "owner")
    if data is not None:
        print(_consent_text(data["consent"]))
    return exits.FINE


def show(options: argparse.Namespace) -> int:
    """Show what the owner said, and the standing wishes."""
    _print_owner(_ask(options, "owner"))
    return exits.FINE


def set(options: argparse.Namespace) -> int:  # noqa: A001 - named after its verb
    """Set standing wishes."""
    wishes: dict[str, object] = {}
    if options.schedule is not None:
        wishes["schedule"] = [window for window in options.schedule if window is not None]
        if None in options.schedule and len(options.schedule) > 1:
            raise exits.UsageError("`always` and a window contradict each other", hint="give one of them")
    if options.price_floor is not None:
        wishes["price_floor_micro_per_kwh"] = options.price_floor
    if options.classes is not None:
        wishes["classes"] = options.classes
    if not wishes:
        raise exits.UsageError("nothing to set", hint="give --schedule, --price-floor or --classes")
    _print_owner(_ask(options, "owner_set", wishes=wishes))
    return exits.FINE


def clear(options: argparse.Namespace) -> int:
    """Drop standing wishes: those named, else all."""
    _print_owner(_ask(options, "owner_clear", clear=[name.replace("-", "_") for name in options.wishes]))
    return exits.FINE


def owner_said(said: dict[str, Any]) -> str:
    """What the owner said last, as a sentence without its end."""
    match said["mode"]:
        case "paused" if said["until"] is not None:
            return f"paused until {local_text(said['until'])}"
        case "paused":
            return "paused until `driveway resume`"
        case "finish":
            return "finishes the lease at work, then stops until `driveway resume`"
        case _:
            return "works when the gates are open"


def _ask(options: argparse.Namespace, verb: str, **arguments: object) -> dict[str, Any] | None:
    """The owner's view after it; None when it was printed as JSON already."""
    data: dict[str, Any] = ask(socket_path(options.socket, options.config), verb, **arguments)
    if not options.json:
        return data
    print_json(data)
    return None


def _consent_text(consent: dict[str, Any]) -> str:
    wanted, given, at = consent["required_version"], consent["given_version"], consent["given_at"]
    if given:
        agreed = f"You agreed to version {given} of the terms on {at[:10]}."
    else:
        agreed = "You have not agreed to any terms." if at is None else f"You took your consent back on {at[:10]}."
    if not wanted:
        return f"{agreed} The policy asks for none."
    if given >= wanted:
        return f"{agreed} That covers the terms in force (version {wanted})."
    return f"{agreed} Version {wanted} is in force; without it no work is done: driveway consent --accept {wanted}"


def _print_owner(data: dict[str, Any] | None) -> None:
    if data is None:
        return
    schedule, floor, classes = data["schedule"], data["price_floor_per_kwh"], data["classes"]
    windows = "; ".join(map(window_text, schedule["value"]))
    lines = [
        ("says", owner_said(data), ""),
        ("consent", _consent_text(data["consent"]), ""),
        ("schedule", f"{windows} ({data['time_zone']})" if windows else "at any time", schedule["source"]),
        ("price floor", f"{floor['value']:g} {data['currency']} per kWh", floor["source"]),
        ("classes", ", ".join(classes["value"]) or "any", classes["source"]),
    ]
    for name, text, source in lines:
        print(f"{name:<13}{text}{' (your wish)' if source == 'owner' else ''}")
