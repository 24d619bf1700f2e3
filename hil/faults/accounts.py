"""The accounts of a fault run: was anything lost, was anything paid twice? Pure, and able to say yes.

Three books, kept by parties who do not share code paths: what was ordered, what the dispatcher's rows say, and what
every agent's store says (its own ledger: session certificates, signed statements, signed verdicts). Every signature is
verified anew, a statement's by the session key that the unit's key of that epoch certified.

`lost`: work that was done and signed, or money that was promised, and which is nowhere now.

* a statement in an agent's ledger that has neither a verdict there nor a place in the outbox;
* a settled verdict that the dispatcher's rows do not have, or have with other money or another statement;
* a settled hand-in of which the unit's ledger knows nothing; a ledger whose leaves do not lead to its head, or that is
  not the one whose checkpoint the dispatcher witnessed;
* a verdict `stale` or `bad` on honest work that still held the lease;
* answers that are not those that were signed, or not those to what was asked; a job called done whose slices are not
  all there.

`doubled`: the same work counted more than once.

* a slice in two settled statements, or settled for two units, whichever book says so;
* two settled verdicts in one ledger for one lease; one statement settled twice; one counter of a key used twice; one
  session number certified for two keys;
* more money for a slice than its items cost; sums that differ between the books.

A database constraint that makes a double impossible is no excuse for not looking: the envelopes are counted, too.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from agent.core.model import Verdict
from agent.errors import TrustError
from agent.fleet import messages
from agent.trust import dsse
from agent.trust.checkpoint import parse_checkpoint, verify_countersigned
from agent.trust.keys import keyid, load_public_key
from agent.trust.merkle import leaf_hash, tree_root
from agent.trust.session import parse_certificate, verify_session
from agent.trust.statement import Statement, parse_statement, verify_statement
from hil.faults.books import AgentBook, DispatcherBook, HandInRow, Ordered, ResultRow

Key = tuple[str, int]


class Loss(enum.StrEnum):
    """What a finding means."""

    LOST = "lost"
    DOUBLED = "doubled"


class Finding(msgspec.Struct, frozen=True):
    """One thing that must not be; `unit` is empty where none is concerned."""

    loss: Loss
    rule: str
    job: str
    unit: str = ""
    detail: str = ""


class Said(msgspec.Struct, frozen=True):
    """A statement or a verdict out of a ledger, with its payload's digest."""

    sha256: str
    statement: Statement | None = None
    verdict: messages.VerdictMessage | None = None


class Ledger(msgspec.Struct, frozen=True):
    """An agent's ledger, read and verified."""

    book: AgentBook
    statements: dict[Key, list[Said]]
    verdicts: dict[Key, list[Said]]

    def settled(self) -> Iterator[tuple[Key, messages.VerdictMessage, Statement | None]]:
        """Each lease that was settled by its verdict, with the statement the verdict names."""
        for key, said in self.verdicts.items():
            for one in said:
                verdict = one.verdict
                if verdict is not None and verdict.verdict in {Verdict.SETTLED, Verdict.DUPLICATE}:
                    named = (st for st in self.statements.get(key, ()) if st.sha256 == verdict.statement_sha256)
                    yield key, verdict, next((st.statement for st in named), None)


def audit(
    ordered: Sequence[Ordered], dispatcher: DispatcherBook, agents: Sequence[AgentBook], dispatcher_pem: str
) -> list[Finding]:
    """Every finding, in the order of the rules above."""
    findings: list[Finding] = []
    key = load_public_key(dispatcher_pem)
    ledgers = [_ledger(book, dispatcher, {keyid(key): key}, findings) for book in agents]
    for ledger in ledgers:
        findings += _kept(ledger)
        findings += _believed(ledger, dispatcher)
    findings += _rows(dispatcher, ledgers)
    findings += _delivered(ordered, dispatcher)
    findings += _paid_once(ordered, dispatcher, ledgers)
    findings += _sums(ordered, dispatcher, ledgers)
    return findings


# --- reading a ledger -----------------------------------------------------------------------------------------------


