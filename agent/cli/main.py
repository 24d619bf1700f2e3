"""`driveway`: the verbs, their options, and one place where every error becomes a sentence and an exit code.

Exit codes: 0 fine, 1 failed, 2 usage, 3 daemon unreachable, 4 degraded, 5 refused by policy. Answers go to standard
output, everything else to standard error. Each verb's code is imported when it is used, so that a short question is
answered fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
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

SHELLS = ("bash", "zsh", "fish")

Verb = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser whose help ends with examples."""

    def format_help(self) -> str:
        """The help, and how the verb is used."""
        from agent.cli.examples import EXAMPLES  # noqa: PLC0415 - for help alone

        lines = EXAMPLES.get(self.prog.partition(" ")[2], ())
        return super().format_help() + "".join(("\nexamples:\n", *(f"  {line}\n" for line in lines)) if lines else ())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    _speak_plainly()
    options = parser().parse_args(arguments)
    module, _, function = options.verb.partition(":")
    try:
        verb: Verb = getattr(import_module(f"agent.cli.{module}"), function)
        code = verb(options)
        sys.stdout.flush()
    except UnreachableError as error:
        print(f"driveway: {error}", file=sys.stderr)
        return exits.UNREACHABLE
    except DrivewayError as error:
        print(f"driveway: {error}", file=sys.stderr)
        return exits.USAGE if isinstance(error, exits.UsageError) else exits.FAILED
    except BrokenPipeError:
        _say_no_more()
        return exits.FINE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _say_no_more()
        print("driveway: the answer cannot be written: no space is left there", file=sys.stderr)
        return exits.FAILED
    except KeyboardInterrupt:
        return 128 + 2
    else:
        return code


