"""Turning a lease's finished slices into what is handed in: the signed statement, and the message that carries it.

The statement binds the answers to the grant, the code, the input, the energy and the gate (`agent.trust.statement`). It
is signed by the session's key, travels with that key's certificate, and is built inside the store's transaction, so its
counter, the ledger leaf and the outbox row are one.

Answers go in the message while they fit. Where they do not, and the grant says where bulk goes, those that have been
brought there are named by their digest, and of the others the largest too, as many as it takes; the message waits until
those have arrived.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec

from agent import __version__
from agent.core.lease import HAVE_WITH_CREDIT_MAX
from agent.core.model import Grant, HandInKind, JobKey, LeaseFacts, Outlook, YieldReason
from agent.core.policy import Policy
from agent.errors import DrivewayError, TrustError
from agent.fleet import messages
from agent.rows import Engine, HandInRow, StoredSlice
from agent.trust import dsse, statement
from agent.trust.session import Session


class Unit(msgspec.Struct, frozen=True):
    """Who hands in: fixed for the life of the daemon."""

    id: str
    device_class: str
    boot: str
    agent_sha256: str


@dataclass(frozen=True)
class Draft:
    """What every hand-in of a lease says, whichever of its slices go into it."""

    unit: Unit
    session: Session
    grant: Grant
    facts: LeaseFacts
    policy_sha256: str
    wall_ms: int
    counter: int
    log_index: int
    uploaded: frozenset[int]


HAND_IN_ERRORS = (messages.MessageError, DrivewayError, msgspec.MsgspecError)
DETAIL_BYTES = 160
INLINE_BYTES = 160
"""Answers up to this length are no longer in the message than their digest would be."""
HAVE_ROOM_BYTES = 90 * HAVE_WITH_CREDIT_MAX + 176
"""Room that a stored hand-in leaves for what is added when it is sent: tokens of up to 90 bytes, and the outlook."""


def build(
    *,
    unit: Unit,
    session: Session,
    grant: Grant,
    facts: LeaseFacts,
    kind: HandInKind,
    why: YieldReason | None,
    detail: str,
    policy_sha256: str,
    wall_ms: int,
    counter: int,
    log_index: int,
    slices: list[StoredSlice],
    uploaded: tuple[int, ...] = (),
) -> HandInRow:
    """The hand-in of one lease; a yield without a finished slice has no statement.

    The core ends a lease before its answers outgrow one message. Should they all the same, as many slices as fit are
    handed in, as a yield that says so. Should not even the first, or should no statement come about (a fact that cannot
    be signed), the lease is given back with nothing but the fault, rather than held for ever: whatever else ended it,
    what was computed was so for nothing, and would be again.
    """
    draft = Draft(unit, session, grant, facts, policy_sha256, wall_ms, counter, log_index, frozenset(uploaded))
    try:
        return _row(draft, kind, why, detail, slices)
    except HAND_IN_ERRORS as error:
        failure = error
    fault = YieldReason.FULL if isinstance(failure, messages.MessageError) else YieldReason.FAULT
    why, detail = why or fault, detail or _said(failure)
    best, fits, too_many = None, 0, len(slices)
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        try:
            best, fits = _row(draft, HandInKind.YIELD, why, detail, slices[:count]), count
        except HAND_IN_ERRORS as error:
            failure, too_many = error, count
    if best is not None:
        return best
    return _row(draft, HandInKind.YIELD, YieldReason.FAULT, _said(failure, "not even one slice fits: "), [])


def _said(failure: Exception, about_room: str = "") -> str:
    """What kept slices out of a message: too little room for them, or a fact that cannot be signed."""
    if isinstance(failure, messages.MessageError):
        return f"{about_room}{failure}"
    return f"no statement could be made: {failure}"


def _row(draft: Draft, kind: HandInKind, why: YieldReason | None, detail: str, slices: list[StoredSlice]) -> HandInRow:
    """The hand-in of exactly these slices; raises MessageError when it does not fit, TrustError if it is unsignable."""
    envelope = _attest(draft, kind, slices) if slices else None
    sha256 = "" if envelope is None else hashlib.sha256(dsse.parse(envelope).payload).hexdigest()

    def row(referenced: frozenset[int]) -> HandInRow:
        outputs = tuple(_output(one, by_digest=one.outcome.index in referenced) for one in slices)
        message = _message(draft, kind=kind, why=why, detail=detail, envelope=envelope, outputs=outputs)
        return HandInRow(
            kind=HandInKind.RESULT if isinstance(message, messages.Result) else HandInKind.YIELD,
            body=messages.encode(message, limit=messages.MAX_MESSAGE_BYTES - HAVE_ROOM_BYTES),
            statement=envelope,
            statement_sha256=sha256,
            slices=len(slices),
            referenced=tuple(sorted(referenced)),
            missing=tuple(sorted(referenced - draft.uploaded)),
        )

    return _with_fewest_uploads(draft, slices, row)


def _with_fewest_uploads(
    draft: Draft, slices: list[StoredSlice], row: Callable[[frozenset[int]], HandInRow]
) -> HandInRow:
    """All answers in the message; else what was uploaded by digest; else also the largest of the others.

    Raises MessageError when it fits in no way.
    """
    try:
        return row(frozenset())
    except messages.MessageError:
        if not draft.grant.upload_url:
            raise
    bulky = sorted((one for one in slices if len(one.output) > INLINE_BYTES), key=lambda one: -len(one.output))
    there = draft.uploaded & {one.outcome.index for one in bulky}
    others = [one.outcome.index for one in bulky if one.outcome.index not in there]
    best, enough, too_few = row(there.union(others)), len(others), -1
    while enough - too_few > 1:
        count = (enough + too_few) // 2
        try:
            best, enough = row(there.union(others[:count])), count
        except messages.MessageError:
            too_few = count
    return best


def _output(one: StoredSlice, *, by_digest: bool) -> messages.SliceOutput:
    """A slice's answers as they go into the message; raises MessageError when there are none."""
    index = one.outcome.index
    if not one.output:
        raise messages.MessageError(f"slice {index} has no answers")
    if by_digest:
        uploaded = messages.UploadedObject(sha256=one.outcome.output_sha256, bytes=len(one.output))
        return messages.SliceOutput(index=index, uploaded=uploaded)
    return messages.SliceOutput(index=index, body=base64.b64encode(one.output).decode("ascii"))