def _ledger(
    book: AgentBook,
    dispatcher: DispatcherBook,
    dispatcher_keys: dict[str, EllipticCurvePublicKey],
    findings: list[Finding],
) -> Ledger:
    keys = _Keys(dispatcher.keys[book.unit])
    statements: dict[Key, list[Said]] = defaultdict(list)
    verdicts: dict[Key, list[Said]] = defaultdict(list)
    sessions = _Sessions()
    for index, leaf in enumerate(book.ledger):
        key = (leaf.job, leaf.epoch)
        try:
            match leaf.kind:
                case "session":
                    sessions.note(leaf.envelope, keys)
                case "statement":
                    statements[key].append(_statement(leaf.envelope, index, sessions, keys))
                case _:
                    payload = dsse.verify(leaf.envelope, messages.VERDICT_TYPE, dispatcher_keys)
                    verdict = messages.decode(payload, messages.VerdictMessage)
                    verdicts[key].append(Said(_sha256(payload), verdict=verdict))
        except _TwiceError as error:
            findings.append(Finding(Loss.DOUBLED, "session_used_twice", "", book.unit, str(error)))
        except (TrustError, messages.MessageError) as error:
            findings.append(Finding(Loss.LOST, "leaf_unreadable", leaf.job, book.unit, str(error)))
    findings += _whole(book, dispatcher, keys, dispatcher_keys)
    return Ledger(book, dict(statements), dict(verdicts))


class _TwiceError(TrustError):
    """A session's number was certified for a second key."""


class _Keys:
    """The keys that a unit has and had, by epoch: what says to be of an epoch has to be signed by the key of that."""

    def __init__(self, pems: dict[int, str]) -> None:
        self._keys = {epoch: load_public_key(pem) for epoch, pem in pems.items()}

    def of(self, epoch: int) -> dict[str, EllipticCurvePublicKey]:
        """The key of this epoch, by its id; raises TrustError where the dispatcher knows none."""
        if epoch not in self._keys:
            raise TrustError(f"no key of epoch {epoch} is known")
        return {keyid(self._keys[epoch]): self._keys[epoch]}


class _Sessions:
    """The sessions of a ledger up to a leaf. Their numbers begin anew with each key epoch."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._newest: dict[int, tuple[bytes, int]] = {}

    def note(self, envelope: bytes, keys: _Keys) -> None:
        """A certificate's leaf; raises _TwiceError for a number that its epoch had, TrustError for a false one."""
        epoch = parse_certificate(dsse.parse(envelope).payload).key_epoch
        number = verify_session(envelope, keys.of(epoch)).certificate.session
        if (epoch, number) in self._seen:
            raise _TwiceError(f"session {number} of key epoch {epoch} was certified twice")
        self._seen.add((epoch, number))
        self._newest[number] = envelope, epoch

    def of(self, number: int) -> tuple[bytes, int] | None:
        """The last certificate of this number so far, and its key epoch."""
        return self._newest.get(number)


def _statement(envelope: bytes, index: int, sessions: _Sessions, keys: _Keys) -> Said:
    """A statement's leaf, signed in a session whose certificate came before it, and saying where it stands."""
    body = dsse.parse(envelope).payload
    number = parse_statement(body).session
    found = sessions.of(number)
    if found is None:
        raise TrustError(f"no certificate of session {number} comes before the statement at {index}")
    certificate, epoch = found
    statement, _session = verify_statement(envelope, certificate, keys.of(epoch))
    if statement.log_index != index:
        raise TrustError(f"the statement at {index} says that it is at {statement.log_index}")
    return Said(_sha256(body), statement=statement)


def _whole(
    book: AgentBook,
    dispatcher: DispatcherBook,
    keys: _Keys,
    dispatcher_keys: dict[str, EllipticCurvePublicKey],
) -> Iterator[Finding]:
    """The leaves lead to the head, and to what was witnessed of them."""
    hashes = [leaf_hash(leaf.envelope) for leaf in book.ledger]
    if hashes != [leaf.hash for leaf in book.ledger] or book.head != (len(hashes), tree_root(hashes).hex()):
        yield Finding(Loss.LOST, "ledger_torn", "", book.unit, f"{len(hashes)} leaves, head {book.head}")
    if book.unit in dispatcher.witnessed:
        try:
            envelope = dispatcher.witnessed[book.unit]
            own = keys.of(parse_checkpoint(dsse.parse(envelope).payload).key_epoch)
            said = verify_countersigned(envelope, own, dispatcher_keys)
        except TrustError as error:
            yield Finding(Loss.LOST, "witness_unreadable", "", book.unit, str(error))
            return
        if said.size > len(hashes) or tree_root(hashes[: said.size]).hex() != said.root:
            yield Finding(Loss.LOST, "ledger_not_as_witnessed", "", book.unit, f"{len(hashes)} of {said.size} leaves")


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


