"""The dispatcher's conversation with cars: a message comes in, the book decides, a signed answer goes out.

Every answer is a DSSE envelope by the dispatcher's key; the payload that carries a grant is the ticket, and its digest
is in the book before it is sent. Nothing is remembered between messages except what the book has, so a crash anywhere
costs a repetition.

What cannot be understood is counted, logged once per unit and reason, and answered with `later` where it says what it
is about: a hostile broker can bend any message, so nothing it sends may make a car throw work away. No message stops
the service.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from agent.core.model import HandInKind, JobKey, Verdict, YieldReason
from agent.errors import TrustError
from agent.fleet.messages import (
    DEMAND_TYPE,
    ENROLMENT_TYPE,
    GRANT_TYPE,
    MAX_MESSAGE_BYTES,
    PRICES_TYPE,
    VERDICT_TYPE,
    Enrolled,
    Enrolment,
    Envelope,
    GrantMessage,
    Identifier,
    JobGrant,
    MessageError,
    PricesMessage,
    Request,
    Result,
    Status,
    VerdictMessage,
    Yield,
    decode,
    encode,
)
from agent.ports import Signer
from agent.trust import dsse
from agent.trust.keys import keyid, load_public_key
from hil.dispatcher.book import Book, HandedIn
from hil.dispatcher.judge import HandIn, MisstatementError, UnprovenError, judge
from hil.dispatcher.orders import DemandOrder, Order, PricesOrder
from hil.dispatcher.units import Unit

UP_FILTER = "$share/dispatch/dw/v1/u/+/+/+"
TOPIC = re.compile(r"dw/v1/u/(?P<cell>[0-9a-f]{2})/(?P<unit>[A-Za-z0-9_-]{1,64})/(?P<verb>[a-z]{1,16})")
LATER_S = 60
"""When to hand in again what could not be verified."""
VERDICT_EXPIRY_S = 300
NO_WORK_EXPIRY_S = 60
ORDER_EXPIRY_S = 300
"""A broker need not keep an order longer: it is sent again when the unit's link comes up."""
REMEMBERED_COMPLAINTS = 1000

Publish = Callable[[str, bytes, int], bool]
"""Topic, payload, expiry in seconds; False when the message could not be handed over (the car will ask again)."""

log = structlog.get_logger("dispatcher")


class _Readable(msgspec.Struct):
    """What of a message that is otherwise unreadable suffices to answer it."""

    rid: Identifier
    job: Identifier
    epoch: int


