"""Is the answer right? Now and then the same work is done twice, by two units, and what they said is compared.

The idea is BOINC's adaptive replication: a unit that nobody knows has every job of its copied; each slice that a copy
agrees with builds trust, and a trusted unit is still checked at random, so that it never pays to begin cheating. A
disagreement takes the trust of both away, since the comparison does not say who was wrong.

A copy is a job of its own, of lower priority than the customer's and never granted to a unit that worked on the
original; it is settled and paid like any other. So replication checks what was settled; it never settles anything.

`Replication` decides and `Comparator` compares; both can be replaced. Off by default: a rig with one car has nobody to
ask.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from hil.dispatcher.database import Database

AGREEMENTS_FOR_TRUST = 10
RAREST_CHECK = 20
"""One job in so many of a trusted unit is copied."""
COPY_PRIORITY = -1
SECRET = secrets.SystemRandom()


class UnitRecord(msgspec.Struct, frozen=True):
    """What copies said of a unit: slices that agreed since the last disagreement, and disagreements ever."""

    unit: str
    agreed: int
    disagreed: int


class Replication(Protocol):
    """Decides which finished jobs are done once more."""

    def wants_copy(self, unit_record: UnitRecord, job: str) -> bool:
        """Whether `job`, which this unit worked on, is to be copied."""
        ...


class Comparator(Protocol):
    """Says whether two answers to one slice are the same. Digests, for now: packages that are exact."""

    def same(self, output_sha256: str, copy_sha256: str) -> bool:
        """Whether a slice's answers and its copy's agree."""
        ...


class NoReplication:
    """Nothing is copied."""

    def wants_copy(self, unit_record: UnitRecord, job: str) -> bool:  # noqa: ARG002 - the protocol's
        """Never."""
        return False


class AdaptiveReplication:
    """Everything of a unit without `trust` agreements, then ever less, down to one job in `rarest`.

    `draw` gives a number in [0, 1) that no unit can foresee.
    """

    def __init__(
        self,
        *,
        trust: int = AGREEMENTS_FOR_TRUST,
        rarest: int = RAREST_CHECK,
        draw: Callable[[], float] = SECRET.random,
    ) -> None:
        self._trust, self._rarest, self._draw = trust, rarest, draw

    def wants_copy(self, unit_record: UnitRecord, job: str) -> bool:  # noqa: ARG002 - any of its jobs
        """With probability `trust`/`agreed`, at most 1 and at least 1 in `rarest`."""
        if unit_record.agreed < self._trust:
            return True
        return self._draw() < max(1.0 / self._rarest, self._trust / unit_record.agreed)


class SameDigest:
    """Two answers are the same when every byte is."""

    def same(self, output_sha256: str, copy_sha256: str) -> bool:
        """Whether the digests are equal."""
        return output_sha256 == copy_sha256


class Copies:
    """Part of the book: makes copies of finished jobs, and compares them when they are finished themselves."""

    def __init__(self, database: Database, replication: Replication, comparator: Comparator) -> None:
        self._database, self._replication, self._comparator = database, replication, comparator

    def on_done(self, job: str, replica_of: str | None, now_ms: int) -> None:
        """A job was finished in this transaction: copy it where that is wanted, or compare it if it is a copy."""
        if replica_of is not None:
            self._compare(replica_of, job, now_ms)
        elif not isinstance(self._replication, NoReplication) and self._wanted(job):
            self._make(job)

    def _wanted(self, job: str) -> bool:
        workers = self._database.rows(
            "SELECT unit, agreed, disagreed FROM units WHERE unit IN (SELECT unit FROM handins WHERE job = :job"
            " AND verdict = 'settled')",
            job=job,
        )
        records = [UnitRecord(row["unit"], row["agreed"], row["disagreed"]) for row in workers]
        return any(self._replication.wants_copy(record, job) for record in records)

    def _make(self, job: str) -> None:
        self._database.execute(
            "INSERT INTO jobs (job, seq, customer, package, package_sha256, input_sha256, input_bytes, items,"
            " slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor, device_class, priority,"
            " estimate_us_per_item, replica_of)"
            " SELECT :copy, (SELECT max(seq) + 1 FROM jobs), customer, package, package_sha256, input_sha256,"
            " input_bytes, items, slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor,"
            " device_class, :priority, estimate_us_per_item, job FROM jobs WHERE job = :job"
            " ON CONFLICT DO NOTHING",
            copy=f"copy-{secrets.token_hex(8)}",
            job=job,
            priority=COPY_PRIORITY,
        )

    def _compare(self, original: str, copy: str, now_ms: int) -> None:
        pairs = self._database.rows(
            "SELECT one.slice, one.output_sha256, two.output_sha256 AS copy_sha256, first.unit,"
            " second.unit AS copy_unit"
            " FROM results AS one JOIN results AS two ON two.job = :copy AND two.slice = one.slice"
            " JOIN handins AS first ON first.job = one.job AND first.epoch = one.epoch"
            " JOIN handins AS second ON second.job = two.job AND second.epoch = two.epoch WHERE one.job = :original"
            " ORDER BY one.slice",
            original=original,
            copy=copy,
        )
        for pair in pairs:
            same = self._comparator.same(pair["output_sha256"], pair["copy_sha256"])
            self._database.execute(
                "INSERT INTO comparisons (job, slice, unit, copy_unit, same, at_ms)"
                " VALUES (:job, :slice, :unit, :copy_unit, :same, :now)",
                job=original,
                slice=pair["slice"],
                unit=pair["unit"],
                copy_unit=pair["copy_unit"],
                same=int(same),
                now=now_ms,
            )
            self._note(sorted({pair["unit"], pair["copy_unit"]}), same=same)

    def _note(self, units: Iterable[str], *, same: bool) -> None:
        change = "agreed = agreed + 1" if same else "agreed = 0, disagreed = disagreed + 1"
        for unit in units:
            self._database.execute(f"UPDATE units SET {change} WHERE unit = :unit", unit=unit)  # noqa: S608 - ours
