"""What the benchmark of trust signs, hashes and commits: a unit with its session, and leases of made slices.

Answers and digests are drawn by hashing, so that compressing them gains what it gains on real ones. The keys are made
for the occasion and live in memory; everything else is the agent's own code.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey, generate_private_key

from agent import handin
from agent.core.model import Grant, HandInKind, LeaseFacts, SliceOutcome, Verdict
from agent.errors import DrivewayError
from agent.fleet.messages import VerdictMessage
from agent.rows import Engine, HandInRow, StoredSlice
from agent.trust import bundle, checkpoint, dsse, session
from agent.trust.keys import FileSigner
from agent.wire import SliceDone
from agent.worker.answers import RawForm
from agent.worker.results import slice_done
from kernels.operation import TensorSpec

UNIT = "car-0001"
BOOT_ID = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f1"
SLICE_MS = 1000
ITEMS_PER_SLICE = 2
RAW = TensorSpec("float32", (256, 512))
"""Raw results of one item, half a mebibyte: those of a detector's map. They are hashed in the worker."""
WALL_MS = 1_790_000_000_000
PRICE_MICRO = 10


class Spread(msgspec.Struct, frozen=True):
    """The median of the rounds, the least and the most."""

    median: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value, to three digits behind the point."""
    return Spread(round(statistics.median(values), 3), round(min(values), 3), round(max(values), 3))


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """p50 and p99 of so many in each round: medians over the rounds, with the least and the most."""

    p50_ms: float
    p50_min_ms: float
    p50_max_ms: float
    p99_ms: float
    p99_min_ms: float
    p99_max_ms: float


def latency(rounds: Sequence[Sequence[float]]) -> Latency:
    """Of rounds of at least two milliseconds each."""
    middle = spread([statistics.median(one) for one in rounds])
    tail = spread([statistics.quantiles(one, n=100, method="inclusive")[98] for one in rounds])
    return Latency(
        p50_ms=middle.median,
        p50_min_ms=middle.min,
        p50_max_ms=middle.max,
        p99_ms=tail.median,
        p99_min_ms=tail.min,
        p99_max_ms=tail.max,
    )


class Work:
    """A unit at work for a dispatcher: both keys, one session, and leases of as many slices as asked for."""

    def __init__(self) -> None:
        self.unit_key = FileSigner(generate_private_key(SECP256R1()))
        self.dispatcher_key = FileSigner(generate_private_key(SECP256R1()))
        self.session = session.begin(self.unit_key, "file", unit=UNIT, number=1, boot_id=BOOT_ID, boot_ms=5_000)
        self._unit = handin.Unit(id=UNIT, device_class="generic", boot=BOOT_ID, agent_sha256=hex_of("agent"))
        self._engine = Engine(
            "onnxruntime_cpu", hex_of("model"), hex_of("kernels"), plan_sha256=hex_of("plan"), version="1.23.2"
        )
        self._form = RawForm([RAW])
        self._raw = np.random.default_rng(1).random(RAW.shape, dtype=np.float32)

    @property
    def unit_keys(self) -> dict[str, EllipticCurvePublicKey]:
        """The unit's key as a stranger has it, by keyid."""
        return {self.unit_key.keyid: self.unit_key.public_key()}

    @property
    def witness_keys(self) -> dict[str, EllipticCurvePublicKey]:
        """The dispatcher's."""
        return {self.dispatcher_key.keyid: self.dispatcher_key.public_key()}

    def grant(self, number: int, slices: int) -> Grant:
        """A lease of so many slices of about a second."""
        return Grant(
            job=f"job-{hex_of(f'job {number}')[:12]}",
            epoch=1,
            nonce=hex_of(f"nonce {number}")[:32],
            customer="acme",
            package="detector",
            package_sha256=hex_of("package"),
            input_url="https://dispatcher.example/objects/input",
            input_sha256=hex_of(f"input {number}"),
            input_bytes=100_000,
            items=slices * ITEMS_PER_SLICE,
            slice_items=ITEMS_PER_SLICE,
            slices=tuple(range(slices)),
            ttl_ms=600_000,
            price_micro_per_item=PRICE_MICRO,
            currency="USD",
            ticket_sha256=hex_of(f"ticket {number}"),
        )

    def compute(self, number: int, index: int) -> SliceDone:
        """What the worker sends of one finished slice, raw results and answers hashed."""
        self._raw[0, 0] = index  # no two slices alike
        bodies = [{"text": hex_of(f"{number} {index} {item}")[:16]} for item in range(ITEMS_PER_SLICE)]
        return slice_done(index, [self._form.answer(body, [(self._raw,)]) for body in bodies], SLICE_MS)

    def take(self, done: SliceDone) -> StoredSlice:
        """The slice as the daemon keeps it, which hashes the answers once more; raises DrivewayError."""
        if hashlib.sha256(done.output).hexdigest() != done.output_sha256:
            raise DrivewayError(f"slice {done.index}: its answers are not those of its digest")
        form = f"{done.raw_dtype}[{','.join(map(str, done.raw_shape))}]"
        outcome = SliceOutcome(
            done.index, done.items, done.failed_items, done.output_sha256, done.raw_sha256, done.compute_ms, form
        )
        return StoredSlice(outcome, done.output, self._engine)

    def finished(self, number: int, slices: int) -> list[StoredSlice]:
        """All slices of a lease."""
        return [self.take(self.compute(number, index)) for index in range(slices)]

    def hand_in(self, grant: Grant, counter: int, log_index: int, slices: list[StoredSlice]) -> HandInRow:
        """The result of a lease; raises DrivewayError when it is none, since it did not fit into a message."""
        row = handin.build(
            unit=self._unit,
            session=self.session,
            grant=grant,
            facts=facts(len(slices)),
            kind=HandInKind.RESULT,
            why=None,
            detail="",
            policy_sha256=hex_of("policy"),
            wall_ms=WALL_MS,
            counter=counter,
            log_index=log_index,
            slices=slices,
        )
        if row.kind is not HandInKind.RESULT:
            raise DrivewayError(f"{len(slices)} slices do not fit into one message")
        return row

    def verdict(self, grant: Grant, statement_sha256: str) -> bytes:
        """The dispatcher's word on a hand-in, signed."""
        said = VerdictMessage(
            rid=f"{grant.job}-{grant.epoch}",
            unit=UNIT,
            job=grant.job,
            epoch=grant.epoch,
            verdict=Verdict.SETTLED,
            paid_micro=grant.items * PRICE_MICRO,
            statement_sha256=statement_sha256,
        )
        return dsse.sign(bundle.VERDICT_TYPE, msgspec.json.encode(said), self.dispatcher_key)

    def checkpoint(self, size: int, root: str) -> tuple[checkpoint.Checkpoint, bytes]:
        """A checkpoint of a log, signed by the unit's key."""
        said = checkpoint.Checkpoint(
            v=checkpoint.VERSION,
            unit=UNIT,
            key_epoch=session.FIRST_KEY_EPOCH,
            size=size,
            root=root,
            session=self.session.number,
            boot_id=BOOT_ID,
            issued_boot_ms=80_000,
            issued_wall_ms=WALL_MS,
        )
        return said, dsse.sign(checkpoint.CHECKPOINT_TYPE, said.to_bytes(), self.unit_key)

    def witnessed(self, envelope: bytes) -> bytes:
        """The checkpoint with the dispatcher's signature besides."""
        return checkpoint.countersign(envelope, self.dispatcher_key)


def facts(slices: int) -> LeaseFacts:
    """What the core measured of a lease of so many slices."""
    return LeaseFacts(
        started_ms=10_000,
        finished_ms=10_000 + slices * SLICE_MS,
        energy_micro_wh=slices * 8_000,
        sensor="simulated",
        gate_state="open",
    )


def hex_of(what: str) -> str:
    """A digest that is as hard to compress as any."""
    return hashlib.sha256(what.encode()).hexdigest()
