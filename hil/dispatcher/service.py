"""The dispatcher's conversation with cars: messages come in, the book decides, signed answers go out.

Messages are handled in batches, one transaction each, so that many share one write to the disk; answers leave after
the commit. Nothing is remembered between messages except what the book has, so a crash anywhere costs a repetition.
When the database does not answer, nobody is answered: cars say it again.

What cannot be understood is counted, told of in a few lines a unit and minute, and answered with `later` where it says
what it is about: a hostile broker can bend any message, so nothing it sends may make a car throw work away. No message
stops the service: where one fails, those that came with it are handled again, each by itself. What is counted, logged
and remembered of a batch is what was committed, once, however often the batch was done again.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec
import structlog
from cryptography.x509 import Certificate

from agent.core.model import JobKey, Outlook, PaceState, Verdict
from agent.errors import TrustError
from agent.fleet.messages import (
    CheckpointMessage,
    GrantMessage,
    JobGrant,
    MessageError,
    Renew,
    Request,
    Result,
    SealingKeyMessage,
    Status,
    Yield,
    decode,
)
from agent.fleet.operator_messages import CancelMessage
from agent.ports import Signer
from agent.trust.sealing_key import verify_sealing_key
from hil.dispatcher.answers import Answers, Publish, later
from hil.dispatcher.book import Book
from hil.dispatcher.complaints import STRANGERS, Complaints
from hil.dispatcher.database import ConflictError, DatabaseLostError, UnfitValueError
from hil.dispatcher.enrolling import Enrolling
from hil.dispatcher.leases import Holding, Places
from hil.dispatcher.operating import Operating
from hil.dispatcher.ramp import Ramp
from hil.dispatcher.units import Unit, verified_by
from hil.dispatcher.unwitnessed import Bound
from hil.dispatcher.verdicts import LATER_S, STALE, WITNESS_S, Brought, NothingBrought, Verdicts
from hil.dispatcher.witness import Witness

TOPIC = re.compile(r"dw/v1/u/(?P<cell>[0-9a-f]{2})/(?P<unit>[A-Za-z0-9_-]{1,64})/(?P<verb>[a-z]{1,16})")
CLOSED_RETRY_S = 300
"""When to ask again in a cell that is closed; its pace tells the car when that is over."""
IN_DISPUTE_S = 3_600
"""When to ask again while the unit's ledger is in dispute: an operator has to look into it."""
BUSY_S = 30
REFRESH_EVERY_MS = 1_000
MOST_UNWITNESSED = Bound()
MOST_EPOCH = 2**40
"""Of a sealing key: no clock shows more."""
TRIES = 3
"""So often a batch that met another replica is done again before its messages are handled one by one."""
SINGLY_S = 10.0
"""So long messages are handled one by one: each may wait for a lock, and the next batch waits for all of them."""

Message = tuple[str, bytes]
"""Topic and payload."""

log = structlog.get_logger("dispatcher")


