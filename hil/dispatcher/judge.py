"""Is this hand-in what it says? Two kinds of no, because the broker between car and dispatcher is not trusted.

* `UnprovenError`: nothing shows that the unit said this about this lease, or the answers are not those it signed. The
  pipe may have bent it, or somebody else may have made it, so it must never cost the unit anything: the answer is
  `later`, and an honest unit's own copy still counts.
* `MisstatementError`: the unit itself signed, for this very lease, something that is wrong. That is final: `bad`.

A statement is signed by a session key, whose certificate by the unit's key comes with it. Without a certificate, or
with one that does not hold or is not this unit's, it proves nothing.

A counter has to be new for the unit's key, not higher than the last one seen: hand-ins may overtake each other on the
way, and arriving late is not a crime. Two different statements with one counter are, two keys for one session, and a
later session before which the clock of the key's TPM ran back: each shows that the unit's ledger has two pasts
(`ContradictionError`), which is more than this lease's affair.

Answers are in the message, or were uploaded before; until they are all there the answer is `later`, too. What was
uploaded is not read here: its digest was compared and its answers were counted when it came.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from agent.core.model import HandInKind, JobKey
from agent.errors import TrustError
from agent.fleet.messages import Envelope, SliceOutput, UploadedObject
from agent.trust import dsse
from agent.trust.session import SessionCertificate, clock_ran_back, parse_certificate, verify_session
from agent.trust.statement import PAYLOAD_TYPE, Slice, Statement, parse_statement
from hil.dispatcher.item_errors import count_failed
from hil.dispatcher.sessions import UsedSession
from hil.dispatcher.staging import Upload
from hil.dispatcher.units import Unit, UnitKey, verified_by

MAX_POWER_W = 2000
"""More than any inference computer in a car draws; a lease that claims more was not measured."""
CLOCK_STEP_MS = 60_000
"""The database's clock may have been set back by so much while the lease was held: that is nobody's lie."""
SLEEP_LONGEST_MS = 7 * 24 * 3_600_000
"""A car that was suspended in the middle of a lease finishes its statement when it wakes."""
CLOCK_DRIFT = 1.01
"""Two crystals differ by far less than a percent; suspends and restarts are in boot time already."""


class UnprovenError(TrustError):
    """Nothing shows that the unit said this."""


class MissingUploadError(UnprovenError):
    """Answers that the hand-in names have not been uploaded, or not wholly."""


class MisstatementError(TrustError):
    """The unit signed something wrong about this lease."""


class PrecisionError(MisstatementError):
    """The unit says that it computed in a precision that the package does not allow."""


class ContradictionError(MisstatementError):
    """The unit's key signed two things that cannot be of one ledger; `evidence` are their envelopes."""

    def __init__(self, what: str, evidence: tuple[bytes, bytes]) -> None:
        super().__init__(what)
        self.evidence = evidence


