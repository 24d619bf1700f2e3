"""What is owed to the fleet: hand-ins in the outbox, each sent again until a signed verdict on it is on disk.

A fresh hand-in goes at once, and the first sending of a result asks for the next lease. Everything else goes at most
once a second, one after the other, so that a car that comes back with a full outbox does not arrive in a burst: resends
(2, 4, 8 ... 300 s apart, for ever, after a restart too), and all that a reconnect offers anew. What the broker will not
take waits: minutes when it was refused, an hour when the broker hung up over it again and again; the others go on.
What the link itself did not take was never sent, and goes a second later. Where the dispatcher asks for a hand-in
again, the answers that it only names are looked after as well: the server may have lost them.
"""

from __future__ import annotations

import msgspec

from agent.core.asking import answered, asked_now, fruitless, may_ask
from agent.core.effects import EffectType, Report, SendHandIn, SettleHandIn
from agent.core.events import (
    HandInFailed,
    HandInNotSent,
    HandInSettled,
    HandInStored,
    HandInUndelivered,
    VerdictSeen,
)
from agent.core.lease import HAVE_WITH_CREDIT_MAX, Lease, Pending
from agent.core.model import HandInKind, JobKey, Outlook, Verdict, YieldReason
from agent.core.outlook import outlook
from agent.core.state import State
from agent.core.waiting import LEAST_MS, about_ms, bound_ms, stretched_ms

Step = tuple[State, tuple[EffectType, ...]]

REPLACE = msgspec.structs.replace
OFFER_EVERY_MS = 1_000
"""Between two hand-ins that were sent before, or that a reconnect offers."""
REFUSED_FIRST_MS = 120_000
REFUSED_MAX_MS = 3_600_000
POISON_MS = 3_600_000
FAULTS = {YieldReason.REFUSED, YieldReason.FAULT}
"""A lease that ends so is held against this car, or against its package, even if some slices were finished."""
FOR_NOTHING = {YieldReason.EXPIRED, YieldReason.CANCELLED}
"""A lease that ends so before anything was finished cost the fleet and the car their messages."""


# --- the rules ----------------------------------------------------------------------------------------------------


def send_outbox(state: State) -> Step:
    """One hand-in a step, that which was sent least often first. A result's first sending asks for more work."""
    if not state.connected or state.now_ms < state.send_not_before_ms:
        return state, ()
    due = [one for one in state.outbox if one.ready and one.next_ms <= state.now_ms and _has_turn(one, state)]
    if not due:
        return state, ()
    pending = min(due, key=lambda one: (one.tries, one.next_ms))
    # A sending repeated later must not ask: which of the two was answered, and so when a lease began, nobody knows.
    # Nor must one that cannot name all that is held: what is not named is taken for lost.
    first = pending.kind is HandInKind.RESULT and pending.tries == 0 and len(state.have) <= HAVE_WITH_CREDIT_MAX
    credit = first and state.asking is None and may_ask(state)
    sent = pending.sent(state.now_ms, state.jitter(f"{pending.key} {pending.tries}"), state.pace)
    state = replaced(state, sent)
    next_ms = state.now_ms + OFFER_EVERY_MS
    if pending.tries:
        state = REPLACE(state, offer_not_before_ms=next_ms)
    if state.now_ms < state.send_not_before_ms + OFFER_EVERY_MS:  # the link took none a moment ago
        state = REPLACE(state, send_not_before_ms=next_ms)
    if credit:
        state = REPLACE(state, asking=asked_now(state, str(pending.key)))
    expected = outlook(state) if credit else Outlook()
    return state, (SendHandIn(key=pending.key, credit=int(credit), have=state.have, outlook=expected),)


def _has_turn(pending: Pending, state: State) -> bool:
    return pending.tries == 0 or state.now_ms >= state.offer_not_before_ms


def settle(state: State) -> Step:
    """A verdict is written down, and the hand-in let go with it; once the disk takes writes."""
    if state.store_problem:
        return state, ()
    ready = [one for one in state.outbox if one.verdict is not None and not one.settling]
    outbox = tuple(REPLACE(one, settling=True) if one in ready else one for one in state.outbox)
    return REPLACE(state, outbox=outbox), tuple(one.verdict for one in ready if one.verdict is not None)


def due_ms(state: State) -> list[int]:
    """When a rule here has something to do, if nothing happens until then."""
    if not state.connected:
        return []
    # One is sent a step: what is due already is due at the next.
    soonest_ms = max(state.now_ms + 1, state.send_not_before_ms)
    return [
        max(one.next_ms, soonest_ms if one.tries == 0 else state.offer_not_before_ms, soonest_ms)
        for one in state.outbox
        if one.ready
    ]


def offered_anew(state: State) -> State:
    """After a reconnect everything owed is offered again, one a second, and only then the next question is asked.

    Answers to what was sent before may be lost, those to come are none of a question's that a lease's time hangs on.
    """
    outbox, turn_ms = [], state.now_ms
    for one in state.outbox:
        offered = one if one.verdict is not None else REPLACE(one, next_ms=max(turn_ms, one.not_before_ms))
        outbox.append(offered)
        turn_ms += OFFER_EVERY_MS if offered.ready else 0
    not_before_ms = max(state.ask_not_before_ms, turn_ms)
    return REPLACE(state, outbox=tuple(outbox), asking=None, ask_not_before_ms=not_before_ms)


def replaced(state: State, pending: Pending) -> State:
    """The state with this in place of the hand-in of the same lease."""
    return REPLACE(state, outbox=tuple(pending if one.key == pending.key else one for one in state.outbox))


