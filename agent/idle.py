"""Why nothing is worked although no gate is shut: the fleet, the link, the store, a plan that is being built.

Gates say whether the car may be used; these say what else is missing. Each cause is told as a gate's reason is: what
it is, its value and limit, when it should be over, and what to do. Pure: the core's state, and what the shells know.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from agent.catalogue_view import CatalogueView
from agent.core.asking import OUTBOX_MAX
from agent.core.events import OwnerMode, SignalValue
from agent.core.state import State, WorkerPhase
from agent.engine_view import built
from agent.ledger_view import LedgerView
from agent.printable import printable
from agent.stamp import stamp


class IdleView(msgspec.Struct, frozen=True, kw_only=True):
    """One cause that is no gate. `blocks`: no work is taken on while it stands; else it is told because it may matter.

    `clears_at` is RFC 3339 in UTC where the moment is known; `text`, `expects` and `next_step` are for people.
    """

    code: str
    text: str
    value: SignalValue | None = None
    limit: SignalValue | None = None
    unit: str = ""
    clears_at: str | None = None
    expects: str
    next_step: str
    blocks: bool = True


def causes(
    state: State,
    wall_offset_ms: int,
    *,
    catalogue: CatalogueView | None = None,
    ledger: LedgerView | None = None,
    refused_packages: dict[str, str] | None = None,
) -> list[IdleView]:
    """Everything that keeps the agent idle besides its gates, what stands longest in the way first; none at work."""
    found = [
        *_trust(catalogue, ledger, wall_offset_ms),
        *_own(state, refused_packages or {}),
        *_fleet(state, wall_offset_ms),
    ]
    return [msgspec.structs.replace(one, text=printable(one.text)) for one in found]


def _trust(catalogue: CatalogueView | None, ledger: LedgerView | None, _offset: int) -> Iterator[IdleView]:
    if catalogue is not None and catalogue.timestamp is None:
        yield IdleView(
            code="catalogue_none",
            text=f"There is no catalogue yet, so nothing may run: {catalogue.error or 'it is being fetched'}.",
            expects="It is over when the catalogue has been fetched; that is tried without end.",
            next_step="`driveway doctor` tries its address; docs/catalogue.md says what is signed by whom.",
        )
    elif catalogue is not None and catalogue.expired:
        yield IdleView(
            code="catalogue_expired",
            text=f"The catalogue has expired, so nothing new is taken on{_because(catalogue.error)}.",
            value=catalogue.expires_at,
            expects="It is over when a newer one has been fetched; that is tried without end.",
            next_step="Check the network and this computer's clock: `driveway doctor`.",
        )
    if ledger is not None and ledger.dispute:
        yield IdleView(
            code="ledger_dispute",
            text=f"The dispatcher disputes this car's ledger, so nothing is paid: {ledger.dispute}.",
            expects="It does not end by itself.",
            next_step="Keep the state directory as it is, and send the operator `driveway bundle`.",
            blocks=False,
        )
    elif ledger is not None and ledger.unpaid_since:
        yield IdleView(
            code="ledger_unwitnessed",
            text="The dispatcher has not witnessed the ledger for long, so it judges no hand-in.",
            value=ledger.size - ledger.witnessed,
            unit="leaves",
            expects="It is over when the dispatcher countersigns a checkpoint.",
            next_step="`driveway ledger` shows how far it is; if it stays for a day, tell the operator.",
            blocks=False,
        )


def _own(state: State, refused: dict[str, str]) -> Iterator[IdleView]:
    worker = state.worker
    if state.lease is not None and worker.phase is WorkerPhase.STARTING:
        yield IdleView(
            code="worker_loading",
            text="The worker is loading the package.",
            value=round((state.now_ms - worker.since_ms) / 1000, 1),
            limit=None if worker.load_due_ms is None else round((worker.load_due_ms - worker.since_ms) / 1000, 1),
            unit="s",
            expects="It is over in some seconds; a worker that takes longer than the limit is ended.",
            next_step="Nothing; wait.",
        )
    if state.vacating is not None or worker.phase is WorkerPhase.STOPPING:
        yield IdleView(
            code="vacating",
            text="The computer is being given back: the worker ends, and its memory is returned.",
            limit=state.policy.vacate_budget_ms,
            unit="ms",
            expects="It is over in a moment.",
            next_step="Nothing; wait.",
        )
    if worker.build is not None:
        yield IdleView(
            code="plan_building",
            text=built(state) + " Work is asked for after that.",
            value=worker.build.done_permille / 10 if worker.build.done_permille is not None else None,
            limit=100,
            unit="%",
            expects="It is over when the plan is built, once for each package and driver; that takes minutes.",
            next_step="Nothing; leave the car parked and plugged in.",
        )
    elif state.builds.missing:
        yield IdleView(
            code="plans_missing",
            text="Engine plans have still to be built before their packages may run.",
            value=len(state.builds.missing),
            limit=0,
            unit="plans",
            expects="It is over when they are built, which happens by itself while the gate is open.",
            next_step="Nothing; leave the car parked and plugged in.",
            blocks=False,
        )
    if state.left_over:
        yield IdleView(
            code="left_over",
            text="A lease of an earlier run has still to be ended.",
            value=len(state.left_over),
            limit=0,
            unit="leases",
            expects="It is over in a moment; what was finished of it is handed in.",
            next_step="Nothing; if it stays, look at the disk: `driveway doctor`.",
        )
    if refused:
        name, detail = next(iter(refused.items()))
        yield IdleView(
            code="package_refused",
            text=f"Package {name} may not run here: {detail}.",
            value=len(refused),
            limit=0,
            unit="packages",
            expects="It does not end by itself.",
            next_step="`driveway packages` lists each with its reason; install a package that is right.",
            blocks=False,
        )


def _fleet(state: State, wall_offset_ms: int) -> Iterator[IdleView]:
    if len(state.outbox) >= OUTBOX_MAX:
        yield IdleView(
            code="outbox_full",
            text="So many hand-ins wait for the fleet's verdict that nothing more is taken on.",
            value=len(state.outbox),
            limit=OUTBOX_MAX,
            unit="hand-ins",
            expects="It is over when the dispatcher has judged some of them; they are offered again without end.",
            next_step="Check the link in `driveway status`; if it is up, tell the operator. Nothing is lost.",
        )
    if state.lease is not None:
        return
    if not state.connected:
        silent_ms = None if state.offline_since_ms is None else state.now_ms - state.offline_since_ms
        yield IdleView(
            code="no_broker",
            text=f"There is no connection to a broker: {state.link_detail or 'it is being made'}.",
            value=None if silent_ms is None else round(silent_ms / 1000, 1),
            limit=state.policy.offline_after_s,
            unit="s",
            expects="It is over when the broker answers; it is tried without end.",
            next_step="`driveway doctor` tries the broker: its address, certificate and login.",
        )
    elif state.asking is not None:
        yield IdleView(
            code="fleet_silent" if state.unanswered else "fleet_asked",
            text="The fleet was asked for work and has not answered yet"
            + (f", {state.unanswered + 1} times in a row." if state.unanswered else "."),
            value=round((state.now_ms - state.asking.sent_ms) / 1000, 1),
            limit=round(state.policy.request_timeout_ms / 1000, 1),
            unit="s",
            clears_at=stamp(state.asking.again_ms + wall_offset_ms),
            expects="It is asked again then; the waits grow to ten minutes.",
            next_step="Nothing at first. If it stays, the broker works and the dispatcher does not: tell the operator.",
        )
    elif state.now_ms < state.ask_not_before_ms and state.owner.mode is OwnerMode.AUTO:
        wait_s = (state.ask_not_before_ms - state.now_ms) / 1000
        vain = f" The last {state.fruitless} leases came to nothing." if state.fruitless else ""
        yield IdleView(
            code="no_work_offered",
            text=f"The fleet has no work now; it is asked again in {wait_s:.0f} s.{vain}",
            value=round(wait_s, 1),
            unit="s",
            clears_at=stamp(state.ask_not_before_ms + wall_offset_ms),
            expects="It is asked again then.",
            next_step="`driveway leases` says why leases were given back." if state.fruitless else "Nothing; wait.",
        )


def _because(error: str) -> str:
    return f" ({error})" if error else ""
