"""What a car says about its work: an in-toto Statement v1 with our predicate `inference-result/v1`.

The subjects are the slices' outputs; the predicate binds them to the lease that asked for them, to the code and the
input they came from, and to when, where and at what cost they were computed. Written as canonical JSON (sorted keys,
compact, ASCII, integers only) so that a statement has one spelling, and signed by a session key
(`agent.trust.session`) inside a DSSE envelope of type `application/vnd.in-toto+json`.

`parse_statement` accepts what `Statement.to_bytes` can have written, to the byte, and nothing else: a verifier pays on
this, so a field that is missing, unknown or out of range refuses the whole. What statements came to say later (in which
precision and batches, and the last golden vector) is all there or not at all: so those of before stay readable, in
ledgers and outboxes, and none says half. docs/attestation.md describes every field.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import JsonValue, VerifyingKey, canonical_json, strict_json
from agent.trust.records import (
    Identifier,
    KeyProtection,
    Nonce,
    Sha256,
    Sha256OrNone,
    Text,
    from_json,
    to_json,
)
from agent.trust.session import Certified, verify_session

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://driveway.example/attestation/inference-result/v1"

Outcome = Annotated[str, re.compile(r"result|yield")]
GateState = Annotated[str, re.compile(r"open|hold|closed")]
Precision = Annotated[str, re.compile(r"float64|float32|tf32|bfloat16|float16|float8|int8|integer")]
SelfTestOutcome = Annotated[str, re.compile(r"passed")]
MAX_LANES = 64
RawForm = Annotated[str, re.compile(r"none|mixed|[a-z0-9]{1,16}(\[(-?[0-9]{1,10}(,-?[0-9]{1,10}){0,7})?\])?")]
"""`float32[60,2]`: dtype and shape of one item's raw results, -1 where items differ; `mixed` where dtypes do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Which grant this answers: the fencing token, its nonce, and the SHA-256 of the signed grant's payload."""

    job: Identifier
    epoch: int
    nonce: Nonce
    ticket_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The inference package, by name and by the digest of its manifest."""

    name: Identifier
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The agent that ran it: version, and digest of its code."""

    version: Text
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One finished slice: the digests of the answers handed in and of what left the accelerator, and its form."""

    index: int
    items: int
    failed_items: int
    output_sha256: Sha256
    raw_sha256: Sha256
    raw_form: RawForm
    compute_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What ran the model: the executor and its library's version, the kernels, and the plan that was built on the car.

    `plan_sha256` is empty for an executor that needs no plan. `precision` is what the engine computed in, and `batch`
    how many items its full micro-batches had in each of the package's lanes, narrowest first (None: not told yet).
    """

    executor: Identifier
    version: Text
    plan_sha256: Sha256OrNone
    kernels_sha256: Sha256
    precision: Precision | None = None
    batch: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What it ran on: the device class, never a serial number, and the accelerator driver's version ("": no driver)."""

    class_: Text
    driver: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When, by CLOCK_BOOTTIME of boot `boot_id`; the wall clock is for people and proves nothing."""

    started_boot_ms: int
    finished_boot_ms: int
    boot_id: Text
    finished_wall_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the lease drew, in millionths of a watt-hour, and which sensor says so."""

    micro_wh: int
    sensor: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The gate's state when the last slice finished, and the digest of the policy that decided it."""

    state: GateState
    policy_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The golden vector that the worker computed before it was given any work: it came out right, or there is no work.

    `raw_sha256` is the digest of its raw results, as a slice's; `age_ms` how old it was when the last slice was done.
    """

    outcome: SelfTestOutcome
    raw_sha256: Sha256
    age_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The predicate `inference-result/v1`; the in-toto subjects follow from `slices`.

    `equivalence_class` is the digest of everything that decides which bits an engine makes (`equivalence_class` below).
    `session` is the number of the session whose key signs this; `log_index` is where it stands in the unit's ledger.
    `counter` rises strictly with every statement of a key epoch. `outcome` is `result` or `yield`.
    """

    outcome: Outcome
    lease: Lease
    unit: Identifier
    package: Package
    model_sha256: Sha256
    engine: Engine
    device: Device
    equivalence_class: Sha256
    agent: Agent
    input_sha256: Sha256
    slices: tuple[Slice, ...]
    times: Times
    energy: Energy
    gate: Gate
    key_protection: KeyProtection
    session: int
    log_index: int
    counter: int
    self_test: SelfTest | None = None

    def to_bytes(self) -> bytes:
        """The in-toto Statement as canonical JSON; raises TrustError when a field could not be read back."""
        body = _spell(self)
        parse_statement(body)
        return body


