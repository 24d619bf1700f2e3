"""The dispatcher as witness of cars' ledgers, message by message."""

from __future__ import annotations

import base64

import msgspec
import pytest

from agent.fleet.messages import CheckpointMessage, LedgerFault, Signature, encode
from agent.trust import dsse
from agent.trust.checkpoint import Earlier, contradicts, verify_checkpoint
from tests.hil.honest_car import Car, Desk, new_signer
from tests.hil.ledger_cars import Ledger, LedgerCar, say

pytestmark = pytest.mark.usefixtures("each_database")


def test_a_ledger_is_witnessed_from_its_first_leaf_on(desk: Desk, car: Car, grown: LedgerCar) -> None:
    first = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    grown.work(20)
    second = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    assert first is not None
    assert second is not None
    assert (first.size, second.size) == (7, 27)
    assert (second.root, grown.finds_itself_in_dispute()) == (grown.ledger.root(27), False)
    assert desk.service.counts["witnessed"] == 2


def test_the_same_again_gets_the_same_answer(desk: Desk, car: Car, grown: LedgerCar) -> None:
    message = grown.checkpoint()
    assert say(desk, car, message) == say(desk, car, message)
    other = grown.checkpoint()  # of the same size and root, signed a moment later
    assert say(desk, car, other).checkpoint == say(desk, car, message).checkpoint


def test_a_car_that_is_behind_or_ahead_is_told_where_to_go_on(desk: Desk, car: Car, grown: LedgerCar) -> None:
    old = grown.checkpoint()
    grown.work(5)
    newer = grown.checkpoint()  # from 0, for the answer to the one before is not there yet
    told = say(desk, car, old)
    again = say(desk, car, newer)
    assert again.checkpoint == told.checkpoint, "it is not proven from what was witnessed"
    assert grown.hear(again, desk.trusted()) is not None
    witnessed = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    assert witnessed is not None
    assert witnessed.size == 12
    assert say(desk, car, old).checkpoint != told.checkpoint, "an old one is answered with the newest"


def test_what_the_unit_did_not_sign_is_not_answered(desk: Desk, car: Car, other: Car, grown: LedgerCar) -> None:
    own = grown.checkpoint()
    foreign = LedgerCar(car, grown.ledger)
    foreign.signer = new_signer()
    elsewhere = LedgerCar(other, grown.ledger)
    payload = dsse.parse(msgspec.json.encode(own.checkpoint)).payload
    of_another_type = dsse.sign("application/json", payload, car.signer)
    lies: list[CheckpointMessage] = [
        foreign.checkpoint(),
        elsewhere.checkpoint(),
        grown.checkpoint(unit=other.unit),
        grown.checkpoint(key_epoch=2),
        msgspec.structs.replace(own, checkpoint=msgspec.json.decode(of_another_type, type=type(own.checkpoint))),
    ]
    for number, lie in enumerate(lies, 1):
        car.say("checkpoint", encode(lie))
        assert desk.sent == []
        assert desk.service.counts["refused"] == number
    assert desk.book.ledgers.newest(car.unit) is None
    assert say(desk, car, own).checkpoint is not None


def test_only_the_units_own_signature_is_countersigned(desk: Desk, car: Car, grown: LedgerCar) -> None:
    """What somebody adds on the way neither travels on nor leaves no room for the witness's."""
    message = grown.checkpoint()
    envelope = msgspec.json.encode(message.checkpoint)
    for _ in range(3):
        envelope = dsse.add_signature(envelope, new_signer())
    crowded = msgspec.structs.replace(message, checkpoint=msgspec.json.decode(envelope, type=type(message.checkpoint)))
    answer = say(desk, car, crowded)
    assert answer.checkpoint is not None
    assert {one.keyid for one in answer.checkpoint.signatures} == {car.signer.keyid, desk.key.keyid}


def test_two_roots_of_one_size_are_a_fork_with_both_as_evidence(desk: Desk, car: Car, grown: LedgerCar) -> None:
    say(desk, car, grown.checkpoint())
    copy = LedgerCar(car, Ledger())
    copy.work(7, "another")
    answer = say(desk, car, copy.checkpoint())
    assert answer.fault is LedgerFault.FORK
    (held,) = desk.book.ledgers.faults(0, 9)
    keys = {car.signer.keyid: car.signer.public_key()}
    one, two = (verify_checkpoint(msgspec.json.encode(entry), keys) for entry in held.evidence)
    assert (one.size, one.root) == (two.size, grown.ledger.root(7))
    assert two.root == copy.ledger.root(7)