# --- lost -----------------------------------------------------------------------------------------------------------


def _kept(ledger: Ledger) -> Iterator[Finding]:
    """Every statement has its verdict, or is still in the outbox."""
    book = ledger.book
    for key, statements in ledger.statements.items():
        for said in statements:
            judged = any(_names(one, said.sha256) for one in ledger.verdicts.get(key, ()))
            if not judged and book.outbox.get(key) != said.sha256:
                yield Finding(Loss.LOST, "statement_without_verdict", key[0], book.unit, f"epoch {key[1]}")


def _names(said: Said, statement_sha256: str) -> bool:
    return said.verdict is not None and said.verdict.statement_sha256 == statement_sha256


def _believed(ledger: Ledger, dispatcher: DispatcherBook) -> Iterator[Finding]:
    """What an agent was told is what the dispatcher's rows say."""
    unit = ledger.book.unit
    rows = {(row.job, row.epoch): row for row in dispatcher.hand_ins}
    jobs = {row.job: row for row in dispatcher.jobs}
    for key, said in ledger.verdicts.items():
        for verdict in (one.verdict for one in said if one.verdict is not None and one.verdict.statement_sha256):
            row = rows.get(key)
            match verdict.verdict:
                case Verdict.SETTLED | Verdict.DUPLICATE:
                    if (problem := _differs(row, unit, verdict)) is not None:
                        yield Finding(Loss.LOST, "settled_not_in_rows", key[0], unit, problem)
                case Verdict.BAD:
                    yield Finding(Loss.LOST, "honest_work_called_bad", key[0], unit, verdict.reason)
                case Verdict.STALE:
                    job = jobs.get(key[0])
                    if row is None and job is not None and (job.epoch, job.holder) == (key[1], unit):
                        yield Finding(Loss.LOST, "holder_called_stale", key[0], unit, verdict.reason)
                case _:
                    yield Finding(Loss.LOST, "verdict_later_kept", key[0], unit)


def _differs(row: HandInRow | None, unit: str, verdict: messages.VerdictMessage) -> str | None:
    """How the dispatcher's row differs from the verdict it sent."""
    if row is None:
        return f"epoch {verdict.epoch} was settled by a verdict, and there is no row"
    told = (unit, "settled", verdict.statement_sha256, verdict.paid_micro)
    kept = (row.unit, row.verdict, row.statement_sha256, row.paid_micro)
    return None if told == kept else f"the verdict says {told}, the row {kept}"


def _rows(dispatcher: DispatcherBook, ledgers: Sequence[Ledger]) -> Iterator[Finding]:
    """What the dispatcher settled is in the unit's ledger, and its answers are those that were signed."""
    of_unit = {ledger.book.unit: ledger for ledger in ledgers}
    signed: dict[tuple[str, int, int], str] = {}
    for row in dispatcher.hand_ins:
        if row.verdict != "settled":
            yield Finding(Loss.LOST, "row_called_bad", row.job, row.unit)
            continue
        ledger = of_unit.get(row.unit)
        said = () if ledger is None else ledger.statements.get((row.job, row.epoch), ())
        if row.statement_sha256 not in {one.sha256 for one in said}:
            yield Finding(Loss.LOST, "settled_not_in_ledger", row.job, row.unit, f"epoch {row.epoch}")
        for index, output_sha256 in _settled_slices(row, dispatcher):
            signed[row.job, row.epoch, index] = output_sha256
    for result in dispatcher.results:
        expected = signed.get((result.job, result.epoch, result.slice))
        if expected is None or (result.body and _sha256(result.body) != expected):
            yield Finding(Loss.LOST, "answers_not_as_signed", result.job, "", f"slice {result.slice}")


def _delivered(ordered: Iterable[Ordered], dispatcher: DispatcherBook) -> Iterator[Finding]:
    """The customer has what was ordered: every slice of every job that is called done, and the right answers."""
    results: dict[str, list[ResultRow]] = defaultdict(list)
    for result in dispatcher.results:
        results[result.job].append(result)
    states = {row.job: row.state for row in dispatcher.jobs}
    for job in ordered:
        for result in results[job.job]:
            if result.body and _numbers(result.body) != job.numbers_of(result.slice):
                yield Finding(Loss.LOST, "answers_wrong", job.job, "", f"slice {result.slice}: {result.body[:80]!r}")
        found = {result.slice for result in results[job.job]}
        if job.job not in states or (states[job.job] == "done" and found != set(range(job.slices))):
            yield Finding(Loss.LOST, "job_incomplete", job.job, "", f"{len(found)} of {job.slices} slices")


