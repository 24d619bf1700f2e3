"""What the control socket shows: the core's state as plain, documented values. `--json` prints exactly these.

Times are RFC 3339 in UTC, derived from boot time and the wall clock as it is now; money is in units of the currency.
"""

from __future__ import annotations

import msgspec

from agent import __version__, idle
from agent.advice import advice_on
from agent.catalogue_view import CatalogueView
from agent.core import signals
from agent.core.events import OwnerMode, SignalValue
from agent.core.findings import GateState, Reason
from agent.core.signals import PAUSE_REQUESTED
from agent.core.state import State, WorkerPhase
from agent.core.world import Owner
from agent.engine_view import AcceleratorView, WorkerView, accelerator, built, worker
from agent.explain import advice, sentence
from agent.fleet.link import LinkStatus
from agent.idle import IdleView
from agent.ledger_view import LedgerView
from agent.limits import held_against
from agent.rows import LeaseRow, Totals, VacateStats
from agent.stamp import stamp
from agent.wire import Confinement

MONEY_DIGITS = 9


class ReasonView(msgspec.Struct, frozen=True):
    """Why the gate is not open; `code` is for programs.

    `text`, `expects` (when it should clear) and `next_step` are sentences for people.
    """

    code: str
    gate: str
    state: str
    signal: str
    value: SignalValue | None
    limit: SignalValue | None
    unit: str
    since: str
    clears_at: str | None
    text: str
    expects: str = ""
    next_step: str = ""


class LeaseView(msgspec.Struct, frozen=True):
    """The lease at work."""

    job: str
    epoch: int
    customer: str
    package: str
    phase: str
    slices_done: int
    slices_wanted: int
    items_done_in_slice: int
    expires_at: str


class ComputerView(msgspec.Struct, frozen=True):
    """The last reading of the inference computer."""

    die_c: float | None
    power_w: float | None
    sensor: str


class LinkView(msgspec.Struct, frozen=True):
    """The MQTT link. `attempts` are those since it was up last; `dropped` counts messages by reason since the start."""

    connected: bool
    broker: str
    detail: str
    attempts: int = 0
    connections: int = 0
    dropped: dict[str, int] = {}
    sent_bytes: int = 0
    received_bytes: int = 0


class OutboxView(msgspec.Struct, frozen=True):
    """Hand-ins that await a verdict."""

    pending: int


class SlicesView(msgspec.Struct, frozen=True):
    """Slices since the daemon started: begun, and kept on disk. The difference was lost, or is in flight."""

    started: int
    kept: int


class EarningsView(msgspec.Struct, frozen=True):
    """Paid, what the energy for it cost at the plug, and what remains."""

    gross: float
    energy_cost: float
    net: float
    currency: str


class OwnerStateView(msgspec.Struct, frozen=True):
    """What the owner said last: auto, finish or paused, and until when a pause with an end lasts."""

    mode: str
    until: str | None


class SourceView(msgspec.Struct, frozen=True):
    """One source of vehicle signals: whether it is heard and why not, and what it counted (frames, drops by reason)."""

    name: str
    alive: bool
    detail: str
    since: str | None
    counts: dict[str, int]


class AwakeView(msgspec.Struct, frozen=True):
    """Whether the car is kept awake, what of today's budgets that took, and why it is not any more."""

    held: bool
    minutes: float
    energy_wh: float
    wakes: int
    refused: str
    text: str


class StatusView(msgspec.Struct, frozen=True):
    """`driveway status`. `waiting` says, where the gate is open, what else keeps the agent from working.

    `idle` lists everything besides the gates that keeps it from working; `catalogue` is None where none is configured.
    """

    version: str
    state: str
    gate: str
    reasons: list[ReasonView]
    waiting: str
    owner: OwnerStateView
    awake: AwakeView
    power_cap_w: float
    computer: ComputerView | None
    accelerator: AcceleratorView
    lease: LeaseView | None
    worker: WorkerView | None
    sources: list[SourceView]
    slices: SlicesView
    link: LinkView
    outbox: OutboxView
    ledger: LedgerView
    earnings: EarningsView
    energy_wh: float
    vacate: VacateStats
    refused_messages: dict[str, int]
    refused_packages: dict[str, str]
    catalogue: CatalogueView | None = None
    idle: list[IdleView] = []


