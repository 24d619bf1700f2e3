"""What the store gives and takes, as frozen values: slices, hand-ins, leases of the past, leaves and sums.

Apart from the store, so that those who only show or build them need no database. Times are wall-clock milliseconds,
for people; energy is in micro-watt-hours, money in millionths of the currency.
"""

from __future__ import annotations

import msgspec

from agent.core.model import Grant, HandInKind, JobKey, SliceOutcome, Spent


class Engine(msgspec.Struct, frozen=True):
    """What computed a slice: the executor and the digests of the model, of the kernels, and of the plan ("": none).

    `version` is the engine library's, `driver` the accelerator driver's ("": it has none). `precision` is what it
    computes in ("": a slice of before that was told), `batch` the items of a full micro-batch in each lane, and
    `golden_raw_sha256` the digest of the raw results of its golden items, which it computed `golden_age_ms` before.
    """

    executor: str
    model_sha256: str
    kernels_sha256: str
    plan_sha256: str = ""
    version: str = ""
    driver: str = ""
    precision: str = ""
    batch: tuple[int, ...] = ()
    golden_raw_sha256: str = ""
    golden_age_ms: int = 0


class StoredSlice(msgspec.Struct, frozen=True):
    """A finished slice with its answers and what computed it, as it was committed."""

    outcome: SliceOutcome
    output: bytes
    engine: Engine


class LeaseRow(msgspec.Struct, frozen=True):
    """One lease of the past or the present, for people."""

    job: str
    epoch: int
    state: str
    customer: str
    package: str
    items: int
    slices_done: int
    slices_wanted: int
    opened_wall_ms: int
    kind: str | None
    why: str | None
    energy_micro_wh: int
    cost_micro: int
    verdict: str | None
    reason: str | None
    paid_micro: int
    currency: str


class OpenRow(msgspec.Struct, frozen=True):
    """A lease that was running when the daemon ended."""

    grant: Grant
    done: tuple[int, ...]
    spent: Spent


class LogRow(msgspec.Struct, frozen=True):
    """One event of the log that the store keeps; `fields` is JSON."""

    at_wall_ms: int
    name: str
    fields: bytes


class VacateStats(msgspec.Struct, frozen=True):
    """How fast the computer was given back, over all vacates: from the sign on the bus to the worker's end."""

    count: int
    p50_ms: int | None
    p99_ms: int | None
    max_ms: int | None


class Totals(msgspec.Struct, frozen=True):
    """Energy drawn (at the computer), money paid, and what the energy cost, over all leases."""

    energy_micro_wh: int
    paid_micro: int
    cost_micro: int

    def plus(self, more: Totals) -> Totals:
        """With so much more of each."""
        return Totals(
            self.energy_micro_wh + more.energy_micro_wh,
            self.paid_micro + more.paid_micro,
            self.cost_micro + more.cost_micro,
        )


class LedgerHead(msgspec.Struct, frozen=True):
    """The size and RFC 9162 root of the ledger."""

    size: int
    root: str


class CheckpointRow(msgspec.Struct, frozen=True):
    """A checkpoint of the ledger in its envelope; with the dispatcher's signature on it, it is `witnessed`."""

    size: int
    root: str
    envelope: bytes
    wall_ms: int
    witnessed: bool


class LedgerRow(msgspec.Struct, frozen=True):
    """One leaf: a statement this car made, a verdict it was given, or the certificate of a session key.

    Of an old leaf only the hash is kept: its body is None.
    """

    index: int
    kind: str
    job: str
    epoch: int
    leaf: bytes | None


class HandInRow(msgspec.Struct, frozen=True):
    """What a hand-in puts into the store: the message for the outbox, and the statement if slices were finished.

    `referenced` are the slices whose answers the message only names by their digest, `missing` those of them that have
    still to be uploaded.
    """

    kind: HandInKind
    body: bytes
    statement: bytes | None
    statement_sha256: str
    slices: int
    referenced: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()


class OutboxRow(msgspec.Struct, frozen=True):
    """A hand-in that awaits a verdict on this statement ("" when it has none), of so many slices.

    `referenced` are those whose answers it only names, `missing` those of them that have to be uploaded before it can
    be sent.
    """

    key: JobKey
    kind: HandInKind
    statement_sha256: str
    slices: int
    missing: tuple[int, ...] = ()
    referenced: tuple[int, ...] = ()


class SliceToUpload(msgspec.Struct, frozen=True):
    """A slice's answers, and where they go by the word of the grant that was stored ("" where it names no place)."""

    output: bytes
    url: str
    token: str
