"""The command line of `driveway-hil fleet`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hil.fleet.plan import DEFAULT_STEPS, FleetPlan

ABOUT = "run thousands of cars against a real broker, and measure what grows with them"
MORE = """\
Each car is the daemon's own core and desk with its own key, on its own MQTT connection; its vehicle, its computer and
its disk are stood in for, and a lease works for --lease-s instead of ten minutes, so that one machine carries the
messages of a far larger fleet. It ends with the accounts: every hand-in settled, none twice. Exit status 0: they hold.
"""
DEFAULTS = FleetPlan()


def add_verb(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb, without what carries it out."""
    verb: argparse.ArgumentParser = verbs.add_parser("fleet", help=ABOUT, description=f"{ABOUT.capitalize()}. {MORE}")
    steps = ",".join(str(step) for step in DEFAULT_STEPS)
    fleet = verb.add_argument_group("the fleet")
    _number(fleet, "--cars", "N", DEFAULTS.cars, "cars in the end")
    fleet.add_argument(
        "--steps",
        type=_sizes,
        default=(),
        metavar="N,N,…",
        help=f"sizes to measure at (default: {steps}, up to --cars)",
    )
    _number(fleet, "--ramp-per-s", "R", DEFAULTS.ramp_per_s, "cars that start a second, 0 for all at once")
    _number(fleet, "--seconds", "T", DEFAULTS.seconds, "measured at each size")
    _number(fleet, "--processes", "P", DEFAULTS.processes, "processes of cars, 0 for as many as they need")
    work = verb.add_argument_group("the work")
    _number(work, "--lease-s", "S", DEFAULTS.lease_s, "seconds that a lease works for")
    _number(work, "--lease-items", "N", DEFAULTS.lease_items, "items of a lease")
    _number(work, "--slice-items", "N", DEFAULTS.slice_items, "items of a slice")
    _number(work, "--long-share", "X", DEFAULTS.long_share, "share of jobs that are long, and renewed")
    region = verb.add_argument_group("the region")
    region.add_argument("--broker", choices=("mosquitto", "embedded"), default=DEFAULTS.broker)
    region.add_argument("--tls", action="store_true", help="cars come over mutual TLS 1.3, with one test authority")
    region.add_argument("--database", choices=("sqlite", "postgresql"), default=DEFAULTS.database)
    _number(region, "--dispatchers", "M", DEFAULTS.dispatchers, "replicas of the dispatcher")
    outage = verb.add_argument_group("the outage")
    outage.add_argument(
        "--outage", action="store_true", help="kill the broker, then the dispatchers, each bare and paced"
    )
    _number(outage, "--outage-s", "S", DEFAULTS.outage_s, "how long they are gone")
    _number(outage, "--spread-s", "S", DEFAULTS.spread_s, "paced: the pace's spread of first attempts")
    _number(
        outage, "--restart-per-s", "R", DEFAULTS.restart_per_s, "paced: idle cars that a dispatcher starts a second"
    )
    output = verb.add_argument_group("the report")
    output.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures as JSON (keys: hil/fleet/report.py)"
    )
    output.add_argument("--figure", type=Path, metavar="FILE", help="write the plots as one picture (.svg or .png)")
    output.add_argument("--dir", type=Path, metavar="DIR", help="keep logs and book there (default: gone at the end)")
    return verb


def plan_of(options: argparse.Namespace) -> FleetPlan:
    """The plan that these options are."""
    names = FleetPlan.__struct_fields__
    return FleetPlan(**{name: value for name, value in vars(options).items() if name in names})


def _number(group: Any, name: str, metavar: str, default: float, text: str) -> None:
    group.add_argument(
        name, type=type(default), default=default, metavar=metavar, help=f"{text} (default: {default:g})"
    )


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 100,1000") from None
