"""The dispatcher as witness of cars' ledgers: message by message, as a state machine, and with planted bugs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings

from agent.errors import FleetError
from agent.fleet.messages import CheckpointMessage, LedgerFault, WitnessMessage, encode
from agent.trust import dsse
from agent.trust.checkpoint import verify_checkpoint
from hil import orders as command
from hil.cli import main
from hil.dispatcher import witness
from hil.dispatcher.database import ConflictError
from hil.dispatcher.ledgers import Ledgers, Witnessed
from hil.dispatcher.operator_api import OperatorApi
from hil.dispatcher.orders import TOKEN_FILE
from hil.dispatcher.postgres import PostgresDatabase
from hil.dispatcher.service import IN_DISPUTE_S
from hil.dispatcher.web import WebServer
from hil.dispatcher.witness import UNPROVEN
from tests.hil.honest_car import Car, Desk, new_signer
from tests.hil.ledger_cars import Ledger, LedgerCar, opened
from tests.hil.witnessing import FORKED, HONEST, SET_BACK, Witnessing

Patch = pytest.MonkeyPatch
TOKEN = "a-secret-of-the-operator"


@pytest.fixture
def grown(car: Car) -> LedgerCar:
    """A car with seven leaves."""
    found = LedgerCar(car, Ledger())
    found.work(7)
    return found


def say(desk: Desk, car: Car, message: CheckpointMessage) -> WitnessMessage:
    """The dispatcher's word on a checkpoint."""
    car.say("checkpoint", encode(message))
    topic, envelope = desk.hear()
    assert topic == f"dw/v1/d/{car.unit}/witness"
    return opened(envelope, desk.trusted())


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


def test_bent_proofs_are_forgiven_where_the_checkpoint_is_proven_later(desk: Desk, car: Car, grown: LedgerCar) -> None:
    grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    for _ in range(3 * UNPROVEN):
        grown.work(3)
        message = grown.checkpoint()
        bent = msgspec.structs.replace(message, proof=("0" * 64, *message.proof[1:]))
        for _ in range(UNPROVEN + 1):  # the pipe says it again and again
            assert say(desk, car, bent).fault is LedgerFault.NONE
        said = grown.hear(say(desk, car, message), desk.trusted())
        assert said is not None
        assert said.size == len(grown.ledger.leaves)


def test_what_is_never_proven_is_a_fork(desk: Desk, car: Car, grown: LedgerCar) -> None:
    grown.hear(say(desk, car, grown.checkpoint()), desk.trusted())
    copy = LedgerCar(car, Ledger())
    copy.work(8, "another")
    copy.witnessed = grown.witnessed
    for number in range(1, UNPROVEN + 1):
        copy.work(1, "another")
        answer = say(desk, car, copy.checkpoint())
        assert (answer.fault is LedgerFault.FORK) == (number == UNPROVEN)
    assert answer.checkpoint is not None


def test_two_replicas_never_countersign_two_histories(tmp_path: Path, postgres_url: str) -> None:
    """Both have read that nothing was witnessed; the one that writes second looks again."""
    desk = Desk(tmp_path, database=lambda now_ms: PostgresDatabase(postgres_url, now_ms))
    second = Desk(tmp_path, key=desk.key, database=lambda now_ms: PostgresDatabase(postgres_url, now_ms))
    car = desk.new_car("car-of-the-witness")
    original, copy = LedgerCar(car, Ledger()), LedgerCar(car, Ledger())
    original.work(5)
    copy.work(6, "another")
    unit = second.book.units.get(car.unit)
    assert unit is not None
    deciding = witness.Witness(second.book, second.key, lambda _who, _reason: None)
    with pytest.raises(ConflictError), second.book.database.transaction():  # noqa: PT012 - as a batch is decided
        assert second.book.ledgers.newest(car.unit) is None
        answer = say(desk, car, original.checkpoint())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledgers, "newest", lambda _self, _unit: None)
            deciding.on_checkpoint(unit, copy.checkpoint())
    car.peer = second
    assert say(second, car, copy.checkpoint()).checkpoint == answer.checkpoint
    desk.book.close()
    second.book.close()


# --- while a fault stands ------------------------------------------------------------------------------------------


