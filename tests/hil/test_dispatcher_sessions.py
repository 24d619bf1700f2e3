"""Hand-ins signed by session keys: which certificates prove something, what is kept, and what shows two pasts."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.core.model import Verdict
from agent.fleet.messages import Envelope, LedgerFault, Result
from agent.trust import dsse
from agent.trust.session import SESSION_TYPE, Session, SessionKey, TpmClock, begin, certificate_of
from agent.trust.statement import verify_statement
from hil.dispatcher.database import ConflictError
from hil.dispatcher.postgres import PostgresDatabase
from hil.dispatcher.sessions import UsedSession
from tests.hil.honest_car import Car, Desk, bent, new_signer

pytestmark = pytest.mark.usefixtures("each_database")


def certified(car: Car, signer: dsse.SigningKey | None = None, **change: object) -> Envelope:
    """The car's session certificate, with a field changed, signed by its unit's key or somebody else's."""
    told = {"unit": car.unit, "key_epoch": 1, "number": 1, "boot_id": "", "boot_ms": 0, "wall_ms": 0}
    said = certificate_of(car.session.key, **(told | change))  # type: ignore[arg-type]  # a test knows the fields' types
    envelope = dsse.sign(SESSION_TYPE, said.to_bytes(), signer or car.signer)
    return msgspec.json.decode(envelope, type=Envelope)


def test_each_statement_is_kept_with_what_verifies_it(desk: Desk, car: Car) -> None:
    desk.add_job()
    desk.add_job()
    assert car.hand_in(car.yielded(car.must_request(), slices=(1,))).verdict is Verdict.SETTLED
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    car.session = begin(car.signer, "file", unit=car.unit, number=2)
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    with desk.viewing() as view:
        attestations = view.attestations()
    keys = {car.signer.keyid: car.signer.public_key()}
    numbers = []
    for one in attestations:
        assert one.session is not None
        said, session = verify_statement(one.envelope, one.session, keys)
        assert (said.unit, one.keyid) == (car.unit, car.signer.keyid)
        numbers.append(session.certificate.session)
    assert numbers == [1, 1, 2]


def test_without_a_certificate_not_even_the_units_own_key_counts(desk: Desk, car: Car) -> None:
    """Else a key that handed over, and was stolen, would be paid for ever: no session of its says when it ended."""
    desk.add_job()
    good = car.result(car.must_request(), signer=car.signer)
    verdict = car.hand_in(msgspec.structs.replace(good, session=None))
    assert (verdict.verdict, "certificate" in verdict.reason) == (Verdict.LATER, True)
    with desk.viewing() as view:
        assert view.attestations() == []


