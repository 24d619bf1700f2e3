"""What decides the demonstration's exit code: every limit to the last digit, and a check of signatures that bites."""

from __future__ import annotations

import base64
import math
from typing import Any

import msgspec
import pytest

from agent.trust import dsse
from agent.trust.keys import FileSigner
from agent.trust.session import begin
from agent.trust.statement import PAYLOAD_TYPE
from hil.demo.evidence import Evidence
from hil.demo.outcome import evidence_limits, independently_verified, limits
from hil.dispatcher.view import Attestation
from hil.record import Outcome
from tests.hil.honest_car import new_signer

GOOD = Outcome(
    images=487,
    accuracy=0.99,
    slices_done=61,
    slices_lost=1,
    vacate_ms=31.4,
    attestations=3,
    attestations_verified=3,
    energy_wh=0.5,
    gross=0.12175,
    energy_cost=0.0002,
    net=0.12155,
    currency="EUR",
)
PAID_MICRO = 121_750

IMAGES, ACCURACY, ATTESTATIONS = "images answered", "characters right", "attestations verified"
LOST, VACATE, ENERGY = "slices lost to the driver", "vacate, door to worker gone", "energy measured"
PAID = "paid, by the car and by the dispatcher"


def missed(paid_micro: int = PAID_MICRO, **change: Any) -> list[str]:
    """The names of the limits that a run did not hold, good in everything but `change`."""
    outcome = msgspec.structs.replace(GOOD, **change)
    return [limit.name for limit in limits(outcome, 487, paid_micro) if not limit.held]


def test_a_good_run_is_held_to_seven_limits() -> None:
    names = [limit.name for limit in limits(GOOD, 487, PAID_MICRO)]
    assert names == [IMAGES, ACCURACY, ATTESTATIONS, LOST, VACATE, PAID, ENERGY]
    assert missed() == []


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 0.95},
        {"attestations": 1, "attestations_verified": 1},
        {"slices_lost": 0},
        {"vacate_ms": math.nextafter(250.0, 0)},
        {"energy_wh": math.nextafter(0.0, 1)},
        {"gross": 0.12175049},
        {"gross": 0.12174951},
        {"gross": 0.0, "paid_micro": 0},
    ],
)
def test_a_limit_just_met_is_held(change: dict[str, Any]) -> None:
    assert missed(**change) == []


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"images": 486}, IMAGES),
        ({"images": 488}, IMAGES),
        ({"accuracy": math.nextafter(0.95, 0)}, ACCURACY),
        ({"attestations_verified": 2}, ATTESTATIONS),
        ({"attestations_verified": 0}, ATTESTATIONS),
        ({"attestations": 0, "attestations_verified": 0}, ATTESTATIONS),
        ({"slices_lost": 2}, LOST),
        ({"slices_lost": -1}, LOST),
        ({"vacate_ms": 250.0}, VACATE),
        ({"energy_wh": 0.0}, ENERGY),
        ({"gross": 0.121751}, PAID),
        ({"gross": 0.121749}, PAID),
        ({"paid_micro": PAID_MICRO + 1}, PAID),
        ({"paid_micro": 0}, PAID),
    ],
)
def test_a_limit_just_missed_is_not_held_and_is_the_only_one(change: dict[str, Any], limit: str) -> None:
    assert missed(**change) == [limit]


def test_figures_and_limits_are_said_with_their_units() -> None:
    said = {limit.name: (limit.value, limit.limit) for limit in limits(GOOD, 488, PAID_MICRO)}
    assert said == {
        IMAGES: ("487", "488"),
        ACCURACY: ("0.9900", ">= 0.95"),
        ATTESTATIONS: ("3", "all 3"),
        LOST: ("1", "<= 1, the one in flight"),
        VACATE: ("31 ms", "< 250 ms"),
        PAID: ("0.121750", "0.121750"),
        ENERGY: ("0.5000 Wh", "> 0"),
    }


# --- attestations ----------------------------------------------------------------------------------------------

STATEMENT = b'{"subject":[{"name":"slice-0"}],"counter":1}'
UNIT, STRANGER = new_signer(), new_signer()


