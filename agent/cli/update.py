"""`driveway update [status | defer DURATION | now]`: the version that waits, why, and the owner's word on it.

Two tell of it: the program that installs updates (a file in /run that everybody may read), and the daemon, which says
when it may be replaced. Either may be silent: the daemon is, for the moment in which it is replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.text import print_json
from agent.cli.when import local_text
from agent.errors import DrivewayError
from agent.printable import printable

STATUS = Path("/run/driveway-update/status.json")
PHASES = {
    "idle": "",
    "waiting": "{candidate} waits to be installed in place of {current}",
    "switching": "{candidate} is being installed",
    "trial": "{candidate} is on trial: it has yet to prove itself, or {good} comes back",
    "rolling_back": "{good} is being brought back in place of {candidate}",
}


def status(options: argparse.Namespace) -> int:
    """What waits, and why; what became of the versions before."""
    file, problem = _file(options.status_file or STATUS)
    waiting, silent = _daemon(options)
    if options.json:
        print_json({"program": file, "daemon": waiting})
        return exits.FINE
    print(_phase(file) if file else f"Nothing is known of updates: {problem}.")
    for line in _daemons_word(waiting) if waiting else ([f"The daemon says nothing: {silent}"] if silent else []):
        print(line)
    past = [one for one in (file.get("past") or []) if isinstance(one, dict)] if file else []
    for one in past[-5:]:
        words = (str(one.get("version")), str(one.get("result")).replace("_", " "), str(one.get("reason")))
        print("  {:<12}{:<14}{}".format(*map(printable, words)))
    return exits.FINE


def defer(options: argparse.Namespace) -> int:
    """Not before so long from now."""
    return _word(options, "update_defer", for_ms=options.lasts)


def now(options: argparse.Namespace) -> int:
    """As soon as the car and the work let it."""
    return _word(options, "update_now")


def _word(options: argparse.Namespace, verb: str, **arguments: object) -> int:
    said: dict[str, Any] = ask(socket_path(options.socket, options.config), verb, **arguments)
    if options.json:
        print_json(said)
    else:
        print("\n".join(_daemons_word(said)))
    return exits.FINE


def _daemons_word(said: dict[str, Any]) -> list[str]:
    if not said["version"]:
        return []
    if said["ready"]:
        return [f"{said['version']} may be installed now."]
    until = f", until {local_text(said['deferred_until'])}" if said["deferred_until"] else ""
    lines = [f"{said['version']} waits: {said['why']}{until}."]
    if not said["at_once"] and said["latest"]:
        lines.append(f"It may be deferred until {local_text(said['latest'])} (`driveway update defer DURATION`).")
    return lines


def _phase(file: dict[str, Any]) -> str:
    shown = {name: printable(str(file.get(name, "?"))) for name in ("candidate", "current", "good")}
    phase, reason = str(file.get("phase", "")), printable(str(file.get("reason") or ""))
    said = PHASES.get(phase, f"The update program is at something this version does not know: {printable(phase)}")
    if not said:
        return f"{shown['current']} runs; no update waits."
    return said.format(**shown) + (f" ({reason})" if reason and phase != "waiting" else "") + "."


def _file(path: Path) -> tuple[dict[str, Any] | None, str]:
    """What the program wrote, or why it cannot be told."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None, "the update program has not run since this computer started"
    except OSError as error:
        return None, f"{path} cannot be read ({error.strerror})"
    except ValueError:
        return None, f"{path} is damaged; the update program writes it anew"
    return (read, "") if isinstance(read, dict) else (None, f"{path} is of another version")


def _daemon(options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    try:
        said: dict[str, Any] = ask(socket_path(options.socket, options.config), "update_show")
    except DrivewayError as error:
        return None, str(error)
    return said, ""
