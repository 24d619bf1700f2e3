"""From a hand-in to the verdict on it. The fence comes first: what was judged, or is stale, is not looked at again.

A refusal, a lease that was too long and a fault are not the same thing to the unit and the job: what a yield says is
noted when it is accepted (`Book.note_reason`), once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import structlog

from agent.core.model import HandInKind, JobKey, Verdict, YieldReason
from agent.fleet.messages import Envelope, LedgerFault, Result, VerdictMessage, WaitsFor, Yield
from hil.dispatcher.answers import verdict
from hil.dispatcher.book import Book
from hil.dispatcher.handins import HandedIn
from hil.dispatcher.judge import (
    Accepted,
    ContradictionError,
    HandIn,
    Lease,
    MissingUploadError,
    MisstatementError,
    UnprovenError,
    judge,
)
from hil.dispatcher.staging import Upload
from hil.dispatcher.units import Unit
from hil.dispatcher.unwitnessed import Bound, UnwitnessedError

LATER_S = 60
"""When to hand in again what could not be verified."""
MISSING_UPLOAD_S = 15
CLOSED_UPLOAD_S = 3_600
"""The same, where what is missing cannot be brought any more: until the job is granted again, and this one is stale."""
WITNESS_S = 60
"""The same, where a checkpoint has to come first: it comes at once, unless something on the way drops it."""
UNFORGIVEN = {YieldReason.FAULT, YieldReason.SHORT}
"""Why a lease ended that did not go as it should, though some of it was finished."""
STALE = "the lease is not this unit's, or no longer"

log = structlog.get_logger("dispatcher")


class Brought(Protocol):
    """What leases have brought (`hil.dispatcher.staging.Staging`)."""

    def find(self, unit: str, key: JobKey, sha256: str) -> Upload | None:
        """Under this digest; None: it is not there, or not wholly."""
        ...

    def arrived_bytes(self, unit: str, key: JobKey) -> int:
        """How much of the lease's answers is there, whole or not."""
        ...

    def keep(self, unit: str, key: JobKey, names: Iterable[str]) -> None:
        """Accepted: make objects of what lies under these digests. Raises OSError."""
        ...


class Hold(Protocol):
    """Holds a fault against a unit's ledger (`hil.dispatcher.witness.Witness.hold`)."""

    def __call__(self, unit: str, fault: LedgerFault, detail: str, evidence: tuple[bytes, ...], /) -> None:
        """`evidence` are envelopes that the unit signed."""
        ...


class NothingBrought:
    """Where answers have to fit into messages."""

    def find(self, _unit: str, _key: JobKey, _sha256: str) -> Upload | None:
        """None of it is there."""
        return None

    def arrived_bytes(self, _unit: str, _key: JobKey) -> int:
        """None of it is there."""
        return 0

    def keep(self, _unit: str, _key: JobKey, _names: Iterable[str]) -> None:
        """Nothing is named."""


