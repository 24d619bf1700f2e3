"""`driveway-hil`: the rig engineer's command. Every verb takes `--json FILE` and writes its figures there.

Exit codes: 0 everything held, 1 something did not (or the run failed), 2 usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli import when
from agent.errors import ConfigError, DrivewayError
from hil.bench import BENCHMARKS
from hil.faults import arguments as faults_arguments
from hil.fleet import arguments as fleet_arguments
from hil.submit import arguments

DEFAULT_FOLDER = Path("build/demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the process's exit code."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.verb(options)
    except (DrivewayError, OSError) as error:
        print(f"driveway-hil: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + 2
    return status


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="driveway-hil", description="Rigs that prove the daemon.")
    top.add_argument("--version", action="version", version=f"driveway-hil {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    about = "a parked car earns, and the driver comes back in the middle; the whole fleet on this machine"
    demo = verbs.add_parser("demo", help=about, description=about)
    demo.set_defaults(verb=_demo)
    demo.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    demo.add_argument("--figure", type=Path, metavar="FILE", help="write the plots as one picture (.svg or .png)")
    demo.add_argument(
        "--dir", type=Path, default=DEFAULT_FOLDER, help=f"made anew each run (default: {DEFAULT_FOLDER})"
    )
    demo.add_argument("--keep", action="store_true", help="leave everything running afterwards, until Ctrl-C")
    _submit_verb(verbs)
    _orders(verbs)
    _bench_verb(verbs)
    _sim_verb(verbs)
    _acl_probe_verb(verbs)
    faults_arguments.add_verb(verbs).set_defaults(verb=_faults)
    fleet_arguments.add_verb(verbs).set_defaults(verb=_fleet)
    return top


def _bench_verb(verbs: Any) -> None:
    about = "run benchmarks: medians and spread, with the versions they were taken with"
    verb = verbs.add_parser("bench", help=about, description=about)
    verb.add_argument("names", nargs="+", choices=[*BENCHMARKS, "all"], metavar="NAME", help=", ".join(BENCHMARKS))
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    verb.set_defaults(verb=_bench)


def _sim_verb(verbs: Any) -> None:
    about = "simulate nights of many cars, and their leases, in virtual time; check every promise after every event"
    verb = verbs.add_parser("sim", help=about, description=about)
    verb.add_argument("--cars", type=int, metavar="N", help="default: 100, and up to 20 of them for the leases")
    verb.add_argument("--nights", type=int, default=1, metavar="M", help="of each car (default: 1)")
    verb.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed, the same nights (default: 1)")
    verb.add_argument("--workers", type=int, default=1, metavar="K", help="processes (default: 1)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    verb.add_argument(
        "--trace-dir", type=Path, default=Path("build/sim"), metavar="DIR", help="for what broke (default: build/sim)"
    )
    verb.add_argument("--protocol", action="store_true", help="the lease protocol alone, without nights")
    verb.add_argument("--dispatchers", type=int, default=3, metavar="M", help="replicas over one database (default: 3)")
    verb.add_argument("--jobs", type=int, default=200, metavar="J", help="in a run of the protocol (default: 200)")
    verb.add_argument("--runs", type=int, default=1, metavar="R", help="of the protocol, from --seed on (default: 1)")
    verb.add_argument("--replay", type=Path, metavar="FILE", help="play a run of the protocol from --trace-dir again")
    verb.set_defaults(verb=_sim)


def _acl_probe_verb(verbs: Any) -> None:
    about = "run a hostile car's attacks against a broker; fails when one works"
    verb = verbs.add_parser("acl-probe", help=about, description=about)
    verb.add_argument("broker", nargs="?", type=_address, metavar="HOST:PORT", help="a broker nobody else uses now")
    verb.add_argument("--try", dest="here", choices=("mosquitto", "embedded"), help="start one here, and probe that")
    verb.add_argument("--ca", type=Path, metavar="FILE", help="the CA that signed the broker's certificate (PEM)")
    for name, about_it in (("car", "of the attacker"), ("victim", "of another car"), ("dispatcher", "of a dispatcher")):
        verb.add_argument(f"--{name}", metavar="CERT:KEY", help=f"certificate and key {about_it} (PEM)")
    verb.add_argument("--cell", default="00", help="of both cars (default: 00)")
    verb.add_argument("--share-group", default="dispatch", metavar="NAME", help="the dispatchers' (default: dispatch)")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    verb.set_defaults(verb=_acl_probe)


def _address(text: str) -> tuple[str, int]:
    """An argparse type: HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def _submit_verb(verbs: Any) -> None:
    verb = arguments.add_verb(verbs)
    verb.set_defaults(verb=_submit, check=lambda options: arguments.check(options, verb))


