"""The command line of `driveway-hil catalogue`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ABOUT = "keep the catalogue of what may run on the fleet: packages, policies, releases, dispatcher keys, a deny list"
LONGEST_DAYS = 31
"""A timestamp tells cars that it was signed no longer than this before it expires."""
ROLES = ("root", "timestamp", "snapshot", "targets", "dispatchers", "packages", "policies", "releases")


def add_verb(verbs: Any) -> list[argparse.ArgumentParser]:
    """Add the verb and its own verbs, without what carries them out; those."""
    top: argparse.ArgumentParser = verbs.add_parser("catalogue", help=ABOUT, description=f"{ABOUT.capitalize()}.")
    steps = top.add_subparsers(dest="step", metavar="STEP", required=True)
    made = [
        _step(steps, "init", "make a catalogue and all its keys"),
        _add(_step(steps, "add", "add something, or replace it, and publish")),
        _withdraw(_step(steps, "withdraw", "take a target out, and publish")),
        _deny(_step(steps, "deny", "put something on the deny list, or take it off, and publish")),
        _role(_step(steps, "rotate", "replace the oldest key of a role by a new one, and publish")),
        _sign(_step(steps, "sign", "sign a new timestamp and snapshot, before the old ones expire")),
        _step(steps, "show", "print what is in it, and when each role expires"),
        _serve(_step(steps, "serve", "serve it on this machine, for rigs")),
    ]
    for one in made:
        one.add_argument("dir", type=Path, metavar="DIR", help="where the catalogue is kept")
        one.add_argument("--keys", type=Path, metavar="DIR", help="where its keys are (default: DIR/keys)")
        one.add_argument("--json", type=Path, metavar="FILE", help="write what is in it afterwards as JSON")
    return made


def check(options: argparse.Namespace, verb: argparse.ArgumentParser) -> None:
    """Refuse, with exit status 2, what does not go together."""
    match options.step:
        case "add":
            given = [name for name in ("package", "policy", "release", "dispatcher") if getattr(options, name)]
            if len(given) != 1:
                verb.error("give one of --package, --policy, --release and --dispatcher")
            needed = {"policy": ("name", "version"), "release": ("version",), "dispatcher": ("name", "epoch")}
            missing = [f"--{name}" for name in needed.get(given[0], ()) if getattr(options, name) is None]
            if missing:
                verb.error(f"a {given[0]} needs {' and '.join(missing)}")
        case "deny":
            if [options.package, options.dispatcher, options.agent].count(None) != 2:
                verb.error("give one of --package, --dispatcher and --agent")
        case "sign":
            if options.good_for is not None and not 1 <= options.good_for <= LONGEST_DAYS:
                verb.error(f"--good-for takes 1 to {LONGEST_DAYS} days")
        case _:
            pass


def _step(steps: Any, name: str, about: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = steps.add_parser(name, help=about, description=f"{about.capitalize()}.")
    return verb


def _add(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--package", type=Path, action="append", metavar="FOLDER", help="a built package; repeatable")
    verb.add_argument("--policy", type=Path, metavar="FILE", help="a TOML file with a [policy] table")
    verb.add_argument("--release", type=Path, metavar="FILE", help="a wheel of the agent")
    verb.add_argument("--dispatcher", type=Path, metavar="KEY", help="a dispatcher's public key (PEM)")
    verb.add_argument("--name", help="of a policy or a dispatcher")
    verb.add_argument("--version", help="of a policy or a release, as dotted whole numbers")
    verb.add_argument("--epoch", type=int, metavar="N", help="of a dispatcher's key: older epochs count no more")
    return verb


def _withdraw(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--target", required=True, metavar="NAME", help="such as packages/ocr/1.4.0/manifest.json")
    return verb


def _deny(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--package", metavar="SHA256", help="the digest of a package's manifest")
    verb.add_argument("--dispatcher", metavar="KEYID", help="the keyid of a dispatcher's key")
    verb.add_argument("--agent", metavar="VERSION", help="a version of the agent")
    verb.add_argument("--why", default="", help="told to whoever asks the car")
    verb.add_argument("--lift", action="store_true", help="take it off the list")
    return verb


def _role(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--role", required=True, choices=ROLES, metavar="ROLE", help=", ".join(ROLES))
    return verb


def _sign(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument(
        "--role", action="append", default=[], choices=ROLES, metavar="ROLE", help="and these; repeatable"
    )
    verb.add_argument("--good-for", type=int, metavar="DAYS", help="timestamp and snapshot, at most 31 (default: 14)")
    return verb


def _serve(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
    verb.add_argument("--port", type=int, default=8099, help="on 127.0.0.1 (default: 8099)")
    return verb
