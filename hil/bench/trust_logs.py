"""A car's log after years: how long it takes to open, to be held against itself, and to be believed by a stranger.

The store is a real one on disk, with as many leaves as asked for: verdicts and statements in turn, as long as real ones
are. They are written in bulk and the tree is grown by the store's own code. One statement is a real one at its place,
after the certificate of its session.

The self-test is what `agent.selftest` does, from the leaves' bytes to the root: once with the bodies of all leaves, and
once after the dispatcher witnessed them, when the car lets go of those that are old. The stranger has the unit's and
the dispatcher's public keys, and is given files: everything in them is verified, signatures and hashes.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import msgspec

from agent import ledger_view
from agent.errors import DrivewayError
from agent.schema import Transaction
from agent.selftest import LEAVES_AT_ONCE
from agent.store import Store
from agent.trust import bundle, ledger, merkle
from agent.trust.checkpoint import verify_countersigned
from hil.bench.trust_rates import took_ms
from hil.bench.trust_work import WALL_MS, Spread, Work, spread

LEAVES = 100_000
AT_ONCE = 1000
VERIFICATIONS = 50
"""A stranger's verification takes about a millisecond: the mean of so many is one measurement."""


class LogFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of one log: its size on disk with all bodies, and milliseconds by what is done with it."""

    leaves: int
    bytes: int
    ms: dict[str, Spread]


class Given(msgspec.Struct, frozen=True):
    """What a stranger is given: the proof of one leaf, and that the second checkpoint continues the first."""

    proof: bytes
    checkpoints: tuple[bytes, bytes]
    hashes: tuple[bytes, ...]


class LongStore(Store):
    """A store that takes leaves in bulk, to have a long log soon."""

    def fill(self, work: Work, leaves: int) -> int:
        """Write so many leaves and grow the tree over them; the index of the one real statement."""
        real = leaves * 3 // 4
        alike = {"statement": statement_at(work, 0), "verdict": work.verdict(work.grant(0, 1), "0" * 64)}
        own = {
            real - 1: ("session", "", work.session.number, work.session.certificate),
            real: ("statement", "real", 1, statement_at(work, real)),
        }
        for first in range(0, leaves, AT_ONCE):
            rows = []
            for index in range(first, min(first + AT_ONCE, leaves)):
                kind = "statement" if index % 2 else "verdict"
                row = own.get(index) or (kind, f"job-{index}", 1, alike[kind] + b"%08d" % index)
                rows.append((index, *row, merkle.leaf_hash(row[3])))
            with Transaction(self._db):
                self._db.executemany(
                    "INSERT INTO ledger (idx, kind, job, epoch, leaf, hash) VALUES (?, ?, ?, ?, ?, ?)", rows
                )
        self.read_back()
        with Transaction(self._db):
            self.grow_nodes()
            self.keep_head(self.ledger_head())
        return real


def measure_log(work: Work, folder: Path, rounds: int, leaves: int = LEAVES) -> LogFigures:
    """Make the log, and do everything with it in each round; raises DrivewayError when something does not hold."""
    path = folder / "log" / "driveway.db"
    store = LongStore(path)
    try:
        real = store.fill(work, leaves)
    finally:
        store.close()
    disk_bytes = path.stat().st_size
    ms: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        ms["open"].append(took_ms(lambda: Store(path).close()))
    store = LongStore(path)
    try:
        ms["self_test_all_bodies"] = [took_ms(lambda: hold(store)) for _ in range(rounds)]
        given = witness(work, store, real)
        ms["self_test"] = [took_ms(lambda: hold(store)) for _ in range(rounds)]
        ms["prove_a_leaf"] = [took_ms(lambda: ledger_view.prove_leaf(store, real)) for _ in range(rounds)]
    finally:
        store.close()
    for name, verify in (("verify_inclusion", believe), ("verify_consistency", continues)):
        rounds_ms = [took_ms(lambda: [verify(work, given) for _ in range(VERIFICATIONS)]) for _ in range(rounds)]  # noqa: B023 - called at once
        ms[name] = [one / VERIFICATIONS for one in rounds_ms]
    return LogFigures(leaves=leaves, bytes=disk_bytes, ms={name: spread(took) for name, took in ms.items()})


def statement_at(work: Work, index: int) -> bytes:
    """A signed statement for this place in the log."""
    row = work.hand_in(work.grant(index, 1), index, index, work.finished(index, 1))
    assert row.statement is not None
    return row.statement


def witness(work: Work, store: Store, index: int) -> Given:
    """Two checkpoints, of nine tenths of the log and of all, countersigned and taken; what proves the leaf `index`."""
    size = store.ledger_head().size
    taken = []
    for covered in (size - size // 10, size):
        said, signed = work.checkpoint(covered, ledger.root(store.node, covered).hex())
        store.add_checkpoint(said, signed, WALL_MS)
        taken.append(work.witnessed(signed))
        fault = store.take_witness(said, taken[-1], WALL_MS)
        if fault is not None:
            raise DrivewayError(f"the log does not hold: {fault.detail}")
    hashes = store.consistency(size - size // 10, size)
    return Given(ledger_view.prove_leaf(store, index).bundle.encode("ascii"), (taken[0], taken[1]), hashes)


def hold(store: Store) -> None:
    """Every leaf, node and the root, as the self-test does at a start; raises DrivewayError when one is wrong."""
    head = store.ledger_head()
    if store.stored_head() != head:
        raise DrivewayError(f"the root over {head.size} leaves is not that which was written with them")
    for first in range(0, head.size, LEAVES_AT_ONCE):
        wrong = store.wrong_leaf(first, LEAVES_AT_ONCE)
        if wrong is not None:
            raise DrivewayError(f"leaf {wrong} of {head.size} is not what was written")


def believe(work: Work, given: Given) -> None:
    """One leaf: the checkpoint with both signatures, inclusion, session and statement; raises TrustError."""
    bundle.verify_proof(given.proof, work.unit_keys, work.witness_keys)


def continues(work: Work, given: Given) -> None:
    """That one countersigned checkpoint continues another; raises TrustError."""
    before, after = (verify_countersigned(one, work.unit_keys, work.witness_keys) for one in given.checkpoints)
    roots = bytes.fromhex(before.root), bytes.fromhex(after.root)
    merkle.verify_consistency(before.size, after.size, *roots, given.hashes)