def _orders(verbs: Any) -> None:
    """What the dispatcher of a running rig tells a car."""
    about = "send a car a signed price curve, from a JSON file of slots"
    prices = verbs.add_parser("prices", help=about, description=about)
    prices.add_argument("file", type=Path, metavar="FILE", help='[{"start": …, "end": …, "price": …}], as ISO 8601')
    prices.add_argument("--valid-for", type=_longest(8), default="2d", metavar="DURATION", help="at most 8d (2d)")
    prices.set_defaults(verb=_prices)
    about = "order a car to stop for the grid's sake, or let it go on"
    demand = verbs.add_parser("demand", help=about, description=about)
    how = demand.add_mutually_exclusive_group(required=True)
    how.add_argument("--stop-for", type=_longest(1), metavar="DURATION", help="15m, 1h, at most 1d")
    how.add_argument("--over", action="store_true", help="take the order back")
    demand.add_argument("--detail", default="", help="why, for the owner")
    demand.set_defaults(verb=_demand)
    for verb in (prices, demand):
        verb.add_argument("--unit", default="car-0001", help="which car (default: the rig's, car-0001)")
        verb.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help=f"the rig (default: {DEFAULT_FOLDER})")


def _longest(days: int) -> Callable[[str], int]:
    """An argparse type: a duration of at most so many days, in milliseconds; no car takes an order that is longer."""

    def duration(text: str) -> int:
        lasts_ms = when.duration(text)
        if lasts_ms > days * 86_400_000:
            raise argparse.ArgumentTypeError(f"{text!r} is longer than {days}d, and no car takes such an order")
        return lasts_ms

    return duration


def _submit(options: argparse.Namespace) -> int:
    options.check(options)
    from hil.submit import command  # noqa: PLC0415 - draws with rich, and loads an engine for a model

    return command.submit(options)


def _prices(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    return orders.prices(options.dir, options.unit, options.file, options.valid_for // 1000)


def _demand(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    stop_for_s = 0 if options.over else options.stop_for // 1000
    return orders.demand(options.dir, options.unit, stop_for_s, options.detail)


def _sim(options: argparse.Namespace) -> int:
    from hil.sim import command  # noqa: PLC0415 - imports the whole world
    from hil.sim.protocol.command import CARS, Wish, replay  # noqa: PLC0415 - as above

    if options.replay is not None:
        return replay(options.replay)
    cars = options.cars
    wish = Wish(
        cars=CARS if cars is None else cars if options.protocol else min(cars, CARS),
        dispatchers=options.dispatchers,
        jobs=options.jobs,
        seed=options.seed,
        runs=options.runs,
    )
    where = {"workers": options.workers, "json_file": options.json, "trace_dir": options.trace_dir}
    if options.protocol:
        return command.simulate_protocol(wish, **where)
    return command.simulate(100 if cars is None else cars, options.nights, options.seed, protocol=wish, **where)


def _acl_probe(options: argparse.Namespace) -> int:
    from hil.acl import command, probe  # noqa: PLC0415 - brings brokers and certificates

    if options.here is not None:
        with command.broker_here(options.here) as target:
            return command.acl_probe(target, options.json)
    pairs = (options.car, options.victim, options.dispatcher)
    if options.broker is None or options.ca is None or None in pairs:
        raise ConfigError(
            "a broker, its CA, and the certificates of two cars and a dispatcher are needed",
            hint="HOST:PORT --ca FILE --car CERT:KEY --victim CERT:KEY --dispatcher CERT:KEY, or --try mosquitto",
        )
    target = probe.target_from_files(
        options.broker, options.ca, pairs, cell=options.cell, share_group=options.share_group
    )
    return command.acl_probe(target, options.json)


def _bench(options: argparse.Namespace) -> int:
    from hil.bench import command  # noqa: PLC0415 - draws with rich

    return command.bench(options.names, options.json)


def _faults(options: argparse.Namespace) -> int:
    from hil.faults import command  # noqa: PLC0415 - imports the whole rig

    return command.faults(options)


def _fleet(options: argparse.Namespace) -> int:
    from hil.fleet import command  # noqa: PLC0415 - draws, and imports the dispatcher

    plan = fleet_arguments.plan_of(options)
    return command.fleet(plan, json_file=options.json, figure_file=options.figure, folder=options.dir)


def _demo(options: argparse.Namespace) -> int:
    from hil.demo import command  # noqa: PLC0415 - imports the whole rig

    return command.demo(options.dir, options.json, options.figure, keep=options.keep)
