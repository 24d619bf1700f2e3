"""The witness as a state machine, and planted bugs that it finds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings

from agent.fleet.messages import LedgerFault
from agent.trust import checkpoint
from hil.dispatcher import witness
from hil.dispatcher.database import ConflictError
from hil.dispatcher.ledgers import Ledgers, Witnessed
from hil.dispatcher.postgres import PostgresDatabase
from tests.hil.honest_car import Desk
from tests.hil.ledger_cars import Ledger, LedgerCar, say
from tests.hil.witnessing import FORKED, HONEST, SET_BACK, Witnessing

Patch = pytest.MonkeyPatch

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


def only_equal_sizes_contradict(patch: Patch) -> None:
    """What a checkpoint says of the past is not looked at."""
    patch.setattr(checkpoint, "_roots", lambda said: {said.size: said.root})


def a_bent_proof_is_a_fork(patch: Patch) -> None:
    """What only the pipe said is held against the car."""

    def weigh(
        newest: Witnessed | None, said: checkpoint.Checkpoint, envelope: bytes, from_size: int, proof: Sequence[bytes]
    ) -> witness.Weighed:
        found = real(newest, said, envelope, from_size, proof)
        if newest is None or not isinstance(found, witness.Unproven):
            return found
        return witness.Faulty(LedgerFault.FORK, "never shown", (newest.envelope, envelope))

    real = witness.weigh
    patch.setattr(witness, "weigh", weigh)


def the_copy_is_proven_nothing(machine: Witnessing) -> None:
    """Neither signs anything of the past, so that only a proof can show that it goes on from there."""
    machine.work(FORKED, 4)
    machine.hand_over((machine.cars[FORKED], FORKED, machine.cars[FORKED].checkpoint()), 0)
    machine.is_copied(3)
    assert machine.copy is not None
    machine.copy.hides = machine.cars[FORKED].hides = True
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
    (only_equal_sizes_contradict, the_copy_runs_ahead, "^a car that was forked was not found"),
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
