"""Books of a small honest fleet, signed with real keys, for tests that then falsify them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from agent.core.model import Verdict
from agent.fleet import messages
from agent.trust import dsse, statement
from agent.trust.checkpoint import CHECKPOINT_TYPE, Checkpoint, countersign
from agent.trust.keys import FileSigner
from agent.trust.merkle import leaf_hash, tree_root
from agent.trust.session import SESSION_TYPE, Session, SessionKey, begin, certificate_of
from hil.faults.books import (
    AgentBook,
    DispatcherBook,
    HandInRow,
    JobRow,
    Leaf,
    LeaseRow,
    Ordered,
    ResultRow,
)

SHA = "ab" * 32
ENGINE = statement.Engine(executor="onnxruntime", version="1", plan_sha256="", kernels_sha256=SHA)
DEVICE = statement.Device(class_="rig", driver="")
PRICE = 7
OPENED_MS = 1_790_000_000_000


class Fleet:
    """A dispatcher and two cars. `settle` does one lease as it should be done, in all books at once."""

    def __init__(self, folder: Path) -> None:
        self.dispatcher_key = FileSigner.open_or_create(folder / "dispatcher.key")
        self._folder = folder
        self.keys = {unit: FileSigner.open_or_create(folder / f"{unit}.key") for unit in ("car-0000", "car-0001")}
        self.former: dict[str, dict[int, FileSigner]] = {unit: {} for unit in self.keys}
        self.ordered = [Ordered(f"job-{number}", 5, 2, PRICE, 5 * number) for number in range(4)]
        self.jobs = {job.job: JobRow(job.job, "free", 0, None) for job in self.ordered}
        self.hand_ins: list[HandInRow] = []
        self.results: list[ResultRow] = []
        self.leases: dict[str, list[LeaseRow]] = {unit: [] for unit in self.keys}
        self.sessions = {unit: begin(key, "file", unit=unit, number=1) for unit, key in self.keys.items()}
        self.ledgers: dict[str, list[tuple[str, str, int, bytes]]] = {
            unit: [("session", "", 1, session.certificate)] for unit, session in self.sessions.items()
        }
        self.kept_sessions = {(key.keyid, 1): self.sessions[unit].certificate for unit, key in self.keys.items()}
        self.witnessed: dict[str, bytes] = {}
        self.outboxes: dict[str, dict[tuple[str, int], str]] = {unit: {} for unit in self.keys}

    def settle(self, unit: str, number: int, *, epoch: int = 1) -> None:
        """The unit does the whole job, hands it in, and is told so."""
        sha256 = self.hand_in(unit, number, epoch=epoch)
        self.take(unit, number, sha256, epoch=epoch)
        self.tell(unit, number, sha256, epoch=epoch)

    def rotate(self, unit: str) -> None:
        """The unit takes a new key, whose first session is number 1 once more."""
        former = self.former[unit]
        former[len(former) + 1] = self.keys[unit]
        epoch = len(former) + 1
        self.keys[unit] = FileSigner.open_or_create(self._folder / f"{unit}-{epoch}.key")
        self.certify(unit, epoch)

    def certify(self, unit: str, epoch: int) -> None:
        """The unit's key certifies a session that says to be of this epoch."""
        key = SessionKey("file")
        said = certificate_of(key, unit=unit, key_epoch=epoch, number=1, boot_id="b", boot_ms=1, wall_ms=OPENED_MS)
        certificate = dsse.sign(SESSION_TYPE, said.to_bytes(), self.keys[unit])
        self.sessions[unit] = Session(1, key, certificate)
        self.ledgers[unit].append(("session", "", 1, certificate))
        self.kept_sessions[self.keys[unit].keyid, 1] = certificate

    def hand_in(self, unit: str, number: int, *, epoch: int = 1) -> str:
        """The unit's half: the statement is in the ledger and in the outbox; the statement's digest."""
        job, index = self.ordered[number], len(self.ledgers[unit])
        said = _statement(unit, job, epoch, index)
        envelope = dsse.sign(statement.PAYLOAD_TYPE, said.to_bytes(), self.sessions[unit].key)
        sha256 = hashlib.sha256(said.to_bytes()).hexdigest()
        self.ledgers[unit].append(("statement", job.job, epoch, envelope))
        self.outboxes[unit][job.job, epoch] = sha256
        self.leases[unit].append(LeaseRow(job.job, epoch, "handed_in", None, 0, OPENED_MS, OPENED_MS + 1000))
        return sha256

    def take(self, unit: str, number: int, sha256: str, *, epoch: int = 1) -> None:
        """The dispatcher's half: its rows."""
        job, paid = self.ordered[number], 5 * PRICE
        envelope = next(e for _, name, n, e in self.ledgers[unit] if (name, n) == (job.job, epoch))
        counter = statement.parse_statement(dsse.parse(envelope).payload).counter
        row = HandInRow(
            *(job.job, epoch, unit, "settled", sha256, paid, OPENED_MS + 1500),
            *(self.keys[unit].keyid, counter, 1, envelope),
        )
        self.hand_ins.append(row)
        for index in range(job.slices):
            items = job.items_of(index)
            self.results.append(ResultRow(job.job, index, epoch, items, 0, items * PRICE, body(job, index)))
        self.jobs[job.job] = JobRow(job.job, "done", epoch, unit)

    def tell(
        self, unit: str, number: int, sha256: str, *, epoch: int = 1, verdict: Verdict = Verdict.SETTLED, paid: int = 35
    ) -> None:
        """The verdict reaches the unit, which lets go."""
        job = self.ordered[number].job
        message = messages.VerdictMessage(
            rid="r", unit=unit, job=job, epoch=epoch, verdict=verdict, paid_micro=paid, statement_sha256=sha256
        )
        envelope = dsse.sign(messages.VERDICT_TYPE, messages.encode(message), self.dispatcher_key)
        self.ledgers[unit].append(("verdict", job, epoch, envelope))
        self.outboxes[unit].pop((job, epoch), None)
        told = LeaseRow(job, epoch, "closed", verdict.value, paid, OPENED_MS, OPENED_MS + 1000)
        self.leases[unit] = [told if (one.job, one.epoch) == (job, epoch) else one for one in self.leases[unit]]

    @property
    def dispatcher(self) -> DispatcherBook:
        """The dispatcher's book as it is now."""
        keys = {
            unit: {epoch: key.public_key_pem() for epoch, key in (*former.items(), (len(former) + 1, self.keys[unit]))}
            for unit, former in self.former.items()
        }
        rows = (list(self.jobs.values()), list(self.hand_ins), list(self.results))
        return DispatcherBook(*rows, keys, dict(self.kept_sessions), dict(self.witnessed))

    def witness(self, unit: str) -> None:
        """The unit's ledger as it is now gets a checkpoint, and the dispatcher countersigns it."""
        hashes = [leaf_hash(envelope) for _, _, _, envelope in self.ledgers[unit]]
        said = Checkpoint(
            v=1,
            unit=unit,
            key_epoch=len(self.former[unit]) + 1,
            size=len(hashes),
            root=tree_root(hashes).hex(),
            session=1,
            boot_id="b",
            issued_boot_ms=1,
            issued_wall_ms=OPENED_MS,
        )
        signed = dsse.sign(CHECKPOINT_TYPE, said.to_bytes(), self.keys[unit])
        self.witnessed[unit] = countersign(signed, self.dispatcher_key)

    @property
    def agents(self) -> list[AgentBook]:
        """The units' books as they are now."""
        return [self._agent(unit) for unit in self.keys]

    def _agent(self, unit: str) -> AgentBook:
        leaves = [Leaf(kind, job, epoch, body, leaf_hash(body)) for kind, job, epoch, body in self.ledgers[unit]]
        root = tree_root([leaf.hash for leaf in leaves]).hex()
        return AgentBook(unit, self.leases[unit], leaves, (len(leaves), root), dict(self.outboxes[unit]), {})