def test_a_ledger_that_shrank_is_a_rollback_and_an_old_message_is_not(desk: Desk, car: Car, grown: LedgerCar) -> None:
    old = grown.checkpoint()
    image = grown.ledger.copy()
    grown.work(9)
    say(desk, car, grown.checkpoint())
    assert say(desk, car, old).fault is LedgerFault.NONE
    restored = LedgerCar(car, image, session=2)
    restored.work(1, "session 2")
    answer = say(desk, car, restored.checkpoint())
    assert (answer.fault, answer.detail) == (LedgerFault.ROLLBACK, "16 entries were signed for, and 8 after that")
    restored.hear(answer, desk.trusted())
    assert restored.finds_itself_in_dispute(), "the car finds it, too"


def test_what_nobody_signed_shows_nothing_however_often_it_comes(desk: Desk, car: Car, grown: LedgerCar) -> None:
    """A broker bends the proofs, and where they begin: the car is not witnessed meanwhile, and nothing else."""
    first = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    assert first is not None
    for _ in range(20):
        grown.work(3)
        message = grown.checkpoint()
        proof = ("0" * 64, *message.proof[1:])
        for bent in (
            msgspec.structs.replace(message, proof=proof),
            msgspec.structs.replace(message, proof=()),
            msgspec.structs.replace(message, from_size=3),
        ):
            answer = say(desk, car, bent)
            assert (answer.fault, grown.hear(answer, desk.trusted())) == (LedgerFault.NONE, first)
    said = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    assert said is not None
    assert said.size == len(grown.ledger.leaves)
    assert desk.book.ledgers.faults(0, 9) == []


def test_a_bent_signature_is_noise(desk: Desk, car: Car, grown: LedgerCar) -> None:
    say(desk, car, grown.checkpoint())
    copy = LedgerCar(car, Ledger())
    copy.work(7, "another")
    lie = copy.checkpoint()
    for number in range(1, 9):
        (signature,) = lie.checkpoint.signatures
        sig = bytearray(base64.b64decode(signature.sig))
        sig[-number] ^= 1
        bent = msgspec.structs.replace(signature, sig=base64.b64encode(sig).decode())
        car.say("checkpoint", encode(_with(lie, (bent,))))
        assert desk.sent == []
        assert desk.service.counts["refused"] == number
    assert desk.book.ledgers.faults(0, 9) == []
    assert say(desk, car, lie).fault is LedgerFault.FORK, "as it was signed, it counts"


def _with(message: CheckpointMessage, signatures: tuple[Signature, ...]) -> CheckpointMessage:
    envelope = msgspec.structs.replace(message.checkpoint, signatures=signatures)
    return msgspec.structs.replace(message, checkpoint=envelope)


def test_another_past_than_was_witnessed_is_a_fork_by_the_units_own_word(
    desk: Desk, car: Car, grown: LedgerCar
) -> None:
    """A copy that was told what is witnessed signs its own root there: no proof is looked at."""
    grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    copy = LedgerCar(car, Ledger())
    copy.work(12, "another")
    copy.witnessed = grown.witnessed
    answer = say(desk, car, copy.checkpoint())
    assert (answer.fault, answer.detail) == (LedgerFault.FORK, "two roots were signed for the first 7 entries")
    (held,) = desk.book.ledgers.faults(0, 9)
    keys = {car.signer.keyid: car.signer.public_key()}
    one, other = (verify_checkpoint(msgspec.json.encode(entry), keys) for entry in held.evidence)
    assert contradicts(one, other) == 7, "anybody can see it"


def test_one_that_hides_its_past_is_witnessed_no_more(desk: Desk, car: Car, grown: LedgerCar) -> None:
    """It has no proof to give, and signs nothing that could convict it."""
    first = grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    copy = LedgerCar(car, Ledger())
    copy.work(8, "another")
    copy.witnessed = grown.witnessed
    for hidden in (None, Earlier(size=7, root=grown.ledger.root(7))):
        for _ in range(10):
            copy.work(1, "another")
            answer = say(desk, car, copy.checkpoint(continues=hidden))
            assert (answer.fault, copy.hear(answer, desk.trusted())) == (LedgerFault.NONE, first)


def test_a_checkpoint_of_an_older_agent_says_nothing_of_the_past_and_is_countersigned(
    desk: Desk, car: Car, grown: LedgerCar
) -> None:
    grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    grown.work(5)
    said = grown.hear(say(desk, car, grown.checkpoint(continues=None)), desk.trusted())
    assert said is not None
    assert said.size == 12