def test_a_unit_in_dispute_is_granted_nothing_until_it_is_cleared(desk: Desk, car: Car, other: Car) -> None:
    desk.add_job()
    desk.add_job()
    running = car.must_request()
    desk.book.ledgers.hold(car.unit, LedgerFault.FORK, "two roots", (), desk.now_ms)
    car.say("request", car.last_request)
    grant = car.hear_grant()
    assert (grant.job, grant.retry_s) == (None, IN_DISPUTE_S)
    told = opened(desk.hear()[1], desk.trusted())
    assert (told.rid, told.fault, told.detail) == (grant.rid, LedgerFault.FORK, "two roots")
    assert desk.service.book_counts().units_in_dispute == 1
    verdict = car.hand_in(car.result(running, credit=1))
    assert (verdict.verdict.value, verdict.next_grant, verdict.retry_s) == ("settled", None, IN_DISPUTE_S)
    assert other.request() is not None, "its neighbour works on"
    cleared = desk.service.clear_ledger_fault(car.unit, "the pipe bent its proofs")
    assert cleared is not None
    assert cleared.fault is LedgerFault.FORK
    desk.add_job()
    assert car.request() is not None
    (held,) = desk.service.ledger_faults(0, 9)
    assert (held.cleared_why, held.cleared_ms) == ("the pipe bent its proofs", desk.now_ms)
    assert desk.service.clear_ledger_fault(car.unit, "") is None


def test_the_first_fault_stands_and_a_later_one_counts_after_it_was_cleared(desk: Desk, car: Car) -> None:
    ledgers = desk.book.ledgers
    ledgers.hold(car.unit, LedgerFault.FORK, "one", (), desk.now_ms)
    ledgers.hold(car.unit, LedgerFault.ROLLBACK, "two", (), desk.now_ms)
    standing = ledgers.standing(car.unit)
    assert standing is not None
    assert (standing.number, standing.detail) == (1, "one")
    ledgers.clear(car.unit, "", desk.now_ms)
    ledgers.hold(car.unit, LedgerFault.ROLLBACK, "three", (), desk.now_ms)
    assert [(one.number, one.detail, one.cleared_ms is None) for one in ledgers.faults(0, 9)] == [
        (2, "three", True),
        (1, "one", False),
    ]


@pytest.fixture
def rig(desk: Desk, tmp_path: Path) -> Iterator[Path]:
    """A rig's folder, where an operator's command finds the dispatcher."""
    server = WebServer(
        0, desk.objects, desk.enrol, token=TOKEN, more=OperatorApi(lambda question: question(desk.service), TOKEN)
    )
    server.start()
    folder = tmp_path / "rig"
    (folder / "dispatcher").mkdir(parents=True)
    (folder / "dispatcher" / "ready").write_text(json.dumps({"http_url": server.url}))
    (folder / "dispatcher" / TOKEN_FILE).write_text(TOKEN)
    yield folder
    server.close()


