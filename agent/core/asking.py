"""Asking the fleet for work and for time, and what it answers: grants, renewals, cancels, and the cell's pace.

A car asks only while its gate is open, it holds no lease, has no engine plan to build first, and the fleet is open, one
question at a time. Only the answer
to the question now open counts, since of any other nobody knows when its lease began. An unanswered question is asked
again under full jitter, up to minutes apart, until an answer comes: a broker acknowledges for a dispatcher that is
gone, so nothing else tells. A grant that the car cannot use (another class of work than the owner takes, too long for
the time there is, held already) costs a wait too, longer each time in a row, so that no dispatcher can make it spin.

A lease with `renew_ms` is renewed at that rhythm, at least three times in its time; a renewal that stays unanswered is
followed by the next, and the lease still ends at `expires_ms`. A cancel ends the lease within its grace.
"""

from __future__ import annotations

import msgspec

from agent.core import building
from agent.core.effects import EffectType, KeepGrant, Report, SendRenewal, SendRequest
from agent.core.events import CancelSeen, GrantSeen, OwnerMode, PaceSeen
from agent.core.findings import GateState
from agent.core.lease import Asking, Lease, Phase, ends_ms
from agent.core.model import Grant, PaceState, YieldReason
from agent.core.outlook import outlook, too_short
from agent.core.state import State, WorkerPhase
from agent.core.waiting import LEAST_MS, about_ms, bound_ms, full_jitter_ms, stretched_ms
from agent.core.world import FAR_MS

Step = tuple[State, tuple[EffectType, ...]]

REPLACE = msgspec.structs.replace
OUTBOX_MAX = 16
"""With so many hand-ins without a verdict the fleet is not listening: nothing more is taken on."""
UNANSWERED_FIRST_MS = 10_000
UNANSWERED_MAX_MS = 600_000
FRUITLESS_FIRST_MS = 5_000
DECLINED_FIRST_MS = 10_000
FRUITLESS_MAX_MS = 300_000
RENEW_LEAST_MS = 10_000
"""No lease is renewed more often; one so short that this is too late for it ends at its time."""
RENEWALS_A_TTL = 3
RENEWALS_KEPT = 8
"""So many unanswered renewals are remembered, the latest: an older answer would give next to no time."""


# --- the rules ----------------------------------------------------------------------------------------------------


def ask(state: State) -> Step:
    """An open gate with nothing to do asks for work; an unanswered question is asked again."""
    if not may_ask(state) or not state.connected or state.worker.phase is WorkerPhase.STOPPING:
        return state, ()
    if state.now_ms < state.request_not_before_ms:
        return state, ()
    if state.asking is not None:
        if state.now_ms < state.asking.again_ms:
            return state, ()
        state = REPLACE(state, unanswered=state.unanswered + 1)
    asked = state.asked + 1
    rid = f"{state.name}-{asked}"
    state = REPLACE(state, asked=asked, request_not_before_ms=state.now_ms + LEAST_MS)
    request = SendRequest(rid=rid, have=state.have, outlook=outlook(state))
    return REPLACE(state, asking=asked_now(state, rid)), (request,)


def asked_now(state: State, rid: str) -> Asking:
    """A question sent at this moment, and when it is asked again: the later, the more have gone unanswered."""
    patience_ms = state.policy.request_timeout_ms
    if state.unanswered:
        bound = bound_ms(UNANSWERED_FIRST_MS, UNANSWERED_MAX_MS, state.unanswered)
        patience_ms += full_jitter_ms(bound, state.jitter(f"unanswered {state.unanswered}"))
    return Asking(rid, state.now_ms, state.now_ms + stretched_ms(patience_ms, state.pace))


def may_ask(state: State) -> bool:
    """Whether another lease could be taken on now."""
    return (
        state.gates.state is GateState.OPEN
        and state.pace.state is PaceState.OPEN
        and state.lease is None
        and state.owner.mode is OwnerMode.AUTO
        and not state.update_pending
        and not state.left_over
        and len(state.outbox) < OUTBOX_MAX
        and state.now_ms >= state.ask_not_before_ms
        and not building.comes_first(state)
    )