class SignalView(msgspec.Struct, frozen=True):
    """`driveway signals`: one leaf with its age; `problem` is empty when it may be believed.

    `wanted` says, for people, what it must be for work ("": no gate holds it against a limit of its own).
    """

    path: str
    value: SignalValue | None
    unit: str
    age_ms: int | None
    source: str
    problem: str
    wanted: str = ""


class LeaseEarningsView(msgspec.Struct, frozen=True):
    """One lease, with what it earned net of its energy."""

    lease: LeaseRow
    opened_at: str
    energy_wh: float
    gross: float
    energy_cost: float
    net: float


class EarningsList(msgspec.Struct, frozen=True):
    """`driveway earnings`: the newest leases, and the total over all leases there ever were."""

    leases: list[LeaseEarningsView]
    total: EarningsView
    total_energy_wh: float


def activity(state: State) -> str:
    """One word for what the agent does: blocked, ready, running, yielding, paused or fault."""
    if state.store_problem:
        return "fault"
    if state.vacating is not None or (state.lease is not None and state.lease.ending is not None):
        return "yielding"
    if state.owner.mode is OwnerMode.PAUSED:
        return "paused"
    if state.gates.state is GateState.CLOSED:
        return "blocked"
    return "ready" if state.lease is None else "running"


def waiting(state: State) -> str:
    """What the agent waits for although its gate is open, in one sentence; empty while it works."""
    if state.gates.state is not GateState.OPEN:
        return ""
    if state.lease is not None:
        return "The worker is loading the package." if state.worker.phase is WorkerPhase.STARTING else ""
    if state.worker.build is not None:
        return f"{built(state)} Work is asked for after that."
    if not state.connected:
        return f"There is no connection to a broker: {state.link_detail or 'it is being made'}."
    if state.asking is not None:
        return "The fleet was asked for work and has not answered yet."
    wait_s = max(0, state.ask_not_before_ms - state.now_ms) / 1000
    return f"The fleet has no work now; it is asked again in {wait_s:.0f} s."


def reasons(state: State, wall_offset_ms: int) -> list[ReasonView]:
    """All reasons, most severe first."""
    return [_reason(reason, wall_offset_ms, state.policy.parked_for_s) for reason in state.gates.reasons]


def _reason(reason: Reason, wall_offset_ms: int, parked_for_s: float) -> ReasonView:
    in_car = reason.code == "owner_paused" and reason.signal == PAUSE_REQUESTED
    goes_on = advice_on(reason, parked_for_s=parked_for_s, in_car=in_car)
    return ReasonView(
        code=reason.code,
        gate=reason.gate,
        state=reason.state.value,
        signal=reason.signal,
        value=reason.value,
        limit=reason.limit,
        unit=reason.unit,
        since=stamp(reason.since_ms + wall_offset_ms),
        clears_at=None if reason.clears_at_ms is None else stamp(reason.clears_at_ms + wall_offset_ms),
        text=sentence(reason),
        expects=goes_on.expects,
        next_step=goes_on.do,
    )


def lease(state: State, items_done_in_slice: int, wall_offset_ms: int) -> LeaseView | None:
    """The lease at work, if there is one."""
    held = state.lease
    if held is None:
        return None
    return LeaseView(
        job=held.grant.job,
        epoch=held.grant.epoch,
        customer=held.grant.customer,
        package=held.grant.package,
        phase=held.phase.value if held.ending is None else f"ending: {held.ending.value}",
        slices_done=len(held.done),
        slices_wanted=len(held.grant.slices),
        items_done_in_slice=items_done_in_slice,
        expires_at=stamp(held.expires_ms + wall_offset_ms),
    )