def test_an_operator_sees_the_evidence_and_ends_a_dispute(
    desk: Desk, car: Car, grown: LedgerCar, rig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledgers", "--dir", str(rig)]) == 0
    assert json.loads(capsys.readouterr().out) == []
    say(desk, car, grown.checkpoint())
    copy = LedgerCar(car, Ledger())
    copy.work(7, "another")
    say(desk, car, copy.checkpoint())
    capsys.readouterr()  # the dispatcher's own log
    assert main(["ledgers", "--dir", str(rig)]) == 1, "something stands"
    (held,) = json.loads(capsys.readouterr().out)
    assert (held["unit"], held["fault"], held["cleared_ms"]) == (car.unit, "fork", None)
    keys = {car.signer.keyid: car.signer.public_key()}
    roots = {verify_checkpoint(json.dumps(one).encode(), keys).root for one in held["evidence"]}
    assert roots == {grown.ledger.root(7), copy.ledger.root(7)}, "anybody can see it who has the unit's key"
    assert main(["ledgers", "--clear", car.unit, "--detail", "its copy was found", "--dir", str(rig)]) == 0
    assert "granted work again" in capsys.readouterr().out
    assert main(["ledgers", "--clear", car.unit, "--dir", str(rig)]) == 1, "nothing stands any more"
    capsys.readouterr()
    assert main(["ledgers", "--clear", "nobody", "--dir", str(rig)]) == 1
    assert "no unit 'nobody' is enrolled" in capsys.readouterr().err
    assert main(["ledgers", "--dir", str(rig)]) == 0
    (held,) = json.loads(capsys.readouterr().out)
    assert held["cleared_why"] == "its copy was found"
    desk.add_job()
    assert car.request() is not None


def test_nobody_but_the_operator_asks(rig: Path) -> None:
    (rig / "dispatcher" / TOKEN_FILE).write_text("a guess")
    with pytest.raises(FleetError, match="403"):
        command.ledger_faults(rig)
    with pytest.raises(FleetError, match="403"):
        command.clear_ledger(rig, "car-1", "")


# --- the state machine, and bugs that it finds ----------------------------------------------------------------------


Witnessing.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
TestWitnessing = Witnessing.TestCase


def no_consistency_check(patch: Patch) -> None:
    """Whatever a proof shows."""
    patch.setattr(witness, "verify_consistency", lambda *_: None)


def no_contradiction_check(patch: Patch) -> None:
    """Two things that the unit signed are never held against each other."""
    patch.setattr(witness, "_contradiction", lambda _one, _other: None)


def no_compare_and_set(patch: Patch) -> None:
    """Whatever is there by now is written over."""

    def advance(self: Ledgers, unit: str, _before: Witnessed | None, after: Witnessed, now_ms: int) -> None:
        self._database.execute("DELETE FROM ledgers WHERE unit = :unit", unit=unit)
        real(self, unit, None, after, now_ms)

    real = Ledgers.advance
    patch.setattr(Ledgers, "advance", advance)


def unproven_is_no_matter(patch: Patch) -> None:
    """Nobody counts what was never proven."""
    patch.setattr(witness, "UNPROVEN", 10**6)


def a_bent_proof_is_a_fork(patch: Patch) -> None:
    """What only the pipe said is held against the car."""
    patch.setattr(witness, "UNPROVEN", 1)


def the_copy_is_proven_nothing(machine: Witnessing) -> None:
    machine.work(FORKED, 4)
    machine.hand_over((machine.cars[FORKED], FORKED, machine.cars[FORKED].checkpoint()), 0)
    machine.is_copied(3)
    machine.the_copy_goes_on(2)
    machine.deliver(0, 0, keep=False)
    machine.work(FORKED, 9)
    machine.ask_until_it_is_told(machine.cars[FORKED], FORKED)


def the_copy_runs_ahead(machine: Witnessing) -> None:
    """It never shows itself beside what the original says: only that it is never proven."""
    machine.work(FORKED, 4)
    machine.hand_over((machine.cars[FORKED], FORKED, machine.cars[FORKED].checkpoint()), 0)
    machine.is_copied(3)
    machine.ask_until_it_is_told(machine.cars[FORKED], FORKED)
    machine.the_copy_goes_on(200)
    machine.stays_parked = machine.cars[FORKED]


def the_disk_is_set_back(machine: Witnessing) -> None:
    machine.work(SET_BACK, 2)
    machine.an_image_is_kept()
    machine.work(SET_BACK, 5)
    machine.is_set_back()
    machine.hand_over((machine.cars[SET_BACK], SET_BACK, machine.cars[SET_BACK].checkpoint()), 1)


def both_replicas_hear_of_the_copy(machine: Witnessing) -> None:
    """Both histories continue what was witnessed; the second replica has read before the first one writes."""
    machine.work(FORKED, 4)
    machine.hand_over((machine.cars[FORKED], FORKED, machine.cars[FORKED].checkpoint()), 0)
    machine.is_copied(3)
    machine.the_copy_goes_on(1)
    machine.checkpoint(FORKED)
    copied, original = machine.under_way
    answer = machine.at_once(copied, meanwhile=lambda: machine.hand_over(original, 0))
    if answer is not None:
        machine.heard(copied[0], FORKED, answer)
    else:
        machine.hand_over(copied, 1)


def a_proof_is_bent_once(machine: Witnessing) -> None:
    machine.hand_over((machine.cars[HONEST], HONEST, machine.cars[HONEST].checkpoint()), 0)
    machine.work(HONEST, 3)
    message = machine.cars[HONEST].checkpoint()
    bent = msgspec.structs.replace(message, proof=("0" * 64, *message.proof))
    machine.hand_over((machine.cars[HONEST], HONEST, bent), 0)


Bug = Callable[[Patch], None]
Story = Callable[[Witnessing], None]
BUGS: list[tuple[Bug, Story, str]] = [
    (no_consistency_check, the_copy_is_proven_nothing, "two logs were countersigned"),
    (no_contradiction_check, the_disk_is_set_back, "^what contradicts itself was not found at once"),
    (no_compare_and_set, both_replicas_hear_of_the_copy, "two logs were countersigned"),
    (unproven_is_no_matter, the_copy_runs_ahead, "^a car that was forked was not found"),
    (a_bent_proof_is_a_fork, a_proof_is_bent_once, "an honest car is held at fault"),
]


def tell(story: Story) -> None:
    """Let it happen, and hold the dispatcher to what it countersigned."""
    machine = Witnessing()
    with contextlib.closing(machine):
        machine.begin()
        story(machine)
        machine.what_was_countersigned_is_of_one_log()
        machine.honest_cars_are_never_at_fault()
        machine.teardown()


@pytest.mark.parametrize(("bug", "story", "found"), BUGS, ids=[bug.__name__ for bug, _, _ in BUGS])
def test_the_machine_finds(bug: Bug, story: Story, found: str, monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        tell(story)


@pytest.mark.parametrize("story", list(dict.fromkeys(story for _, story, _ in BUGS)), ids=lambda it: it.__name__)
def test_without_a_bug_it_finds_nothing(story: Story) -> None:
    tell(story)
