"""What the dispatcher says to every kind of hand-in, and that it pays for each slice exactly once."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from google.protobuf.json_format import ParseDict
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as OtherStatement
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer._key import SSlibKey

from agent.core.model import HandInKind, JobKey, Verdict, YieldReason
from agent.errors import FleetError
from agent.fleet.messages import JobGrant, SliceOutput
from agent.trust.keys import keyid, load_public_key
from agent.trust.statement import Statement
from hil.dispatcher.judge import HandIn, Lease, judge
from hil.dispatcher.verdicts import statement_sha256
from hil.dispatcher.view import View
from tests.hil.honest_car import PRICE, TTL_S, Car, Desk, answer_to, bent, new_signer


def key(grant: JobGrant) -> JobKey:
    return JobKey(grant.job, grant.epoch)


def test_a_result_is_settled_paid_and_kept(desk: Desk, car: Car) -> None:
    job = desk.add_job(items=10, slice_items=4)
    grant = car.must_request()
    assert (grant.epoch, grant.slices, grant.ttl_s, grant.items) == (1, (0, 1, 2), TTL_S, 10)
    verdict = car.hand_in(car.result(grant))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 9 * PRICE)  # item 3 failed
    with View(desk.folder) as view:
        assert [entry.state for entry in view.jobs()] == ["done"]
        expected = [answer_to(number) for number in range(10)]
        assert view.answers(job) == expected
        (payout,) = view.payouts()
    assert (payout.paid_micro, payout.items, payout.slices, payout.leases) == (9 * PRICE, 9, 3, 1)
    assert car.request() is None


def test_independent_tools_verify_what_was_kept(desk: Desk, car: Car) -> None:
    desk.add_job()
    assert car.hand_in(car.result(car.must_request())).verdict is Verdict.SETTLED
    with View(desk.folder) as view:
        (attestation,) = view.attestations()
    assert attestation.session is not None
    unit_key = SSlibKey.from_crypto(load_public_key(attestation.public_key_pem), keyid=attestation.keyid)
    certificate = OtherEnvelope.from_dict(json.loads(attestation.session))
    certificate.verify([unit_key], 1)
    said = json.loads(certificate.payload)
    session_key = load_der_public_key(base64.b64decode(said["publicKey"]))
    assert isinstance(session_key, EllipticCurvePublicKey)
    assert said["unit"] == car.unit
    envelope = OtherEnvelope.from_dict(json.loads(attestation.envelope))
    envelope.verify([SSlibKey.from_crypto(session_key, keyid=keyid(session_key))], 1)
    OtherStatement.copy_from_pb(ParseDict(json.loads(envelope.payload), statement_pb2.Statement())).validate()


def test_a_duplicate_is_said_to_be_one_and_paid_once(desk: Desk, car: Car) -> None:
    desk.add_job()
    result = car.result(car.must_request())
    first = car.hand_in(result)
    for _ in range(3):
        again = car.hand_in(result)
        assert (again.verdict, again.paid_micro) == (Verdict.DUPLICATE, first.paid_micro)
    with View(desk.folder) as view:
        assert view.payouts()[0].paid_micro == first.paid_micro


def test_the_next_grant_comes_with_the_verdict(desk: Desk, car: Car) -> None:
    desk.add_job()
    desk.add_job()
    verdict = car.hand_in(car.result(car.must_request(), credit=1))
    assert verdict.next_grant is not None
    assert car.hand_in(car.result(verdict.next_grant)).verdict is Verdict.SETTLED
    # The same, without work and without credit.
    desk.add_job()
    grant = car.must_request()
    assert car.hand_in(car.result(grant, credit=0)).next_grant is None
    desk.add_job()
    verdict = car.hand_in(car.result(car.must_request(), credit=1))
    assert (verdict.next_grant, verdict.retry_s) == (None, 7)


def test_a_superseded_epoch_is_stale(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job(ttl_s=10)
    late = car.must_request()
    desk.now_ms += 10_000
    taken = other.must_request()
    assert (taken.job, taken.epoch) == (late.job, 2)
    assert taken.nonce != late.nonce
    assert car.hand_in(car.result(late)).verdict is Verdict.STALE
    assert other.hand_in(other.result(taken)).verdict is Verdict.SETTLED
    assert car.hand_in(car.result(late)).verdict is Verdict.STALE


def test_expired_and_not_granted_again_still_settles(desk: Desk, car: Car) -> None:
    desk.add_job(ttl_s=10)
    grant = car.must_request()
    desk.now_ms += 3_600_000
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED


def test_a_foreign_units_hand_in_is_stale_and_changes_nothing(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    other.tickets.update(car.tickets)
    assert other.hand_in(other.result(grant)).verdict is Verdict.STALE
    assert other.hand_in(other.yielded(grant)).verdict is Verdict.STALE
    assert car.hand_in(car.result(grant)).verdict is Verdict.SETTLED
    assert other.hand_in(other.result(grant)).verdict is Verdict.STALE


def test_an_unknown_job_is_stale(desk: Desk, car: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    result = msgspec.structs.replace(car.result(grant), job="job-of-nobody")
    assert car.hand_in(result).verdict is Verdict.STALE


MISSTATEMENTS: list[tuple[str, Callable[[Statement], Statement]]] = [
    ("nonce", bent(lease__nonce="f" * 32)),
    ("ticket", bent(lease__ticket_sha256="f" * 64)),
    ("package digest", bent(package__sha256="f" * 64)),
    ("package", bent(package__name="other")),
    ("input digest", bent(input_sha256="f" * 64)),
    ("keyProtection", bent(key_protection="tpm")),
    ("more than 2000 W", bent(energy__micro_wh=10**9)),
    ("of a lease that was granted", bent(times__finished_boot_ms=10**9)),
    ("computed for", lambda s: replace(s, slices=(replace(s.slices[0], compute_ms=10**6), *s.slices[1:]))),
    ("was not asked for", lambda s: replace(s, slices=(*s.slices[:-1], replace(s.slices[-1], index=9)))),
    ("items, expected", lambda s: replace(s, slices=(replace(s.slices[0], items=5), *s.slices[1:]))),
]


@pytest.mark.parametrize(("reason", "bend"), MISSTATEMENTS, ids=[reason for reason, _ in MISSTATEMENTS])
def test_what_the_unit_signed_wrongly_is_bad_for_good(
    desk: Desk, car: Car, other: Car, reason: str, bend: Callable[[Statement], Statement]
) -> None:
    desk.add_job()
    grant = car.must_request()
    for _ in range(2):
        verdict = car.hand_in(car.result(grant, bend=bend))
        assert (verdict.verdict, verdict.paid_micro) == (Verdict.BAD, 0)
        assert reason in verdict.reason
    assert car.hand_in(car.result(grant)).verdict is Verdict.BAD  # the lease is over
    assert other.hand_in(other.result(other.must_request())).verdict is Verdict.SETTLED  # at once somebody else's


def test_a_counter_counts_once(desk: Desk, car: Car) -> None:
    desk.add_job()
    desk.add_job()
    first, second = car.must_request(), car.must_request(*car.tickets)
    assert car.hand_in(car.result(second, bend=bent(counter=70))).verdict is Verdict.SETTLED
    assert "counter 70" in car.hand_in(car.result(first, bend=bent(counter=70))).reason


def test_hand_ins_may_overtake_each_other(desk: Desk, car: Car) -> None:
    """The pipe reorders: the earlier counter arriving later is no offence."""
    desk.add_job()
    desk.add_job()
    earlier = car.result(car.must_request())
    later = car.result(car.must_request(*car.tickets))
    assert car.hand_in(later).verdict is Verdict.SETTLED
    assert car.hand_in(earlier).verdict is Verdict.SETTLED


def test_output_that_is_no_array_of_its_items(desk: Desk) -> None:
    desk.add_job()
    for number, body in enumerate((b"[1,2,3]", b"{}", b"[1,2,3,4", b"[" * 2000)):
        car = desk.new_car(f"liar-{number}")
        grant = car.must_request()
        digest = hashlib.sha256(body).hexdigest()

        def bend(s: Statement, digest: str = digest) -> Statement:
            return replace(s, slices=(replace(s.slices[0], output_sha256=digest), *s.slices[1:]))

        result = car.result(grant, bend=bend)
        output = SliceOutput(index=0, body=base64.b64encode(body).decode())
        verdict = car.hand_in(msgspec.structs.replace(result, outputs=(output, *result.outputs[1:])))
        assert verdict.verdict is Verdict.BAD
        assert "output of slice 0" in verdict.reason
        desk.now_ms += 60_000


def test_what_is_not_proven_costs_the_unit_nothing(desk: Desk, car: Car, other: Car) -> None:
    """Forged, mixed up or bent on the way: never a final verdict, and the honest copy still settles."""
    desk.add_job()
    desk.add_job()
    grant = car.must_request()
    elsewhere = car.must_request(key(grant))
    good = car.result(grant)
    swapped = (msgspec.structs.replace(good.outputs[0], index=1), msgspec.structs.replace(good.outputs[1], index=0))
    payload = json.loads(base64.b64decode(good.statement.payload))
    payload["predicate"]["energy"]["microWh"] = 1
    edited = base64.b64encode(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).decode()
    forgeries = [
        car.result(grant, signer=new_signer()),
        car.result(grant, signer=other.signer),
        car.result(grant, signer=car.signer),  # the unit's own key, beside a session's certificate
        msgspec.structs.replace(good, session=other.certificate()),
        msgspec.structs.replace(good, session=None),
        msgspec.structs.replace(good, statement=car.result(elsewhere).statement),
        msgspec.structs.replace(good, statement=car.yielded(grant, (0, 1, 2)).statement),
        msgspec.structs.replace(good, statement=msgspec.structs.replace(good.statement, payload=edited)),
        msgspec.structs.replace(good, statement=msgspec.structs.replace(good.statement, payload="!")),
        msgspec.structs.replace(good, outputs=()),
        msgspec.structs.replace(good, outputs=(*good.outputs, good.outputs[0])),
        msgspec.structs.replace(good, outputs=(*swapped, good.outputs[2])),
        msgspec.structs.replace(good, outputs=(SliceOutput(index=0, body="!"), *good.outputs[1:])),
    ]
    for forgery in forgeries:
        verdict = car.hand_in(msgspec.structs.replace(forgery, credit=1))
        assert (verdict.verdict, verdict.next_grant) == (Verdict.LATER, None)
        assert verdict.reason
        assert verdict.retry_s > 0
    assert car.hand_in(good).verdict is Verdict.SETTLED


def test_a_lost_grant_is_sent_again_with_its_epoch(desk: Desk, car: Car) -> None:
    desk.add_job()
    lost = car.must_request()
    desk.now_ms += 60_000
    again = car.must_request()
    assert (again.job, again.epoch, again.nonce) == (lost.job, lost.epoch, lost.nonce)
    assert again.ttl_s == TTL_S - 60
    assert car.hand_in(car.result(again)).verdict is Verdict.SETTLED


def test_a_statement_may_name_any_ticket_of_its_lease(desk: Desk, car: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    first_ticket = car.tickets[key(grant)]
    car.must_request()  # sent again, in another envelope
    assert car.tickets[key(grant)] != first_ticket
    assert car.hand_in(car.result(grant, bend=bent(lease__ticket_sha256=first_ticket))).verdict is Verdict.SETTLED


def test_a_lost_grant_with_too_little_left_is_freed(desk: Desk, car: Car) -> None:
    desk.add_job()
    lost = car.must_request()
    desk.now_ms += TTL_S * 1000 * 6 // 10
    assert car.request() is None, "once: the request may be an old one"
    desk.now_ms += 10_000
    fresh = car.must_request()
    assert (fresh.job, fresh.epoch, fresh.ttl_s) == (lost.job, 2, TTL_S)


def test_a_grant_that_is_held_is_not_sent_again(desk: Desk, car: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    assert car.request(key(grant)) is None
    desk.add_job()
    assert car.must_request(key(grant)).job != grant.job


def test_a_unit_cannot_hoard(desk: Desk, car: Car, other: Car) -> None:
    for _ in range(6):
        desk.add_job()
    held: list[JobGrant] = []
    while (grant := car.request(*(key(one) for one in held))) is not None:
        held.append(grant)
    assert len(held) == 4
    assert other.request() is not None


def test_no_credit_and_no_package_mean_no_grant(desk: Desk, car: Car) -> None:
    desk.add_job()
    assert car.request(credit=0) is None
    assert car.request(packages=()) is None
    assert car.request(packages=("cd" * 32,)) is None
    assert car.request() is not None


def test_a_yield_keeps_its_slices_and_only_the_rest_is_granted_again(desk: Desk, car: Car, other: Car) -> None:
    job = desk.add_job(items=10, slice_items=4)
    verdict = car.hand_in(car.yielded(car.must_request(), slices=(0, 2)))
    assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 5 * PRICE)
    with View(desk.folder) as view:
        assert [(one.state, one.slices_done) for one in view.jobs()] == [("free", 2)]
        with pytest.raises(FleetError, match="not done"):
            view.answers(job)
    rest = other.must_request()
    assert (rest.epoch, rest.slices) == (2, (1,))
    assert other.hand_in(other.result(rest)).paid_micro == 4 * PRICE
    with View(desk.folder) as view:
        assert [entry.paid_micro for entry in view.payouts()] == [5 * PRICE, 4 * PRICE]
        assert len(view.answers(job)) == 10


def test_a_yield_of_nothing_frees_the_job_and_burns_nothing(desk: Desk, car: Car) -> None:
    desk.add_job()
    grant = car.must_request()
    for _ in range(2):
        verdict = car.hand_in(car.yielded(grant))
        assert (verdict.verdict, verdict.paid_micro) == (Verdict.SETTLED, 0)
        assert verdict.statement_sha256 == "", "so a car that did send a statement does not believe it was judged"
    # Anybody on the way can say "yield": an honest result that comes after all still counts.
    result = car.result(grant)
    judged = statement_sha256(result.statement)
    verdict = car.hand_in(result)
    assert (verdict.verdict, verdict.statement_sha256) == (Verdict.SETTLED, judged)
    again = car.hand_in(car.yielded(grant))
    assert (again.verdict, again.statement_sha256) == (Verdict.DUPLICATE, judged)


def test_a_refused_package_is_offered_to_others_first(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    car.hand_in(car.yielded(car.must_request(), why=YieldReason.REFUSED))
    assert car.request() is None
    other.hand_in(other.yielded(other.must_request()))
    desk.now_ms += 3_600_000
    assert car.request() is not None


def test_a_job_that_failed_is_offered_to_others_first(desk: Desk, car: Car) -> None:
    first, second = desk.add_job(), desk.add_job()
    grant = car.must_request()
    assert grant.job == first
    car.hand_in(car.yielded(grant, why=YieldReason.FAULT))
    assert car.must_request().job == second


def test_the_fence_holds_when_another_replica_was_faster(desk: Desk, car: Car, other: Car) -> None:
    """Between looking and settling the lease moves on: the compare-and-set notices, nothing is paid."""
    desk.add_job(ttl_s=10)
    grant = car.must_request()
    unit = desk.book.units.get(car.unit)
    assert unit is not None
    standing = desk.book.handins.standing(unit, key(grant))
    assert isinstance(standing, Lease)
    result = car.result(grant)
    hand_in = HandIn(kind=HandInKind.RESULT, statement=result.statement, outputs=result.outputs, session=result.session)
    keys = desk.book.units.keys_of(unit)
    accepted = judge(hand_in, standing, unit, keys=keys, before=desk.book.handins, uploaded=lambda _sha256: None)
    desk.now_ms += 10_000
    car.hand_in(car.yielded(car.must_request()))  # the next epoch, the same unit
    assert desk.book.handins.settle(standing, unit, accepted, "e" * 64) is None
    desk.book.handins.refuse(standing, "too late", "e" * 64)
    assert other.hand_in(other.result(other.must_request())).paid_micro == 9 * PRICE
    assert desk.book.handins.settle(standing, unit, accepted, "e" * 64) is None
    with View(desk.folder) as view:
        assert [payout.unit for payout in view.payouts()] == [other.unit]


def test_everything_is_still_there_after_a_restart(desk: Desk, car: Car) -> None:
    desk.add_job()
    result = car.result(car.must_request())
    desk.book.close()
    restarted = Desk(desk.folder, key=desk.key)
    restarted.now_ms = desk.now_ms
    car.peer = restarted
    assert car.hand_in(result).verdict is Verdict.SETTLED
    assert car.hand_in(result).verdict is Verdict.DUPLICATE
    restarted.book.close()
    with View(desk.folder) as view:  # nobody has it open any more
        assert [entry.state for entry in view.jobs()] == ["done"]