def test_a_certificate_that_is_not_this_units_proves_nothing(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    good = car.result(car.must_request())
    mine = SessionKey("file")
    foreign = dsse.sign(
        SESSION_TYPE,
        certificate_of(mine, unit=car.unit, key_epoch=1, number=1, boot_id="", boot_ms=0, wall_ms=0).to_bytes(),
        car.signer,
    )
    for certificate in (
        certified(car, new_signer()),
        certified(car, other.signer),
        certified(car, unit=other.unit),
        certified(car, key_epoch=2),
        msgspec.json.decode(foreign, type=Envelope),
        good.statement,
    ):
        verdict = car.hand_in(msgspec.structs.replace(good, session=certificate))
        assert (verdict.verdict, verdict.paid_micro) == (Verdict.LATER, 0)
    assert car.hand_in(good).verdict is Verdict.SETTLED
    assert desk.service.ledger_faults(0, 9) == []


def test_a_statement_that_names_another_session_is_the_units_own_lie(desk: Desk, car: Car) -> None:
    desk.add_job()
    verdict = car.hand_in(car.result(car.must_request(), bend=bent(session=2)))
    assert (verdict.verdict, "session is 2, expected 1" in verdict.reason) == (Verdict.BAD, True)


def used_twice(desk: Desk, car: Car) -> Result:
    """The car goes on in a session of the same number with another key, as one that was copied does."""
    desk.add_job()
    desk.add_job()
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    car.session = begin(car.signer, "file", unit=car.unit, number=1)
    return car.result(car.must_request(), credit=1)


def test_a_session_number_has_one_key(desk: Desk, car: Car) -> None:
    verdict = car.hand_in(used_twice(desk, car))
    assert (verdict.verdict, verdict.next_grant) == (Verdict.BAD, None)
    assert "session 1 was certified for another key" in verdict.reason
    (held,) = desk.service.ledger_faults(0, 9)
    assert (held.unit, held.fault, len(held.evidence)) == (car.unit, LedgerFault.FORK, 2)
    keys = {car.signer.keyid: car.signer.public_key()}
    for one in held.evidence:
        dsse.verify(msgspec.json.encode(one), SESSION_TYPE, keys)


def at_clock(car: Car, number: int, clock_ms: int, resets: int = 2) -> Session:
    """A session before which the TPM of the car's key showed this."""
    key = SessionKey("file")
    clock = TpmClock(clock_ms=clock_ms, reset_count=resets, restart_count=0, safe=True)
    said = certificate_of(
        key, unit=car.unit, key_epoch=1, number=number, boot_id="", boot_ms=0, wall_ms=0, tpm_clock=clock
    )
    return Session(number, key, dsse.sign(SESSION_TYPE, said.to_bytes(), car.signer))


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ((5, 600, 2), ""),
        ((5, 400, 2), "the TPM's clock went from 500 to 400 ms from session 4 to 5 in one reset"),
        ((5, 900, 1), "the TPM's resets went from 2 to 1 from session 4 to 5"),
        ((3, 600, 2), "the TPM's clock went from 600 to 500 ms from session 3 to 4 in one reset"),
        ((5, 100, 3), ""),
    ],
)
def test_a_session_before_which_the_tpms_clock_ran_back_is_of_another_past(
    desk: Desk, car: Car, new: tuple[int, int, int], said: str
) -> None:
    """Late hand-ins of lower sessions come after higher ones: each is held against what is next to it, either way."""
    for session in ((1, 100, 2), (4, 500, 2), (9, 800, 7)):
        desk.add_job()
        car.session = at_clock(car, *session)
        assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    desk.add_job()
    car.session = at_clock(car, *new)
    verdict = car.hand_in(car.result(car.must_request()))
    assert (verdict.verdict, verdict.reason) == (Verdict.BAD if said else Verdict.SETTLED, said)
    faults = desk.service.ledger_faults(0, 9)
    assert [(one.fault, one.detail, len(one.evidence)) for one in faults] == [(LedgerFault.FORK, said, 2)] * bool(said)


def test_a_counter_that_comes_again_is_held_against_the_ledger(desk: Desk, car: Car) -> None:
    desk.add_job()
    desk.add_job()
    assert car.hand_in(car.result(car.must_request(), bend=bent(counter=7))).verdict is Verdict.SETTLED
    assert car.hand_in(car.result(car.must_request(), bend=bent(counter=7))).verdict is Verdict.BAD
    (held,) = desk.service.ledger_faults(0, 9)
    assert (held.fault, held.detail) == (LedgerFault.FORK, "counter 7 was used in another statement of this key")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_replicas_keep_one_key_for_a_number(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    one, two = (
        Desk(tmp_path, database=(lambda now_ms: PostgresDatabase(url, now_ms)) if url else None) for _ in range(2)
    )
    kept = UsedSession(7, "aa" * 32, b"{}")
    one.book.handins._sessions.note("unit key", kept)
    two.book.handins._sessions.note("unit key", kept)
    with pytest.raises(ConflictError):
        two.book.handins._sessions.note("unit key", UsedSession(7, "bb" * 32, b"{}"))
    assert two.book.handins.session("unit key", 7) == kept
    one.book.close()
    two.book.close()