def renew(state: State) -> Step:
    """A long lease at work asks for more time before its time is up."""
    lease = state.lease
    if lease is None or not lease.at_work or lease.renew_at_ms is None or state.now_ms < lease.renew_at_ms:
        return state, ()
    if not state.connected or state.now_ms >= lease.expires_ms:
        return state, ()
    asked = state.asked + 1
    state = REPLACE(state, asked=asked)
    sent = Asking(f"{state.name}-{asked}", state.now_ms)
    again_ms = bound_ms(RENEW_LEAST_MS, _renewal_every_ms(lease.grant), len(lease.renewals))
    lease = REPLACE(
        lease,
        renewals=(*lease.renewals, sent)[-RENEWALS_KEPT:],
        renew_at_ms=state.now_ms + _earlier_ms(again_ms, state.jitter("renewal")),
    )
    renewal = SendRenewal(rid=sent.rid, key=lease.key, done=len(lease.done), have=state.have)
    return REPLACE(state, lease=lease), (renewal,)


def due_ms(state: State) -> list[int]:
    """When a rule here has something to do, if nothing happens until then."""
    lease = state.lease
    if lease is None:
        again_ms = FAR_MS if state.asking is None else state.asking.again_ms
        return [state.ask_not_before_ms, state.request_not_before_ms, again_ms]
    renews = lease.at_work and lease.renew_at_ms is not None and state.connected
    return [lease.renew_at_ms] if renews and lease.renew_at_ms is not None else []