def body(job: Ordered, index: int) -> bytes:
    """The answers to one slice."""
    return msgspec.json.encode([{"outputs": {"y": number}} for number in job.numbers_of(index)])


def _statement(unit: str, job: Ordered, epoch: int, index: int) -> statement.Statement:
    slices = tuple(
        statement.Slice(
            index=index,
            items=job.items_of(index),
            failed_items=0,
            output_sha256=hashlib.sha256(body(job, index)).hexdigest(),
            raw_sha256=SHA,
            raw_form="none",
            compute_ms=1,
        )
        for index in range(job.slices)
    )
    return statement.Statement(
        outcome="result",
        lease=statement.Lease(job=job.job, epoch=epoch, nonce="cd" * 16, ticket_sha256=SHA),
        unit=unit,
        package=statement.Package(name="nothing", sha256=SHA),
        model_sha256=SHA,
        engine=ENGINE,
        device=DEVICE,
        equivalence_class=statement.equivalence_class(SHA, ENGINE, DEVICE),
        agent=statement.Agent(version="1", sha256=SHA),
        input_sha256=SHA,
        slices=slices,
        times=statement.Times(started_boot_ms=1, finished_boot_ms=2, boot_id="b", finished_wall_ms=OPENED_MS),
        energy=statement.Energy(micro_wh=1, sensor="none"),
        gate=statement.Gate(state="open", policy_sha256=SHA),
        key_protection="file",
        session=1,
        log_index=index,
        counter=index,
    )
