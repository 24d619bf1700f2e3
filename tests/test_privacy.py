"""What may cross the wire at all: no field that could carry who, where or which car it is, unless a reason is given.

Every field of every message, statement, certificate and record that leaves a car is walked, and every property of the
published contract. A field whose name speaks of a person, a place or a car, one that is a time, and one that takes any
text, needs its entry here; an entry without a field is one too many.
"""

from __future__ import annotations

import enum
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest

from agent import handin
from agent.core.model import Outlook, YieldReason
from agent.fleet import enrolment_messages, messages
from agent.trust.checkpoint import Checkpoint
from agent.trust.records import MAX_TEXT, camel
from agent.trust.records import Text as SignedText
from agent.trust.sealing_key import SealingKeyRecord
from agent.trust.session import SessionCertificate
from agent.trust.statement import Statement
from agent.trust.succession import Succession
from hil import asyncapi
from hil.dispatcher.jobs_api import JobReport, JobTaken, SubmissionPage
from hil.dispatcher.submissions import SliceResult
from tests.hil.honest_car import Desk

UPWARD = (
    messages.Status,
    messages.Request,
    messages.Renew,
    messages.Result,
    messages.Yield,
    messages.CheckpointMessage,
    messages.SealingKeyMessage,
    enrolment_messages.Enrolment,
    enrolment_messages.Rotation,
    enrolment_messages.TpmProof,
    Statement,
    SessionCertificate,
    Checkpoint,
    SealingKeyRecord,
    Succession,
)
PERSONAL = frozenset(
    re.split(
        r"\s+",
        "account address altitude battery birth calendar charge charger city contact coordinate country destination "
        "driver email geo gnss gps heading home host hostname household iccid imei imsi ip km lat latitude licence "
        "license location lon longitude mac mileage name odometer owner park parked person phone place plate plug "
        "plugged position postal range registration route seat serial soc speed ssid street trip user vin wifi zip "
        "zone",
    )
)
TEMPORAL = frozenset(re.split(r"\s+", "at boot date day hour minute ms s time times timestamp wall week"))
REASONS = {
    "Package.name": "the package's name, as the grant gave it",
    "Status.boot": "a random number of the agent's run: which will belongs to which connection",
    "Outlook.open_for_s": "rounded down to quarter-hours, at most a day: which slices fit; operator only",
    "SessionCertificate.boot_id": "the kernel's random number of this boot: without it boot times mean nothing",
    "SessionCertificate.issued_boot_ms": "orders sessions of one boot; the message's arrival tells when, anyway",
    "SessionCertificate.issued_wall_ms": "for people; as exact as the arrival of the first hand-in's session allows",
    "TpmClock.clock_ms": "since the TPM was made, so no time of day; runs back where a disk was put back",
    "Checkpoint.boot_id": "as in a session",
    "Checkpoint.issued_boot_ms": "orders checkpoints: a rollback shows in it",
    "Checkpoint.issued_wall_ms": "for people, as in a session",
    "Succession.overlap_s": "how long the old key counts beside the new one",
    "Activation.until_wall_ms": "the dispatcher's own time limit, given back",
    "Device.driver": "the accelerator's driver: a version",
    "Statement.times": "see the fields of Times",
    "Times.started_boot_ms": "what a lease took is checked against when it was granted and handed in",
    "Times.finished_boot_ms": "the same",
    "Times.boot_id": "as in a session",
    "Times.finished_wall_ms": "when work ended, not when the car came or went; the arrival tells as much",
    "SelfTest.age_ms": "how stale a proof of the engine is: no longer than a worker lives, and no time of day",
    "Slice.compute_ms": "how fast the computer is, and whether it computed at all",
}
"""Fields of which a name or a time needs a reason. What an operator can still infer is in docs/privacy.md."""
FREE_TEXT = {
    "Agent.version": "the agent's version",
    "JobKey.job": "the job's name, as the grant gave it",
    "Status.version": "the agent's version, a constant of the build",
    "Capability.device_class": "set by the maker in the configuration: a model of computer, never one computer",
    "Envelope.payloadType": "a constant of DSSE's types",
    "Signature.keyid": "the digest of a pseudonymous key",
    "Signature.sig": "a signature",
    "Envelope.payload": "one of the records that are walked here",
    "SliceOutput.body": "the customer's answers",
    "Yield.detail": "why a lease was given back; paths are cut to names (`tests/daemon/test_privacy.py`)",
    "Enrolment.code": "the operator's one-time code",
    "Enrolment.public_key_pem": "the unit's public key, pseudonymous",
    "Engine.version": "the inference runtime's version",
    "Device.class_": "as Capability.device_class",
    "Device.driver": "the accelerator driver's version",
    "Energy.sensor": "the name of a kind of sensor",
    "SessionCertificate.boot_id": "a random number of the kernel's",
    "Times.boot_id": "the same",
    "Checkpoint.boot_id": "the same",
    "Succession.reason": "an operator's word on why a key was changed",
    "Activation.secret": "what the dispatcher had sealed to the TPM",
    **dict.fromkeys(
        ("TpmProof.request", "TpmProof.ak", "TpmProof.key", "TpmProof.certification", "TpmProof.signature"),
        "keys of the unit and what its TPM signed about them, at enrolment",
    ),
    "TpmProof.ek": "names the TPM chip, to the operator alone and at enrolment alone: proof that a key is in it",
    "TpmProof.ek_certificate": "the same, by the TPM's maker",
    "TpmProof.ek_chain": "of the TPM's maker, and the same for all of its chips",
}
VALUES = {
    "YieldReason.driver": "that a driver came, in one word: never which sign of it, nor who",
    "YieldReason.owner": "that the owner said stop",
}