def _renewal_every_ms(grant: Grant) -> int:
    return max(RENEW_LEAST_MS, min(grant.renew_ms, grant.ttl_ms // RENEWALS_A_TTL))


def _earlier_ms(wait_ms: int, share: float) -> int:
    """Up to a quarter less: what must not be late is spread to the earlier side only."""
    return round(wait_ms * (1 - 0.25 * share))


# --- answers ------------------------------------------------------------------------------------------------------


def grant_seen(state: State, event: GrantSeen) -> Step:
    """The answer to the question now open, or to a renewal of the lease at work; of any other, nothing is known."""
    asking = state.asking
    if asking is None or asking.rid != event.rid:
        return _renewal_answered(state, event)
    return answered(state, event.grant, event.retry_ms, asking.sent_ms), ()


def _renewal_answered(state: State, event: GrantSeen) -> Step:
    """More time for the lease at work; a grant of anything else, or none at all, gives none.

    Another place for its answers is written down, since a hand-in may be left to a later run.
    """
    lease, grant = state.lease, event.grant
    sent = None if lease is None else next((one for one in lease.renewals if one.rid == event.rid), None)
    if lease is None or sent is None or grant is None:
        return state, ()
    if (grant.key, grant.nonce) != (lease.key, lease.grant.nonce):
        return state, ()
    place, lease = lease.grant.upload_place, lease.renewed(sent, grant)
    lease = REPLACE(lease, renew_at_ms=_next_renewal_ms(state, lease.grant, sent.sent_ms))
    moved = lease.grant.upload_place != place
    return REPLACE(state, lease=lease), (KeepGrant(grant=lease.grant),) if moved else ()


def _next_renewal_ms(state: State, grant: Grant, sent_ms: int) -> int | None:
    """When to renew a lease whose time runs from `sent_ms`; None where it need not be."""
    if not grant.renew_ms:
        return None
    return max(state.now_ms + LEAST_MS, sent_ms + _earlier_ms(_renewal_every_ms(grant), state.jitter("renew")))


def answered(state: State, grant: Grant | None, retry_ms: int, sent_ms: int) -> State:
    """The open question is answered: a lease that began at `sent_ms`, or a wait before the next question.

    The wait is what the dispatcher said, spread between cars, never nothing. A grant of what the car holds already is
    no use: it is waited for the next as after a lease that came to nothing.
    """
    state = REPLACE(state, asking=None, unanswered=0)
    if grant is None:
        return _ask_later(state, max(retry_ms, LEAST_MS))
    if state.lease is not None or grant.key in state.have:
        return fruitless(state, DECLINED_FIRST_MS)
    return adopt(state, grant, sent_ms)


def adopt(state: State, grant: Grant, sent_ms: int) -> State:
    """Take a grant as the lease; its time runs from when it was asked for.

    A class of work that the owner does not take is given back at once, for the owner's reason, so that nobody holds it
    against the package; so is what cannot be finished in the time there is. The next is not asked for at once, should
    the dispatcher go on like that; after lease upon lease that is too long, later each time, until what makes them too
    long is no longer believed (`Speeds.too_short`).
    """
    renew_at_ms = _next_renewal_ms(state, grant, sent_ms)
    lease = Lease(grant=grant, expires_ms=ends_ms(sent_ms, grant.ttl_ms), renew_at_ms=renew_at_ms)
    classes = state.policy.workload_classes
    if classes and grant.workload_class not in classes:
        lease = lease.end(YieldReason.OWNER, f"the owner takes no work of class {grant.workload_class!r}")
        return _ask_later(REPLACE(state, lease=lease), DECLINED_FIRST_MS)
    if short := too_short(state, lease):
        state = REPLACE(state, speeds=state.speeds.too_short(grant.package_sha256))
        return fruitless(REPLACE(state, lease=lease.end(YieldReason.SHORT, short)), DECLINED_FIRST_MS)
    return REPLACE(state, lease=lease)


def fruitless(state: State, first_ms: int = FRUITLESS_FIRST_MS) -> State:
    """A lease came to nothing, not for the driver's sake: the next is asked for later, and later still after that."""
    state = _ask_later(state, bound_ms(first_ms, FRUITLESS_MAX_MS, state.fruitless))
    return REPLACE(state, fruitless=state.fruitless + 1)


def _ask_later(state: State, wait_ms: int) -> State:
    wait_ms = about_ms(stretched_ms(wait_ms, state.pace), state.jitter(f"later {state.fruitless}"))
    return REPLACE(state, ask_not_before_ms=max(state.ask_not_before_ms, state.now_ms + wait_ms))


# --- what the fleet says unasked ----------------------------------------------------------------------------------


def cancel_seen(state: State, event: CancelSeen) -> Step:
    """The dispatcher wants a lease back: the one at work within its grace, one left over as it is; of others, nothing.

    Finished slices are handed in as ever.
    """
    lease, key = state.lease, event.key
    if any(one.key == key for one in state.left_over):
        left = tuple(_called_back(one, event.why) if one.key == key else one for one in state.left_over)
        return REPLACE(state, left_over=left), ()
    if lease is None or lease.key != key or not lease.at_work:
        return state, ()
    cancelled = lease.cancelled(state.now_ms + max(0, event.grace_ms), event.why)
    if cancelled is lease:
        return state, ()
    fields: dict[str, str | int | float | bool] = {"lease": str(key), "grace_ms": event.grace_ms, "why": event.why}
    news = () if lease.cancel_ms is not None else (Report(name="lease_cancelled", fields=fields),)
    return REPLACE(state, lease=cancelled), news


def _called_back(lease: Lease, why: str) -> Lease:
    """A lease of an earlier run that the fleet wants back anyway: that is no fault of the car's."""
    return REPLACE(lease, ending=YieldReason.CANCELLED, ending_detail=why)


def pace_seen(state: State, event: PaceSeen) -> Step:
    """The cell's pace from now on. Waits that it stretched before are cut where it stretches less.

    When the fleet opens again its cars hear of it at the same moment, and ask spread over `spread_ms`.
    """
    before, pace = state.pace, event.pace
    if pace == before:
        return state, ()
    state = REPLACE(state, pace=pace)
    if pace.interval_permille < before.interval_permille:
        state = _hurried(state, pace.interval_permille / before.interval_permille)
    if pace.state is PaceState.OPEN and before.state is not PaceState.OPEN:
        spread_ms = state.now_ms + round(pace.spread_ms * state.jitter("opened"))
        state = REPLACE(state, ask_not_before_ms=max(state.ask_not_before_ms, spread_ms))
    fields: dict[str, str | int | float | bool] = {
        "state": pace.state.value,
        "interval_permille": pace.interval_permille,
        "detail": event.detail,
    }
    return state, () if pace.state is before.state else (Report(name="pace_changed", fields=fields),)


def _hurried(state: State, share: float) -> State:
    """What is waited for, at this share of what is left of each wait."""

    def sooner(at_ms: int) -> int:
        return at_ms if at_ms <= state.now_ms else state.now_ms + round((at_ms - state.now_ms) * share)

    asking = state.asking
    return REPLACE(
        state,
        ask_not_before_ms=sooner(state.ask_not_before_ms),
        asking=None if asking is None else REPLACE(asking, again_ms=sooner(asking.again_ms)),
        outbox=tuple(
            REPLACE(one, next_ms=sooner(one.next_ms), not_before_ms=sooner(one.not_before_ms)) for one in state.outbox
        ),
    )


def cause_to_end(state: State, lease: Lease) -> tuple[YieldReason, str] | None:
    """Why the fleet's word or its time ends this lease now; None where neither does."""
    if state.now_ms >= lease.expires_ms:
        return YieldReason.EXPIRED, ""
    if lease.cancel_ms is not None and state.now_ms >= lease.cancel_ms:
        return YieldReason.CANCELLED, lease.cancel_why
    if state.pace.state is PaceState.STOP and lease.phase is not Phase.HANDING_IN:
        return YieldReason.CANCELLED, "the fleet stops"
    return None
