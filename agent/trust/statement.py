"""What a car says about its work: an in-toto Statement v1 with our predicate `inference-result/v1`.

The subjects are the slices' outputs; the predicate binds them to the lease that asked for them, to the code and the
input they came from, and to when, where and at what cost they were computed. Written as canonical JSON (sorted keys,
compact, ASCII, integers only) so that a statement has one spelling, and signed inside a DSSE envelope of type
`application/vnd.in-toto+json`.

`parse_statement` accepts what `Statement.to_bytes` can have written, to the byte, and nothing else: a verifier pays on
this, so a field that is missing, unknown or out of range refuses the whole. A predicate that says more gets a new type.
The JSON name of a field is its Python name in camelCase.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from agent.errors import TrustError
from agent.trust.dsse import JsonValue, canonical_json, strict_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://driveway.example/attestation/inference-result/v1"
MAX_LIST = 1024
MAX_TEXT = 512

Sha256 = Annotated[str, re.compile(r"[0-9a-f]{64}")]
Nonce = Annotated[str, re.compile(r"[0-9a-f]{16,64}")]
Identifier = Annotated[str, re.compile(r"[A-Za-z0-9_-]{1,64}")]
Text = Annotated[str, re.compile(rf"[^\x00-\x1f]{{0,{MAX_TEXT}}}")]
Outcome = Annotated[str, re.compile(r"result|yield")]
KeyProtection = Annotated[str, re.compile(r"tpm|ftpm|pkcs11|file")]
Sha256OrNone = Annotated[str, re.compile(r"([0-9a-f]{64})?")]
GateState = Annotated[str, re.compile(r"open|hold|closed")]


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
    """One finished slice: the digests of the answers handed in and of the engine's raw output."""

    index: int
    items: int
    failed_items: int
    output_sha256: Sha256
    raw_sha256: Sha256
    compute_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What computed: the device class, never a serial number, and the executor."""

    class_: Text
    executor: Identifier


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
class Statement:
    """The predicate `inference-result/v1`; the in-toto subjects follow from `slices`.

    `plan_sha256` is the engine plan that ran, built on the car; empty for an executor that needs none.
    `counter` rises strictly with every statement a key signs. `outcome` is `result` or `yield`.
    """

    outcome: Outcome
    lease: Lease
    unit: Identifier
    package: Package
    model_sha256: Sha256
    plan_sha256: Sha256OrNone
    kernels_sha256: Sha256
    agent: Agent
    input_sha256: Sha256
    slices: tuple[Slice, ...]
    device: Device
    times: Times
    energy: Energy
    gate: Gate
    key_protection: KeyProtection
    counter: int

    def to_bytes(self) -> bytes:
        """The in-toto Statement as canonical JSON; raises TrustError when a field could not be read back."""
        body = _spell(self)
        parse_statement(body)
        return body


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
    statement = _from_json(Statement, predicate, "predicate")
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
            "predicate": _to_json(statement),
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
    if statement.times.finished_boot_ms < statement.times.started_boot_ms:
        raise TrustError("predicate.times: finished before it started")


# --- dataclasses to JSON and back, by their field types --------------------------------------------------------

Value = TypeVar("Value")


def _to_json(value: Any) -> JsonValue:
    if is_dataclass(value):
        return {_camel(field.name): _to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_to_json(entry) for entry in value]
    assert isinstance(value, int | str)
    return value


def _from_json(kind: type[Value], value: JsonValue, where: str) -> Value:
    """`value` as the dataclass `kind`, with exactly its fields."""
    if not isinstance(value, dict):
        raise TrustError(f"{where}: not an object")
    readers = _readers(kind)  # type: ignore[arg-type]  # every class is hashable
    names = {_camel(name) for name in readers}
    for problem, odd in (("missing", names - value.keys()), ("unknown", value.keys() - names)):
        if odd:
            raise TrustError(f"{where}: field {min(odd)!a} is {problem}")
    return kind(**{name: read(value[_camel(name)], f"{where}.{_camel(name)}") for name, read in readers.items()})


@functools.cache
def _readers(kind: type[Any]) -> dict[str, Callable[[JsonValue, str], Any]]:
    """What reads each field of a dataclass; type hints are slow to resolve, and always the same."""
    return {name: _reader(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _reader(hint: Any) -> Callable[[JsonValue, str], Any]:
    """What reads a field of type `hint`: a count, a patterned string, a dataclass, or a tuple of dataclasses."""
    if hint is int:
        return _count
    if get_origin(hint) is Annotated:
        pattern: re.Pattern[str] = get_args(hint)[1]
        return lambda value, where: _text(value, where, pattern)
    if get_origin(hint) is tuple:
        entry = get_args(hint)[0]
        return lambda value, where: _entries(value, where, entry)
    return lambda value, where: _from_json(hint, value, where)


def _count(value: JsonValue, where: str) -> int:
    if type(value) is not int or value < 0:
        raise TrustError(f"{where}: not a whole number from 0 up")
    return value


def _text(value: JsonValue, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise TrustError(f"{where}: does not have the form {pattern.pattern}")
    return value


def _entries(value: JsonValue, where: str, kind: type[Any]) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise TrustError(f"{where}: not a list of at most {MAX_LIST}")
    return tuple(_from_json(kind, entry, f"{where}[{position}]") for position, entry in enumerate(value))


@functools.cache
def _camel(name: str) -> str:
    """`ticket_sha256` -> `ticketSha256`; a trailing underscore, which avoids a Python keyword, goes."""
    head, *tail = name.rstrip("_").split("_")
    return head + "".join(word.capitalize() for word in tail)
