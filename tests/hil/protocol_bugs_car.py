"""Bugs of the lease protocol in the car: its hands, its disk, its link, its clock and its core. See `protocol_bugs`."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.core import asking, owed, plan
from agent.core.effects import EffectType, SendHandIn
from agent.core.events import GrantSeen, VerdictSeen
from agent.core.lease import Lease, Pending
from agent.core.model import Grant, JobKey, YieldReason
from agent.core.state import State
from agent.core.world import FAR_MS
from agent.hands import Hands
from agent.store import Store
from hil.sim.protocol.carrier import SimulatedLink
from hil.sim.protocol.garage import Garage

Patch = pytest.MonkeyPatch
REPLACE = msgspec.structs.replace


# --- the car's hands and disk -----------------------------------------------------------------------------------


def a_puback_counts_as_a_verdict(patch: Patch) -> None:
    send = Hands._send_hand_in

    async def sent(self: Hands, effect: SendHandIn) -> None:
        await send(self, effect)
        await self._store.call(_forget_outbox, effect.key)

    patch.setattr(Hands, "_send_hand_in", sent)


def _forget_outbox(store: Store, key: JobKey) -> None:
    store._db.execute("DELETE FROM outbox WHERE job = ? AND epoch = ?", (key.job, key.epoch))


def a_verdict_ends_all_hand_ins(patch: Patch) -> None:
    settle = Store.settle

    def settled(self: Store, key: JobKey, **said: Any) -> None:
        settle(self, key, **said)
        self._db.execute("DELETE FROM outbox")

    patch.setattr(Store, "settle", settled)


def slices_are_forgotten_when_the_lease_is_opened_again(patch: Patch) -> None:
    open_leases = Store.open_leases

    def opened(self: Store) -> Any:
        found = open_leases(self)
        self._db.execute("DELETE FROM slices")
        return found

    patch.setattr(Store, "open_leases", opened)


def verdicts_are_no_part_of_the_ledgers_head(patch: Patch) -> None:
    append, remember = Store.append_leaf, Store.remember

    def appended(self: Store, kind: str, key: JobKey, leaf: bytes) -> int:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Store, "remember", remember if kind == "statement" else lambda *_rest: None)
            return append(self, kind, key, leaf)

    patch.setattr(Store, "append_leaf", appended)


def old_leaves_are_pruned_at_a_start(patch: Patch) -> None:
    begin = Store.__init__

    def begun(self: Store, *given: Any) -> None:
        begin(self, *given)
        self._db.execute("DELETE FROM ledger WHERE kind = 'verdict'")

    patch.setattr(Store, "__init__", begun)


def the_statements_are_counted_anew_after_a_restart(patch: Patch) -> None:
    begin = Store.__init__

    def begun(self: Store, *given: Any) -> None:
        begin(self, *given)
        self._statements = 0

    patch.setattr(Store, "__init__", begun)


# --- the core ---------------------------------------------------------------------------------------------------


def a_verdict_on_any_statement_counts(patch: Patch) -> None:
    seen = owed.verdict_seen

    def verdict_seen(state: State, event: VerdictSeen) -> Any:
        pending = owed.find(state, event.key)
        if pending is not None:
            event = REPLACE(event, statement_sha256=pending.statement_sha256)
        return seen(state, event)

    patch.setattr(owed, "verdict_seen", verdict_seen)


def a_hand_in_is_sent_once(patch: Patch) -> None:
    sent = Pending.sent
    patch.setattr(Pending, "sent", lambda self, *rest: REPLACE(sent(self, *rest), next_ms=FAR_MS, not_before_ms=FAR_MS))


def a_hand_in_waits_for_an_upload_that_nobody_takes(patch: Patch) -> None:
    patch.setattr(Pending, "ready", property(lambda self: self.verdict is None and not self.missing))


def a_lost_answer_is_waited_for(patch: Patch) -> None:
    asked = asking.asked_now
    for module in (asking, owed):
        patch.setattr(module, "asked_now", lambda state, rid: REPLACE(asked(state, rid), again_ms=FAR_MS))


def the_outbox_has_no_end(patch: Patch) -> None:
    """Settled hand-ins stay in memory, and no number of them keeps the car from asking."""
    patch.setattr(owed, "hand_in_settled", lambda state, _event: state)
    patch.setattr(asking, "OUTBOX_MAX", 10**9)


def a_hand_in_is_sent_again_at_once(patch: Patch) -> None:
    sent = Pending.sent
    patch.setattr(Pending, "sent", lambda self, now_ms, *rest: REPLACE(sent(self, now_ms, *rest), next_ms=now_ms + 50))
    patch.setattr(owed, "OFFER_EVERY_MS", 50)


def who_got_nothing_asks_again_at_once(patch: Patch) -> None:
    answered = asking.answered

    def impatient(state: State, grant: Grant | None, retry_ms: int, sent_ms: int) -> State:
        state = answered(state, grant, retry_ms, sent_ms)
        return state if grant is not None else REPLACE(state, ask_not_before_ms=state.now_ms, request_not_before_ms=0)

    for module in (asking, owed):
        patch.setattr(module, "answered", impatient)


def the_link_takes_any_number(patch: Patch) -> None:
    """However many messages have no PUBACK yet, another one is handed over."""
    patch.setattr(SimulatedLink, "window", property(lambda _self: 10**9))


def the_cars_clock_stops_while_it_sleeps(patch: Patch) -> None:
    """As CLOCK_MONOTONIC does, on which a lease must not be counted."""
    suspend, wake = Garage.suspend, Garage.wake
    asleep_since: dict[str, int] = {}

    def suspended(self: Garage, for_ms: float) -> None:
        if not self.suspended and self.run is not None:
            asleep_since[self.unit] = self.clock.boot_ms()
        suspend(self, for_ms)

    def woke(self: Garage) -> None:
        if self.suspended:
            self.clock._boot_ms -= self.clock.boot_ms() - asleep_since[self.unit]
        wake(self)

    patch.setattr(Garage, "suspend", suspended)
    patch.setattr(Garage, "wake", woke)


def a_lease_begins_when_it_is_heard_of(patch: Patch) -> None:
    answered = asking.answered

    def heard(state: State, grant: Grant | None, retry_ms: int, _sent_ms: int) -> State:
        return answered(state, grant, retry_ms, state.now_ms)

    for module in (asking, owed):
        patch.setattr(module, "answered", heard)


def clocks_do_not_drift(patch: Patch) -> None:
    patch.setattr(asking, "ends_ms", lambda sent_ms, ttl_ms: sent_ms + ttl_ms)


def any_grant_is_an_answer(patch: Patch) -> None:
    """A grant counts whatever it answers, so its time may have begun long ago."""

    def grant_seen(state: State, event: GrantSeen) -> tuple[State, tuple[EffectType, ...]]:
        return asking.answered(state, event.grant, event.retry_ms, state.now_ms), ()

    patch.setattr(asking, "grant_seen", grant_seen)


def time_does_not_end_a_lease(patch: Patch) -> None:
    cause = plan._cause_to_end

    def no_cause(state: State, lease: Lease) -> tuple[YieldReason, str] | None:
        found = cause(state, lease)
        return None if found is not None and found[0] is YieldReason.EXPIRED else found

    patch.setattr(plan, "_cause_to_end", no_cause)
