"""What a fleet run is asked to do, and whether this machine can do it: checked before anything is started."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from hil.broker import Mosquitto
from hil.postgres import PostgresServer

DEFAULT_STEPS = (100, 300, 1_000, 3_000, 10_000)
REAL_LEASE_S = 600.0
"""A lease of a real fleet: ten minutes (the reference load of docs/operations.md)."""
EMBEDDED_CONNECTIONS = 900
"""The embedded broker is configured for 1,000; some are for dispatchers and for this program."""
SPARE_DESCRIPTORS = 200
LONGEST_SPREAD_S = 3_600
CARS_PER_PROCESS = 2_500
MOST_PROCESSES = 8
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Durations are seconds of this machine; `lease_s` is how long a lease works, in place of `REAL_LEASE_S`."""

    cars: int = 10_000
    steps: tuple[int, ...] = ()
    """Fleet sizes to stop and measure at; the last is `cars`."""
    ramp_per_s: float = 100.0
    """Cars that start a second; 0: all at once."""
    seconds: float = 60.0
    """How long it is measured at each size."""
    lease_s: float = 120.0
    lease_items: int = 10
    slice_items: int = 5
    long_share: float = 0.05
    """The share of jobs whose lease is long, so that it is renewed."""
    broker: str = "mosquitto"
    tls: bool = False
    database: str = "sqlite"
    dispatchers: int = 1
    processes: int = 0
    """Of cars; 0: as many as the cars need."""
    outage: bool = False
    outage_s: float = 10.0
    spread_s: int = 60
    """Of the retained pace, in the outage with pace."""
    restart_per_s: float = 50.0
    """Leases of idle cars a second that each dispatcher starts at least, in the outage with pace."""

    @property
    def compression(self) -> float:
        """How many times shorter a lease is here than in a real fleet: so many cars each car stands for."""
        return REAL_LEASE_S / self.lease_s

    @property
    def sizes(self) -> tuple[int, ...]:
        """The fleet sizes to measure at, rising, `cars` last."""
        wanted = self.steps or (*(size for size in DEFAULT_STEPS if size < self.cars), self.cars)
        return tuple(sorted(set(wanted)))

    @property
    def car_processes(self) -> int:
        """How many processes of cars there will be."""
        return self.processes or min(MOST_PROCESSES, -(-self.cars // CARS_PER_PROCESS))

    @property
    def slice_s(self) -> float:
        """How long a slice takes, so that a lease takes `lease_s`."""
        return self.lease_s / -(-self.lease_items // self.slice_items)


def allow_descriptors(needed: int) -> int:
    """Let this process and those that it starts have so many file descriptors, if they may; how many they may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((needed, hard), (needed, needed), (hard, hard)):
        if soft >= needed:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            soft = limits[0]
    return soft


def check(plan: FleetPlan) -> None:
    """Raises ConfigError, in one sentence, for what cannot be run."""
    for name, value, least in (
        ("--cars", plan.cars, 1),
        ("--seconds", plan.seconds, 1),
        ("--lease-s", plan.lease_s, 1),
        ("--lease-items", plan.lease_items, 1),
        ("--slice-items", plan.slice_items, 1),
        ("--dispatchers", plan.dispatchers, 1),
        ("--outage-s", plan.outage_s, 1),
        ("--ramp-per-s", plan.ramp_per_s, 0),
        ("--processes", plan.processes, 0),
        ("--spread-s", plan.spread_s, 0),
        ("--restart-per-s", plan.restart_per_s, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value:g}", hint=f"it must be at least {least}")
    if min(plan.sizes) < 1 or max(plan.sizes) != plan.cars:
        raise ConfigError(f"--steps goes to {max(plan.sizes)} and --cars is {plan.cars}", hint="leave one of them out")
    if plan.spread_s > LONGEST_SPREAD_S:
        raise ConfigError(f"--spread-s is {plan.spread_s}", hint=f"a pace spreads over {LONGEST_SPREAD_S} s at most")
    if not 0 <= plan.long_share <= 1:
        raise ConfigError(f"--long-share is {plan.long_share:g}", hint="it is a share, from 0 to 1")
    if plan.database == "postgresql" and PostgresServer.programs() is None:
        raise ConfigError("PostgreSQL is not installed", hint="apt-get install postgresql, or use --database sqlite")
    _check_broker(plan)
    _check_machine(plan)


def _check_broker(plan: FleetPlan) -> None:
    if plan.broker == "embedded":
        if plan.tls:
            raise ConfigError("the embedded broker checks no certificates", hint="use --broker mosquitto with --tls")
        if plan.cars > EMBEDDED_CONNECTIONS:
            raise ConfigError(
                f"the embedded broker takes {EMBEDDED_CONNECTIONS} cars, not {plan.cars}",
                hint="use --broker mosquitto (apt-get install mosquitto)",
            )
    elif Mosquitto.binary() is None:
        raise ConfigError("mosquitto is not installed", hint="apt-get install mosquitto, or use --broker embedded")


def _check_machine(plan: FleetPlan) -> None:
    """Descriptors (the broker has one for each car, in one process) and ports (each car has one of the loopback)."""
    needed = plan.cars + SPARE_DESCRIPTORS
    descriptors = allow_descriptors(needed)
    if needed > descriptors:
        raise ConfigError(
            f"{plan.cars} cars need {needed} file descriptors in the broker, and {descriptors} are allowed",
            hint=f"raise the hard limit as root (ulimit -n {needed})"
            f" or use at most {max(0, descriptors - SPARE_DESCRIPTORS)} cars",
        )
    first, last = (int(port) for port in PORT_RANGE.read_text("ascii").split())
    if plan.cars > last - first - SPARE_DESCRIPTORS:
        raise ConfigError(
            f"{plan.cars} cars need a local port each, and {PORT_RANGE} has {last - first + 1}",
            hint="write a wider range into it, such as: 10000 65000",
        )