def find(state: State, key: JobKey) -> Pending | None:
    """The hand-in of this lease; None where none is owed."""
    return next((one for one in state.outbox if one.key == key), None)


# --- answers ------------------------------------------------------------------------------------------------------


def verdict_seen(state: State, event: VerdictSeen) -> Step:
    """A verdict settles its hand-in; what follows it may be the next lease."""
    pending = find(state, event.key)
    if pending is None or pending.verdict is not None:
        return state, ()
    if event.verdict is not Verdict.LATER and event.statement_sha256 != pending.statement_sha256:
        return _on_another_statement(state, pending, event)
    state = REPLACE(state, unanswered=0)
    if event.verdict is Verdict.LATER:
        wait_ms = stretched_ms(max(event.retry_ms, LEAST_MS), state.pace)
        wait_ms += round(wait_ms * 0.25 * state.jitter(f"{event.key} later"))
        pending = pending.put_off(state.now_ms + wait_ms).doubted(state.now_ms, state.pace)
    else:
        settle = SettleHandIn(
            key=event.key,
            verdict=event.verdict,
            reason=event.reason,
            paid_micro=event.paid_micro,
            envelope=event.envelope,
        )
        pending = REPLACE(pending, verdict=settle)
    state = replaced(state, pending)
    asking = state.asking
    if asking is not None and asking.rid == str(event.key):
        state = answered(state, event.next_grant, event.retry_ms, asking.sent_ms)
    return state, ()


def _on_another_statement(state: State, pending: Pending, event: VerdictSeen) -> Step:
    """Somebody changed the hand-in on its way: nothing is let go of. Told once, however often it comes."""
    if pending.told:
        return state, ()
    fields: dict[str, str | int | float | bool] = {"lease": str(event.key), "verdict": event.verdict.value}
    news = Report(name="verdict_on_another_statement", fields=fields)
    return replaced(state, REPLACE(pending, told=True)), (news,)


def hand_in_stored(state: State, event: HandInStored) -> State:
    """The lease is over; its hand-in is owed to the fleet."""
    lease = state.lease
    if lease is None or lease.key != event.key:
        return state
    pending = Pending(
        event.key,
        event.kind,
        event.statement_sha256,
        state.now_ms,
        missing=tuple(index for index in event.missing if index not in lease.uploaded),
        referenced=event.referenced,
        upload_url=lease.grant.upload_url,
        upload_token=lease.grant.upload_token,
    )
    worker = REPLACE(state.worker, idle_since_ms=state.now_ms)
    state = REPLACE(state, lease=None, outbox=(*state.outbox, pending), worker=worker)
    if event.kind is not HandInKind.RESULT and _came_to_nothing(lease, handed_in=bool(event.statement_sha256)):
        return fruitless(state)
    return REPLACE(state, fruitless=0) if lease.done else state


def _came_to_nothing(lease: Lease, *, handed_in: bool) -> bool:
    """It failed, or nothing came of it; above all where slices were finished and not one of them could be handed in."""
    if lease.ending in FAULTS:
        return True
    return not handed_in if lease.done else lease.ending in FOR_NOTHING


def hand_in_failed(state: State, event: HandInFailed) -> Step:
    """The lease is let go without a hand-in; the next start of the daemon tries once more."""
    if state.lease is None or state.lease.key != event.key:
        return state, ()
    failed = Report(name="hand_in_failed", fields={"lease": str(event.key), "detail": event.detail})
    return fruitless(REPLACE(state, lease=None)), (failed,)


def hand_in_settled(state: State, event: HandInSettled) -> State:
    """The verdict is on disk: nothing is owed any more."""
    return REPLACE(state, outbox=tuple(one for one in state.outbox if one.key != event.key))


def not_sent(state: State, event: HandInNotSent) -> State:
    """The link took nothing: a try that was none, and a question that was not asked.

    All wait a second, and so does a question of its own: it would not be taken either.
    """
    again_ms = state.now_ms + OFFER_EVERY_MS
    not_before_ms = max(state.request_not_before_ms, again_ms)
    state = REPLACE(state, send_not_before_ms=again_ms, request_not_before_ms=not_before_ms)
    pending = find(state, event.key)
    if pending is None or pending.verdict is not None:
        return state
    pending = pending.not_sent(again_ms)
    state = replaced(state, pending)
    asked = state.asking is not None and state.asking.rid == str(event.key)
    return REPLACE(state, asking=None) if asked and not pending.tries else state


def undelivered(state: State, event: HandInUndelivered) -> Step:
    """The broker did not take it: it waits, through reconnects too, and is told of once. Its question was not asked."""
    pending = find(state, event.key)
    if pending is None or pending.verdict is not None:
        return state, ()
    wait_ms = POISON_MS if event.poison else bound_ms(REFUSED_FIRST_MS, REFUSED_MAX_MS, pending.refused)
    share = state.jitter(f"{event.key} refused {pending.refused}")
    news: tuple[Report, ...] = ()
    if not pending.refused:
        fields: dict[str, str | int | float | bool] = {
            "lease": str(event.key),
            "poison": event.poison,
            "detail": event.detail,
        }
        news = (Report(name="hand_in_undelivered", fields=fields),)
    pending = REPLACE(pending, refused=pending.refused + 1, tries=max(1, pending.tries))
    state = replaced(state, pending.put_off(state.now_ms + stretched_ms(about_ms(wait_ms, share), state.pace)))
    if state.asking is not None and state.asking.rid == str(event.key):
        state = REPLACE(state, asking=None)
    return state, news