@dataclass(frozen=True)
class Field:
    """One field of what leaves the car; `free`: it takes any text."""

    kind: str
    name: str
    free: bool

    @property
    def full(self) -> str:
        return f"{self.kind}.{self.name}"

    @property
    def words(self) -> set[str]:
        return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", self.name)}


def walk(kinds: tuple[type, ...]) -> tuple[dict[str, Field], dict[str, str]]:
    """Every field that these types have, and those in them; and every value of their enumerations."""
    found: dict[str, Field] = {}
    values: dict[str, str] = {}
    waiting: list[Any] = list(kinds)
    seen: set[Any] = set()
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.add(kind)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            values |= {f"{kind.__name__}.{one.value}": str(one.value) for one in kind}
        elif isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, msgspec.Struct)):
            for name, hint in get_type_hints(kind, include_extras=True).items():
                if name.startswith("__"):
                    continue
                field = Field(kind.__name__, name, _free(hint))
                found[field.full] = field
                waiting.extend(_inside(hint))
    return found, values


def _inside(hint: Any) -> Iterator[Any]:
    yield hint if isinstance(hint, type) else None
    for one in get_args(hint):
        if not isinstance(one, str | int | msgspec.Meta | re.Pattern):
            yield from _inside(one)


def _free(hint: Any) -> bool:
    """Whether it takes any text: a string without a pattern of its own."""
    if hint is str:
        return True
    if get_origin(hint) is Annotated:
        base, *rest = get_args(hint)
        patterns = [one.pattern for one in rest if isinstance(one, msgspec.Meta | re.Pattern)]
        any_text = {None, messages.PRINTABLE, get_args(SignedText)[1].pattern}
        return all(pattern in any_text for pattern in patterns) if base is str else _free(base)
    if get_origin(hint) in {Union, types.UnionType, tuple}:
        return any(_free(one) for one in get_args(hint))
    return False


def unexplained(kinds: tuple[type, ...]) -> set[str]:
    """Fields and values that need a reason and have none."""
    found, values = walk(kinds)
    odd = {f.full for f in found.values() if f.words & (PERSONAL | TEMPORAL) and f.full not in REASONS}
    odd |= {f.full for f in found.values() if f.free and f.full not in FREE_TEXT}
    return odd | {full for full, value in values.items() if {value} & PERSONAL and full not in VALUES}


def test_no_field_that_leaves_the_car_can_say_who_where_or_which_it_is() -> None:
    assert unexplained(UPWARD) == set()


def test_every_reason_is_still_needed() -> None:
    found, values = walk(UPWARD)
    assert (REASONS.keys() | FREE_TEXT.keys()) - found.keys() == set()
    assert VALUES.keys() - values.keys() == set()
    assert {full for full in FREE_TEXT if not found[full].free} == set()
    assert {full for full in REASONS if not found[full].words & (PERSONAL | TEMPORAL)} == set()


def test_all_that_units_say_is_walked() -> None:
    """A message that is new on the way up has to be named above."""
    assert {kind.__name__ for kind in asyncapi.Upward.__args__} <= {kind.__name__ for kind in UPWARD}
    assert Outlook.__name__ in {field.kind for field in walk(UPWARD)[0].values()}
    assert MAX_TEXT  # the pattern of free text in records is made with it


