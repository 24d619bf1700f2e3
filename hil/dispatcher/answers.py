"""What the dispatcher says: collected while a batch is decided, signed and published once it is committed.

Every answer is a DSSE envelope by the dispatcher's key. The payload that carries a grant is the ticket, and its digest
is in the book in the same transaction that made the lease, so it is there before anybody can have the ticket.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Protocol

import msgspec

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import (
    GRANT_TYPE,
    MAX_MESSAGE_BYTES,
    VERDICT_TYPE,
    WITNESS_TYPE,
    Count,
    GrantMessage,
    Identifier,
    JobGrant,
    VerdictMessage,
    WaitsFor,
    WitnessMessage,
    encode,
)
from agent.fleet.operator_messages import (
    CANCEL_TYPE,
    DEMAND_TYPE,
    PACE_TYPE,
    PRICES_TYPE,
    CancelMessage,
    PaceMessage,
    PricesMessage,
)
from agent.ports import Signer
from agent.printable import printable
from agent.trust import dsse
from hil.dispatcher.book import Book
from hil.dispatcher.endings import DELIVERY_MS
from hil.dispatcher.orders import Order

VERDICT_EXPIRY_S = 300
NO_WORK_EXPIRY_S = 60
WITNESS_EXPIRY_S = 300
ORDER_EXPIRY_S = 300
"""A broker need not keep an order longer: it is sent again when the unit's link comes up."""


class Publish(Protocol):
    """Hands a message over; False when it could not be (the car will ask again). None: it never expires."""

    def __call__(self, topic: str, payload: bytes, expiry_s: int | None, /, *, retain: bool = False) -> bool:
        """Publish at QoS 1."""
        ...


class _Answer(msgspec.Struct, frozen=True):
    topic: str
    payload_type: str
    payload: bytes
    expiry_s: int | None
    retain: bool
    counts_as: str


class Answers:
    """Use from the thread that owns the book: `flush` after the commit, `forget` when it was rolled back."""

    def __init__(self, book: Book, key: Signer, publish: Publish, counts: Counter[str]) -> None:
        self._book, self._key, self._counts = book, key, counts
        self._waiting: list[_Answer] = []
        self.publish = publish

    def grant(self, message: GrantMessage) -> None:
        """The answer to a request or a renewal."""
        expiry_s = message.job.ttl_s if message.job else NO_WORK_EXPIRY_S
        counts_as = "granted" if message.job else "no_work"
        self._add(f"dw/v1/d/{message.unit}/grant", GRANT_TYPE, encode(message), expiry_s, counts_as, job=message.job)

    def verdict(self, message: VerdictMessage) -> None:
        """The answer to a hand-in, with the next grant where there is one."""
        topic, job = f"dw/v1/d/{message.unit}/verdict", message.next_grant
        self._add(topic, VERDICT_TYPE, encode(message), VERDICT_EXPIRY_S, message.verdict.value, job=job)

    def witness(self, message: WitnessMessage) -> None:
        """What is witnessed of a unit's ledger, and what stands against it."""
        topic, counts_as = f"dw/v1/d/{message.unit}/witness", "in_dispute" if message.fault else "witnessed"
        self._add(topic, WITNESS_TYPE, encode(message), WITNESS_EXPIRY_S, counts_as)

    def cancel(self, message: CancelMessage) -> None:
        """A lease is to be given back."""
        expiry_s = message.grace_s + DELIVERY_MS // 1000
        self._add(f"dw/v1/d/{message.unit}/cancel", CANCEL_TYPE, encode(message), expiry_s, "cancelled")

    def order(self, order: Order) -> None:
        """Prices or a stop, for one unit."""
        kind = PRICES_TYPE if isinstance(order, PricesMessage) else DEMAND_TYPE
        self._add(f"dw/v1/d/{order.unit}/config", kind, encode(order), ORDER_EXPIRY_S, "ordered")

    def pace(self, pace: PaceMessage) -> None:
        """A cell's pace, kept by the broker for whoever connects later."""
        self._add(f"dw/v1/b/{pace.cell}/pace", PACE_TYPE, encode(pace), None, "paced", retain=True)

    def flush(self) -> None:
        """Sign and publish what waits."""
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            self._counts[answer.counts_as] += 1
            envelope = dsse.sign(answer.payload_type, answer.payload, self._key)
            taken = (
                self.publish(answer.topic, envelope, answer.expiry_s, retain=True)
                if answer.retain
                else self.publish(answer.topic, envelope, answer.expiry_s)
            )
            if not taken:
                self._counts["unsent"] += 1

    def forget(self) -> None:
        """What waits was not decided after all."""
        self._waiting.clear()

    def _add(
        self,
        topic: str,
        payload_type: str,
        payload: bytes,
        expiry_s: int | None,
        counts_as: str,
        *,
        job: JobGrant | None = None,
        retain: bool = False,
    ) -> None:
        if job is not None:
            self._book.record_ticket(JobKey(job.job, job.epoch), hashlib.sha256(payload).hexdigest())
        self._waiting.append(_Answer(topic, payload_type, payload, expiry_s, retain, counts_as))


class _Readable(msgspec.Struct):
    """What of a message suffices to answer it, whatever else is in it."""

    rid: Identifier
    job: Identifier
    epoch: Count


def later(unit: str, verb: str, payload: bytes, reason: str, retry_s: int) -> VerdictMessage | None:
    """`later`, for a hand-in that is not judged now; None when it does not say what it is about."""
    if verb not in ("result", "yield") or len(payload) > MAX_MESSAGE_BYTES:
        return None
    try:
        about = msgspec.json.decode(payload, type=_Readable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return verdict(unit, JobKey(about.job, about.epoch), about.rid, Verdict.LATER, reason, retry_s=retry_s)


def verdict(
    unit: str,
    key: JobKey,
    rid: str,
    kind: Verdict,
    reason: str = "",
    *,
    paid_micro: int = 0,
    retry_s: int = 0,
    statement_sha256: str = "",
    waits_for: WaitsFor = WaitsFor.NOTHING,
) -> VerdictMessage:
    """A verdict without a next grant."""
    return VerdictMessage(
        rid=rid,
        unit=unit,
        job=key.job,
        epoch=key.epoch,
        verdict=kind,
        reason=printable(reason)[:512],
        paid_micro=paid_micro,
        statement_sha256=statement_sha256,
        retry_s=retry_s,
        waits_for=waits_for,
    )
