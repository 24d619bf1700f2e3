"""`driveway`: the verbs, their options, and one place where every error becomes a sentence and an exit code.

Exit codes: 0 fine, 1 failed, 2 usage, 3 daemon unreachable, 4 degraded, 5 refused by policy. Answers go to standard
output, everything else to standard error. Each verb's code is imported when it is used, so that a short question is
answered fast.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from agent import __version__
from agent.cli import exits
from agent.cli.client import UnreachableError
from agent.errors import DrivewayError

DEFAULT_CONFIG = "/etc/driveway/agent.toml"

Verb = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    options = parser().parse_args(arguments)
    module, _, function = options.verb.partition(":")
    try:
        verb: Verb = getattr(import_module(f"agent.cli.{module}"), function)
        return verb(options)
    except UnreachableError as error:
        print(f"driveway: {error}", file=sys.stderr)
        return exits.UNREACHABLE
    except DrivewayError as error:
        print(f"driveway: {error}", file=sys.stderr)
        return exits.FAILED
    except BrokenPipeError:
        sys.stderr.close()
        return exits.FINE
    except KeyboardInterrupt:
        return 128 + 2


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="driveway",
        description="Lends a parked car's idle inference computer, and gives it back at once.",
        epilog="exit codes: 0 fine, 1 failed, 2 usage, 3 daemon unreachable, 4 degraded, 5 refused by policy",
    )
    top.add_argument("--version", action="version", version=f"driveway {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def add(name: str, verb: str, about: str, *, asks: bool = True) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=about, description=about)
        one.set_defaults(verb=verb)
        if asks:
            one.add_argument(
                "--socket", type=Path, help="the daemon's control socket (default: from the configuration)"
            )
        one.add_argument(
            "--config",
            type=Path,
            default=Path(os.environ.get("DRIVEWAY_CONFIG", DEFAULT_CONFIG)),
            help=f"the configuration (default: $DRIVEWAY_CONFIG, else {DEFAULT_CONFIG})",
        )
        one.add_argument("--json", action="store_true", help="print JSON instead of text")
        return one

    add("run", "run:run", "run the daemon in the foreground", asks=False)
    add("status", "status:status", "what the agent does now, and what it earned")
    add("why", "status:why", "why it does not work now: the gate, the signal, its value and its limit")
    add("signals", "status:signals", "what the car says, with age and quality")
    for name, about in (("leases", "the newest leases"), ("earnings", "what each lease earned, net of its energy")):
        add(name, f"work:{name}", about).add_argument("--limit", type=int, default=20, help="how many (default: 20)")
    add("ledger", "work:ledger", "the ledger: every statement made and verdict received").add_argument(
        "--limit", type=int, default=20, help="how many leaves (default: 20)"
    )
    add("pause", "status:pause", "stop working until `driveway resume`")
    add("resume", "status:resume", "work again when the gates are open")
    infer = add("infer", "infer:infer", "run a package on inputs, here and now, if the gate is open")
    infer.add_argument("package", type=Path, help="the package's directory")
    infer.add_argument("inputs", type=Path, nargs="+", help="input files (images)")
    infer.add_argument("--threads", type=int, default=2, help="threads of the engine (default: 2)")
    verify = add("verify", "verify:verify", "check signed statements or verdicts offline", asks=False)
    verify.add_argument("files", type=Path, nargs="+", help="DSSE envelopes (JSON)")
    verify.add_argument(
        "--key", type=Path, required=True, action="append", help="a trusted public key (PEM); repeatable"
    )
    return top