def _message(
    draft: Draft,
    *,
    kind: HandInKind,
    why: YieldReason | None,
    detail: str,
    envelope: bytes | None,
    outputs: tuple[messages.SliceOutput, ...],
) -> messages.Result | messages.Yield:
    """The message that carries the statement and the answers; raises MessageError when it cannot be one."""
    grant, certificate = draft.grant, None
    try:
        parsed = None if envelope is None else msgspec.json.decode(envelope, type=messages.Envelope)
        if parsed is not None:
            certificate = msgspec.json.decode(draft.session.certificate, type=messages.Envelope)
    except msgspec.ValidationError as error:
        raise messages.MessageError(f"the statement does not fit: {error}") from error
    rid = f"{grant.job}-{grant.epoch}"[:64]
    if kind is HandInKind.RESULT and parsed is not None:
        return messages.Result(
            rid=rid,
            job=grant.job,
            epoch=grant.epoch,
            statement=parsed,
            session=certificate,
            outputs=outputs,
            have=(),
            credit=0,
        )
    return messages.Yield(
        rid=rid,
        job=grant.job,
        epoch=grant.epoch,
        why=why or YieldReason.FAULT,
        detail=_plain(detail),
        statement=parsed,
        session=certificate,
        outputs=outputs,
    )


def _attest(draft: Draft, kind: HandInKind, slices: list[StoredSlice]) -> bytes:
    """The signed statement about these slices; raises TrustError for a fact that cannot be stated."""
    unit, grant, facts, made_by = draft.unit, draft.grant, draft.facts, slices[-1].engine
    engine = statement.Engine(
        executor=made_by.executor,
        version=made_by.version,
        plan_sha256=made_by.plan_sha256,
        kernels_sha256=made_by.kernels_sha256,
        precision=made_by.precision or None,
        batch=made_by.batch or None,
    )
    device = statement.Device(class_=unit.device_class, driver=made_by.driver)
    said = statement.Statement(
        outcome=kind.value,
        lease=statement.Lease(job=grant.job, epoch=grant.epoch, nonce=grant.nonce, ticket_sha256=grant.ticket_sha256),
        unit=unit.id,
        package=statement.Package(name=grant.package, sha256=grant.package_sha256),
        model_sha256=made_by.model_sha256,
        engine=engine,
        device=device,
        equivalence_class=statement.equivalence_class(made_by.model_sha256, engine, device),
        agent=statement.Agent(version=__version__, sha256=unit.agent_sha256),
        input_sha256=grant.input_sha256,
        slices=tuple(_stated(one) for one in slices),
        times=statement.Times(
            started_boot_ms=facts.started_ms,
            finished_boot_ms=facts.finished_ms,
            boot_id=unit.boot,
            finished_wall_ms=draft.wall_ms,
        ),
        energy=statement.Energy(micro_wh=facts.energy_micro_wh, sensor=facts.sensor),
        gate=statement.Gate(state=facts.gate_state, policy_sha256=draft.policy_sha256),
        key_protection=draft.session.key.protection,
        session=draft.session.number,
        log_index=draft.log_index,
        counter=draft.counter,
        self_test=_self_test(made_by),
    )
    return dsse.sign(statement.PAYLOAD_TYPE, said.to_bytes(), draft.session.key)