def attest(signer: FileSigner = UNIT, payload: bytes = STATEMENT) -> dict[str, Any]:
    """An envelope around a statement, as a table that a test may bend."""
    envelope: dict[str, Any] = msgspec.json.decode(dsse.sign(PAYLOAD_TYPE, payload, signer))
    return envelope


def verified(envelope: dict[str, Any], *, keyid: str = UNIT.keyid, key: FileSigner = UNIT) -> bool:
    """What the tool says of this envelope, when the book holds this key for the unit."""
    return independently_verified(
        Attestation(
            job="job-1",
            epoch=1,
            unit="car-0001",
            keyid=keyid,
            public_key_pem=key.public_key_pem(),
            envelope=msgspec.json.encode(envelope),
        )
    )


def in_session(envelope: dict[str, Any], certificate: bytes) -> bool:
    """What the tool says of an envelope that came with this session certificate."""
    return independently_verified(
        Attestation(
            job="job-1",
            epoch=1,
            unit="car-0001",
            keyid=UNIT.keyid,
            public_key_pem=UNIT.public_key_pem(),
            envelope=msgspec.json.encode(envelope),
            session=certificate,
        )
    )


def test_a_session_key_counts_when_the_unit_certified_it() -> None:
    honest, foreign = (begin(key, "file", unit="car-0001", number=1) for key in (UNIT, STRANGER))
    envelope = msgspec.json.decode(dsse.sign(PAYLOAD_TYPE, STATEMENT, honest.key))
    assert in_session(envelope, honest.certificate)
    assert not in_session(envelope, foreign.certificate)
    assert not in_session(envelope, begin(UNIT, "file", unit="car-0001", number=1).certificate)
    assert not in_session(attest(), honest.certificate)
    assert not verified(envelope), "the unit's own key did not sign it"


@pytest.mark.parametrize(
    ("evidence", "held"),
    [
        (Evidence(7, 7, 6, 6), [True, True]),
        (Evidence(1, 1, 1, 1), [True, True]),
        (Evidence(7, 6, 6, 6), [False, True]),
        (Evidence(7, 7, 6, 5), [True, False]),
        (Evidence(0, 0, 0, 0), [False, False]),
    ],
)
def test_evidence_is_good_when_there_is_some_and_all_of_it_holds(evidence: Evidence, held: list[bool]) -> None:
    assert [limit.held for limit in evidence_limits(evidence)] == held


def flipped(text: str, place: int) -> str:
    """Base64 text with one bit of one byte the other way round."""
    data = bytearray(base64.b64decode(text))
    data[place] ^= 1
    return base64.b64encode(data).decode("ascii")


def test_what_the_unit_signed_is_verified() -> None:
    assert verified(attest())


@pytest.mark.parametrize("place", [0, len(STATEMENT) // 2, -1])
def test_an_altered_payload_is_not(place: int) -> None:
    envelope = attest()
    assert not verified(envelope | {"payload": flipped(envelope["payload"], place)})


def test_a_payload_passed_off_as_another_type_is_not() -> None:
    assert not verified(attest() | {"payloadType": "application/json"})


@pytest.mark.parametrize("place", [0, 10, -1])
def test_an_altered_signature_is_not(place: int) -> None:
    envelope = attest()
    [signature] = envelope["signatures"]
    assert not verified(envelope | {"signatures": [signature | {"sig": flipped(signature["sig"], place)}]})


def test_the_signature_of_another_statement_or_none_is_not() -> None:
    assert not verified(attest() | {"signatures": attest(payload=STATEMENT + b" ")["signatures"]})
    assert not verified(attest() | {"signatures": []})


def test_another_key_is_not_even_under_the_units_name() -> None:
    assert not verified(attest(), key=STRANGER)
    assert not verified(attest(), keyid=STRANGER.keyid)
    assert not verified(attest(), keyid=STRANGER.keyid, key=STRANGER)
    forged = attest(STRANGER)
    forged["signatures"][0]["keyid"] = UNIT.keyid
    assert not verified(forged)
    assert not verified(attest(STRANGER))