def _numbers(body: bytes) -> list[int] | None:
    """What the package that does nothing answered: the numbers that it was asked; None for anything else."""
    try:
        return [one.outputs["y"] for one in msgspec.json.decode(body, type=list[_Answer])]
    except (msgspec.DecodeError, KeyError):
        return None


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    outputs: dict[str, int]


def _settled_slices(row: HandInRow, dispatcher: DispatcherBook) -> list[tuple[int, str]]:
    """(slice, digest of its answers) that the envelope of a settled row signs; none when it does not hold."""
    try:
        certificate = dispatcher.sessions[row.keyid or "", row.session or 0]
        epoch = parse_certificate(dsse.parse(certificate).payload).key_epoch
        statement, _session = verify_statement(row.envelope, certificate, _Keys(dispatcher.keys[row.unit]).of(epoch))
    except (TrustError, KeyError):
        return []
    return [(one.index, one.output_sha256) for one in statement.slices]


# --- doubled --------------------------------------------------------------------------------------------------------


def _paid_once(ordered: Iterable[Ordered], dispatcher: DispatcherBook, ledgers: Sequence[Ledger]) -> Iterator[Finding]:
    """No slice, statement, lease or counter counts twice, whichever book is asked."""
    settled = [row for row in dispatcher.hand_ins if row.verdict == "settled"]
    yield from _twice(
        "slice_settled_twice",
        [(row.job, index) for row in settled for index, _ in _settled_slices(row, dispatcher)],
    )
    yield from _twice("slice_rows_twice", [(row.job, row.slice) for row in dispatcher.results])
    yield from _twice("statement_settled_twice", [(row.job, row.statement_sha256) for row in settled])
    yield from _twice("counter_used_twice", [(row.keyid or row.unit, row.counter) for row in settled])
    yield from _twice(
        "slice_settled_by_two_verdicts",
        [
            (job, one.index)
            for ledger in ledgers
            for (job, _), _, statement in ledger.settled()
            for one in (() if statement is None else statement.slices)
        ],
    )
    prices = {job.job: job for job in ordered}
    for row in dispatcher.results:
        job = prices.get(row.job)
        if job is None or row.slice >= job.slices:
            yield Finding(Loss.DOUBLED, "slice_not_ordered", row.job, "", f"slice {row.slice}")
        elif row.paid_micro != (row.items - row.failed_items) * job.price_micro_per_item or row.items != job.items_of(
            row.slice
        ):
            yield Finding(Loss.DOUBLED, "slice_paid_wrongly", row.job, "", f"slice {row.slice}: {row.paid_micro}")


def _twice(rule: str, seen: Iterable[tuple[str, object]]) -> Iterator[Finding]:
    for (job, what), count in Counter(seen).items():
        if count > 1:
            yield Finding(Loss.DOUBLED, rule, job, "", f"{what}: {count} times")


def _sums(ordered: Iterable[Ordered], dispatcher: DispatcherBook, ledgers: Sequence[Ledger]) -> Iterator[Finding]:
    """Money: slices against hand-ins, hand-ins against what each agent was told, all against what was ordered."""
    by_slices, by_hand_ins = (
        sum(row.paid_micro for row in dispatcher.results),
        sum(row.paid_micro for row in dispatcher.hand_ins),
    )
    if by_slices != by_hand_ins:
        yield Finding(Loss.DOUBLED, "sums_differ", "", "", f"slices {by_slices}, hand-ins {by_hand_ins}")
    most = sum(job.items * job.price_micro_per_item for job in ordered)
    if by_hand_ins > most:
        yield Finding(Loss.DOUBLED, "paid_too_much", "", "", f"{by_hand_ins} for work of {most}")
    for ledger in ledgers:
        book = ledger.book
        owed = {(row.job, row.epoch): row.paid_micro for row in dispatcher.hand_ins if row.unit == book.unit}
        due = sum(paid for key, paid in owed.items() if key not in book.outbox)
        told = sum(verdict.paid_micro for _, verdict, _ in ledger.settled())
        written = sum(lease.paid_micro for lease in book.leases)
        if not due == told == written:
            loss = Loss.LOST if told < due or written < told else Loss.DOUBLED
            yield Finding(loss, "sums_differ", "", book.unit, f"rows {due}, verdicts {told}, leases {written}")
