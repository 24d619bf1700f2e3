"""The `dw/v1` messages, as typed values: exactly what crosses the broker, and the caps that guard the door.

Upward (`dw/v1/u/{cell}/{unit}/…`): status, request, renew, result, yield. Downward (`dw/v1/d/{unit}/…`): grant,
verdict, cancel and config (prices, demand), and retained for a whole cell `dw/v1/b/{cell}/pace`, each inside a DSSE
envelope signed by the dispatcher, so that a hostile broker can delay, never command. What an operator has said is in
`operator_messages`, what crosses HTTPS before the first lease in `enrolment_messages`.
Times on the wire are durations. Unknown fields are ignored (newer peers may say more); an unknown version is
refused with a reason. Messages are JSON and at most 16 KiB; bulk goes by URL and digest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec

from agent.core.model import JobKey, Outlook, Verdict, YieldReason
from agent.core.policy import MAX_CLASSES, WorkloadClass
from agent.fleet.refusals import Refusal

VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024
"""The tightest common limit of the brokers in use, with room for topic and properties."""

INLINE_INPUT_BYTES = 4096
"""An input up to so long travels inside its grant: it spares the car a connection, and the fleet a request."""

GRANT_TYPE = "application/vnd.driveway.grant+json"
VERDICT_TYPE = "application/vnd.driveway.verdict+json"
WITNESS_TYPE = "application/vnd.driveway.witness+json"

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]
Sha256 = Annotated[str, msgspec.Meta(min_length=64, max_length=64, pattern=r"^[0-9a-f]+$(?!\n)")]
Sha256OrNone = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^([0-9a-f]{64})?$(?!\n)")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
PriceMicro = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
"""Of one item: up to 1,000 units of the currency."""
PaidMicro = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
"""For one hand-in: up to a million units, so that no sum of them outgrows a database's integers."""
WallMs = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000)]
"""Milliseconds since 1970, until the end of the year 9999."""
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)"
"""No control characters: they have no place in a log or on a terminal, and a database's text may not take a NUL.
(Python's `$` also matches before a line break at the end, hence the last part.)"""
Text = Annotated[str, msgspec.Meta(max_length=512, pattern=PRINTABLE)]
Remark = Annotated[str, msgspec.Meta(max_length=128, pattern=PRINTABLE)]
Base64 = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)]


class MessageError(ValueError):
    """A message that may not be acted on: too large, not JSON, a wrong field, an unknown version."""

    def __init__(self, what: str, refusal: Refusal = Refusal.MALFORMED) -> None:
        super().__init__(what)
        self.refusal = refusal


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What this unit can run: its device class, executor, and the digests of the packages it holds.

    `classes` are the kinds of work that its owner takes; none named: any.
    """

    device_class: Text
    executor: Identifier
    packages: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=64)]
    classes: Annotated[tuple[WorkloadClass, ...], msgspec.Meta(max_length=MAX_CLASSES)] = ()


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Birth and death of a link; `lost` is the MQTT will, told to the broker anew at each attempt to connect.

    `boot` names the run of the agent (not of the kernel, which a statement names), and `conn` counts the attempts of
    this run: a will is of the same number as the `up` of its connection, and one of an earlier number is ignored.
    """

    v: int = VERSION
    state: Identifier
    boot: Identifier
    conn: Count
    version: Text


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Credit one, and what is held already: asks for work, and lets the dispatcher repair what was lost."""

    v: int = VERSION
    rid: Identifier
    have: Annotated[tuple[JobKey, ...], msgspec.Meta(max_length=64)]
    credit: Count
    cap: Capability
    outlook: Outlook = Outlook()


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    """More time for a long lease. The answer is the same grant (its epoch and nonce) with a new `ttl_s`, or a cancel.

    QoS 0: a renewal that is lost is followed by another, well before the lease ends.
    """

    v: int = VERSION
    rid: Identifier
    job: Identifier
    epoch: Count
    done: Count
    have: Annotated[tuple[JobKey, ...], msgspec.Meta(max_length=64)] = ()


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A DSSE envelope as JSON (https://github.com/secure-systems-lab/dsse); names as its specification has them."""

    payload: Base64
    payloadType: Text  # noqa: N815 - the specification's name
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=4)]


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One DSSE signature, ECDSA P-256 in DER, base64. `keyid` is a hint for look-up, never a reason to trust."""

    keyid: Text = ""
    sig: Annotated[str, msgspec.Meta(max_length=256)]


class UploadedObject(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that were brought to where the grant said, by their digest."""

    sha256: Sha256
    bytes: Count


class SliceOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One slice's answers, exactly the bytes whose SHA-256 the statement binds: a JSON array of items.

    Either in the message (`body`, base64) or uploaded before (`uploaded`).
    """

    index: Count
    body: Base64 = ""
    uploaded: UploadedObject | None = None

    def __post_init__(self) -> None:
        if bool(self.body) == (self.uploaded is not None):
            raise ValueError("a slice's answers are in `body` or `uploaded`, not in both and not in neither")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished lease: the signed statement, the answers, what else is held, and credit for the next grant.

    `session` is the certificate of the session key that signed the statement; without one it proves nothing.
    """

    v: int = VERSION
    rid: Identifier
    job: Identifier
    epoch: Count
    statement: Envelope
    outputs: tuple[SliceOutput, ...]
    have: tuple[JobKey, ...]
    credit: Count
    outlook: Outlook = Outlook()
    session: Envelope | None = None


class Yield(msgspec.Struct, frozen=True, kw_only=True):
    """A lease given back early, with the slices it finished (none: no statement)."""

    v: int = VERSION
    rid: Identifier
    job: Identifier
    epoch: Count
    why: YieldReason
    detail: Text = ""
    statement: Envelope | None = None
    outputs: tuple[SliceOutput, ...] = ()
    have: tuple[JobKey, ...] = ()
    session: Envelope | None = None


class CheckpointMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The unit's ledger as it is now, to be witnessed: a checkpoint that its own key signed.

    `proof` are the hashes (RFC 9162) which show that it continues the one of `from_size`, the last that was witnessed
    (0: none was). Sent once in a few dozen leaves, and again until a witness answers.
    """

    v: int = VERSION
    rid: Identifier
    checkpoint: Envelope
    from_size: Count
    proof: Annotated[tuple[Sha256, ...], msgspec.Meta(max_length=128)] = ()


class SealingKeyMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The unit's sealing key, to which inputs may be sealed; its own key signed it. Sent when the link comes up."""

    v: int = VERSION
    sealing_key: Envelope


class PackageRef(msgspec.Struct, frozen=True, kw_only=True):
    """The package a job runs, by name and by the digest of its manifest."""

    name: Identifier
    sha256: Sha256