class Dispatcher(Operating):
    """Use from the thread that owns the book. `brought` is what cars have uploaded; without it, nothing.

    `retry_s` is when a car asks again that got nothing; `ramp` how many idle cars of a cell may start at once;
    `ek_roots` are the makers of TPMs that are trusted (`hil.dispatcher.enrolling`); `unwitnessed` is how much of a
    unit's ledger may stand unwitnessed, None: as much as it likes.
    """

    def __init__(
        self,
        book: Book,
        key: Signer,
        *,
        publish: Publish,
        places: Places,
        retry_s: int,
        brought: Brought | None = None,
        ramp: Ramp | None = None,
        ek_roots: Sequence[Certificate] = (),
        unwitnessed: Bound | None = MOST_UNWITNESSED,
    ) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(book, Answers(book, key, publish, self.counts), Enrolling(book, key, ek_roots))
        self._places, self._retry_s = places, retry_s
        self._ramp = ramp or Ramp(0)
        self._complaints = Complaints()
        self._witness = Witness(book, key, self._complain)
        self._unwitnessed = unwitnessed
        self._verdicts = Verdicts(
            book, brought or NothingBrought(), self._complain, self._witness.hold, unwitnessed=unwitnessed
        )
        self._refreshed_ms, self._all_paces = 0, False

    # --- messages ----------------------------------------------------------------------------------------------

    def on_message(self, topic: str, payload: bytes) -> None:
        """Handle one message from the broker; never raises."""
        self.handle([(topic, payload)])

    def handle(self, batch: Sequence[Message]) -> None:
        """Handle messages in one transaction, and answer them when it is durable; never raises."""
        for _ in range(TRIES):
            try:
                self._decide(batch)
            except DatabaseLostError:
                self._forget()
                self.counts["unanswered"] += len(batch)
                return
            except ConflictError:
                self._forget()
                self.counts["conflicts"] += 1
            except Exception as error:
                self._forget()
                if len(batch) > 1:
                    break
                if batch and isinstance(error, UnfitValueError):
                    self._refuse(*batch[0], str(error))
                else:
                    self.counts["crashed"] += 1
                    log.exception("message_failed", topic=batch[0][0][:128] if batch else "")
                return
            else:
                self._ramp.keep()
                self.answers.flush()
                return
        self._handle_singly(batch)

    def _handle_singly(self, batch: Sequence[Message]) -> None:
        until_s = time.monotonic() + SINGLY_S
        for number, message in enumerate(batch):
            if len(batch) == 1 or time.monotonic() > until_s:
                self.counts["unanswered"] += len(batch) - number
                return
            self.handle([message])

    def _forget(self) -> None:
        """What was decided was not decided after all."""
        self.answers.forget()
        self._ramp.forget()

    @property
    def database_lost(self) -> bool:
        """Whether nobody can be answered now, so that others should get the messages. From any thread."""
        return self._book.database.lost

    def tick(self) -> None:
        """Do what is due although no message came: call it about once a second. Never raises."""
        self.handle([])

    def republish(self) -> None:
        """Publish every pace again: the link came up, and brokers forget. Never raises."""
        self._all_paces = True
        self.tick()

    def put_off(self, batch: Sequence[Message]) -> None:
        """Answer hand-ins that there is no room for: they are to come again. Never raises."""
        for topic, payload in batch:
            address = TOPIC.fullmatch(topic)
            message = address and later(address["unit"], address["verb"], payload, "too busy", BUSY_S)
            if message:
                self.answers.verdict(message)
        self.answers.flush()

    def _decide(self, batch: Sequence[Message]) -> None:
        self._keep_house()
        if batch:
            with self._book.database.transaction():
                for topic, payload in batch:
                    self._handle(topic, payload)

    def _keep_house(self) -> None:
        now_ms = self._book.now_ms()
        self._book.keep_house(now_ms)
        if self._all_paces or not 0 <= now_ms - self._refreshed_ms < REFRESH_EVERY_MS:
            news = self._book.paces.refresh()
            for pace in self._book.paces.known() if self._all_paces else news:
                self.answers.pace(pace)
            self._refreshed_ms, self._all_paces = now_ms, False
            self.answers.flush()  # whatever becomes of the batch

    def _handle(self, topic: str, payload: bytes) -> None:
        address = TOPIC.fullmatch(topic)
        unit = self._book.units.get(address["unit"]) if address else None
        if address is None or unit is None or unit.cell != address["cell"]:
            self._complain(STRANGERS, f"not the topic of an enrolled unit: {topic[:128]}")
            return
        self._count(address["verb"])
        try:
            match address["verb"]:
                case "request":
                    self._on_request(unit, decode(payload, Request))
                case "renew":
                    self._on_renew(unit, decode(payload, Renew))
                case "result":
                    self._on_result(unit, decode(payload, Result))
                case "yield":
                    self._on_yield(unit, decode(payload, Yield))
                case "checkpoint":
                    self._on_checkpoint(unit, decode(payload, CheckpointMessage))
                case "sealing":
                    self._on_sealing_key(unit, decode(payload, SealingKeyMessage))
                case "status":
                    self._on_status(unit, decode(payload, Status))
                case verb:
                    self._complain(unit.unit, f"verb {verb!r} is not spoken here")
        except MessageError as error:
            self._complain(unit.unit, str(error))
            self._answer_unreadable(unit, address["verb"], payload, str(error))

    def _on_request(self, unit: Unit, request: Request) -> None:
        unit = self._book.units.note_capability(unit, request.cap, self._book.now_ms())
        job, retry_s = None, self._retry_s
        if request.credit:
            job, retry_s = self._next_job(unit, request.have, request.outlook, asked=request.rid)
        unknown = self._places.sealing is not None and self._book.sealing_keys.of(unit.unit) is None
        self.answers.grant(
            GrantMessage(rid=request.rid, unit=unit.unit, job=job, retry_s=retry_s, want_sealing_key=unknown)
        )
        if unit.ledger_fault:
            self.answers.witness(self._witness.word(unit.unit, request.rid))

    def _on_checkpoint(self, unit: Unit, message: CheckpointMessage) -> None:
        witnessed = self._witness.on_checkpoint(unit, message)
        if witnessed is not None:
            self.answers.witness(witnessed)

    def _on_sealing_key(self, unit: Unit, message: SealingKeyMessage) -> None:
        """Believed by the unit's own key, and never an older one than is known.

        A key that handed over still counts during its overlap, since the unit may not know yet that its successor was
        taken; but it cannot replace a sealing key that is known: whoever stole it would be sealed to from then on.
        """
        present = self._book.units.keys_of(unit)
        keys = {keyid: one for keyid, one in present.items() if not one.is_over}
        try:
            by, (record, key) = verified_by(
                keys, lambda known: verify_sealing_key(msgspec.json.encode(message.sealing_key), unit.unit, known)
            )
        except TrustError as error:
            self._complain(unit.unit, str(error))
            return
        known = self._book.sealing_keys.of(unit.unit)
        if by != unit.keyid and known is not None:
            if known.epoch != record.epoch:
                self._complain(unit.unit, "a key that handed over vouches for another sealing key than is known")
            return
        if record.epoch <= MOST_EPOCH and self._book.sealing_keys.note(unit.unit, record.epoch, key):
            self._count("sealing_keys")

    def _on_renew(self, unit: Unit, renew: Renew) -> None:
        key = JobKey(renew.job, renew.epoch)
        pace = self._book.paces.of(unit.cell)
        stopped = "the operator stopped the cell" if pace is not None and pace.state is PaceState.STOP else ""
        stopped = "the unit's ledger is in dispute" if unit.ledger_fault else stopped
        job = None if stopped else self._book.renew(unit, key, renew.done, self._places)
        if job is not None:
            self.answers.grant(GrantMessage(rid=renew.rid, unit=unit.unit, job=job))
            return
        why = stopped or STALE
        held = {holding.key: holding for holding in self._book.leases.held_by(unit.unit, self._book.now_ms())}
        if key in held and held[key].cancel_why is not None:
            self._cancel_again(unit, held[key])
        else:
            self.answers.cancel(CancelMessage(unit=unit.unit, job=key.job, epoch=key.epoch, why=why))

    def _on_status(self, unit: Unit, status: Status) -> None:
        self._book.units.note_status(unit.unit, status)
        if status.state == "up":
            for order in self._book.orders.standing(unit.unit):
                self.answers.order(order)

    def _on_result(self, unit: Unit, result: Result) -> None:
        judged = self._verdicts.on_result(unit, result)
        if judged.verdict is Verdict.BAD:
            unit = self._book.units.get(unit.unit) or unit  # something may stand against it since
        if result.credit and judged.verdict is not Verdict.LATER:
            job, retry_s = self._next_job(unit, result.have, result.outlook)
            judged = msgspec.structs.replace(judged, next_grant=job, retry_s=retry_s)
        self.answers.verdict(judged)

    def _on_yield(self, unit: Unit, yielded: Yield) -> None:
        self.answers.verdict(self._verdicts.on_yield(unit, yielded))

    def _next_job(
        self, unit: Unit, have: Iterable[JobKey], outlook: Outlook, *, asked: str = ""
    ) -> tuple[JobGrant | None, int]:
        """A lease for the unit, or None and when to ask again. `asked`: by this request; it was idle until now."""
        now_ms = self._book.now_ms()
        held = self._book.leases.held_by(unit.unit, now_ms)
        known = set(have)
        for holding in held:
            if holding.cancel_why is not None and holding.key in known:
                self._cancel_again(unit, holding)
        if unit.ledger_fault:
            return None, max(self._retry_s, IN_DISPUTE_S)
        if self._unwitnessed is not None and self._book.unwitnessed.is_overdue(unit.unit, self._unwitnessed, now_ms):
            return None, max(self._retry_s, WITNESS_S)
        pace = self._book.paces.of(unit.cell)
        if pace is not None and pace.state is not PaceState.OPEN:
            return None, max(self._retry_s, CLOSED_RETRY_S)
        lost = any(one.worth and one.cancel_why is None and one.key not in known for one in held)
        wait_s = self._ramp.wait_s(unit.cell, unit.unit, now_ms) if asked and not lost else 0
        if wait_s:
            self._count("held_back")
            return None, max(self._retry_s, wait_s)
        job = self._book.grant(unit, held, known, outlook, self._places, asked=asked)
        if job is not None and asked and all(one.key != JobKey(job.job, job.epoch) for one in held):
            self._ramp.started(unit.cell, now_ms)
        benched_s = min(3_600, max(0, unit.benched_until_ms - now_ms) // 1000)
        return job, 0 if job is not None else max(self._retry_s, benched_s)

    def _cancel_again(self, unit: Unit, holding: Holding) -> None:
        """The car has not heard of it, or not yet done it: what is left of its grace."""
        grace_s = max(0, holding.cancel_ends_ms - self._book.now_ms()) // 1000
        why = holding.cancel_why or ""
        self.answers.cancel(
            CancelMessage(unit=unit.unit, job=holding.key.job, epoch=holding.key.epoch, grace_s=grace_s, why=why)
        )

    def _answer_unreadable(self, unit: Unit, verb: str, payload: bytes, reason: str) -> None:
        message = later(unit.unit, verb, payload, reason, LATER_S)
        if message is not None:
            self.answers.verdict(message)

    def _refuse(self, topic: str, payload: bytes, reason: str) -> None:
        """The database would not take what is in this message."""
        address = TOPIC.fullmatch(topic)
        self._complain(address["unit"] if address else STRANGERS, reason)
        message = address and later(address["unit"], address["verb"], payload, reason, LATER_S)
        if message:
            self.answers.verdict(message)
            self.answers.flush()

    def _complain(self, who: str, reason: str) -> None:
        """Count it, and tell of it, when the message has been dealt with for good."""
        self._count("refused")
        self._book.database.on_commit(partial(self._complaints.tell, who, reason))

    def _count(self, what: str) -> None:
        self._book.database.on_commit(partial(self.counts.update, [what]))
