"""The play: honest cars and one kind of cheat at work for a dispatcher, until all jobs are done. Deterministic by seed.

The dispatcher's own parts decide: the book on SQLite in memory, leases, the judge with every signature and session
certificate, replication, comparison by class and value, held-back pay. Left out is what lies between them and the cars:
the broker, the clock (which is the play's), and the engine, whose outputs were computed before. Jobs whose answers the
operator knows are put in among the others, and what two cars dispute the operator computes himself, with another
engine than theirs (`REFEREE`), so that no majority of cars can outvote an honest one.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from agent.core.model import JobKey, Outlook, Verdict
from agent.fleet.enrolment_messages import Enrolment
from agent.fleet.messages import Capability, Envelope, JobGrant, LedgerFault, ObjectRef, PackageRef, Result, SliceOutput
from agent.trust import dsse
from agent.trust.keys import FileSigner
from agent.trust.statement import (
    PAYLOAD_TYPE,
    Agent,
    Device,
    Energy,
    Engine,
    Gate,
    Lease,
    Package,
    SelfTest,
    Slice,
    Statement,
    Times,
    equivalence_class,
)
from hil.cheats.cars import RESTORE_AFTER, UNTOLD, Car
from hil.cheats.outputs import HALVES, VARIANTS, LineAnswer, Outputs, slice_body, slice_raw_sha256
from hil.dispatcher.book import Book
from hil.dispatcher.leases import Places
from hil.dispatcher.memory import MemoryDatabase
from hil.dispatcher.pay import HoldBack, accounts
from hil.dispatcher.replication import AdaptiveReplication, Comparator, UnitRecord
from hil.dispatcher.submit import job_grant
from hil.dispatcher.verdicts import NothingBrought, Verdicts

REFEREE = "not optimised"
"""What the operator computes with: a reference, not what the cars have."""
HONEST_KINDS = ("float32", "two threads", "batches of 8", "partly optimised", "not optimised", "float16 hardware")
PACKAGE = PackageRef(name="ocr-line", sha256="ab" * 32)
MODEL_SHA256 = "0a" * 32
GOLDEN = SelfTest(outcome="passed", raw_sha256="0d" * 32, age_ms=60_000)
ITEMS, SLICE_ITEMS = 8, 4
PRICE_MICRO = 100
KNOWN_SHARE = 0.03
"""Of the jobs, those whose answers the operator knows."""
STEP_MS = 30_000
COMPUTE_MS_PER_ITEM = 40
PLACES = Places(object_url=lambda name: f"https://objects.invalid/{name}")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What is played: so many cars, a share of which (in thousandths) cheats, and so many jobs for each of them."""

    cars: int = 10
    cheats_permille: int = 200
    jobs_per_car: int = 100
    keep: int = 30
    known_share: float = KNOWN_SHARE
    has_referee: bool = True


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one play. Jobs of a cheat until the first was found, None: never; pay in millionths.

    `flagged`: cheats whose bits were found not to be their class's, which costs no pay. `honest_punished` are honest
    units that were found wrong, lost pay, or were put out of work.
    """

    cheats: int
    caught: int
    flagged: int
    jobs_until_caught: tuple[int, ...]
    cheat_settled_micro: int
    cheat_forfeited_micro: int
    cheat_kept_micro: int
    honest_units: int
    honest_jobs: int
    honest_punished: int
    honest_flagged: int
    copies: int
    jobs: int


class _Seeded(AdaptiveReplication):
    """Nonces and keys are not the seed's, so the statements' draws are not either: these are."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self._draw = draw

    def wants_copy(self, unit_record: UnitRecord, draw: float) -> bool:  # noqa: ARG002 - see above
        """See `Replication`."""
        return super().wants_copy(unit_record, self._draw())


