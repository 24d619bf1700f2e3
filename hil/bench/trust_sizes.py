"""How many bytes trust costs on the wire and in a file, as they are sent, and beside them what zlib makes of them.

Every envelope and proof that is counted was verified first. Links do not compress MQTT by themselves: `zlib_9_bytes`
says what there would be to gain. Proofs are those of the longest way: of a leaf at the log's beginning, and to the
checkpoint from the one that the notary signed `CHECKPOINT_LEAVES` before.
"""

from __future__ import annotations

import zlib

import msgspec

from agent.fleet.messages import CheckpointMessage, Envelope, encode
from agent.notary import CHECKPOINT_LEAVES
from agent.trust import bundle, dsse, ledger, merkle
from agent.trust.checkpoint import verify_countersigned
from agent.trust.session import verify_session
from agent.trust.statement import verify_statement
from hil.bench.trust_work import Work, hex_of

SLICES = (1, 10, 20)
LOGS = (100, 10_000, 100_000)
LEAF = 1
"""The statement that is proven; its session's certificate is the leaf before it."""


class Size(msgspec.Struct, frozen=True):
    """Of one thing."""

    bytes: int
    zlib_9_bytes: int


def size_of(body: bytes) -> Size:
    """As it is, and compressed as well as zlib can."""
    return Size(len(body), len(zlib.compress(body, 9)))


def measure_sizes(work: Work, slices: tuple[int, ...] = SLICES, logs: tuple[int, ...] = LOGS) -> dict[str, Size]:
    """By what it is. Raises TrustError or MessageError when something does not hold or fit."""
    verify_session(work.session.certificate, work.unit_keys)
    told = {"session certificate": work.session.certificate}
    for count in slices:
        told |= _hand_in(work, count)
    leaf = _statement(work)
    for count in logs:
        told |= _proofs(work, leaf, count)
    return {name: size_of(body) for name, body in told.items()}


def _hand_in(work: Work, count: int) -> dict[str, bytes]:
    finished = work.finished(count, count)
    row = work.hand_in(work.grant(count, count), 1, LEAF, finished)
    assert row.statement is not None
    verify_statement(row.statement, work.session.certificate, work.unit_keys)
    of = f"{count} slice{'s' if count > 1 else ''}"
    return {
        f"answers, {of}": b"".join(one.output for one in finished),
        f"statement, {of}": dsse.parse(row.statement).payload,
        f"envelope, {of}": row.statement,
        f"result message, {of}": row.body,
    }


def _statement(work: Work) -> bytes:
    row = work.hand_in(work.grant(0, 1), 1, LEAF, work.finished(0, 1))
    assert row.statement is not None
    return row.statement


def _proofs(work: Work, leaf: bytes, count: int) -> dict[str, bytes]:
    """A checkpoint of a log of so many leaves, what is sent of it, and what a stranger is given of one leaf."""
    log = MemoryLog()
    for body in (work.session.certificate, leaf):
        log.append(merkle.leaf_hash(body))
    for number in range(2, count):
        log.append(bytes.fromhex(hex_of(f"leaf {number}")))
    root, before = ledger.root(log.node, count), count - min(CHECKPOINT_LEAVES, count - 1)
    _said, signed = work.checkpoint(count, root.hex())
    witnessed = work.witnessed(signed)
    verify_countersigned(witnessed, work.unit_keys, work.witness_keys)
    consistency = ledger.consistency(log.node, before, count)
    merkle.verify_consistency(before, count, ledger.root(log.node, before), root, consistency)
    inclusion = ledger.inclusion(log.node, LEAF, count)
    proof = bundle.proof_bundle(
        "statement",
        LEAF,
        leaf,
        proof=inclusion,
        size=count,
        checkpoint=witnessed,
        session=work.session.certificate,
    )
    bundle.verify_proof(proof, work.unit_keys, work.witness_keys)
    message = CheckpointMessage(
        rid=hex_of("rid")[:16],
        checkpoint=msgspec.json.decode(signed, type=Envelope),
        from_size=before,
        proof=tuple(one.hex() for one in consistency),
    )
    of = f"log of {count:,}"
    return {
        f"checkpoint, {of}": signed,
        f"countersigned, {of}": witnessed,
        f"checkpoint message, {of}": encode(message),
        f"inclusion proof, {of}": b"".join(inclusion),
        f"consistency proof, {of}": b"".join(consistency),
        f"proof bundle, {of}": proof,
    }


class MemoryLog:
    """The nodes of a log, in memory (`agent.trust.ledger.NodeAt`)."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], bytes] = {}
        self._leaves = 0

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        for level, index, digest in ledger.completed(self._leaves, leaf, self.node):
            self._nodes[level, index] = digest
        self._leaves += 1

    def node(self, level: int, index: int) -> bytes:
        """The hash of one node."""
        return self._nodes[level, index]