def _say_no_more() -> None:
    """What standard output still holds cannot be written, and the interpreter must not try at its end."""
    with contextlib.suppress(OSError, ValueError):  # a test's standard output is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speak_plainly() -> None:
    """On a terminal or into a file that takes no UTF-8: what it cannot show is written in letters that it has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            from agent.cli.terminal import forgive  # noqa: PLC0415 - few terminals need it

            forgive(stream)


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


def _config(config: argparse.ArgumentParser) -> None:
    """`driveway config check | show`; the options that every verb has may stand on either side of the action."""
    actions = config.add_subparsers(metavar="ACTION", required=True)

    def add(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.set_defaults(verb=f"config:{name}")
        for option in ("--socket", "--config"):
            hidden = argparse.SUPPRESS if option == "--socket" else "the configuration"
            one.add_argument(option, type=Path, default=argparse.SUPPRESS, help=hidden)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON instead of text")
        return one

    check = add("check", "every mistake, with its file, its line and what to write instead")
    check.epilog = "exit codes: 0 right, 1 something is wrong, 4 a number looks as if another unit was meant"
    check.add_argument("--policy", type=Path, metavar="FILE", help="check a file that is a [policy] table instead")
    show = add("show", "the values in force, and where each is from; secrets are not shown")
    show.add_argument("keys", nargs="*", metavar="KEY", help="only these, or what is in this table: policy, fleet.tls")
    show.add_argument("--changed", action="store_true", help="only what is not a default")


def _bundle(bundle: argparse.ArgumentParser) -> None:
    """Where it is written, and whether it is asked for."""
    bundle.description = (
        "Collects what support needs to see into one archive: status, configuration, doctor, logs, versions, units and "
        "the recorder's last hours. Only what is known to be harmless is taken; what was left out is listed."
    )
    bundle.add_argument(
        "--out", type=Path, metavar="FILE", help="default: driveway-bundle-UNIT-TIME.tar.gz in this directory"
    )
    bundle.add_argument("--list", action="store_true", help="say what would be in it, and write nothing")
    bundle.add_argument("--yes", action="store_true", help="write it without asking")
    bundle.add_argument(
        "--hours", type=when.whole(0, 48), default=2, help="of the recorder, 0: none of it (default: 2)"
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


def _update(update: argparse.ArgumentParser) -> None:
    """`driveway update [status | defer DURATION | now]`; the options of every verb may stand on either side of it."""
    update.add_argument("--status-file", type=Path, help=argparse.SUPPRESS)
    actions = update.add_subparsers(metavar="ACTION")

    def add(name: str, about: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=about, description=about)
        one.set_defaults(verb=f"update:{name}")
        for option in ("--socket", "--config"):
            one.add_argument(option, type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return one

    add("status", "what waits, and why, and what became of versions before (also without ACTION)")
    defer = add("defer", "not before so long from now; policy.update_defer_max_h bounds it")
    defer.add_argument("lasts", type=when.duration, metavar="DURATION", help="30m, 2h, 1h30m, 1d")
    add("now", "as soon as the car is parked and empty and the lease has ended, whatever you wished before")


def _worked(verb: argparse.ArgumentParser) -> None:
    """Which leases, and in which form."""
    verb.add_argument("--limit", type=LIMIT, help="how many at most (default: 20, or all of --since and --until)")
    for option, about in (("--since", "those begun from then on"), ("--until", "and before that")):
        verb.add_argument(
            option,
            type=when.past,
            metavar="TIME",
            help=f"{about}: 2026-03-01 (its noon), 2026-03-01T22:00, yesterday, or 12h or 7d ago",
        )
    verb.add_argument("--csv", action="store_true", help="comma-separated values, with a line of names")
    if verb.prog.endswith("earnings"):
        verb.add_argument("--nights", action="store_true", help="the nights alone, not every lease")


def _watch(watch: argparse.ArgumentParser) -> None:
    """How often, how far back, and for how long."""
    watch.epilog = "ends with Ctrl-C; without a terminal, or with TERM=dumb, it prints a line a change"
    watch.add_argument("--plain", action="store_true", help="print a line a change, and draw no screen")
    watch.add_argument("--every", type=when.whole(1, 3600), default=1, metavar="SECONDS", help="look so often (1)")
    watch.add_argument("--hours", type=when.whole(1, 48), default=6, help="of the gate's past (default: 6)")
    watch.add_argument("--count", type=when.whole(1, 1_000_000), metavar="LOOKS", help="end after so many looks")


def _engine(verb: argparse.ArgumentParser) -> None:
    """What a verb takes that runs a package here and now."""
    verb.add_argument("--threads", type=when.whole(1, 64), default=2, help="threads of the engine (default: 2)")
    verb.add_argument("--executor", choices=EXECUTORS, help="default: the configuration's, else onnxruntime")
    verb.add_argument("--rig", action="store_true", help="on a rig without a driver and without a daemon: ask no gate")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
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
    add("why", "why:why", "why it does not work now: the gate, the signal, its value and its limit")
    _watch(add("watch", "watch:watch", "the same, live: gate, heat, power, charge, prices, lease and vacates"))
    add("signals", "status:signals", "what the car says, with age and quality")
    add("record", "work:record", "write down what the agent saw and decided in the last hours, to play it again")
    for name, about in (("leases", "the newest leases"), ("earnings", "what each night and lease earned, net")):
        _worked(add(name, f"work:{name}", about))
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
    _update(add("update", "update:status", "the version that waits to be installed, why it waits, and your word on it"))
    listed = add("packages", "packages:packages", "the packages on this computer, and whether each may run")
    listed.add_argument("folders", type=Path, nargs="*", metavar="DIR", help="a package, or a folder of packages")
    infer = add("infer", "infer:infer", "run a package on inputs, here and now, if the gate is open")
    infer.add_argument("package", type=Path, help="the package's folder, or its name in `driveway packages`")
    infer.add_argument("inputs", type=Path, nargs="+", help="input files: images, or tensors as numpy.save writes them")
    _engine(infer)
    _bench(add("bench", "bench:bench", "measure this computer: a package's throughput, or how it takes heat"))
    _keys(add("keys", "keys:keys", "the unit's own key: where it lives, and whether it signs; and a new one"))
    _verify(add("verify", "verify:verify", "check results, proofs, checkpoints and verdicts offline", asks=False))
    _config(add("config", "config:show", "whether the configuration is right, what counts, and where it is from"))
    _doctor(add("doctor", "doctor.command:doctor", "what is well here, what is not, and how to mend it"))
    _bundle(add("bundle", "bundle.command:bundle", "an archive for support, without secrets"))
    completion = add("completion", "completion:completion", "what makes a shell complete this command", asks=False)
    completion.add_argument("shell", choices=SHELLS, help="for which shell")
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