@dataclass
class World:
    """Use once: `play`."""

    outputs: Outputs
    cheat: str
    seed: int
    terms: Terms = field(default_factory=Terms)
    comparator: Comparator | None = None

    def __post_init__(self) -> None:
        self._dice = random.Random(f"{self.cheat} {self.seed}")
        self._now_ms = 1_000_000
        database = MemoryDatabase(lambda: self._now_ms)
        self.book = Book(
            database,
            replication=_Seeded(self._dice.random),
            comparator=self.comparator,
            tolerances={PACKAGE.sha256: self.outputs.tolerance}.get,
            has_referee=self.terms.has_referee,
            hold_back=HoldBack(keep=self.terms.keep),
        )
        self._verdicts = Verdicts(self.book, NothingBrought(), lambda _who, _why: None, self._hold)
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._seen: dict[int, LineAnswer] = {}
        self._rid = itertools.count(1)
        self._done: dict[str, int] = {}
        self._caught_after: dict[str, int] = {}
        self.cars = self._cars()

    # --- the cast ------------------------------------------------------------------------------------------------

    def _cars(self) -> list[Car]:
        cheats = max(1, self.terms.cars * self.terms.cheats_permille // 1000) if self.cheat else 0
        cars = []
        for place in range(self.terms.cars):
            cheat = self.cheat if place < cheats else ""
            kind = HONEST_KINDS[0] if cheat else HONEST_KINDS[(place * 2 // 3) % len(HONEST_KINDS)]
            cars.append(self._car(f"car-{place:02d}", kind, cheat))
        if self.cheat == "cloned key":
            cars += [self._clone(one) for one in cars if one.cheat]
        return cars

    def _car(self, unit: str, kind: str, cheat: str) -> Car:
        number = int.from_bytes(hashlib.sha256(f"{self.seed} {unit}".encode()).digest(), "big") >> 8
        signer = FileSigner(derive_private_key(number, SECP256R1()))
        self.book.units.add_code(unit)
        enrolment = Enrolment(code=unit, unit=unit, public_key_pem=signer.public_key_pem(), key_protection="file")
        self.book.units.enrol(enrolment, signer.keyid)
        car = Car(unit, signer, kind, variant=kind, cheat=cheat)
        car.begin_session()
        return car

    @staticmethod
    def _clone(car: Car) -> Car:
        """The same disk in a second computer: it begins a session of its own, under the same number."""
        return Car(car.unit, car.signer, car.kind, variant=car.variant, cheat=car.cheat)

    # --- the play ------------------------------------------------------------------------------------------------

    def play(self) -> Played:
        """As many jobs a round as there are cars, which ask in an order that is drawn, until nobody gets any."""
        jobs = len(self.cars) * self.terms.jobs_per_car
        idle = 0
        while idle < 2:  # a copy may have been made for one that asked before
            for _ in range(min(jobs, len(self.cars))):
                self._add_job()
            jobs -= min(jobs, len(self.cars))
            order = list(self.cars)
            self._dice.shuffle(order)
            worked = [self._work(car) for car in order]
            idle = 0 if any(worked) else idle + 1
            self._now_ms += STEP_MS
            self._decide()
        return self._told()

    def _add_job(self) -> None:
        lines = tuple(self._dice.sample(range(self.outputs.lines), ITEMS))
        name = hashlib.sha256(f"{self._dice.random()} {lines}".encode()).hexdigest()
        self._inputs[name] = lines
        grant = job_grant(
            job=f"job-{name[:12]}",
            customer="customer-1",
            package=PACKAGE,
            input=ObjectRef(url="", sha256=name, bytes=1000),
            items=ITEMS,
            slice_items=SLICE_ITEMS,
            price_micro_per_item=PRICE_MICRO,
            currency="EUR",
            ttl_s=600,
        )
        self.book.add_job(grant)
        if self._dice.random() < self.terms.known_share:
            self.book.know(grant.job, self._right(lines))

    def _right(self, lines: tuple[int, ...]) -> dict[int, bytes]:
        """What the operator's own engine says of a job."""
        answers = [self.outputs.variants[REFEREE][line] for line in lines]
        return {
            index: slice_body(answers[first : first + SLICE_ITEMS])
            for index, first in enumerate(range(0, len(lines), SLICE_ITEMS))
        }

    def _decide(self) -> None:
        """The operator computes what is disputed."""
        if self.terms.has_referee:
            for job in self.book.copies.disputes():
                row = self.book.database.row("SELECT input_sha256 FROM jobs WHERE job = :job", job=job)
                assert row is not None
                self.book.know(job, self._right(self._inputs[row["input_sha256"]]))

    def _work(self, car: Car) -> bool:
        """One lease, from asking to the verdict; whether there was one."""
        unit = self.book.units.get(car.unit)
        assert unit is not None
        if unit.ledger_fault:
            return False
        device, executor = _device(car)
        said = Capability(device_class=device.class_, executor=executor.executor, packages=(PACKAGE.sha256,))
        unit = self.book.units.note_capability(unit, said, self._now_ms)
        grant = self.book.grant(unit, [], (), Outlook(), PLACES)
        if grant is None:
            return False
        ticket = hashlib.sha256(msgspec.json.encode(grant)).hexdigest()
        self.book.record_ticket(_key(grant), ticket)
        if car.cheat in ("cloned key", "restored disk image"):
            self._tamper(car)
        result = self._result(car, grant, ticket)
        self._now_ms += COMPUTE_MS_PER_ITEM * ITEMS
        message = self._verdicts.on_result(unit, result)
        assert message.verdict in (Verdict.SETTLED, Verdict.BAD), message.reason
        self._done[car.unit] = self._done.get(car.unit, 0) + 1
        self._note_caught()
        return True

    def _tamper(self, car: Car) -> None:
        """A disk put back, or copied: the session and the counters of before are used a second time."""
        if car.session is None:
            car.begin_session()
        if car.cheat == "restored disk image" and self._done.get(car.unit, 0) == RESTORE_AFTER:
            car.number, car.counter = 0, 0
            car.begin_session()

    def _result(self, car: Car, grant: JobGrant, ticket: str) -> Result:
        assert car.session is not None
        lines = self._inputs[grant.input.sha256]
        answers = car.answers(lines, self.outputs, self._seen)
        if car.honest and car.variant == HONEST_KINDS[0]:
            self._seen = dict(zip(lines, answers, strict=True))
        parts = {index: answers[index * SLICE_ITEMS : (index + 1) * SLICE_ITEMS] for index in grant.slices}
        bodies = {index: slice_body(part) for index, part in parts.items()}
        device, engine = _device(car)
        statement = Statement(
            outcome="result",
            lease=Lease(job=grant.job, epoch=grant.epoch, nonce=grant.nonce, ticket_sha256=ticket),
            unit=car.unit,
            package=Package(name=PACKAGE.name, sha256=PACKAGE.sha256),
            model_sha256=MODEL_SHA256,
            engine=engine,
            device=device,
            equivalence_class=equivalence_class(MODEL_SHA256, engine, device),
            agent=Agent(version="0.1.0", sha256="0c" * 32),
            input_sha256=grant.input.sha256,
            slices=tuple(
                Slice(
                    index=index,
                    items=len(part),
                    failed_items=0,
                    output_sha256=hashlib.sha256(bodies[index]).hexdigest(),
                    raw_sha256=slice_raw_sha256(part),
                    raw_form="mixed",
                    compute_ms=COMPUTE_MS_PER_ITEM * len(part),
                )
                for index, part in parts.items()
            ),
            times=Times(
                started_boot_ms=self._now_ms,
                finished_boot_ms=self._now_ms + COMPUTE_MS_PER_ITEM * ITEMS,
                boot_id="b" * 32,
                finished_wall_ms=self._now_ms,
            ),
            energy=Energy(micro_wh=500, sensor="simulated"),
            gate=Gate(state="open", policy_sha256="0e" * 32),
            key_protection="file",
            session=car.number,
            log_index=car.counter,
            counter=car.next_counter(),
            self_test=None if car.cheat == UNTOLD else GOLDEN,
        )
        envelope = dsse.sign(PAYLOAD_TYPE, statement.to_bytes(), car.session.key)
        return Result(
            rid=f"rs{next(self._rid)}",
            job=grant.job,
            epoch=grant.epoch,
            statement=msgspec.json.decode(envelope, type=Envelope),
            outputs=tuple(
                SliceOutput(index=index, body=base64.b64encode(body).decode()) for index, body in bodies.items()
            ),
            have=(),
            credit=0,
            session=msgspec.json.decode(car.session.certificate, type=Envelope),
        )

    # --- what came of it -----------------------------------------------------------------------------------------

    def _hold(self, unit: str, fault: LedgerFault, detail: str, evidence: tuple[bytes, ...]) -> None:
        self.book.ledgers.hold(unit, fault, detail, evidence, self._now_ms)

    def _note_caught(self) -> None:
        rows = self.book.database.rows("SELECT unit FROM units WHERE disagreed > 0 OR ledger_fault != ''")
        for row in rows:
            self._caught_after.setdefault(row["unit"], self._done.get(row["unit"], 0))

    def _told(self) -> Played:
        self._note_caught()
        cheats = {car.unit for car in self.cars if car.cheat}
        honest = {car.unit for car in self.cars if car.honest}
        pay = {one.unit: one for one in accounts(self.book.database)}
        units = {row["unit"]: row for row in self.book.database.rows("SELECT * FROM units")}
        copied = [row["replica"] > 0 for row in self.book.database.rows("SELECT replica FROM jobs")]
        return Played(
            cheats=len(cheats),
            caught=len(cheats & self._caught_after.keys()),
            flagged=sum(units[one]["odd_bits"] > 0 for one in cheats),
            jobs_until_caught=tuple(sorted(self._caught_after[one] for one in cheats & self._caught_after.keys())),
            cheat_settled_micro=sum(pay[one].settled_micro for one in cheats & pay.keys()),
            cheat_forfeited_micro=sum(pay[one].forfeited_micro for one in cheats & pay.keys()),
            cheat_kept_micro=sum(
                pay[one].released_micro + (0 if units[one]["ledger_fault"] else pay[one].held_micro)
                for one in cheats & pay.keys()
            ),
            honest_units=len(honest),
            honest_jobs=sum(self._done.get(one, 0) for one in honest),
            honest_punished=sum(
                units[one]["disagreed"] > 0
                or bool(units[one]["ledger_fault"])
                or (one in pay and pay[one].forfeited_micro > 0)
                for one in honest
            ),
            honest_flagged=sum(units[one]["odd_bits"] > 0 for one in honest),
            copies=sum(copied),
            jobs=len(copied) - sum(copied),
        )


def _key(grant: JobGrant) -> JobKey:
    return JobKey(grant.job, grant.epoch)


def _device(car: Car) -> tuple[Device, Engine]:
    """What a car says that it is: cheats say what the honest cars of their kind do."""
    versions = {"not optimised": "1.32.0-unfused", "partly optimised": "1.32.0-less-fused"}
    class_ = "float16-npu" if car.kind == HALVES else "cpu-x86_64"
    precision = "float16" if car.kind == HALVES else "float32"
    return Device(class_=class_, driver=""), Engine(
        executor="onnxruntime",
        version=versions.get(car.kind, "1.32.0"),
        plan_sha256="",
        kernels_sha256="0b" * 32,
        precision=None if car.cheat == UNTOLD else precision,
        batch=None if car.cheat == UNTOLD else (VARIANTS[car.kind].batch,),
    )