class SaidBefore(Protocol):
    """What units' keys have said before (`hil.dispatcher.handins.HandIns`)."""

    def statement_with(self, keyid: str, counter: int) -> bytes | None:
        """The envelope of the accepted statement of this key with this counter."""
        ...

    def session(self, keyid: str, number: int) -> UsedSession | None:
        """The session of this number that this key certified, as it came first."""
        ...

    def sessions_beside(self, keyid: str, number: int) -> Sequence[UsedSession]:
        """Those next to this number, below and above, that this key certified."""
        ...


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease as the book has it; `tickets` are the digests of the signed grants that were sent for it.

    `tickets_dropped`: there were more of them than are kept. `held_ms` is how long ago it was granted by the database's
    clock, `longest_ms` how long it can have been worked on, whatever that clock shows. `precisions` are those in which
    the package may be run (empty: nobody knows). `wanted` are the slices
    that it is for, `left_over` is how many the whole job still lacks.
    """

    key: JobKey
    unit: str
    nonce: str
    tickets: frozenset[str]
    tickets_dropped: bool = False
    package: str
    package_sha256: str
    input_sha256: str
    items: int
    slice_items: int
    wanted: tuple[int, ...]
    left_over: int
    held_ms: int
    longest_ms: int
    price_micro_per_item: int
    precisions: frozenset[str] = frozenset()
    replica_of: str | None = None
    estimate_us_per_item: int = 0

    def items_of(self, index: int) -> int:
        """How many items slice `index` has."""
        return min(self.slice_items, self.items - index * self.slice_items)


class HandIn(msgspec.Struct, frozen=True, kw_only=True):
    """What a result and a yield with finished slices have in common."""

    kind: HandInKind
    statement: Envelope
    outputs: tuple[SliceOutput, ...]
    session: Envelope | None = None


class AcceptedSlice(msgspec.Struct, frozen=True, kw_only=True):
    """One slice's answers: a JSON array of `items` entries; None when they are the object of their digest."""

    index: int
    items: int
    failed_items: int
    output_sha256: str
    body: bytes | None


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A hand-in that holds, with what proves it: the envelope, and the session whose key signed it.

    `keyid` is the unit's own key, which certified the session.
    """

    statement: Statement
    slices: tuple[AcceptedSlice, ...]
    keyid: str
    envelope: bytes
    session: UsedSession


class _Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A statement whose signature holds; `certificate` is what `session`'s certificate says."""

    statement: Statement
    keyid: str
    envelope: bytes
    session: UsedSession
    certificate: SessionCertificate


def judge(
    hand_in: HandIn,
    lease: Lease,
    unit: Unit,
    *,
    keys: Mapping[str, UnitKey],
    before: SaidBefore,
    uploaded: Callable[[str], Upload | None],
) -> Accepted:
    """The hand-in, verified; raises UnprovenError or MisstatementError with the reason.

    `keys` are the unit's (`Units.keys_of`), `before` is what they said before, and `uploaded` says what the lease has
    brought under a digest, None where it is not there.
    """
    signed = _authentic(hand_in, lease, unit, keys)
    statement = signed.statement
    _check_bindings(signed, lease, keys[signed.keyid])
    _check_precision(statement, lease)
    _check_slices(statement.slices, lease)
    _check_plausible(statement, lease)
    _check_said_before(signed, before)
    return Accepted(
        statement=statement,
        slices=_answers(hand_in.outputs, statement.slices, uploaded),
        keyid=signed.keyid,
        envelope=signed.envelope,
        session=signed.session,
    )


def _authentic(hand_in: HandIn, lease: Lease, unit: Unit, keys: Mapping[str, UnitKey]) -> _Signed:
    """The statement, if this unit signed it for this lease."""
    try:
        signed = _signed(hand_in, unit, keys)
    except TrustError as error:
        raise UnprovenError(error.what) from error
    statement = signed.statement
    about = (statement.lease.job, statement.lease.epoch, statement.unit, statement.outcome)
    if about != (lease.key.job, lease.key.epoch, unit.unit, hand_in.kind.value):
        raise UnprovenError("the statement is about another lease, unit or outcome than the message around it")
    return signed


def _signed(hand_in: HandIn, unit: Unit, keys: Mapping[str, UnitKey]) -> _Signed:
    """The statement, signed by a session key that a key of the unit certified; raises TrustError.

    The unit's own key signs no statement: one that handed over could go on for ever, outside every session.
    """
    if hand_in.session is None:
        raise UnprovenError("no certificate of the session whose key signed the statement came with it")
    envelope = msgspec.json.encode(hand_in.statement)
    certificate = msgspec.json.encode(hand_in.session)
    keyid, session = verified_by(keys, partial(verify_session, certificate))
    said, own = session.certificate, keys[keyid]
    _check_overlap(own, said.session)
    if (said.unit, said.key_epoch, said.key_protection) != (unit.unit, own.epoch, own.protection):
        of = f"unit {said.unit} in key epoch {said.key_epoch} with a key in {said.key_protection}"
        raise UnprovenError(f"the session's certificate is of {of}, which is not this unit's")
    body = dsse.verify(envelope, PAYLOAD_TYPE, {session.keyid: session.key})
    used = UsedSession(said.session, session.keyid, certificate)
    return _Signed(statement=parse_statement(body), keyid=keyid, envelope=envelope, session=used, certificate=said)


