"""`driveway-hil`: the rig engineer's command. Every verb takes `--json FILE` and writes its figures there.

Exit codes: 0 everything held, 1 something did not (or the run failed), 2 usage.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli import when
from agent.errors import ConfigError, DrivewayError
from hil.bench import BENCHMARKS, PIPELINE_PACKAGES
from hil.catalogue import arguments as catalogue_arguments
from hil.faults import arguments as faults_arguments
from hil.fleet import arguments as fleet_arguments
from hil.packages import arguments as package_arguments
from hil.powercut import arguments as powercut_arguments
from hil.scenario import arguments as scenario_arguments
from hil.submit import arguments
from hil.updates import arguments as updates_arguments
from hil.vm import arguments as vm_arguments

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
    _package_verb(verbs)
    _catalogue_verb(verbs)
    _orders(verbs)
    _bench_verb(verbs)
    _gpu_verb(verbs)
    _sim_verb(verbs)
    _acl_probe_verb(verbs)
    _cheats_verb(verbs)
    faults_arguments.add_verb(verbs).set_defaults(verb=_faults)
    fleet_arguments.add_verb(verbs).set_defaults(verb=_fleet)
    powercut_arguments.add_verb(verbs).set_defaults(verb=_powercut)
    updates_arguments.add_verb(verbs).set_defaults(verb=_updates)
    vm_arguments.add_verb(verbs).set_defaults(verb=_vm)
    scenario_arguments.add_verbs(verbs)
    return top


def _bench_verb(verbs: Any) -> None:
    about = "run benchmarks: medians and spread, with the versions they were taken with"
    verb = verbs.add_parser("bench", help=about, description=about)
    verb.add_argument("names", nargs="+", choices=[*BENCHMARKS, "all"], metavar="NAME", help=", ".join(BENCHMARKS))
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    verb.add_argument(
        "--package",
        choices=PIPELINE_PACKAGES,
        metavar="NAME",
        help=f"of pipeline, this one alone: {', '.join(PIPELINE_PACKAGES)}",
    )
    verb.set_defaults(verb=_bench, check=lambda options: _check_bench(options, verb))


def _gpu_verb(verbs: Any) -> None:
    about = "on a machine with an NVIDIA GPU: every kernel against its reference, speed, giving back, and a report"
    verb = verbs.add_parser("gpu", help=about, description=about)
    verb.add_argument(
        "--out", type=Path, default=Path("build/gpu"), metavar="DIR", help="for the report (default: build/gpu)"
    )
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    verb.add_argument(
        "--engine", type=Path, metavar="FILE", help="hil/gpu/busy.cu as compiled elsewhere (default: nvcc)"
    )
    verb.add_argument(
        "--quick", action="store_true", help="small sizes, few repetitions: whether it runs, not how fast"
    )
    verb.set_defaults(verb=_gpu)


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
    verb.add_argument("--sweep", action="store_true", help="also a short run for each place where power may fail")
    verb.add_argument("--replay", type=Path, metavar="FILE", help="play a run of the protocol from --trace-dir again")
    verb.set_defaults(verb=_sim)


def _cheats_verb(verbs: Any) -> None:
    about = "play dishonest cars against the dispatcher: who is caught, when, and what it costs the honest"
    verb = verbs.add_parser("cheats", help=about, description=about)
    verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    verb.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed, the same play (default: 1)")
    verb.add_argument("--cars", type=int, default=10, metavar="N", help="a fifth of them cheats (default: 10)")
    verb.set_defaults(verb=_cheats)


def _acl_probe_verb(verbs: Any) -> None:
    about = "run a hostile car's attacks against a broker; fails when one works"
    verb = verbs.add_parser("acl-probe", help=about, description=about)
    verb.add_argument("broker", nargs="?", type=_address, metavar="HOST:PORT", help="a broker nobody else uses now")
    verb.add_argument("--try", dest="here", choices=("mosquitto", "embedded"), help="start one here, and probe that")
    verb.add_argument("--ca", type=Path, metavar="FILE", help="the CA that signed the broker's certificate (PEM)")
    for name, about_it in (("car", "of the attacker"), ("victim", "of another car"), ("dispatcher", "of a dispatcher")):
        verb.add_argument(f"--{name}", metavar="CERT:KEY", help=f"certificate and key {about_it} (PEM)")
    verb.add_argument("--expired", metavar="CERT:KEY", help="a car's certificate that has run out, with its key (PEM)")
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


def _catalogue_verb(verbs: Any) -> None:
    for verb in catalogue_arguments.add_verb(verbs):
        verb.set_defaults(verb=_catalogue, check=lambda options, verb=verb: catalogue_arguments.check(options, verb))


def _package_verb(verbs: Any) -> None:
    verb = package_arguments.add_verb(verbs)
    verb.set_defaults(verb=_package, check=lambda options: package_arguments.check(options, verb))


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
    about = "set how fast a cell's cars may come: work, no new work, or none at all"
    pace = verbs.add_parser("pace", help=about, description=about)
    pace.add_argument("state", choices=("open", "closed", "stop"), help="closed: no new leases; stop: give all back")
    pace.add_argument("--cell", type=_cell, default="all", help="two hex digits, or all (default: all)")
    pace.add_argument(
        "--spread", type=when.duration, default=0, metavar="DURATION", help="of first attempts after an outage"
    )
    pace.add_argument(
        "--interval", type=when.whole(100, 100_000), default=1000, metavar="PERMILLE", help="stretches waits (1000)"
    )
    pace.set_defaults(verb=_pace)
    about = "take a job's lease back from the car that has it"
    cancel = verbs.add_parser("cancel", help=about, description=about)
    cancel.add_argument("job", metavar="JOB")
    cancel.add_argument("--grace", type=_longest(1), default=0, metavar="DURATION", help="to finish in (default: none)")
    cancel.add_argument("--withdraw", action="store_true", help="and grant it to nobody again")
    cancel.set_defaults(verb=_cancel)
    about = "what stands against cars' ledgers, with the evidence, as JSON; or clear it"
    ledgers = verbs.add_parser("ledgers", help=about, description=f"{about}. Exit status 1 while anything stands.")
    ledgers.add_argument("--clear", metavar="UNIT", help="it was looked into: grant this car work again")
    ledgers.set_defaults(verb=_ledgers)
    about = "what the dispatcher has, and what it heard and said since it started, as JSON"
    counts = verbs.add_parser("counts", help=about, description=about)
    counts.set_defaults(verb=_counts)
    for verb in (pace, cancel, ledgers):
        verb.add_argument("--detail", default="", help="why, for people")
    for verb in (pace, cancel, ledgers, counts):
        verb.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help=f"the rig (default: {DEFAULT_FOLDER})")
    for verb in (prices, demand):
        verb.add_argument("--unit", default="car-0001", help="which car (default: the rig's, car-0001)")
        verb.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help=f"the rig (default: {DEFAULT_FOLDER})")


def _cell(text: str) -> str:
    """An argparse type: a cell's name."""
    if text != "all" and not re.fullmatch("[0-9a-f]{2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither two hex digits nor all")
    return text


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


