"""The desk between the link and the core: signed messages become events, and effects become messages.

Whatever arrives is counted against by default: it must be small, for this unit, a DSSE envelope signed by the pinned
dispatcher key, of a known version, and well formed; then it becomes an event. What is refused is counted by reason and
logged the first time, so that a hostile broker can neither command nor fill the log. Nor can it keep the processor
busy: reading and verifying envelopes is limited to a few hundredths of a core, and what comes beyond that is dropped.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from agent import __version__
from agent.core.effects import SendRenewal, SendRequest
from agent.core.events import (
    CancelSeen,
    DemandSeen,
    GrantSeen,
    HandInUndelivered,
    LinkChanged,
    PaceSeen,
    PricesSeen,
    VerdictSeen,
)
from agent.core.model import Grant, JobKey, SealedInput, Verdict
from agent.errors import TrustError
from agent.fleet import messages, operator_messages
from agent.fleet.flood import FloodGate
from agent.fleet.inline import InlineInputs
from agent.fleet.link_config import LinkConfig
from agent.fleet.messages import MessageError
from agent.fleet.orders import Orders
from agent.fleet.refusals import Refusal
from agent.log import logger
from agent.ports import Carrier, Clock, Emit
from agent.printable import printable
from agent.trust import dsse
from agent.trust.admission import NotAdmittedError
from agent.trust.dsse import VerifyingKey
from agent.trust.grant import GrantClaims
from agent.trust.sealing import SealedObject

REQUEST_EXPIRY_S = 60
HAVE_MAX = 64
RENEWAL_EXPIRY_S = 60
CHECKPOINT_EXPIRY_S = 300
SEALING_EXPIRY_S = 300
VERBS = ("grant", "verdict", "cancel", "config", "witness")
MESSAGES_PER_S, MESSAGE_BURST = 200.0, 256
"""What the link lets through. An honest car hears one or two a second, and after an outage one for each hand-in."""
CHECKS_PER_S, CHECK_BURST = 50.0, 400.0
CHECK_UNIT_BYTES = 4096
"""Reading and verifying an envelope costs 0.1 to 0.5 ms (the number of its signatures and cold caches decide), and 0.1
to 0.3 ms more for each of so many bytes of it: one unit, and another for each of these. 50 units a second were at most
a twentieth of a slow core, whatever came (measured with eleven kinds of flood)."""
TOLD_CHARACTERS = 300


class GrantGate(Protocol):
    """Knows whose signature counts, and what may run here: a catalogue's keeper (`agent.catalogue_keeper`)."""

    def verify(self, envelope: bytes, payload_type: str) -> bytes:
        """The payload of what a dispatcher signed; raises NotAdmittedError."""
        ...

    def admit(self, claims: GrantClaims, unit: str, job: str, epoch: int) -> None:
        """Raise NotAdmittedError for a grant that must not be taken."""
        ...


Understood = GrantSeen | VerdictSeen | CancelSeen | PaceSeen | PricesSeen | DemandSeen