def _check_overlap(key: UnitKey, session: int) -> None:
    """A key that handed over counts for a while, for the sessions that it had certified; raises UnprovenError."""
    if key.is_over:
        raise UnprovenError(f"the unit's key of epoch {key.epoch} handed over to the next, and its overlap is over")
    if key.last_session is not None and session > key.last_session:
        what = f"session {session} was certified by the unit's key of epoch {key.epoch} after it had handed over"
        raise UnprovenError(f"{what} (its last session is {key.last_session})")


def _check_said_before(signed: _Signed, before: SaidBefore) -> None:
    counter, session = signed.statement.counter, signed.session
    earlier = before.statement_with(signed.keyid, counter)
    if earlier is not None:
        what = f"counter {counter} was used in another statement of this key"
        raise ContradictionError(what, (earlier, signed.envelope))
    known = before.session(signed.keyid, session.number)
    if known is not None and known.keyid != session.keyid:
        what = f"session {session.number} was certified for another key"
        raise ContradictionError(what, (known.certificate, session.certificate))
    if known is None:
        _check_clock(signed, before)


def _check_clock(signed: _Signed, before: SaidBefore) -> None:
    """A session that is new here, against its neighbours; those that came before were held against each other then."""
    for other in before.sessions_beside(signed.keyid, signed.session.number):
        if back := clock_ran_back(parse_certificate(dsse.parse(other.certificate).payload), signed.certificate):
            raise ContradictionError(back, (other.certificate, signed.session.certificate))


def _check_bindings(signed: _Signed, lease: Lease, key: UnitKey) -> None:
    statement = signed.statement
    if statement.lease.ticket_sha256 not in lease.tickets:
        if lease.tickets_dropped:
            raise UnprovenError("ticketSha256 is not among the grants that are remembered of this lease")
        raise MisstatementError("ticketSha256 is not the digest of a grant that was sent for this lease")
    for name, said, granted in (
        ("nonce", statement.lease.nonce, lease.nonce),
        ("package", statement.package.name, lease.package),
        ("package digest", statement.package.sha256, lease.package_sha256),
        ("input digest", statement.input_sha256, lease.input_sha256),
        ("keyProtection", statement.key_protection, key.protection),
        ("session", statement.session, signed.session.number),
    ):
        if said != granted:
            raise MisstatementError(f"{name} is {said}, expected {granted}")


def _check_precision(statement: Statement, lease: Lease) -> None:
    """A lower precision that is owned up to is not what was asked for; one that is not, comparing finds out."""
    said = statement.engine.precision
    if said is not None and lease.precisions and said not in lease.precisions:
        allowed = ", ".join(sorted(lease.precisions))
        raise PrecisionError(f"precision is {said}, and {lease.package} may be run in {allowed}")


def _check_slices(slices: tuple[Slice, ...], lease: Lease) -> None:
    for entry in slices:
        if entry.index not in lease.wanted:
            raise MisstatementError(f"slice {entry.index} was not asked for")
        if entry.items != lease.items_of(entry.index):
            raise MisstatementError(
                f"slice {entry.index} has {entry.items} items, expected {lease.items_of(entry.index)}"
            )


def _check_plausible(statement: Statement, lease: Lease) -> None:
    """Lazy fraud only: work that took longer than the lease was held, or power that no such computer draws.

    A car whose agent was restarted has slices from before, so these are held against the lease, and not against the
    times in the statement, which are of the last run. What cannot be under any clock is a lie. What only the database's
    clock speaks against may be that clock's fault, since somebody may have set it back: until it has caught up, nothing
    is proven. Granted in what is now the future, a lease says nothing of its length.
    """
    held_ms = lease.held_ms if lease.held_ms >= 0 else lease.longest_ms
    for most_ms, error in (
        (max(held_ms, lease.longest_ms), MisstatementError),
        (held_ms, UnprovenError),
    ):
        _check_against(statement, round(most_ms * CLOCK_DRIFT) + CLOCK_STEP_MS, lease.held_ms, error)


