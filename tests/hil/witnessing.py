"""The witness as a state machine: ledgers that grow, fork and are set back, and a pipe that repeats and reorders.

Two replicas over one database answer. A race is played as it happens between two machines: one replica has read what
was witnessed, and before it writes, the other one decides about another checkpoint.

The model knows every ledger that there is. It holds the dispatcher to this: whatever it countersigned of one unit is of
one log, honest cars are never at fault and end up witnessed to the last leaf, and every other one is found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.fleet.messages import CheckpointMessage, LedgerFault, WitnessMessage, encode
from agent.trust.checkpoint import Checkpoint, contradicts, parse_checkpoint
from agent.trust.dsse import parse
from agent.trust.keys import FileSigner
from hil.dispatcher.database import ConflictError, Database, SqliteDatabase
from hil.dispatcher.ledgers import Ledgers, Witnessed
from hil.dispatcher.units import Unit
from hil.dispatcher.witness import Witness
from tests.hil.honest_car import Desk, new_signer
from tests.hil.ledger_cars import Ledger, LedgerCar, in_dispute, opened

ROUNDS = 4
"""So often everybody is asked in the end: who shows another past than was witnessed is found when he is told of it."""
HONEST, NEIGHBOUR = "honest", "neighbour"
FORKED, SET_BACK = "forked", "set back"
FEW = st.integers(1, 5)
OpenDatabase = Callable[[Path, Callable[[], int]], Database]


def on_sqlite(folder: Path, now_ms: Callable[[], int]) -> Database:
    """Over a file whose commits are not synced: what is tested here is not the disk."""
    database = SqliteDatabase(folder, now_ms)
    database.rows("PRAGMA synchronous = OFF")
    return database


class Replica(Desk):
    """A dispatcher over the database that it shares with others."""

    def __init__(self, folder: Path, key: FileSigner, open_database: OpenDatabase) -> None:
        super().__init__(folder, key=key, database=lambda now_ms: open_database(folder, now_ms))


class Witnessing(RuleBasedStateMachine):
    """An honest car, its honest neighbour, one that will be copied, and one whose disk will be set back."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        key = new_signer()
        self.replicas = [Replica(Path(self._folder.name), key, on_sqlite) for _ in range(2)]
        self.enrolled = {name: self.replicas[0].new_car(name.replace(" ", "-")) for name in _ALL}
        self.cars = {name: LedgerCar(self.enrolled[name], Ledger()) for name in _ALL}
        self.branches: dict[str, list[Ledger]] = {name: [self.cars[name].ledger] for name in _ALL}
        self.copy: LedgerCar | None = None
        self.kept: Ledger | None = None
        self.stays_parked: LedgerCar | None = None
        self.under_way: list[tuple[LedgerCar, str, CheckpointMessage]] = []
        self.countersigned: dict[str, dict[int, str]] = {name: {} for name in _ALL}
        self.newest: dict[str, Checkpoint] = {}
        self.guilty: set[str] = set()
        self.faults: dict[str, LedgerFault] = {}

    @initialize()
    def begin(self) -> None:
        for car in self.cars.values():
            car.work(1, f"session of {car.unit}")

    # --- what cars do -------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from([HONEST, NEIGHBOUR, FORKED, SET_BACK]), leaves=FEW)
    def work(self, name: str, leaves: int) -> None:
        self.cars[name].work(leaves)

    @rule(name=st.sampled_from([HONEST, NEIGHBOUR, FORKED, SET_BACK]))
    def park_anew(self, name: str) -> None:
        self.cars[name].park_anew()

    @rule(name=st.sampled_from([HONEST, NEIGHBOUR, FORKED, SET_BACK]))
    def checkpoint(self, name: str) -> None:
        """It is on its way, and may arrive now, later, more than once or never."""
        self.under_way.append((self.cars[name], name, self.cars[name].checkpoint()))

    @precondition(lambda self: self.copy is None)
    @rule(leaves=FEW)
    def is_copied(self, leaves: int) -> None:
        """Somebody has the car's disk and key, and goes on with another history."""
        original = self.cars[FORKED]
        self.copy = LedgerCar(self.enrolled[FORKED], original.ledger.copy(), session=original.session)
        self.copy.witnessed, self.copy.boot_ms = original.witnessed, original.boot_ms
        self.branches[FORKED].append(self.copy.ledger)
        self.copy.work(leaves, "the copy's leaf")
        original.work(1, "the original's leaf")

    @precondition(lambda self: self.copy is not None)
    @rule(leaves=FEW)
    def the_copy_goes_on(self, leaves: int) -> None:
        assert self.copy is not None
        self.copy.work(leaves, "the copy's leaf")
        self.under_way.append((self.copy, FORKED, self.copy.checkpoint()))

    @rule()
    def an_image_is_kept(self) -> None:
        self.kept = self.cars[SET_BACK].ledger.copy()

    @precondition(lambda self: self.kept is not None and len(self.kept.leaves) < len(self.cars[SET_BACK].ledger.leaves))
    @rule()
    def is_set_back(self) -> None:
        """The disk shows an older state; what was signed before is on its way or has arrived."""
        assert self.kept is not None
        car = self.cars[SET_BACK]
        self.ask_until_it_is_told(car, SET_BACK)
        later = LedgerCar(self.enrolled[SET_BACK], self.kept.copy(), session=car.session + 1)
        later.work(1, f"session {later.session}, set back {len(self.branches[SET_BACK])} times")
        self.branches[SET_BACK].append(later.ledger)
        self.cars[SET_BACK] = later
        self.guilty.add(SET_BACK)

    # --- what the pipe does -------------------------------------------------------------------------------------

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data(), replica=st.integers(0, 1), keep=st.booleans())
    def arrives(self, data: st.DataObject, replica: int, keep: bool) -> None:
        """Any that is under way, in any order; kept, it comes again."""
        self.deliver(data.draw(st.integers(0, len(self.under_way) - 1)), replica, keep=keep)

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data(), times=st.integers(1, 7), from_size=st.one_of(st.none(), st.integers(0, 20)))
    def is_bent(self, data: st.DataObject, times: int, from_size: int | None) -> None:
        """What nobody signed comes otherwise than it was sent, again and again."""
        sender, name, message = self.under_way[data.draw(st.integers(0, len(self.under_way) - 1))]
        bent = msgspec.structs.replace(message, proof=("0" * 64, *message.proof[1:]))
        if from_size is not None:
            bent = msgspec.structs.replace(bent, from_size=from_size)
        for _ in range(times):
            self.hand_over((sender, name, bent), 0)

    @precondition(lambda self: bool(self.under_way))
    @rule(data=st.data())
    def is_lost(self, data: st.DataObject) -> None:
        del self.under_way[data.draw(st.integers(0, len(self.under_way) - 1))]

    @precondition(lambda self: len(self.under_way) > 1)
    @rule(data=st.data())
    def race(self, data: st.DataObject) -> None:
        """Two replicas decide at once; afterwards, the one that lost looks again, as a batch that failed is."""
        numbers = st.integers(0, len(self.under_way) - 1)
        first, second = self.under_way[data.draw(numbers)], self.under_way[data.draw(numbers)]
        answer = self.at_once(second, meanwhile=lambda: self.hand_over(first, 0))
        if answer is None:
            self.hand_over(second, 1)
        else:
            self.heard(second[0], second[1], answer)

    def at_once(
        self, posted: tuple[LedgerCar, str, CheckpointMessage], meanwhile: Callable[[], None]
    ) -> WitnessMessage | None:
        """The second replica has read, then `meanwhile` happens, then it writes; None where it could not."""
        _, name, message = posted
        desk = self.replicas[1]
        witness = Witness(desk.book, desk.key, lambda _who, _reason: None)
        desk.book.ledgers = _Slow(desk.book.database, meanwhile)
        try:
            return witness.on_checkpoint(self._unit(desk, name), message)
        except ConflictError:
            return None
        finally:
            desk.book.ledgers = Ledgers(desk.book.database)

    def ask_until_it_is_told(self, car: LedgerCar, name: str) -> None:
        """With what the first answer says, the second checkpoint is proven from where it has to be."""
        self.hand_over((car, name, car.checkpoint()), 0)
        if car.witnessed != (len(car.ledger.leaves), car.ledger.root(len(car.ledger.leaves))):
            self.hand_over((car, name, car.checkpoint()), 1)

    def deliver(self, number: int, replica: int, *, keep: bool) -> None:
        posted = self.under_way[number] if keep else self.under_way.pop(number)
        self.hand_over(posted, replica)

    def hand_over(self, posted: tuple[LedgerCar, str, CheckpointMessage], replica: int) -> None:
        """To the dispatcher itself, by its topic; its answer comes back signed."""
        sender, name, message = posted
        desk, car = self.replicas[replica], self.enrolled[name]
        shows_a_fault = self._shows_a_fault(name, _checkpoint(encode(message.checkpoint)))
        desk.tell(f"dw/v1/u/{car.cell}/{car.unit}/checkpoint", encode(message))
        topic, envelope = desk.sent.pop(0)
        assert topic == f"dw/v1/d/{car.unit}/witness"
        assert not desk.sent
        answer = opened(envelope, desk.trusted())
        assert (answer.unit, answer.rid) == (car.unit, message.rid)
        assert in_dispute(answer) or not shows_a_fault, "what contradicts itself was not found at once"
        self.heard(sender, name, answer)

    def _shows_a_fault(self, name: str, said: Checkpoint) -> bool:
        """Beside the newest that was countersigned, as far as the car was told."""
        newest = self.newest.get(name)
        if newest is None:
            return False
        if said.size == newest.size:
            return said.root != newest.root
        return said.session > newest.session and said.size < newest.size

    def heard(self, car: LedgerCar, name: str, answer: WitnessMessage) -> None:
        """Whatever is countersigned stays so, and is of one log with all that was."""
        if in_dispute(answer):
            self.faults[name] = answer.fault
        said = car.hear(answer, self.replicas[0].trusted())
        if said is not None:
            self.newest[name] = said
            known = self.countersigned[name].setdefault(said.size, said.root)
            assert known == said.root, "two roots of one size were countersigned"

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def what_was_countersigned_is_of_one_log(self) -> None:
        for name, said in self.countersigned.items():
            logs = self.branches[name]
            assert not said or any(
                all(size <= len(log.leaves) and log.root(size) == root for size, root in said.items()) for log in logs
            ), "two logs were countersigned"

    @invariant()
    def honest_cars_are_never_at_fault(self) -> None:
        assert HONEST not in self.faults, "an honest car is held at fault"
        assert NEIGHBOUR not in self.faults, "an honest car is held at fault"

    @invariant()
    def a_fault_is_shown_by_what_was_signed(self) -> None:
        for held in self.replicas[0].book.ledgers.faults(0, 100):
            one, other = (_checkpoint(one) for one in map(encode, held.evidence))
            assert one.unit == other.unit == held.unit
            shrank = (one.size < other.size) == (one.session > other.session) or one.session == other.session
            assert contradicts(one, other) or shrank, "no evidence for a fault"

    def teardown(self) -> None:
        """Whoever is honest is witnessed to the last leaf; whoever is not is found, however well it goes on."""
        try:
            if any(car.ledger.leaves for car in self.cars.values()):
                self._settle_all()
        finally:
            self.close()

    def close(self) -> None:
        for desk in self.replicas:
            desk.book.close()
        self._folder.cleanup()

    def _settle_all(self) -> None:
        if self.copy is not None:
            self.guilty.add(FORKED)
        for name in _ALL:
            senders = [self.cars[name], *([self.copy] if name == FORKED and self.copy is not None else [])]
            for round_ in range(ROUNDS):
                for which, sender in enumerate(senders):
                    while sender is not self.stays_parked and any(
                        sender.session <= other.session for other in senders if other is not sender
                    ):
                        sender.park_anew()
                    sender.work(1, f"in the end, {which} in round {round_}")
                    self.ask_until_it_is_told(sender, name)
        self.what_was_countersigned_is_of_one_log()
        self.honest_cars_are_never_at_fault()
        for name in _ALL:
            car = self.cars[name]
            if name in self.guilty:
                assert name in self.faults, f"a car that was {name} was not found"
            else:
                assert name not in self.faults
                assert car.witnessed[0] == len(car.ledger.leaves), "an honest car is witnessed in the end"
                assert not car.finds_itself_in_dispute()
        assert all(desk.service.counts["crashed"] == 0 for desk in self.replicas)

    @staticmethod
    def _unit(desk: Desk, name: str) -> Unit:
        unit = desk.book.units.get(name.replace(" ", "-"))
        assert unit is not None
        return unit


class _Slow(Ledgers):
    """A replica that is overtaken between its look and its word."""

    def __init__(self, database: Database, meanwhile: Callable[[], None]) -> None:
        super().__init__(database)
        self._meanwhile: Callable[[], None] | None = meanwhile

    def newest(self, unit: str) -> Witnessed | None:
        found = super().newest(unit)
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found


_ALL = (HONEST, NEIGHBOUR, FORKED, SET_BACK)


def _checkpoint(envelope: bytes) -> Checkpoint:
    return parse_checkpoint(parse(envelope).payload)
