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
from agent.cli import exits, when
from agent.cli.client import UnreachableError
from agent.errors import DrivewayError

DEFAULT_CONFIG = "/etc/driveway/agent.toml"
LIMIT = when.whole(1, 1000)
"""How many rows: what the daemon answers at most (`agent.control`)."""

EXECUTORS = ("onnxruntime", "tensorrt", "tensorrt_rtx")
"""What an engine runs on (`agent.wire.ExecutorName`)."""

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
        return exits.USAGE if isinstance(error, exits.UsageError) else exits.FAILED
    except BrokenPipeError:
        sys.stderr.close()
        return exits.FINE
    except KeyboardInterrupt:
        return 128 + 2


def _owner(owner: argparse.ArgumentParser) -> None:
    """`driveway owner [show | set | clear]`; the options that every verb has may stand on either side of the action."""
    actions = owner.add_subparsers(metavar="ACTION")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.set_defaults(verb=f"owner:{name}")
        for option in ("--socket", "--config"):
            one.add_argument(option, type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
        return one

    add("show", "the same as `driveway owner`")
    change = add("set", "set standing wishes, which stay until they are set again or cleared")
    change.add_argument(
        "--schedule",
        type=when.window,
        action="append",
        metavar="WINDOW",
        help='work only then: "mon-fri 22:00-06:00", "sat,sun 00:00-24:00", "22:00-06:00"; repeatable; "always"',
    )
    change.add_argument(
        "--price-floor", type=when.price, metavar="PRICE", help="what must remain of the payout per kWh: 0.05"
    )
    change.add_argument(
        "--classes", type=when.classes, metavar="A,B", help='the kinds of work taken on: ocr,speech; or "any"'
    )
    clear = add("clear", "go back to what the configuration says")
    clear.add_argument(
        "wishes", nargs="*", type=when.wish, metavar="WISH", help="schedule, price-floor, classes; none: all"
    )


def _ledger(ledger: argparse.ArgumentParser) -> None:
    """`driveway ledger [show | prove | verify]`; the options that every verb has may stand on either side."""
    ledger.add_argument("--limit", type=LIMIT, default=20, help="how many leaves (default: 20)")
    actions = ledger.add_subparsers(metavar="ACTION")

    def add(name: str, verb: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.set_defaults(verb=verb)
        for option in ("--socket", "--config"):
            one.add_argument(option, type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
        return one

    show = add("show", "ledger:show", "the same as `driveway ledger`: how it stands, and its newest leaves")
    show.add_argument("--limit", type=LIMIT, default=argparse.SUPPRESS, help="how many leaves (default: 20)")
    prove = add("prove", "ledger:prove", "a file that proves, to whoever trusts the keys, that a leaf is in the ledger")
    prove.add_argument("leaf", metavar="JOB/EPOCH|INDEX", help="the statement about a lease, or the leaf at an index")
    prove.add_argument("--out", type=Path, metavar="FILE", help="write it there (default: standard output)")
    _verify(add("verify", "verify:verify", "check proofs and checkpoints offline; the same as `driveway verify`"))


def _keys(keys: argparse.ArgumentParser) -> None:
    """`driveway keys [rotate]`; the options that every verb has may stand on either side of the action."""
    keys.add_argument("--csr", action="store_true", help="print a certificate request (PKCS#10, PEM) signed by the key")
    about = "have the unit's key succeeded by a new one, which the dispatcher takes at once"
    one = keys.add_subparsers(metavar="ACTION").add_parser("rotate", help=about, description=about)
    one.set_defaults(verb="keys:rotate")
    for option in ("--socket", "--config"):
        one.add_argument(option, type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
    one.add_argument("--reason", type=when.remark, default="rotation", metavar="TEXT", help="for people: why")
    one.add_argument(
        "--overlap",
        type=when.duration,
        default=when.duration("7d"),
        metavar="DURATION",
        help="how long what the old key's sessions signed still counts: 12h, 7d; 90d at most (default: 7d)",
    )


def _verify(verify: argparse.ArgumentParser) -> None:
    """The files, and the keys that are trusted."""
    verify.epilog = "exit codes: 0 all of them hold, 1 one does not, 2 usage"
    verify.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="result bundles, proof bundles, or DSSE envelopes (JSON)"
    )
    verify.add_argument(
        "--key", type=Path, required=True, action="append", metavar="UNIT.pem", help="a unit's public key; repeatable"
    )
    verify.add_argument(
        "--witness",
        type=Path,
        action="append",
        metavar="DISPATCHER.pem",
        help="the dispatcher's public key: checkpoints have to bear its signature too; repeatable",
    )
    verify.add_argument(
        "--session", type=Path, metavar="FILE", help="the session certificate of statements that come without one"
    )


def _doctor(doctor: argparse.ArgumentParser) -> None:
    """How much is asked."""
    doctor.epilog = "exit codes: 0 all well, 1 something has to be mended, 3 no daemon answers, 4 somebody should look"
    doctor.add_argument("--offline", action="store_true", help="look at this computer alone, and ask no daemon")
    doctor.add_argument("--quick", action="store_true", help="have no worker compute its golden vector")


def _bench(bench: argparse.ArgumentParser) -> None:
    """`driveway bench [--commission] [--package DIR INPUT…]`."""
    bench.epilog = (
        "--commission heats the computer on purpose: idle, full power, idle again, 25 minutes in all. Do it once for "
        "each kind of computer and place in the car, parked, plugged in, with nobody in the car, and `driveway pause` "
        "before. It ends the work when the die comes within 5 K of policy.die_limit_c, when a sensor falls silent, and "
        "when the driver comes back. It changes nothing: the lines that it prints are for your [policy] table."
    )
    bench.add_argument("inputs", type=Path, nargs="*", help="input files for the package")
    bench.add_argument(
        "--package", type=Path, metavar="PACKAGE", help="what to run, a folder or a name; without: plain arithmetic"
    )
    bench.add_argument("--commission", action="store_true", help="the step test for the thermal guard's bounds")
    bench.add_argument(
        "--duration",
        type=when.whole(10, 240),
        default=25,
        metavar="MINUTES",
        help="of --commission in all, 10 to 240; a big heatsink needs an hour (default: 25)",
    )
    bench.add_argument(
        "--rounds", type=when.whole(1, 100_000), default=10, help="slices to time without --commission (default: 10)"
    )
    _engine(bench)


def _engine(verb: argparse.ArgumentParser) -> None:
    """What a verb takes that runs a package here and now."""
    verb.add_argument("--threads", type=when.whole(1, 64), default=2, help="threads of the engine (default: 2)")
    verb.add_argument("--executor", choices=EXECUTORS, help="default: the configuration's, else onnxruntime")
    verb.add_argument("--rig", action="store_true", help="on a rig without a driver and without a daemon: ask no gate")


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
    add("record", "work:record", "write down what the agent saw and decided in the last hours, to play it again")
    for name, about in (("leases", "the newest leases"), ("earnings", "what each lease earned, net of its energy")):
        add(name, f"work:{name}", about).add_argument("--limit", type=LIMIT, default=20, help="how many (default: 20)")
    _ledger(add("ledger", "ledger:show", "the ledger: every statement made and verdict received, and proofs of them"))
    pause = add(
        "pause", "owner:pause", "stop working, until a time or until `driveway resume`"
    ).add_mutually_exclusive_group()
    pause.add_argument(
        "--until",
        type=when.moment,
        metavar="TIME",
        help='local time: 07:00, "tomorrow 07:00", "mon 07:00", or ISO 8601 (2026-03-01T07:00+01:00)',
    )
    pause.add_argument("--for", dest="lasts", type=when.duration, metavar="DURATION", help="30m, 2h, 1h30m, 1d")
    add("resume", "owner:resume", "end a pause, or what `finish` began: work again when the gates are open")
    add("finish", "owner:finish", "finish the lease at work, then stop until `driveway resume`")
    consent = add(
        "consent", "owner:consent", "the terms you agreed to, and those in force"
    ).add_mutually_exclusive_group()
    consent.add_argument("--accept", type=when.version, metavar="VERSION", help="agree to this version of the terms")
    consent.add_argument("--withdraw", action="store_true", help="take your consent back")
    _owner(add("owner", "owner:show", "what you told the agent, and your standing wishes"))
    listed = add("packages", "packages:packages", "the packages on this computer, and whether each may run")
    listed.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="a package, or a folder of packages")
    infer = add("infer", "infer:infer", "run a package on inputs, here and now, if the gate is open")
    infer.add_argument("package", type=Path, help="the package's folder, or its name in `driveway packages`")
    infer.add_argument("inputs", type=Path, nargs="+", help="input files: images, or tensors as numpy.save writes them")
    _engine(infer)
    _bench(add("bench", "bench:bench", "measure this computer: a package's throughput, or how it takes heat"))
    _keys(add("keys", "keys:keys", "the unit's own key: where it lives, and whether it signs; and a new one"))
    _verify(add("verify", "verify:verify", "check results, proofs, checkpoints and verdicts offline", asks=False))
    _doctor(add("doctor", "doctor.command:doctor", "what is well here, what is not, and how to mend it"))
    about = "play a recorded night against a policy, in virtual time"
    _simulate_options(add("simulate", "simulate:simulate", about, asks=False))
    return top


def _simulate_options(simulate: argparse.ArgumentParser) -> None:
    simulate.description = (
        "Plays a recorded night against a policy, in virtual time: the gate's timeline with its reasons, the work, the "
        "energy, the money, and every promise kept or broken. The same night always gives the same answer."
    )
    simulate.epilog = (
        "exit codes: 0 every promise held, 1 one was broken, 2 the trace or an option cannot be used. "
        "The formats, and everything that is supposed: docs/simulate.md"
    )
    simulate.add_argument(
        "trace", type=Path, metavar="TRACE", help="a candump log, a CSV `time,name,value`, or a recording (.jsonl[.gz])"
    )
    simulate.add_argument(
        "--policy", type=Path, metavar="FILE", help="a configuration, or its [policy] table (default: of --config)"
    )
    simulate.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="vehicle profile of a candump log; repeatable"
    )
    simulate.add_argument(
        "--bus",
        action="append",
        default=[],
        metavar="IF=BUS",
        help="which of the profile's buses an interface of the log is, as can0=party; repeatable",
    )
    simulate.add_argument("--start", metavar="TIME", help="when it began, as 2026-03-28T22:00 (the policy's time zone)")
    simulate.add_argument("--slice-s", type=float, default=5.0, help="seconds of one slice of work (default: 5)")
    simulate.add_argument("--slice-price", type=float, default=1e-4, help="paid for a slice (default: 0.0001)")
    simulate.add_argument("--work-w", type=float, help="what the computer draws at full work (default: power_max_w)")
    simulate.add_argument("--load-s", type=float, default=8.0, help="seconds a worker takes to come up (default: 8)")