class Desk:
    """One unit's side of `dw/v1`. Use from the event loop's thread.

    It is given what carries its messages by `attach`; that calls `receive`, `link_changed` and `undelivered`, and
    connects as `link_config` says. `on_witness` hears what the
    dispatcher says of the ledger, `on_witness_wanted` that no hand-in is judged before more of it is witnessed.
    `sealing_key` is the envelope that tells of the unit's key for inputs, b"" for none.
    `run` names this run of the agent: no two runs have the same, whoever booted.
    """

    def __init__(
        self,
        *,
        unit: str,
        cell: str,
        run: str,
        dispatcher_keys: Mapping[str, VerifyingKey],
        orders: Orders,
        emit: Emit,
        clock: Clock,
        on_witness: Callable[[messages.WitnessMessage], None] = lambda _message: None,
        on_witness_wanted: Callable[[], None] = lambda: None,
        gate: GrantGate | None = None,
        sealing_key: bytes = b"",
    ) -> None:
        self._gatekeeper, self._sealing_key = gate, sealing_key
        self._on_witness, self._on_witness_wanted = on_witness, on_witness_wanted
        self._unit, self._cell, self._up, self._run = unit, cell, f"dw/v1/u/{cell}/{unit}", run
        self._keys, self._orders, self._emit, self._clock = dispatcher_keys, orders, emit, clock
        self._connections = 0
        self._topics = {f"dw/v1/d/{unit}/{verb}": verb for verb in VERBS} | {f"dw/v1/b/{cell}/pace": "pace"}
        self._gate, self._flooded = FloodGate(CHECKS_PER_S, CHECK_BURST), False
        self.refused: Counter[str] = Counter()
        self._carrier: Carrier | None = None
        self.inputs = InlineInputs()

    def link_config(self, config: LinkConfig) -> LinkConfig:
        """The connection as this unit needs it: its client id, its two filters, and its will."""
        filters = (f"dw/v1/d/{self._unit}/+", f"dw/v1/b/{self._cell}/pace")
        return msgspec.structs.replace(
            config,
            client_id=self._unit,
            filters=filters,
            will=self._will,
            messages_per_s=MESSAGES_PER_S,
            message_burst=MESSAGE_BURST,
        )

    def _will(self) -> tuple[str, bytes]:
        """What the broker says of the connection that begins now, should it be lost; each attempt has its number."""
        self._connections += 1
        return f"{self._up}/status", self._status("lost")

    def attach(self, carrier: Carrier) -> None:
        """From now on messages go this way."""
        self._carrier = carrier

    async def close(self) -> None:
        """Say that this unit leaves."""
        self._publish("status", self._status("bye"))

    def request(self, effect: SendRequest, capability: messages.Capability) -> bool:
        """Ask for work; False when the link cannot take it now."""
        message = messages.Request(
            rid=effect.rid, have=effect.have[:HAVE_MAX], credit=1, cap=capability, outlook=effect.outlook
        )
        return self._publish("request", messages.encode(message), expiry_s=REQUEST_EXPIRY_S)

    def renew(self, effect: SendRenewal) -> bool:
        """Ask for more time for a lease; False when the link cannot take it now."""
        job, epoch = effect.key.job, effect.key.epoch
        message = messages.Renew(rid=effect.rid, job=job, epoch=epoch, done=effect.done, have=effect.have[:HAVE_MAX])
        return self._publish("renew", messages.encode(message), qos=0, expiry_s=RENEWAL_EXPIRY_S)

    def checkpoint(self, message: messages.CheckpointMessage) -> bool:
        """Ask the dispatcher to witness the ledger; False when the link cannot take it now."""
        return self._publish("checkpoint", messages.encode(message), expiry_s=CHECKPOINT_EXPIRY_S)

    def announce_sealing_key(self, envelope: bytes) -> None:
        """The unit's sealing key has another envelope from now on: say so, now if there is a link."""
        self._sealing_key = envelope
        self._tell_sealing_key()

    def _tell_sealing_key(self) -> None:
        """To which key inputs may be sealed, where there is one; the dispatcher asks where that got lost."""
        if self._sealing_key:
            envelope = msgspec.json.decode(self._sealing_key, type=messages.Envelope)
            message = messages.SealingKeyMessage(sealing_key=envelope)
            self._publish("sealing", messages.encode(message), expiry_s=SEALING_EXPIRY_S)

    def hand_in(self, verb: str, key: JobKey, body: bytes) -> bool:
        """Publish a result or a yield; False when the link cannot take it now."""
        return self._publish(verb, body, token=str(key))

    def undelivered(self, token: str, detail: str, *, poison: bool) -> None:
        """The carrier says that the broker refused the message of this token, or hangs up over it."""
        job, _, epoch = token.rpartition("/")
        key = JobKey(job, int(epoch))
        self._emit(HandInUndelivered(at_ms=self._clock.boot_ms(), key=key, detail=detail, poison=poison))

    def _publish(self, verb: str, body: bytes, *, qos: int = 1, expiry_s: int | None = None, token: str = "") -> bool:
        if self._carrier is None:
            return False
        return self._carrier.publish(f"{self._up}/{verb}", body, qos=qos, expiry_s=expiry_s, token=token)

    def receive(self, topic: str, body: bytes) -> None:
        """One message from the broker, trusted in nothing."""
        try:
            event = self._understand(topic, body)
        except (MessageError, TrustError) as error:
            self._refuse(self._topics.get(topic, "other"), error)
            return
        if event is not None:
            self._emit(event)

    def _refuse(self, verb: str, error: MessageError | TrustError) -> None:
        match error:
            case MessageError():
                why = error.refusal.value
            case NotAdmittedError():
                why = error.reason.value
            case _:
                why = Refusal.FORGED.value
        kind = f"{verb}: {why}"
        self.refused[kind] += 1
        if self.refused[kind] == 1:
            logger().warning("message_refused", kind=kind, error=printable(str(error))[:TOLD_CHARACTERS])

    def _understand(self, topic: str, body: bytes) -> Understood | None:
        verb = self._topics.get(topic)
        if verb is None:
            raise MessageError(f"nothing is expected on {topic[:TOLD_CHARACTERS]}", Refusal.UNEXPECTED)
        if len(body) > messages.MAX_MESSAGE_BYTES:
            what = f"{len(body)} bytes, more than the {messages.MAX_MESSAGE_BYTES} of dw/v1"
            raise MessageError(what, Refusal.TOO_LARGE)
        self._check_flood(len(body))
        match verb:
            case "grant":
                return self._grant(self._verified(body, messages.GRANT_TYPE))
            case "verdict":
                return self._verdict(self._verified(body, messages.VERDICT_TYPE), body)
            case "cancel":
                return self._cancel(self._verified(body, operator_messages.CANCEL_TYPE))
            case "pace":
                return self._pace(self._verified(body, operator_messages.PACE_TYPE))
            case "witness":
                self._witness(self._verified(body, messages.WITNESS_TYPE))
                return None
            case _:
                return self._order(body)

    def _verified(self, body: bytes, kind: str) -> bytes:
        """The payload of what the dispatcher signed; raises TrustError. Where there is a gate, it knows the keys."""
        if self._gatekeeper is not None:
            return self._gatekeeper.verify(body, kind)
        return dsse.verify(body, kind, self._keys)

    def _check_flood(self, body_bytes: int) -> None:
        """Raises MessageError while more comes than may be looked at; tells once when that is over."""
        now_s = self._clock.boot_ms() / 1000
        if not self._gate.admits(now_s, 1 + body_bytes / CHECK_UNIT_BYTES):
            self._flooded = True
            raise MessageError(
                "more messages than are looked at; whoever waits for an answer sends it again", Refusal.FLOOD
            )
        if self._flooded and not self._gate.flooded(now_s):
            self._flooded = False
            logger().info("message_flood_over", dropped=self._gate.dropped)

    def _grant(self, payload: bytes) -> GrantSeen:
        message = messages.decode(payload, messages.GrantMessage)
        self._check_unit(message.unit)
        if message.want_sealing_key:
            self._tell_sealing_key()
        grant = None if message.job is None else self._to_grant(message.job, payload)
        return GrantSeen(at_ms=self._clock.boot_ms(), rid=message.rid, grant=grant, retry_ms=message.retry_s * 1000)

    def _verdict(self, payload: bytes, envelope: bytes) -> VerdictSeen:
        message = messages.decode(payload, messages.VerdictMessage)
        self._check_unit(message.unit)
        key = JobKey(message.job, message.epoch)
        if message.waits_for is messages.WaitsFor.WITNESS and message.verdict is Verdict.LATER:
            self._on_witness_wanted()
        return VerdictSeen(
            at_ms=self._clock.boot_ms(),
            key=key,
            verdict=message.verdict,
            reason=message.reason,
            paid_micro=message.paid_micro,
            statement_sha256=message.statement_sha256,
            retry_ms=message.retry_s * 1000,
            envelope=envelope,
            next_grant=self._next_grant(message.next_grant, payload),
        )

    def _next_grant(self, job: messages.JobGrant | None, payload: bytes) -> Grant | None:
        """The grant that rides on a verdict. One that makes no sense does not take the verdict with it."""
        try:
            return None if job is None else self._to_grant(job, payload)
        except (MessageError, NotAdmittedError) as error:
            self._refuse("grant", error)
            return None

    def _cancel(self, payload: bytes) -> CancelSeen:
        message = messages.decode(payload, operator_messages.CancelMessage)
        self._check_unit(message.unit)
        key = JobKey(message.job, message.epoch)
        return CancelSeen(at_ms=self._clock.boot_ms(), key=key, grace_ms=message.grace_s * 1000, why=message.why)

    def _pace(self, payload: bytes) -> PaceSeen | None:
        message = messages.decode(payload, operator_messages.PaceMessage)
        if message.cell != self._cell:
            raise MessageError(f"it names the cell {message.cell!r}, this is {self._cell!r}", Refusal.FOREIGN)
        return self._orders.take_pace(message)

    def _witness(self, payload: bytes) -> None:
        """The ledger is none of the core's business."""
        message = messages.decode(payload, messages.WitnessMessage)
        self._check_unit(message.unit)
        self._on_witness(message)

    def _order(self, body: bytes) -> PricesSeen | DemandSeen | None:
        """The payload's type says which order it is; the signature covers the type."""
        kind = dsse.parse(body).payload_type
        match kind:
            case operator_messages.PRICES_TYPE:
                prices = messages.decode(self._verified(body, kind), operator_messages.PricesMessage)
                self._check_unit(prices.unit)
                return self._orders.prices(prices)
            case operator_messages.DEMAND_TYPE:
                demand = messages.decode(self._verified(body, kind), operator_messages.DemandMessage)
                self._check_unit(demand.unit)
                return self._orders.demand(demand)
            case _:
                raise MessageError(f"no order is of type {kind[:64]!r}", Refusal.FORGED)

    def _to_grant(self, job: messages.JobGrant, payload: bytes) -> Grant:
        """The core's view of a job that may run here; an input that came with it is kept aside.

        Raises MessageError, NotAdmittedError.
        """
        grant = to_grant(job, payload)
        if self._gatekeeper is not None:
            claims = GrantClaims(
                unit=self._unit,  # as was checked when the message was read
                nonce=job.nonce,
                package=job.package.name,
                package_sha256=job.package.sha256,
                valid_s=job.ttl_s,
                renew_s=job.renew_s,
            )
            self._gatekeeper.admit(claims, self._unit, job.job, job.epoch)
        self.inputs.keep(job.input, sealed_object(grant) if grant.input_sealed else None)
        return grant

    def _check_unit(self, unit: str) -> None:
        if unit != self._unit:
            raise MessageError(f"it names the unit {unit!r}, this is {self._unit!r}", Refusal.FOREIGN)

    def _status(self, state: str) -> bytes:
        return messages.encode(
            messages.Status(state=state, boot=self._run, conn=self._connections, version=__version__)
        )

    def link_changed(self, connected: bool, broker: str, detail: str) -> None:  # noqa: FBT001 - Link's callback
        """The link came up, or went down and says why."""
        if connected:
            self._publish("status", self._status("up"))
            self._tell_sealing_key()
        elif self._carrier is not None:
            self._carrier.spread(self._orders.pace.spread_ms)
        self._emit(LinkChanged(at_ms=self._clock.boot_ms(), connected=connected, broker=broker, detail=detail))