def _check_against(statement: Statement, most_ms: int, held_ms: int, error: type[TrustError]) -> None:
    of_what = f"of a lease that was granted {held_ms} ms ago"
    duration_ms = statement.times.finished_boot_ms - statement.times.started_boot_ms
    asleep_ms = SLEEP_LONGEST_MS if error is MisstatementError else 0
    if duration_ms > most_ms + asleep_ms:
        raise error(f"the work took {duration_ms} ms {of_what}")
    for entry in statement.slices:
        if entry.compute_ms > most_ms:
            raise error(f"slice {entry.index} computed for {entry.compute_ms} ms {of_what}")
    if statement.energy.micro_wh > MAX_POWER_W * most_ms / 3.6:  # 1 W for 1 ms is 1/3.6 microwatt-hours
        raise error(f"{statement.energy.micro_wh} uWh {of_what} is more than {MAX_POWER_W} W")


def _answers(
    outputs: tuple[SliceOutput, ...], slices: tuple[Slice, ...], uploaded: Callable[[str], Upload | None]
) -> tuple[AcceptedSlice, ...]:
    """The answers, if they are exactly those whose digests were signed."""
    given = {output.index: output for output in outputs}
    if len(given) != len(outputs) or given.keys() != {entry.index for entry in slices}:
        raise UnprovenError("the outputs are not one for each slice of the statement")
    return tuple(_answer(entry, given[entry.index], uploaded) for entry in slices)


def _answer(entry: Slice, output: SliceOutput, uploaded: Callable[[str], Upload | None]) -> AcceptedSlice:
    if output.uploaded is not None:
        _check_upload(entry, output.uploaded, uploaded)
        body = None
    else:
        body = _from_base64(output)
        _check_body(entry, body)
    return AcceptedSlice(
        index=entry.index,
        items=entry.items,
        failed_items=entry.failed_items,
        output_sha256=entry.output_sha256,
        body=body,
    )


def _check_body(entry: Slice, body: bytes) -> None:
    if hashlib.sha256(body).hexdigest() != entry.output_sha256:
        raise UnprovenError(f"the output of slice {entry.index} is not the one that was signed")
    try:
        answers = msgspec.json.decode(body, type=list[msgspec.Raw])
        failed = count_failed(answers)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MisstatementError(f"the output of slice {entry.index} is not a JSON array: {error}") from error
    if len(answers) != entry.items:
        raise MisstatementError(f"the output of slice {entry.index} has {len(answers)} answers for {entry.items} items")
    if failed != entry.failed_items:
        raise MisstatementError(f"the output of slice {entry.index} has {failed} errors, not {entry.failed_items}")


def _check_upload(entry: Slice, claimed: UploadedObject, uploaded: Callable[[str], Upload | None]) -> None:
    if claimed.sha256 != entry.output_sha256:
        raise UnprovenError(f"the upload named for slice {entry.index} is not the output that was signed")
    found = uploaded(claimed.sha256)
    if found is None:
        raise MissingUploadError(f"the output of slice {entry.index} has not been uploaded")
    if found.bytes != claimed.bytes:
        raise UnprovenError(f"the upload of slice {entry.index} has another size than {claimed.bytes} bytes")
    if found.answers != entry.items:
        raise MisstatementError(f"the output of slice {entry.index} is not a JSON array of {entry.items} answers")
    if found.failed != entry.failed_items:
        failed = f"{found.failed} errors, not {entry.failed_items}"
        raise MisstatementError(f"the output of slice {entry.index} has {failed}")


def _from_base64(output: SliceOutput) -> bytes:
    try:
        return base64.b64decode(output.body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnprovenError(f"the output of slice {output.index} is not base64") from error
