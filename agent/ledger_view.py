"""What `driveway status` and `driveway ledger` tell of the ledger, and the proofs that are taken out of it.

Every function here runs on the store's thread (`StoreThread.call`). A proof is made against a checkpoint that covers
the leaf: the newest that the dispatcher witnessed where there is one, else the newest. Proofs need hashes alone, but to
be shown a leaf has to be there: of old, witnessed leaves only the hash is kept, and then that is the answer.
"""

from __future__ import annotations

import msgspec

from agent.core.model import JobKey
from agent.errors import DrivewayError
from agent.rows import CheckpointRow, LedgerRow
from agent.stamp import stamp
from agent.store import Store
from agent.trust import bundle, dsse, ledger
from agent.trust.statement import parse_statement

STATEMENT = "statement"
SHOW = "see `driveway ledger show --limit 1000`"


class CheckpointView(msgspec.Struct, frozen=True):
    """A checkpoint: the size and root that the unit's key signed, when (UTC), and whether the dispatcher signed too."""

    size: int
    root: str
    signed_at: str
    witnessed: bool


class LedgerView(msgspec.Struct, frozen=True):
    """The ledger as it stands.

    `checkpoint` is the newest; the leaves before `witnessed` are in one that the dispatcher countersigned; `dispute` is
    what it holds against this ledger ("": nothing); `session` the newest session with a certificate. `unpaid_since`:
    since then (UTC; "": not) it judges no hand-in, because too much of the ledger stands unwitnessed.
    """

    size: int
    root: str
    checkpoint: CheckpointView | None = None
    witnessed: int = 0
    dispute: str = ""
    session: int | None = None
    unpaid_since: str = ""


class LeafView(msgspec.Struct, frozen=True):
    """One leaf: its RFC 9162 hash, and its envelope as it was hashed (None: only the hash is kept).

    `job` and `epoch` are those of the lease; for a session `job` is empty and `epoch` the session's number.
    """

    index: int
    kind: str
    job: str
    epoch: int
    hash: str
    leaf: bytes | None


class LedgerShown(msgspec.Struct, frozen=True):
    """`driveway ledger show`: how the ledger stands, and its newest leaves, oldest first."""

    ledger: LedgerView
    leaves: list[LeafView]


class Proof(msgspec.Struct, frozen=True):
    """`driveway ledger prove`: the proof bundle as text, and what it is about."""

    kind: str
    index: int
    job: str
    epoch: int
    size: int
    witnessed: bool
    bundle: str


def look(store: Store) -> LedgerView:
    """How the ledger stands."""
    head, newest, witnessed = store.ledger_head(), store.checkpoint(), store.checkpoint(witnessed=True)
    fault, session, wanted = store.ledger_fault(), store.newest_session(), store.witness_wanted()
    return LedgerView(
        size=head.size,
        root=head.root,
        checkpoint=None if newest is None else _checkpoint(newest),
        witnessed=0 if witnessed is None else witnessed.size,
        dispute="" if fault is None else fault.detail,
        session=session,
        unpaid_since="" if wanted is None else stamp(wanted.since_wall_ms),
    )


def show(store: Store, limit: int) -> LedgerShown:
    """How the ledger stands, with its newest leaves."""
    leaves = [
        LeafView(row.index, row.kind, row.job, row.epoch, store.node(0, row.index).hex(), row.leaf)
        for row in store.ledger(limit)
    ]
    return LedgerShown(look(store), leaves)


def prove_leaf(store: Store, index: int) -> Proof:
    """The proof of the leaf at `index`; raises DrivewayError when it cannot be shown or no checkpoint covers it."""
    row = store.leaf(index)
    if row is None:
        raise DrivewayError(f"the ledger has {store.ledger_head().size} leaves, and none is {index}", hint=SHOW)
    return _prove(store, row)


def prove_lease(store: Store, key: JobKey) -> Proof:
    """The proof of the statement about a lease; raises DrivewayError as `prove_leaf`."""
    row = store.leaf_of(STATEMENT, key)
    if row is None:
        raise DrivewayError(f"the ledger has no statement about lease {key.job}/{key.epoch}", hint=SHOW)
    return _prove(store, row)


def _prove(store: Store, row: LedgerRow) -> Proof:
    if row.leaf is None:
        raise DrivewayError(
            f"of leaf {row.index} ({row.kind}) only the hash is kept, for it is old", hint="ask the dispatcher for it"
        )
    covering = _covering(store, row.index)
    hashes = ledger.inclusion(store.node, row.index, covering.size)
    made = bundle.proof_bundle(
        row.kind,
        row.index,
        row.leaf,
        proof=hashes,
        size=covering.size,
        checkpoint=covering.envelope,
        session=_certificate(store, row) if row.kind == STATEMENT else None,
    )
    return Proof(row.kind, row.index, row.job, row.epoch, covering.size, covering.witnessed, made.decode("ascii"))


def _covering(store: Store, index: int) -> CheckpointRow:
    for found in (store.checkpoint(witnessed=True), store.checkpoint()):
        if found is not None and found.size > index:
            return found
    raise DrivewayError(
        f"no checkpoint covers leaf {index} yet", hint="the unit's key signs one within 10 minutes; see `driveway keys`"
    )


def _certificate(store: Store, row: LedgerRow) -> bytes:
    """The certificate of the session whose key signed a statement: the last leaf of that number before it."""
    assert row.leaf is not None
    number = parse_statement(dsse.parse(row.leaf).payload).session
    found = store.leaf_of("session", JobKey("", number), before=row.index)
    if found is None or found.leaf is None:
        raise DrivewayError(
            f"the certificate of session {number}, which signed leaf {row.index}, is not kept",
            hint="the dispatcher has it with the hand-in",
        )
    return found.leaf


def _checkpoint(row: CheckpointRow) -> CheckpointView:
    return CheckpointView(row.size, row.root, stamp(row.wall_ms), row.witnessed)
