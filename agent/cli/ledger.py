"""`driveway ledger [show | prove | verify]`: the proof of all work, how far it is witnessed, and proofs to take away.

`show` and `prove` ask the daemon; `verify` asks nobody: it needs the files and the keys one trusts.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from agent.cli import exits
from agent.cli.client import ask, socket_path
from agent.cli.text import paint, print_json, shown, table
from agent.errors import DrivewayError

LEASE = re.compile(r"([A-Za-z0-9_-]{1,64})/([0-9]{1,15})")
INDEX = re.compile(r"[0-9]{1,15}")


def _leaf(text: str) -> dict[str, object]:
    """`JOB/EPOCH` or an index, as the daemon is asked for it."""
    if found := LEASE.fullmatch(text):
        return {"job": found[1], "epoch": int(found[2])}
    if INDEX.fullmatch(text):
        return {"leaf": int(text)}
    raise exits.UsageError(f"{text!r} is neither a lease nor a leaf", hint="write JOB/EPOCH, or the index of a leaf")


def show(options: argparse.Namespace) -> int:
    """Print how the ledger stands and its newest leaves; exit code 4 when it is in dispute."""
    data = ask(socket_path(options.socket, options.config), "ledger", limit=options.limit)
    if options.json:
        print_json(data)
    else:
        print(_text(shown(data)))
    return exits.DEGRADED if data["ledger"]["dispute"] else exits.FINE


def prove(options: argparse.Namespace) -> int:
    """Print a leaf's proof bundle (which is JSON, with or without `--json`), or write it into a file."""
    wanted = _leaf(options.leaf)
    proof = ask(socket_path(options.socket, options.config), "ledger_prove", **wanted)
    said = {name: proof[name] for name in ("kind", "index", "job", "epoch", "size", "witnessed")}
    if options.out is None:
        print(proof["bundle"])
        return exits.FINE
    _write(options.out, proof["bundle"])
    if options.json:
        print_json({"file": str(options.out), **said})
        return exits.FINE
    by = "the dispatcher witnessed" if proof["witnessed"] else "only this unit signed; the dispatcher has not yet"
    print(f"{options.out}: {_named(shown(said))}, in the ledger of {proof['size']} leaves that {by}")
    witness = " --witness DISPATCHER.pem" if proof["witnessed"] else ""
    print(f"Check it anywhere: driveway ledger verify {options.out} --key UNIT.pem{witness}")
    return exits.FINE


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", "ascii")
    except OSError as error:
        raise DrivewayError(f"cannot write {path}: {error.strerror}", hint="give --out another file") from error


def _named(said: dict[str, Any]) -> str:
    about = f"session {said['epoch']}" if said["kind"] == "session" else f"lease {said['job']}/{said['epoch']}"
    return f"leaf {said['index']} ({said['kind']}, {about})"


def _text(data: dict[str, Any]) -> str:
    ledger, newest = data["ledger"], data["ledger"]["checkpoint"]
    lines = [
        f"ledger      {ledger['size']} leaves, root {ledger['root']}",
        "session     " + ("none was certified yet" if ledger["session"] is None else str(ledger["session"])),
        "checkpoint  none yet" if newest is None else f"checkpoint  {newest['size']} leaves, {newest['signed_at']}",
        f"witnessed   {ledger['witnessed']} of {ledger['size']} leaves",
    ]
    if ledger["dispute"]:
        lines.append(f"{paint('dispute', 'red')}     {ledger['dispute']} (ask the fleet operator)")
    if ledger["unpaid_since"]:
        lines.append(f"{paint('unpaid', 'yellow')}      hand-ins wait for the witness since {ledger['unpaid_since']}")
    rows = [
        (
            str(leaf["index"]),
            leaf["kind"],
            str(leaf["epoch"]) if leaf["kind"] == "session" else f"{leaf['job']}/{leaf['epoch']}",
            _standing(leaf["index"], ledger),
            leaf["hash"],
        )
        for leaf in data["leaves"]
    ]
    return "\n".join((*lines, table(("LEAF", "KIND", "LEASE", "STANDING", "LEAF HASH (RFC 9162)"), rows)))


def _standing(index: int, ledger: dict[str, Any]) -> str:
    """How far a leaf can no longer be changed: by nobody, not by the unit's key alone, or not signed yet."""
    if index < ledger["witnessed"]:
        return "witnessed"
    return "signed" if ledger["checkpoint"] is not None and index < ledger["checkpoint"]["size"] else "-"