def _catalogue(options: argparse.Namespace) -> int:
    options.check(options)
    from hil.catalogue.command import catalogue  # noqa: PLC0415

    return catalogue(options)


def _package(options: argparse.Namespace) -> int:
    options.check(options)
    from hil.packages import command  # noqa: PLC0415 - loads an engine

    return command.package(options)


def _prices(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    return orders.prices(options.dir, options.unit, options.file, options.valid_for // 1000)


def _demand(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    stop_for_s = 0 if options.over else options.stop_for // 1000
    return orders.demand(options.dir, options.unit, stop_for_s, options.detail)


def _pace(options: argparse.Namespace) -> int:
    from agent.core.model import PaceState  # noqa: PLC0415 - as below
    from hil import orders  # noqa: PLC0415 - imports the dispatcher
    from hil.dispatcher.paces import PaceOrder  # noqa: PLC0415 - as above

    order = PaceOrder(
        state=PaceState(options.state),
        spread_s=options.spread // 1000,
        interval_permille=options.interval,
        detail=options.detail,
    )
    return orders.pace(options.dir, options.cell, order)


def _cancel(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher
    from hil.dispatcher.operator_api import CancelOrder  # noqa: PLC0415 - as above

    order = CancelOrder(grace_s=options.grace // 1000, why=options.detail, withdraw=options.withdraw)
    return orders.cancel(options.dir, options.job, order)


def _ledgers(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    if options.clear is None:
        return orders.ledger_faults(options.dir)
    return orders.clear_ledger(options.dir, options.clear, options.detail)


def _counts(options: argparse.Namespace) -> int:
    from hil import orders  # noqa: PLC0415 - imports the dispatcher

    return orders.counts(options.dir)


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
        sweep=options.sweep,
    )
    where = {"workers": options.workers, "json_file": options.json, "trace_dir": options.trace_dir}
    if options.protocol:
        return command.simulate_protocol(wish, **where)
    return command.simulate(100 if cars is None else cars, options.nights, options.seed, protocol=wish, **where)


def _cheats(options: argparse.Namespace) -> int:
    from hil.cheats import command  # noqa: PLC0415 - loads an engine

    if options.cars < 5:
        raise ConfigError(f"--cars {options.cars} leaves nobody to compare", hint="take 5 at least")
    return command.cheats(options.json, seed=options.seed, cars=options.cars)


def _acl_probe(options: argparse.Namespace) -> int:
    from hil.acl import command, target  # noqa: PLC0415 - brings brokers and certificates
    from hil.output import check_writable  # noqa: PLC0415 - as above

    check_writable(options.json)
    if options.here is not None:
        given = (options.broker, options.ca, options.car, options.victim, options.dispatcher, options.expired)
        if given != (None,) * len(given) or (options.cell, options.share_group) != ("00", "dispatch"):
            raise ConfigError(
                "--try starts a broker and certificates of its own: it takes no HOST:PORT, and none of yours",
                hint="leave out --try to probe yours",
            )
        with command.broker_here(options.here) as here:
            return command.acl_probe(here, options.json)
    pairs = (options.car, options.victim, options.dispatcher)
    if options.broker is None or options.ca is None or None in pairs:
        raise ConfigError(
            "a broker, its CA, and the certificates of two cars and a dispatcher are needed",
            hint="HOST:PORT --ca FILE --car CERT:KEY --victim CERT:KEY --dispatcher CERT:KEY, or --try mosquitto",
        )
    given_target = target.target_from_files(
        options.broker,
        options.ca,
        pairs,
        cell=options.cell,
        share_group=options.share_group,
        expired=options.expired,
    )
    return command.acl_probe(given_target, options.json)


def _gpu(options: argparse.Namespace) -> int:
    from hil.output import check_writable  # noqa: PLC0415 - as below

    check_writable(options.json)
    try:
        from hil.gpu import command  # noqa: PLC0415 - needs pycuda, which few machines have
    except ImportError as error:
        raise DrivewayError(
            f"pycuda cannot be loaded: {error}", hint="install the tensorrt extra where there is an NVIDIA GPU"
        ) from error
    return command.gpu(options.out, options.json, options.engine, quick=options.quick)


def _check_bench(options: argparse.Namespace, verb: argparse.ArgumentParser) -> None:
    if options.package is not None and options.names != ["pipeline"]:
        verb.error("--package is for pipeline alone")


def _bench(options: argparse.Namespace) -> int:
    options.check(options)
    from hil.bench import command  # noqa: PLC0415 - draws with rich

    return command.bench(options.names, options.json, options.package)


def _faults(options: argparse.Namespace) -> int:
    from hil.faults import command  # noqa: PLC0415 - imports the whole rig

    return command.faults(options)


def _fleet(options: argparse.Namespace) -> int:
    from hil.fleet import command  # noqa: PLC0415 - draws, and imports the dispatcher

    plan = fleet_arguments.plan_of(options)
    return command.fleet(plan, json_file=options.json, figure_file=options.figure, folder=options.dir)


def _updates(options: argparse.Namespace) -> int:
    from hil.updates.command import updates  # noqa: PLC0415 - draws with rich

    return updates(options)


def _powercut(options: argparse.Namespace) -> int:
    from hil.powercut import command  # noqa: PLC0415 - draws with rich, and imports the store

    return command.powercut(options)


def _vm(options: argparse.Namespace) -> int:
    from hil.vm import command  # noqa: PLC0415 - brings a broker, a dispatcher and a car

    return command.vm(options)


def _demo(options: argparse.Namespace) -> int:
    from hil.demo import command  # noqa: PLC0415 - imports the whole rig

    return command.demo(options.dir, options.json, options.figure, keep=options.keep)