class Verdicts:
    """Use from the thread that owns the book, inside its transaction.

    `complain(who, reason)` counts what is odd; `hold` is told of two things that cannot be of one ledger. `unwitnessed`
    is how much of a ledger may stand unwitnessed; None: as much as it likes.
    """

    def __init__(
        self,
        book: Book,
        brought: Brought,
        complain: Callable[[str, str], None],
        hold: Hold,
        *,
        unwitnessed: Bound | None = None,
    ) -> None:
        self._book, self._brought, self._complain, self._hold = book, brought, complain, hold
        self._unwitnessed = unwitnessed

    def on_result(self, unit: Unit, result: Result) -> VerdictMessage:
        """The verdict on a finished lease."""
        hand_in = HandIn(
            kind=HandInKind.RESULT, statement=result.statement, outputs=result.outputs, session=result.session
        )
        return self._judge(unit, JobKey(result.job, result.epoch), result.rid, hand_in)

    def on_yield(self, unit: Unit, yielded: Yield) -> VerdictMessage:
        """The verdict on a lease that was given back, with or without finished slices."""
        key = JobKey(yielded.job, yielded.epoch)
        if yielded.statement is None:
            return self._give_back(unit, key, yielded)
        hand_in = HandIn(
            kind=HandInKind.YIELD, statement=yielded.statement, outputs=yielded.outputs, session=yielded.session
        )
        return self._judge(unit, key, yielded.rid, hand_in, yielded)

    def _judge(
        self, unit: Unit, key: JobKey, rid: str, hand_in: HandIn, yielded: Yield | None = None
    ) -> VerdictMessage:
        judged = statement_sha256(hand_in.statement)
        standing = self._book.handins.standing(unit, key)
        if standing is None or isinstance(standing, HandedIn):
            return _again(unit, key, rid, standing, judged)
        try:
            find = partial(self._brought.find, unit.unit, key)
            keys = self._book.units.keys_of(unit)
            accepted = judge(hand_in, standing, unit, keys=keys, before=self._book.handins, uploaded=find)
            if self._unwitnessed is not None:
                self._book.unwitnessed.check(
                    unit.unit, accepted.statement.log_index, self._unwitnessed, self._book.now_ms()
                )
            self._keep(unit, key, accepted)
        except UnprovenError as error:
            return self._later(standing, rid, error)
        except MisstatementError as error:
            if isinstance(error, ContradictionError):
                self._hold(unit.unit, LedgerFault.FORK, error.what, error.evidence)
            self._book.handins.refuse(standing, error.what, judged)
            refused = partial(log.warning, "hand_in_refused", unit=unit.unit, job=str(key), reason=error.what)
            self._book.database.on_commit(refused)
            return verdict(unit.unit, key, rid, Verdict.BAD, error.what, statement_sha256=judged)
        forgive = yielded is None or yielded.why not in UNFORGIVEN
        paid_micro = self._book.handins.settle(standing, unit, accepted, judged, forgive=forgive)
        if paid_micro is None:  # another replica moved the fence since we looked
            return verdict(unit.unit, key, rid, Verdict.LATER, "the lease changed meanwhile", retry_s=1)
        if yielded is not None:
            self._note(unit, standing, yielded)
        done = len(accepted.slices)
        settled = partial(log.info, "settled", unit=unit.unit, job=str(key), slices=done, paid_micro=paid_micro)
        self._book.database.on_commit(settled)
        return verdict(unit.unit, key, rid, Verdict.SETTLED, paid_micro=paid_micro, statement_sha256=judged)

    def _later(self, lease: Lease, rid: str, error: UnprovenError) -> VerdictMessage:
        """The hand-in may come again: when, and what has to come before."""
        unit, key, waits_for, retry_s = lease.unit, lease.key, WaitsFor.NOTHING, LATER_S
        match error:
            case UnwitnessedError():
                waits_for, retry_s = WaitsFor.WITNESS, WITNESS_S
                if self._book.handins.wait_for_witness(lease):
                    self._book.database.on_commit(partial(log.warning, "unit_put_off", unit=unit, reason=error.what))
            case MissingUploadError():
                self._book.handins.wait_for_uploads(lease, self._brought.arrived_bytes(unit, key))
                is_open = self._book.upload_rights.still_open([(unit, key)])
                retry_s = MISSING_UPLOAD_S if is_open else CLOSED_UPLOAD_S
            case _:
                self._complain(unit, f"unproven: {error.what}")
        return verdict(unit, key, rid, Verdict.LATER, error.what, retry_s=retry_s, waits_for=waits_for)

    def _keep(self, unit: Unit, key: JobKey, accepted: Accepted) -> None:
        """Before the commit, so that no result names an object that is not there."""
        names = [entry.output_sha256 for entry in accepted.slices if entry.body is None]
        try:
            self._brought.keep(unit.unit, key, names)
        except OSError as error:
            raise MissingUploadError(f"what was uploaded cannot be kept: {error.strerror}") from error

    def _give_back(self, unit: Unit, key: JobKey, yielded: Yield) -> VerdictMessage:
        standing = self._book.handins.standing(unit, key)
        if standing is None or isinstance(standing, HandedIn):
            return _again(unit, key, yielded.rid, standing, "")
        if self._book.handins.give_back(standing, yielded.why, yielded.detail):
            self._note(unit, standing, yielded)
        return verdict(unit.unit, key, yielded.rid, Verdict.SETTLED)

    def _note(self, unit: Unit, lease: Lease, yielded: Yield) -> None:
        if yielded.why in (YieldReason.REFUSED, YieldReason.FAULT):
            about = {"unit": unit.unit, "job": str(lease.key), "why": yielded.why, "detail": yielded.detail}
            self._book.database.on_commit(partial(log.info, "lease_failed", **about))
        self._book.handins.note_reason(lease, yielded.why, yielded.detail)


def _again(unit: Unit, key: JobKey, rid: str, judged: HandedIn | None, claimed_sha256: str) -> VerdictMessage:
    """A verdict that stands already names the statement it was on; a stale lease is so whatever was claimed."""
    if judged is None:
        return verdict(unit.unit, key, rid, Verdict.STALE, STALE, statement_sha256=claimed_sha256)
    return verdict(
        unit.unit,
        key,
        rid,
        Verdict.DUPLICATE if judged.verdict is Verdict.SETTLED else judged.verdict,
        judged.reason,
        paid_micro=judged.paid_micro,
        statement_sha256=judged.statement_sha256,
    )


def statement_sha256(envelope: Envelope) -> str:
    """The digest by which a verdict names the statement it is on; "" when there is none to read."""
    try:
        payload = base64.b64decode(envelope.payload.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return hashlib.sha256(payload).hexdigest()