class Dispatcher:
    """Use from one thread. `object_url` turns an object's name into where cars fetch it."""

    def __init__(
        self, book: Book, key: Signer, *, publish: Publish, object_url: Callable[[str], str], retry_s: int
    ) -> None:
        self._book = book
        self._key = key
        self._publish = publish
        self._object_url = object_url
        self._retry_s = retry_s
        self._complaints: set[tuple[str, str]] = set()
        self.counts: Counter[str] = Counter()

    def on_message(self, topic: str, payload: bytes) -> None:
        """Handle one message from the broker; never raises."""
        try:
            self._handle(topic, payload)
        except Exception:  # one message, whatever is in it, must not end the service for everybody
            self.counts["crashed"] += 1
            log.exception("message_failed", topic=topic[:128])

    def enrol(self, envelope: bytes) -> bytes:
        """Enrol the unit whose key signed `envelope`; the signed answer.

        Raises EnrolmentRefusedError when it may not be, TrustError or MessageError when the request is not one.
        """
        claimed = decode(dsse.parse(envelope).payload, Enrolment)
        key = load_public_key(claimed.public_key_pem)
        enrolment = decode(dsse.verify(envelope, ENROLMENT_TYPE, {keyid(key): key}), Enrolment)
        unit = self._book.units.enrol(enrolment, keyid(key))
        log.info("unit_enrolled", unit=unit.unit, cell=unit.cell, key_protection=unit.key_protection)
        answer = Enrolled(unit=unit.unit, cell=unit.cell, keyid=unit.keyid)
        return dsse.sign(ENROLMENT_TYPE, encode(answer), self._key)

    def order(self, unit: str, wanted: PricesOrder | DemandOrder) -> Order:
        """Give an order to a unit, now if it is there, else when its link comes up.

        Raises MessageError for a unit that never enrolled and for an order that no car would take.
        """
        if self._book.units.get(unit) is None:
            raise MessageError(f"no unit {unit!r} is enrolled")
        order = self._book.orders.issue(unit, wanted)
        log.info("ordered", unit=unit, order=type(order).__name__, issued_wall_ms=order.issued_wall_ms)
        self._send_order(order)
        return order

    def _handle(self, topic: str, payload: bytes) -> None:
        address = TOPIC.fullmatch(topic)
        unit = self._book.units.get(address["unit"]) if address else None
        if address is None or unit is None or unit.cell != address["cell"]:
            self._complain(topic[:128], "not the topic of an enrolled unit")
            return
        self.counts[address["verb"]] += 1
        try:
            match address["verb"]:
                case "request":
                    self._on_request(unit, decode(payload, Request))
                case "result":
                    self._on_result(unit, decode(payload, Result))
                case "yield":
                    self._on_yield(unit, decode(payload, Yield))
                case "status":
                    self._on_status(unit, decode(payload, Status))
                case verb:
                    self._complain(unit.unit, f"verb {verb!r} is not spoken here")
        except MessageError as error:
            self._complain(unit.unit, str(error))
            self._answer_unreadable(unit, address["verb"], payload, str(error))

    # --- the verbs ---------------------------------------------------------------------------------------------

    def _on_request(self, unit: Unit, request: Request) -> None:
        self._book.units.note_capability(unit.unit, request.cap)
        job = self._book.grant(unit.unit, request.have, self._object_url) if request.credit else None
        self._send_grant(GrantMessage(rid=request.rid, unit=unit.unit, job=job, retry_s=0 if job else self._retry_s))

    def _on_status(self, unit: Unit, status: Status) -> None:
        self._book.units.note_status(unit.unit, status)
        if status.state == "up":
            for order in self._book.orders.standing(unit.unit):
                self._send_order(order)

    def _on_result(self, unit: Unit, result: Result) -> None:
        key = JobKey(result.job, result.epoch)
        hand_in = HandIn(kind=HandInKind.RESULT, statement=result.statement, outputs=result.outputs)
        verdict = self._judge(unit, key, result.rid, hand_in)
        job = None
        if result.credit and verdict.verdict is not Verdict.LATER:
            job = self._book.grant(unit.unit, result.have, self._object_url)
            verdict = msgspec.structs.replace(verdict, next_grant=job, retry_s=0 if job else self._retry_s)
        self._send_verdict(verdict)

    def _on_yield(self, unit: Unit, yielded: Yield) -> None:
        key = JobKey(yielded.job, yielded.epoch)
        if yielded.why is YieldReason.REFUSED:
            log.info("package_refused", unit=unit.unit, job=yielded.job, detail=yielded.detail)
        if yielded.statement is None:
            self._send_verdict(self._give_back(unit, key, yielded))
            return
        hand_in = HandIn(kind=HandInKind.YIELD, statement=yielded.statement, outputs=yielded.outputs)
        self._send_verdict(self._judge(unit, key, yielded.rid, hand_in))

    def _judge(self, unit: Unit, key: JobKey, rid: str, hand_in: HandIn) -> VerdictMessage:
        """The verdict on a hand-in. The fence comes first: what was judged or is stale is not looked at again."""
        standing = self._book.standing(unit.unit, key)
        if standing is None or isinstance(standing, HandedIn):
            return self._verdict_again(unit, key, rid, standing, statement_sha256(hand_in.statement))
        judged = statement_sha256(hand_in.statement)
        try:
            accepted = judge(hand_in, standing, unit, counter_is_new=self._book.counter_is_new)
        except UnprovenError as error:
            self._complain(unit.unit, f"unproven: {error.what}")
            return self._verdict(unit, key, rid, Verdict.LATER, error.what, retry_s=LATER_S)
        except MisstatementError as error:
            self._book.refuse(standing, error.what, judged)
            log.warning("hand_in_refused", unit=unit.unit, job=str(key), reason=error.what)
            return self._verdict(unit, key, rid, Verdict.BAD, error.what, statement_sha256=judged)
        paid_micro = self._book.settle(standing, accepted, judged)
        if paid_micro is None:  # another replica moved the fence since we looked
            return self._verdict(unit, key, rid, Verdict.LATER, "the lease changed meanwhile", retry_s=1)
        log.info("settled", unit=unit.unit, job=str(key), slices=len(accepted.slices), paid_micro=paid_micro)
        return self._verdict(unit, key, rid, Verdict.SETTLED, paid_micro=paid_micro, statement_sha256=judged)

    def _verdict_again(
        self, unit: Unit, key: JobKey, rid: str, judged: HandedIn | None, claimed_sha256: str
    ) -> VerdictMessage:
        """A verdict that stands already names the statement it was on; a stale lease is so whatever was claimed."""
        if judged is None:
            reason = "the lease is not this unit's, or no longer"
            return self._verdict(unit, key, rid, Verdict.STALE, reason, statement_sha256=claimed_sha256)
        kind = Verdict.DUPLICATE if judged.verdict is Verdict.SETTLED else judged.verdict
        return self._verdict(
            unit,
            key,
            rid,
            kind,
            judged.reason,
            paid_micro=judged.paid_micro,
            statement_sha256=judged.statement_sha256,
        )

    def _give_back(self, unit: Unit, key: JobKey, yielded: Yield) -> VerdictMessage:
        standing = self._book.standing(unit.unit, key)
        if standing is None or isinstance(standing, HandedIn):
            return self._verdict_again(unit, key, yielded.rid, standing, "")
        self._book.give_back(standing)
        if yielded.why is YieldReason.REFUSED:
            self._book.note_refusal(standing)
        return self._verdict(unit, key, yielded.rid, Verdict.SETTLED)

    def _answer_unreadable(self, unit: Unit, verb: str, payload: bytes, reason: str) -> None:
        """`later`, if the message at least says what it is about; the size comes first here, too."""
        if verb not in ("result", "yield") or len(payload) > MAX_MESSAGE_BYTES:
            return
        try:
            about = msgspec.json.decode(payload, type=_Readable)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        key = JobKey(about.job, about.epoch)
        self._send_verdict(self._verdict(unit, key, about.rid, Verdict.LATER, reason, retry_s=LATER_S))

    # --- the answers -------------------------------------------------------------------------------------------

    def _verdict(
        self,
        unit: Unit,
        key: JobKey,
        rid: str,
        verdict: Verdict,
        reason: str = "",
        *,
        paid_micro: int = 0,
        retry_s: int = 0,
        statement_sha256: str = "",
    ) -> VerdictMessage:
        return VerdictMessage(
            rid=rid,
            unit=unit.unit,
            job=key.job,
            epoch=key.epoch,
            verdict=verdict,
            reason=reason[:512],
            paid_micro=paid_micro,
            statement_sha256=statement_sha256,
            retry_s=retry_s,
        )

    def _send_grant(self, message: GrantMessage) -> None:
        self.counts["granted" if message.job else "no_work"] += 1
        expiry_s = message.job.ttl_s if message.job else NO_WORK_EXPIRY_S
        self._send(f"dw/v1/d/{message.unit}/grant", GRANT_TYPE, encode(message), message.job, expiry_s)

    def _send_verdict(self, message: VerdictMessage) -> None:
        self.counts[message.verdict.value] += 1
        payload = encode(message)
        self._send(f"dw/v1/d/{message.unit}/verdict", VERDICT_TYPE, payload, message.next_grant, VERDICT_EXPIRY_S)

    def _send_order(self, order: Order) -> None:
        self.counts["ordered"] += 1
        kind = PRICES_TYPE if isinstance(order, PricesMessage) else DEMAND_TYPE
        self._send(f"dw/v1/d/{order.unit}/config", kind, encode(order), None, ORDER_EXPIRY_S)

    def _send(self, topic: str, payload_type: str, payload: bytes, job: JobGrant | None, expiry_s: int) -> None:
        if job is not None:
            self._book.record_ticket(JobKey(job.job, job.epoch), hashlib.sha256(payload).hexdigest())
        if not self._publish(topic, dsse.sign(payload_type, payload, self._key), expiry_s):
            self.counts["unsent"] += 1

    def _complain(self, who: str, reason: str) -> None:
        """Count it, and log it the first time; the memory of complaints is bounded, since strangers can fill it."""
        self.counts["refused"] += 1
        if len(self._complaints) >= REMEMBERED_COMPLAINTS:
            self._complaints.clear()
        if (who, reason) not in self._complaints:
            self._complaints.add((who, reason))
            log.warning("message_refused", who=who, reason=reason)


def statement_sha256(envelope: Envelope) -> str:
    """The digest by which a verdict names the statement it is on; "" when there is none to read."""
    try:
        return hashlib.sha256(dsse.parse(msgspec.json.encode(envelope)).payload).hexdigest()
    except TrustError:
        return ""