class Leaky(msgspec.Struct):
    """What must be found."""

    vin: messages.Identifier
    homeAddress: messages.Identifier  # noqa: N815 - as a careless programmer writes it
    last_gps_fix: messages.Count
    plugged_in_wall_ms: messages.WallMs
    remark: messages.Remark
    anything: str
    items: messages.Count


def test_a_field_that_says_too_much_is_found() -> None:
    assert unexplained((Leaky,)) == {
        *("Leaky.vin", "Leaky.homeAddress", "Leaky.last_gps_fix"),
        *("Leaky.plugged_in_wall_ms", "Leaky.remark", "Leaky.anything"),
    }


def test_the_published_contract_has_no_property_beyond_what_was_walked() -> None:
    document = asyncapi.document()
    upward = {f.full for f in walk(UPWARD)[0].values()}
    sent = {entry.name for entry in asyncapi.CONTRACT if isinstance(entry.example, asyncapi.Upward)}
    schemas = document["components"]["schemas"]
    for name in sent:
        for one in schemas[name]["properties"]:
            assert f"{name}.{one}" in upward
    assert not suspicious(asyncapi.text(), ignore=(b"broker.example",))


# --- values ---------------------------------------------------------------------------------------------------------

PATTERNS = {
    "VIN": re.compile(rb"(?<![A-Za-z0-9+/=_-])(?=[A-Z]*[0-9])(?=[0-9]*[A-Z])[A-HJ-NPR-Z0-9]{17}(?![A-Za-z0-9+/=_-])"),
    "coordinate": re.compile(rb"(?<![\d.])-?\d{1,3}\.\d{4,9}\s*[,;/ ]\s*-?\d{1,3}\.\d{4,9}"),
    "IPv4": re.compile(rb"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])"),
    "MAC": re.compile(rb"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![0-9A-Fa-f:])"),
    "e-mail": re.compile(rb"[\w.+-]+@[\w-]+\.[a-z]{2,}"),
}


def suspicious(body: bytes, *, ignore: tuple[bytes, ...] = ()) -> list[tuple[str, bytes]]:
    """What in `body` has the form of something that should not be there."""
    for one in ignore:
        body = body.replace(one, b"")
    return [(kind, found[0]) for kind, pattern in PATTERNS.items() for found in pattern.finditer(body)]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"x":"5YJ3E1EA7KF317000"}', "VIN"),
        (b'{"at":"52.52000, 13.40500"}', "coordinate"),
        (b'{"from":"192.168.178.21"}', "IPv4"),
        (b'"3c:a6:2f:11:22:33"', "MAC"),
        (b'"erika@example.org"', "e-mail"),
    ],
)
def test_the_patterns_find_what_they_are_for(body: bytes, kind: str) -> None:
    assert [one for one, _ in suspicious(body)] == [kind]


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("package /home/Erika Mustermann/packages/ocr is damaged", "package ocr is damaged"),
        ("/home/erika/a.db and /srv/b.db", "b.db"),
        ("the object https://objects.example/5f70 is gone", "the object https://objects.example/5f70 is gone"),
        ("12/13 items", "12/13 items"),
    ],
)
def test_a_reason_names_no_folder(detail: str, told: str) -> None:
    assert handin._plain(detail) == told


# --- customers ------------------------------------------------------------------------------------------------------


def test_what_customers_ask_for_names_no_unit_and_no_key() -> None:
    found, _ = walk((JobReport, JobTaken, SubmissionPage, SliceResult))
    secret = {"unit", "units", "keyid", "holder", "session", "boot", "cell", "device", "epoch"}
    assert {field.full for field in found.values() if field.words & secret} == set()
    assert camel("device_class") == "deviceClass"
    assert {one.name for one in fields(Statement)} & secret, "which statements have: those are not for customers"


def test_why_a_job_failed_is_told_without_who_said_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    car = desk.new_car("car-0815")
    job = desk.add_job()
    grant = car.must_request()
    detail = f"the model of car-0815 (key {car.signer.keyid}) did not load"
    car.hand_in(car.yielded(grant, why=YieldReason.FAULT, detail=detail))
    assert desk.book.submissions.why_dead(job) == "fault: the model of the unit (key its key) did not load"
    desk.book.close()