def status(
    state: State,
    *,
    wall_offset_ms: int,
    items_done_in_slice: int,
    pending: int,
    ledger: LedgerView,
    totals: Totals,
    vacate: VacateStats,
    refused_messages: dict[str, int],
    refused_packages: dict[str, str],
    counts: dict[str, dict[str, int]] | None = None,
    link: LinkStatus | None = None,
    confinement: tuple[Confinement, ...] = (),
    memory_returned_ms: int | None = None,
    catalogue: CatalogueView | None = None,
) -> StatusView:
    """The whole status."""
    compute = state.compute
    return StatusView(
        version=__version__,
        state=activity(state),
        gate=state.gates.state.value,
        reasons=reasons(state, wall_offset_ms),
        waiting=waiting(state),
        owner=OwnerStateView(state.owner.mode.value, pause_until(state.owner, wall_offset_ms)),
        awake=awake(state),
        power_cap_w=round(state.heat.cap_w, 1),
        computer=None if compute is None else ComputerView(compute.die_c, compute.power_w, compute.sensor),
        accelerator=accelerator(state, memory_returned_ms),
        lease=lease(state, items_done_in_slice, wall_offset_ms),
        worker=worker(state, confinement),
        sources=sources(state, counts or {}, wall_offset_ms),
        slices=SlicesView(state.slices_started, state.slices_kept),
        link=_link(state, link),
        outbox=OutboxView(pending),
        ledger=ledger,
        earnings=earnings(state, totals),
        energy_wh=round(totals.energy_micro_wh / 1e6, 6),
        vacate=vacate,
        refused_messages=refused_messages,
        refused_packages=refused_packages,
        catalogue=catalogue,
        idle=idle.causes(state, wall_offset_ms, catalogue=catalogue, ledger=ledger, refused_packages=refused_packages),
    )


def _link(state: State, link: LinkStatus | None) -> LinkView:
    """The link as the core knows it; while it is down, what stands in the way now, which the core hears of hourly."""
    if link is None:
        return LinkView(state.connected, state.broker, state.link_detail)
    broker, detail = (state.broker, state.link_detail) if state.connected else (link.broker, link.detail)
    return LinkView(
        connected=state.connected,
        broker=broker,
        detail=detail,
        attempts=link.attempts,
        connections=link.connections,
        dropped=link.dropped,
        sent_bytes=link.sent_bytes,
        received_bytes=link.received_bytes,
    )


def awake(state: State) -> AwakeView:
    """The keep-awake, with its budgets."""
    one = state.awake
    minutes, energy_wh = round(one.used_ms / 60_000, 1), round(one.used_wh, 1)
    return AwakeView(one.held, minutes, energy_wh, one.wakes, one.refused, advice(one.refused))


def sources(state: State, counts: dict[str, dict[str, int]], wall_offset_ms: int) -> list[SourceView]:
    """Every source that has said something or is configured, by name."""
    views = []
    for name in sorted({*state.vehicle.sources, *counts}):
        said = state.vehicle.sources.get(name)
        since = None if said is None else stamp(said.since_ms + wall_offset_ms)
        alive, detail = (False, "not heard yet") if said is None else (said.alive, said.detail)
        views.append(SourceView(name, alive, detail, since, counts.get(name, {})))
    return views


def earnings(state: State, totals: Totals) -> EarningsView:
    """What all leases earned net of the energy that earned it."""
    cost = totals.cost_micro
    return EarningsView(
        gross=totals.paid_micro / 1e6,
        energy_cost=round(cost / 1e6, MONEY_DIGITS),
        net=round((totals.paid_micro - cost) / 1e6, MONEY_DIGITS),
        currency=state.policy.currency,
    )


def lease_earnings(row: LeaseRow) -> LeaseEarningsView:
    """One lease, with its net."""
    cost = row.cost_micro
    return LeaseEarningsView(
        lease=row,
        opened_at=stamp(row.opened_wall_ms),
        energy_wh=row.energy_micro_wh / 1e6,
        gross=row.paid_micro / 1e6,
        energy_cost=round(cost / 1e6, MONEY_DIGITS),
        net=round((row.paid_micro - cost) / 1e6, MONEY_DIGITS),
    )


def signal_list(state: State, now_ms: int) -> list[SignalView]:
    """Every leaf a gate reads and every leaf a source sent, by name."""
    views, wanted = [], held_against(state.policy)
    for path in sorted({*filter(state.vehicle.reads, signals.LEAVES), *state.vehicle.known}):
        reading = state.vehicle.read(path, now_ms)
        known = state.vehicle.known.get(path)
        leaf = signals.LEAVES.get(path)
        unit = "" if leaf is None else leaf.unit
        source = "" if known is None else known.source
        value = None if known is None else known.value
        views.append(SignalView(path, value, unit, reading.age_ms, source, reading.problem, wanted.get(path, "")))
    return views


def pause_until(owner: Owner, wall_offset_ms: int) -> str | None:
    """When a pause ends (RFC 3339, UTC); None for one without end, and while there is no pause."""
    if owner.until_ms is not None:  # to the second: the two clocks are read one after the other
        return stamp(round(owner.until_ms + wall_offset_ms, -3))
    return None if owner.until_wall_ms is None else stamp(owner.until_wall_ms)