def _self_test(made_by: Engine) -> statement.SelfTest | None:
    """The golden vector that the worker computed before; None for one whose precision was not told."""
    if not made_by.precision:
        return None
    return statement.SelfTest(outcome="passed", raw_sha256=made_by.golden_raw_sha256, age_ms=made_by.golden_age_ms)


def _stated(one: StoredSlice) -> statement.Slice:
    outcome = one.outcome
    return statement.Slice(
        index=outcome.index,
        items=outcome.items,
        failed_items=outcome.failed_items,
        output_sha256=outcome.output_sha256,
        raw_sha256=outcome.raw_sha256,
        raw_form=outcome.raw_form,
        compute_ms=outcome.compute_ms,
    )


FOLDERS = re.compile(r"(?<![:/\w])/(?:[^/\n]*/)+")
"""From the first of a line to the last, whatever is between them; not those of an URL."""


def _plain(detail: str) -> str:
    """A reason short and plain enough to cost no slice its place in the message.

    Of a path only its last name stays: a folder may be called after its owner.
    """
    detail = FOLDERS.sub("", detail)
    printable = "".join(letter if letter.isprintable() else " " for letter in detail)
    return printable.encode("utf-8")[:DETAIL_BYTES].decode("utf-8", "ignore")


def address(body: bytes, kind: HandInKind, *, credit: int, have: tuple[JobKey, ...], outlook: Outlook) -> bytes:
    """A stored hand-in as it is sent now: what the car holds and asks for belongs to the moment, not to the outbox.

    `have` is cut to what there is room for. With `credit` it has to be whole, since what it leaves out counts as lost.
    """
    have = have[:HAVE_WITH_CREDIT_MAX]
    if kind is HandInKind.RESULT:
        result = messages.decode(body, messages.Result)
        return messages.encode(msgspec.structs.replace(result, credit=credit, have=have, outlook=outlook))
    given_back = messages.decode(body, messages.Yield)
    return messages.encode(msgspec.structs.replace(given_back, have=have))


def policy_sha256(policy: Policy) -> str:
    """The digest of the policy in force, over its canonical JSON."""
    return hashlib.sha256(msgspec.json.encode(policy, order="sorted")).hexdigest()


def agent_sha256() -> str:
    """The digest of the code that runs: every Python file of the agent and the kernels, by name and content."""
    digest = hashlib.sha256()
    for package in ("agent", "kernels"):
        spec = find_spec(package)  # found, not imported: the kernels need NumPy, which the daemon does without
        if spec is None or spec.origin is None:
            raise TrustError(f"the package {package} is not installed", hint="install driveway-agent again")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root.parent)}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