class SealedRef(msgspec.Struct, frozen=True, kw_only=True):
    """That an input comes sealed to this unit, and to which of its keys (docs/protocol.md).

    `wrapped_key` is HPKE's encapsulated key with the content key behind it, 64 bytes in base64.
    """

    keyid: Sha256
    wrapped_key: Annotated[str, msgspec.Meta(min_length=88, max_length=88, pattern=r"^[A-Za-z0-9+/]{86}==$(?!\n)")]


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True):
    """An input: where it is, how long it is, and what it must hash to; a small one is here besides, in base64.

    With `sealed`, what is at `url` and in `body` are the sealed bytes; `sha256` and `bytes` are the plaintext's.
    """

    url: Text
    sha256: Sha256
    bytes: Count
    body: Annotated[str, msgspec.Meta(max_length=4 * INLINE_INPUT_BYTES // 3 + 4)] = ""
    sealed: SealedRef | None = None


class UploadRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where answers go that do not fit into a message: PUT `url`/{sha256} with this bearer token."""

    url: Text
    token: Annotated[str, msgspec.Meta(min_length=16, max_length=128, pattern=r"^[A-Za-z0-9_-]+$(?!\n)")]


class JobGrant(msgspec.Struct, frozen=True, kw_only=True):
    """One leased job; `slices` are the slice numbers wanted of this car, `ttl_s` counts from when it asked.

    `workload_class` says what kind of work it is; none: unclassified. `expected_s` is how long the dispatcher thinks
    that it takes (0: unknown). A lease with `renew_s` is long: it is renewed that often, else its time runs out.
    """

    job: Identifier
    epoch: Count
    nonce: Annotated[str, msgspec.Meta(min_length=16, max_length=64, pattern=r"^[0-9a-f]+$(?!\n)")]
    customer: Identifier
    package: PackageRef
    input: ObjectRef
    items: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    slice_items: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    slices: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=1024)]
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)]
    price_micro_per_item: PriceMicro
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3, pattern=r"^[A-Z]+$(?!\n)")]
    workload_class: WorkloadClass | None = None
    expected_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    renew_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    upload: UploadRef | None = None


class GrantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a grant envelope. No job: ask again in `retry_s`.

    `want_sealing_key`: the dispatcher would seal inputs to this unit and knows no key of it; it is to be told one.
    """

    v: int = VERSION
    rid: Identifier
    unit: Identifier
    job: JobGrant | None = None
    retry_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    want_sealing_key: bool = False


class WaitsFor(StrEnum):
    """What has to come before a hand-in can be judged that was answered `later`, as far as the car can do it."""

    NOTHING = ""
    WITNESS = "witness"
    """Too much of the unit's ledger stands unwitnessed: a checkpoint that covers this hand-in has to come first."""


class VerdictMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a verdict envelope: the answer to a result or a yield, with the next grant if there is one.

    `statement_sha256` is the digest of the statement that was judged ("" for a yield without one): a car lets go of
    nothing for a verdict on another, so a broker that strips or swaps a statement on the way up gains nothing.
    """

    v: int = VERSION
    rid: Identifier
    unit: Identifier
    job: Identifier
    epoch: Count
    verdict: Verdict
    reason: Text = ""
    paid_micro: PaidMicro = 0
    statement_sha256: Sha256OrNone = ""
    retry_s: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0
    next_grant: JobGrant | None = None
    waits_for: WaitsFor = WaitsFor.NOTHING


class LedgerFault(StrEnum):
    """What the dispatcher holds against a unit's ledger."""

    NONE = ""
    FORK = "fork"
    """It shows another past than the one that was witnessed."""
    ROLLBACK = "rollback"
    """It is shorter than what was witnessed, and goes on from there."""


class WitnessMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a witness: the newest checkpoint of the unit's ledger that the dispatcher has countersigned.

    The envelope of `checkpoint` has two signatures over one payload, the unit's and the dispatcher's; None as long as
    none was witnessed. A `fault` stands until the operator has looked into it: no work is granted meanwhile.
    """

    v: int = VERSION
    rid: Identifier
    unit: Identifier
    checkpoint: Envelope | None = None
    fault: LedgerFault = LedgerFault.NONE
    detail: Remark = ""


Message = TypeVar("Message", bound=msgspec.Struct)


def encode(message: msgspec.Struct, *, limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """The message as JSON bytes.

    Raises MessageError when it exceeds the limit: 16 KiB, above which a broker may drop the link.
    """
    body = msgspec.json.encode(message)
    if len(body) > limit:
        raise MessageError(
            f"{type(message).__name__} is {len(body)} bytes, more than the {limit} that dw/v1 allows; use smaller jobs"
        )
    return body


def decode(body: bytes, kind: type[Message]) -> Message:
    """Bytes from the network as a typed message; raises MessageError, which names the field at fault.

    Size comes first, so that nothing large is ever parsed; then the version, so that a newer peer gets a clear
    answer instead of a list of odd fields.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        what = f"{len(body)} bytes, more than the {MAX_MESSAGE_BYTES} that dw/v1 allows"
        raise MessageError(what, Refusal.TOO_LARGE)
    try:
        version = msgspec.json.decode(body, type=_Versioned).v
        if version != VERSION:
            raise MessageError(f"version {version!r} is not spoken here (this side speaks {VERSION})")
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a valid {kind.__name__}: {error}") from error


class _Versioned(msgspec.Struct):
    """Just the version; an envelope has none and counts as version 1."""

    v: int = VERSION
