"""The options of `python -m hil.dispatcher`, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from hil.dispatcher.doors import add_listening, address
from hil.dispatcher.endings import MAX_FAILURES
from hil.dispatcher.unwitnessed import AGE_MS, LEAVES

RAMP_PER_S = 50.0
KEEPALIVE_S = 30
"""A replica whose connection is dead and does not know it is still given its share of the messages."""
RECONNECT_MAX_S = 15.0
"""Replicas are few: coming back together, they trouble no broker, and all cars wait for them."""
MOST_KNOWN_PERMILLE = 200
"""Of the jobs: what more of them find is not worth what they cost, for they are paid for and computed twice."""


def parse(about: str | None = None) -> argparse.Namespace:
    """What the command line says; exit status 2 for what it may not say. `about` goes before the options in --help."""
    parser = argparse.ArgumentParser(prog="python -m hil.dispatcher", description=about)
    add = parser.add_argument
    add("--dir", type=Path, required=True, help="where everything it knows is kept")
    add("--broker", type=address, action="append", required=True, metavar="HOST:PORT", help="several: tried in order")
    add("--http-port", type=int, default=0, help="of this machine; 0 takes any free one (see `ready`)")
    add_listening(parser)
    add("--retry-s", type=int, default=30, help="when to ask again when there is no work")
    add("--enrol-code", action="append", default=[], help="admit one unit with this code")
    add("--enrol-code-file", type=Path, metavar="FILE", help="admit one unit with each code in it, one a line")
    add("--ek-roots", type=Path, metavar="DIR", help="makers' certificates: a TPM has to be by one (default: by any)")
    add("--database", default="", metavar="URL", help="postgresql://… (default: SQLite in DIR)")
    add("--database-file", type=Path, metavar="FILE", help="a file with that URL, which may hold a password")
    add("--replica", default="", metavar="NAME", help="one of several: keeps `ready` in DIR/replicas/NAME")
    add("--share-group", default="", metavar="NAME", help="of the broker's shared subscription (default: a secret)")
    add("--key", type=Path, help="the signing key that all replicas share (default: DIR/dispatcher.key)")
    add("--objects", type=Path, help="the folder of objects that all replicas share (default: DIR/objects)")
    add("--ramp-per-s", type=float, default=RAMP_PER_S, help="idle cars of a cell that may start a second; 0: any")
    add("--max-failures", type=int, default=MAX_FAILURES, help="failed leases in a row until a job is dead")
    add("--replicate", action="store_true", help="have some jobs done twice, by two units, and compare")
    add("--seal-inputs", action="store_true", help="seal every input to its car, not only where a job asks for it")
    add("--packages", type=Path, metavar="FOLDER", help="packages whose tolerances are known: compare by value")
    add("--referee", action="store_true", help="compute what units disagree about, with the packages of --packages")
    add("--known-permille", type=int, default=0, metavar="N", help="put in N jobs in 1000 whose answers are known")
    add("--unwitnessed-leaves", type=int, default=LEAVES, help="how far work may run ahead of the witness; 0: any")
    add("--unwitnessed-h", type=int, default=AGE_MS // 3_600_000, help="and for how many hours")
    add("--keepalive-s", type=int, default=KEEPALIVE_S, help="to the broker")
    add("--reconnect-max-s", type=float, default=RECONNECT_MAX_S, help="the longest wait between two attempts")
    for name in ("ca", "certificate", "key"):
        add(f"--tls-{name}", default="", metavar="FILE", help="mutual TLS to the broker (PEM)")
    arguments = parser.parse_args()
    tls = (arguments.tls_ca, arguments.tls_certificate, arguments.tls_key)
    if any(tls) and not all(tls):
        parser.error("--tls-ca, --tls-certificate and --tls-key go together")
    if arguments.database and arguments.database_file:
        parser.error("--database and --database-file are two ways to say one thing")
    _check_referee(parser, arguments)
    if not _is_name(arguments.replica) or not _is_name(arguments.share_group):
        parser.error("a name has letters, digits, '-' and '_' only")
    return arguments


def _is_name(text: str) -> bool:
    return (len(text) <= 64 and text.replace("-", "").replace("_", "").isalnum()) or not text


def _check_referee(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.referee and not arguments.packages:
        parser.error("--referee computes with packages: say where they are with --packages")
    if not 0 <= arguments.known_permille <= MOST_KNOWN_PERMILLE:
        parser.error(f"--known-permille is from 0 to {MOST_KNOWN_PERMILLE}")
    if arguments.known_permille and not arguments.referee:
        parser.error("--known-permille needs --referee, which computes the answers")
