"""`driveway simulate TRACE`: what a policy would have made of a recorded night, and whether it kept every promise.

Exit codes: 0 every promise held, 1 one was broken, 2 the trace or an option cannot be used.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import zoneinfo

import msgspec

from agent.cli import exits
from agent.cli.text import paint, print_json
from agent.config import load_policy
from agent.core.policy import Policy
from agent.core.walltime import LATEST_WALL_MS
from agent.errors import ConfigError, TraceError
from agent.simulate.counterpart import Supposed
from agent.simulate.play import rehearse, replay
from agent.simulate.readers import Options, open_trace
from agent.simulate.recording import Recording
from agent.simulate.report import Report
from agent.simulate.text import render
from agent.zones import zone_named


def simulate(options: argparse.Namespace) -> int:
    """Play the night and print what came of it."""
    try:
        report = _play(options)
    except (TraceError, ConfigError) as error:
        print(f"driveway: {error}", file=sys.stderr)
        return exits.USAGE
    if options.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(render(report, paint))
    return exits.FINE if report.held else exits.FAILED


def _play(options: argparse.Namespace) -> Report:
    policy, policy_name = _policy(options)
    how = Options(
        profiles=tuple(options.profile),
        buses=_buses(options.bus),
        start_wall_ms=None if options.start is None else _wall_ms(options.start, policy.time_zone),
    )
    trace = open_trace(options.trace, how)
    if isinstance(trace, Recording):
        if options.policy is not None:
            raise ConfigError(
                f"{options.trace} is a recording, answers of the fleet included: it replays under its own policy",
                hint="leave --policy out; a candump log or a CSV can be played against any",
            )
        return replay(trace, options.trace.name)
    supposed = Supposed(
        slice_s=_positive(options.slice_s, "--slice-s", 3_600),
        slice_price_micro=round(_within(options.slice_price, "--slice-price", 1_000) * 1e6),
        work_w=policy.power_max_w if options.work_w is None else _positive(options.work_w, "--work-w", 5_000),
        load_s=_positive(options.load_s, "--load-s", 600),
    )
    return rehearse(trace, policy, policy_name, zone_named(policy.time_zone), supposed)


def _policy(options: argparse.Namespace) -> tuple[Policy, str]:
    """The policy asked for, else the configuration's, else the built-in one; and its name for the report."""
    if options.policy is not None:
        return load_policy(options.policy), options.policy.name
    if options.config.is_file():
        return load_policy(options.config), str(options.config)
    return Policy(), "the built-in policy"


def _buses(pairs: list[str]) -> dict[str, str]:
    buses = {}
    for pair in pairs:
        interface, _, bus = pair.partition("=")
        if not interface or not bus:
            raise ConfigError(f"--bus {pair!r} is not INTERFACE=BUS", hint="write for example --bus can0=party")
        if interface in buses:
            raise ConfigError(f"--bus names {interface} twice")
        buses[interface] = bus
    return buses


def _wall_ms(text: str, time_zone: str) -> int:
    """The moment that `--start` means: local time of the policy's zone, unless it has an offset of its own."""
    try:
        stamp = dt.datetime.fromisoformat(text)
        zone_named(time_zone)
        local = stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=zoneinfo.ZoneInfo(time_zone))
        wall_ms = round(local.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ConfigError(f"--start {text!r} is no time", hint="write for example 2026-03-28T22:00") from None
    if not 0 <= wall_ms < LATEST_WALL_MS:
        raise ConfigError(f"--start {text!r} is not within 1970 and 2100")
    return wall_ms


def _within(number: float, name: str, most: float) -> float:
    if not 0 <= number <= most:
        raise ConfigError(f"{name} is {number:g}; it must be within 0 and {most:g}")
    return number


def _positive(number: float, name: str, most: float) -> float:
    if not 0 < number <= most:
        raise ConfigError(f"{name} is {number:g}; it must be above 0, and {most:g} at most")
    return number