def to_grant(job: messages.JobGrant, payload: bytes) -> Grant:
    """A job of a signed payload as the core sees it; the payload's digest is the ticket the statement names.

    Raises MessageError for slices that are not of the job, or twice in it, and for a renewal that would come too late.
    """
    if len(set(job.slices)) != len(job.slices) or max(job.slices) * job.slice_items >= job.items:
        raise MessageError(f"the grant of {job.job} names slices twice, or that the job does not have")
    if job.renew_s >= job.ttl_s:
        raise MessageError(f"the grant of {job.job} ends before its first renewal")
    return Grant(
        job=job.job,
        epoch=job.epoch,
        nonce=job.nonce,
        customer=job.customer,
        package=job.package.name,
        package_sha256=job.package.sha256,
        input_url=job.input.url,
        input_sha256=job.input.sha256,
        input_bytes=job.input.bytes,
        items=job.items,
        slice_items=job.slice_items,
        slices=job.slices,
        ttl_ms=job.ttl_s * 1000,
        price_micro_per_item=job.price_micro_per_item,
        currency=job.currency,
        ticket_sha256=hashlib.sha256(payload).hexdigest(),
        workload_class=job.workload_class or "",
        expected_ms=job.expected_s * 1000,
        renew_ms=job.renew_s * 1000,
        upload_url="" if job.upload is None else job.upload.url,
        upload_token="" if job.upload is None else job.upload.token,
        input_sealed=None if job.input.sealed is None else _sealed(job.input.sealed),
    )


def sealed_object(grant: Grant) -> SealedObject:
    """Which input of which lease it is that comes sealed."""
    return SealedObject(job=grant.job, epoch=grant.epoch, sha256=grant.input_sha256, length=grant.input_bytes)


def _sealed(reference: messages.SealedRef) -> SealedInput:
    return SealedInput(reference.keyid, base64.b64decode(reference.wrapped_key))