def equivalence_class(model_sha256: str, engine: Engine, device: Device) -> str:
    """What units have to share for equal inputs to give equal raw results; other units are compared by value.

    Plans are built on each car and differ in their bytes, so the plan is no part of it.
    """
    told: dict[str, JsonValue] = {
        "model": model_sha256,
        "executor": engine.executor,
        "version": engine.version,
        "kernels": engine.kernels_sha256,
        "device": device.class_,
        "driver": device.driver,
    }
    if engine.precision is not None and engine.batch is not None:
        told |= {"precision": engine.precision, "batch": list(engine.batch)}
    return hashlib.sha256(canonical_json(told)).hexdigest()


def verify_statement(
    envelope: bytes, certificate: bytes, unit_keys: Mapping[str, VerifyingKey]
) -> tuple[Statement, Certified]:
    """The statement in `envelope`, signed by the session key that one of the unit's keys certified; and that session.

    Raises TrustError: the certificate, the signature or the statement does not hold, or they do not belong together.
    """
    session = verify_session(certificate, unit_keys)
    said = parse_statement(dsse.verify(envelope, PAYLOAD_TYPE, {session.keyid: session.key}))
    certified = session.certificate
    for name, stated, expected in (
        ("unit", said.unit, certified.unit),
        ("session", said.session, certified.session),
        ("keyProtection", said.key_protection, certified.key_protection),
    ):
        if stated != expected:
            raise TrustError(f"statement: {name} is {stated}, and its session's is {expected}")
    return said, session


def parse_statement(body: bytes) -> Statement:
    """The statement in `body`, every field checked; raises TrustError that names the first field at fault."""
    match strict_json(body):
        case {"_type": str(kind), "predicateType": str(predicate_type), "predicate": predicate}:
            pass
        case _:
            raise TrustError("not an in-toto Statement: _type, predicateType or predicate is missing")
    if kind != STATEMENT_TYPE:
        raise TrustError(f"statement: _type is {kind!a}, expected {STATEMENT_TYPE!r}")
    if predicate_type != PREDICATE_TYPE:
        raise TrustError(f"statement: predicateType is {predicate_type!a}, expected {PREDICATE_TYPE!r}")
    statement = from_json(Statement, predicate, "predicate")
    _check_whole(statement)
    if _spell(statement) != body:
        raise TrustError("statement: not canonical, an unknown field, or its subjects are not the slices' outputs")
    return statement


def _spell(statement: Statement) -> bytes:
    """The one spelling of a statement."""
    subjects: list[JsonValue] = [
        {"name": f"slice-{entry.index}", "digest": {"sha256": entry.output_sha256}} for entry in statement.slices
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": to_json(statement),
        }
    )


def _check_whole(statement: Statement) -> None:
    """The rules that span fields."""
    indexes = [entry.index for entry in statement.slices]
    if not indexes or indexes != sorted(set(indexes)):
        raise TrustError("predicate.slices: need at least one, in rising order, each once")
    for entry in statement.slices:
        if entry.items < 1 or entry.failed_items > entry.items:
            raise TrustError(
                f"predicate.slices: slice {entry.index} has {entry.failed_items} failed of {entry.items} items"
            )
    later = (statement.engine.precision, statement.engine.batch, statement.self_test)
    if None in later and any(one is not None for one in later):
        raise TrustError("predicate: engine.precision, engine.batch and selfTest come together or not at all")
    batch = statement.engine.batch
    if batch is not None and not (0 < len(batch) <= MAX_LANES and all(batch)):
        raise TrustError(f"predicate.engine.batch: not 1 to {MAX_LANES} lanes of at least one item")
    if statement.times.finished_boot_ms < statement.times.started_boot_ms:
        raise TrustError("predicate.times: finished before it started")
    expected = equivalence_class(statement.model_sha256, statement.engine, statement.device)
    if statement.equivalence_class != expected:
        raise TrustError("predicate.equivalenceClass: not that of model, engine and device")
