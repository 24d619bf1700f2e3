"""The daemon's view as samples: pure, so that what is shown can be held against what the view says.

What is not known has no sample: an absent metric is not a zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.core import signals
from agent.core.events import OwnerMode
from agent.core.findings import SEVERITY, GateState
from agent.core.gates import RULES
from agent.core.model import Readiness
from agent.metrics import families as of
from agent.metrics.text import Family, Sample
from agent.view import SignalView, StatusView

STATES = ("blocked", "ready", "running", "yielding", "paused", "fault")
JOULES_PER_WH = 3600.0


@dataclass(frozen=True, kw_only=True)
class ProcessFigures:
    """The daemon's own process. `started_s` is wall time."""

    cpu_s: float
    resident_bytes: int
    descriptors: int
    started_s: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is told of at one moment."""

    status: StatusView
    signals: Sequence[SignalView]
    process: ProcessFigures
    control_clients: int = 0
    control_refused: int = 0
    log_events: Mapping[str, int]
    log_held_back: int = 0


def collect(shot: Snapshot) -> Iterator[tuple[Family, list[Sample]]]:
    """Every family with its samples, in the order of `families.ALL`."""
    found = {**_agent(shot.status), **_computer(shot.status), **_vehicle(shot), **_work(shot.status)}
    found |= {**_money(shot.status), **_fleet(shot.status), **_daemon(shot)}
    assert set(found) == set(of.ALL), {one.name for one in set(found) ^ set(of.ALL)}
    return ((family, found[family]) for family in of.ALL)


Found = dict[Family, list[Sample]]


def _agent(status: StatusView) -> Found:
    levels = Counter(dict.fromkeys(RULES, 0))
    for reason in status.reasons:
        if reason.gate in levels:
            levels[reason.gate] = max(levels[reason.gate], SEVERITY[GateState(reason.state)])
    return {
        of.BUILD: [Sample(1, (status.version,))],
        of.STATE: _one_of(STATES, status.state),
        of.GATE_LEVEL: [Sample(level, (gate,)) for gate, level in levels.items()],
        of.OWNER_MODE: _one_of([mode.value for mode in OwnerMode], status.owner.mode),
    }


def _computer(status: StatusView) -> Found:
    computer = status.computer
    return {
        of.POWER_CAP: _value(status.power_cap_w),
        of.POWER: _value(None if computer is None else computer.power_w),
        of.DIE: _value(None if computer is None else computer.die_c),
        of.SENSOR: [] if computer is None else [Sample(1, (computer.sensor,))],
        of.ENERGY: _value(status.energy_wh * JOULES_PER_WH),
        of.ACCELERATOR: _one_of([state.value for state in Readiness], status.accelerator.state),
        of.PLANS_MISSING: _value(status.accelerator.plans_missing),
        of.WORKER_UP: _value(status.worker is not None),
    }


def _vehicle(shot: Snapshot) -> Found:
    believed = {one.path: one.value for one in shot.signals if not one.problem}
    charge = _number(believed.get(signals.CHARGE))
    sources = shot.status.sources
    return {
        of.CHARGE: _value(None if charge is None else charge / 100),
        of.PACK: _value(_number(believed.get(signals.PACK_TEMPERATURE))),
        of.AMBIENT: _value(_number(believed.get(signals.AMBIENT))),
        of.SIGNAL_PROBLEMS: _value(sum(bool(one.problem) for one in shot.signals)),
        of.SOURCE_UP: [Sample(one.alive, (one.name,)) for one in sources],
        of.SOURCE_EVENTS: [
            Sample(count, (one.name, kind)) for one in sources for kind, count in _few(one.counts).items()
        ],
    }


def _work(status: StatusView) -> Found:
    lease, vacate = status.lease, status.vacate
    quantiles = (("0.5", vacate.p50_ms), ("0.99", vacate.p99_ms), ("1", vacate.max_ms))
    return {
        of.LEASE_ACTIVE: _value(lease is not None),
        of.LEASE_DONE: _value(None if lease is None else lease.slices_done),
        of.LEASE_WANTED: _value(None if lease is None else lease.slices_wanted),
        of.SLICES_STARTED: _value(status.slices.started),
        of.SLICES_KEPT: _value(status.slices.kept),
        of.OUTBOX: _value(status.outbox.pending),
        of.LEDGER: _value(status.ledger.size),
        of.LEDGER_WITNESSED: _value(status.ledger.witnessed),
        of.LEDGER_DISPUTED: _value(bool(status.ledger.dispute)),
        of.VACATE: [
            *(Sample(time_ms / 1000, (quantile,)) for quantile, time_ms in quantiles if time_ms is not None),
            Sample(vacate.count, suffix="_count"),
        ],
    }


def _money(status: StatusView) -> Found:
    earned = status.earnings
    return {
        of.EARNED: [Sample(earned.gross, (earned.currency,))],
        of.ENERGY_COST: [Sample(earned.energy_cost, (earned.currency,))],
        of.NET: [Sample(earned.net, (earned.currency,))],
    }


def _fleet(status: StatusView) -> Found:
    link, awake, catalogue = status.link, status.awake, status.catalogue
    return {
        of.LINK_UP: _value(link.connected),
        of.LINK_ATTEMPTS: _value(link.attempts),
        of.LINK_CONNECTIONS: _value(link.connections),
        of.LINK_SENT: _value(link.sent_bytes),
        of.LINK_RECEIVED: _value(link.received_bytes),
        of.LINK_DROPPED: [Sample(count, (reason,)) for reason, count in _few(link.dropped).items()],
        of.REFUSED_MESSAGES: [Sample(count, (kind,)) for kind, count in _few(status.refused_messages).items()],
        of.REFUSED_PACKAGES: _value(len(status.refused_packages)),
        of.CATALOGUE_EXPIRED: _value(None if catalogue is None else catalogue.expired),
        of.AWAKE: _value(awake.held),
        of.AWAKE_TIME: _value(awake.minutes * 60),
        of.AWAKE_ENERGY: _value(awake.energy_wh * JOULES_PER_WH),
    }


def _daemon(shot: Snapshot) -> Found:
    process = shot.process
    return {
        of.CONTROL_CLIENTS: _value(shot.control_clients),
        of.CONTROL_REFUSED: _value(shot.control_refused),
        of.LOG_EVENTS: [Sample(count, (level,)) for level, count in _few(shot.log_events).items()],
        of.LOG_HELD_BACK: _value(shot.log_held_back),
        of.CPU: _value(process.cpu_s),
        of.RESIDENT: _value(process.resident_bytes),
        of.DESCRIPTORS: _value(process.descriptors),
        of.STARTED: _value(process.started_s),
    }


def _value(value: float | None) -> list[Sample]:
    return [] if value is None else [Sample(value)]


def _one_of(names: Sequence[str], now: str) -> list[Sample]:
    return [Sample(name == now, (name,)) for name in names]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _few(counts: Mapping[str, int]) -> dict[str, int]:
    """By name; beyond so many names, the rest together."""
    if len(counts) <= of.LIMIT_OF_VALUES:
        return dict(sorted(counts.items()))
    names = sorted(set(counts) - {of.OTHER})[: of.LIMIT_OF_VALUES - 1]
    few = {name: counts[name] for name in names}
    return few | {of.OTHER: sum(counts.values()) - sum(few.values())}
