"""`driveway-hil catalogue`: one step on a catalogue, published at once; see docs/catalogue.md."""

from __future__ import annotations

import argparse
import base64
import functools
import json
import operator
from collections.abc import Callable
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.config import load_policy
from agent.errors import TrustError
from agent.package import open_package
from agent.trust.catalogue import (
    DENY,
    DISPATCHERS,
    Denied,
    DenyList,
    DispatcherKey,
    Dispatchers,
    deniable,
    read_deny_list,
    read_dispatchers,
)
from agent.trust.keys import load_verifying_key
from agent.trust.records import spell
from hil.catalogue.repository import PATHS, TOP, Repository
from hil.output import check_writable

AGENT = "driveway-agent"
"""The name under which releases of the agent are listed."""


def catalogue(options: argparse.Namespace) -> int:
    """Carry out one step; raises DrivewayError."""
    check_writable(options.json)
    if options.step == "init":
        made = Repository.create(options.dir, options.keys)
        print(f"give every car {made.metadata / '1.root.json'}, and put keys/offline away")
    else:
        made = Repository(options.dir, options.keys)
        STEPS[options.step](made, options)
    figures = contents(made)
    if options.step == "show":
        print("\n".join(_words(figures)))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", "ascii")
    return 0


def contents(made: Repository) -> dict[str, Any]:
    """What is in a catalogue: versions and expiry of each role, and its targets by role."""
    roles = {role: made.load(role).signed for role in (*TOP, *PATHS)}
    return {
        "roles": {name: {"version": one.version, "expires": one.expires.isoformat()} for name, one in roles.items()},
        "targets": {role: sorted(made.targets(role)) for role in ("targets", *PATHS)},
    }


def deny(made: Repository, kind: str, what: str, why: str, *, lift: bool = False) -> DenyList:
    """Put `what` on the deny list, or take it off; `kind` is agents, dispatchers or packages. Raises TrustError."""
    what, body = deniable(kind, what), made.read(DENY)
    before = DenyList() if body is None else read_deny_list(body)
    same = Denied(what).is_version if kind == "agents" else functools.partial(operator.eq, what)
    kept = tuple(one for one in getattr(before, kind) if not same(one.what))
    if lift and kept == getattr(before, kind):
        raise TrustError(f"{what} is not on the deny list")
    entries = kept if lift else (*kept, Denied(what, why))
    after = replace(before, number=before.number + 1, **{kind: entries})
    made.put(DENY, _spelled(after))
    return after


def add_dispatcher(made: Repository, name: str, pem: str, epoch: int) -> Dispatchers:
    """Have the orders of this key count. The keys of its epoch and of the one before do, and no older ones."""
    body = made.read(DISPATCHERS)
    before = Dispatchers() if body is None else read_dispatchers(body)
    der = load_verifying_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = DispatcherKey(epoch, name, base64.b64encode(der).decode("ascii"))
    least = max(before.minimum_epoch, epoch - 1)
    keys = tuple(one for one in before.keys if one.epoch >= least and one.public_key != key.public_key)
    after = Dispatchers(least, (*keys, key))
    made.put(DISPATCHERS, _spelled(after))
    return after


def add_package(made: Repository, folder: Path) -> str:
    """List a package that is whole; its target's name. Raises PackageError, TrustError."""
    package = open_package(folder)
    name = f"packages/{package.manifest.name}/{package.manifest.version}/manifest.json"
    made.put(name, package.manifest_bytes)
    return name


def _spelled(record: Dispatchers | DenyList) -> bytes:
    """As cars read it; raises TrustError for what they would not take."""
    body = spell(record)
    (read_dispatchers if isinstance(record, Dispatchers) else read_deny_list)(body)
    return body


def _add(made: Repository, options: argparse.Namespace) -> None:
    for folder in options.package or ():
        print(add_package(made, folder))
    if options.policy is not None:
        load_policy(options.policy)
        made.put(f"policies/{options.name}/{options.version}/policy.toml", options.policy.read_bytes())
    if options.release is not None:
        made.put(f"releases/{AGENT}/{options.version}/{options.release.name}", options.release.read_bytes())
    if options.dispatcher is not None:
        add_dispatcher(made, options.name, options.dispatcher.read_text("ascii"), options.epoch)
    made.publish()


def _withdraw(made: Repository, options: argparse.Namespace) -> None:
    if options.target in {DENY, DISPATCHERS}:
        raise TrustError(f"{options.target} is never withdrawn: cars refuse a catalogue without it", hint="change it")
    made.withdraw(options.target)
    made.publish()


def _deny(made: Repository, options: argparse.Namespace) -> None:
    named = {"packages": options.package, "dispatchers": options.dispatcher, "agents": options.agent}
    ((kind, what),) = ((kind, what) for kind, what in named.items() if what is not None)
    print(f"deny list {deny(made, kind, what, options.why, lift=options.lift).number}")
    made.publish()


def _rotate(made: Repository, options: argparse.Namespace) -> None:
    old, new = made.rotate(options.role)
    print(f"{options.role}: {old[:16]}… is replaced by {new[:16]}…")
    made.publish()


def _sign(made: Repository, options: argparse.Namespace) -> None:
    if options.good_for is not None:
        made.lifetime_days |= {"timestamp": options.good_for, "snapshot": options.good_for}
    for role in options.role:
        if role not in {"timestamp", "snapshot"}:
            made.renew(role)
    made.publish()
    made.check()


def _serve(made: Repository, options: argparse.Namespace) -> None:
    server = server_of(made, options.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/ until Ctrl-C")
    try:
        server.serve_forever()
    finally:
        server.server_close()


def server_of(made: Repository, port: int) -> ThreadingHTTPServer:
    """A web server on this machine with what is published, and none of the keys; not started."""
    handler = functools.partial(_Quiet, directory=str(made.public))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


class _Quiet(SimpleHTTPRequestHandler):
    """Files, and no log of who asked for them."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Say nothing."""


def _words(figures: dict[str, Any]) -> list[str]:
    lines = [f"{name:12} v{one['version']:<4} until {one['expires']}" for name, one in figures["roles"].items()]
    return lines + [f"  {name}" for names in figures["targets"].values() for name in names]


STEPS: dict[str, Callable[[Repository, argparse.Namespace], None]] = {
    "add": _add,
    "withdraw": _withdraw,
    "deny": _deny,
    "rotate": _rotate,
    "sign": _sign,
    "serve": _serve,
    "show": lambda _made, _options: None,
}
