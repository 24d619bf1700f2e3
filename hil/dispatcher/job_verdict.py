"""What the dispatcher tells a customer about a job: an in-toto Statement v1 with the predicate `job-verdict/v1`.

The subjects are the slices' outputs, by the digests of the answers that the customer fetches. The predicate says of
which job, package and input they are, and how each was verified. The dispatcher signs it with its own key, in a DSSE
envelope of type `application/vnd.in-toto+json`; whoever trusts that key needs nothing else to check it.

What cars sign stays between them and the operator. So nothing in here tells one car from another: how many units
worked on it is a number, when is an hour, and there is no energy, no price and no device. docs/protocol.md names every
field. A long job has several of these, each about `PAGE_SLICES` slices at most.

`parse_job_verdict` takes what `JobVerdict.to_bytes` can have written, to the byte; all failures are `TrustError`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from agent.errors import TrustError
from agent.trust import dsse
from agent.trust.dsse import JsonValue, SigningKey, VerifyingKey, canonical_json, strict_json
from agent.trust.records import Identifier, Sha256, from_json, to_json
from agent.trust.statement import PAYLOAD_TYPE, STATEMENT_TYPE, Package
from hil.dispatcher.database import Database

PREDICATE_TYPE = "https://driveway.example/attestation/job-verdict/v1"
PAGE_SLICES = 128
"""About 35 kB of JSON, and 47 kB in an envelope, of the 64 KiB that are looked at."""
HOUR_MS = 3_600_000
OPERATOR = ""
"""In the place of a unit in a comparison: the operator's own result."""
OVER = ("done", "dead", "cancelled")

Verification = Annotated[str, re.compile(r"unreplicated|agreed|recomputed|disputed")]
"""`agreed`: another unit's answers were the same; `recomputed`: the operator's own were; `disputed`: they were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSlice:
    """One settled slice: how many items have no answer, the digest of the answers, and how they were verified."""

    index: int
    items: int
    failed_items: int
    output_sha256: Sha256
    verification: Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVerdict:
    """The predicate. `job_slices` are all that the job has, `slices` those that this is about and that were settled.

    `units` is how many worked on these, checks included; `settled_hour` is when the last of them was settled, in hours
    since 1970 (UTC).
    """

    job: Identifier
    package: Package
    input_sha256: Sha256
    job_slices: int
    slices: tuple[JudgedSlice, ...]
    units: int
    settled_hour: int

    def to_bytes(self) -> bytes:
        """The in-toto Statement as canonical JSON; raises TrustError when a field could not be read back."""
        body = _spell(self)
        parse_job_verdict(body)
        return body


def sign_job_verdict(verdict: JobVerdict, key: SigningKey) -> bytes:
    """The envelope for the customer."""
    return dsse.sign(PAYLOAD_TYPE, verdict.to_bytes(), key)


def verify_job_verdict(envelope: bytes, keys: Mapping[str, VerifyingKey]) -> JobVerdict:
    """The verdict in `envelope`, signed by one of the dispatcher's `keys`; raises TrustError."""
    return parse_job_verdict(dsse.verify(envelope, PAYLOAD_TYPE, keys))


def parse_job_verdict(body: bytes) -> JobVerdict:
    """The verdict in `body`, every field checked; raises TrustError that names the first field at fault."""
    match strict_json(body):
        case {"_type": str(kind), "predicateType": str(predicate_type), "predicate": predicate}:
            pass
        case _:
            raise TrustError("not an in-toto Statement: _type, predicateType or predicate is missing")
    if (kind, predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise TrustError(f"job verdict: a {kind!a} with the predicate {predicate_type!a} is none")
    verdict = from_json(JobVerdict, predicate, "predicate")
    indexes = [entry.index for entry in verdict.slices]
    if not indexes or indexes != sorted(set(indexes)) or indexes[-1] >= verdict.job_slices:
        raise TrustError("predicate.slices: need at least one, in rising order, each once, and within the job")
    if any(entry.failed_items > entry.items for entry in verdict.slices):
        raise TrustError("predicate.slices: more items failed than there are")
    if _spell(verdict) != body:
        raise TrustError("job verdict: not canonical, an unknown field, or its subjects are not the slices' outputs")
    return verdict


def _spell(verdict: JobVerdict) -> bytes:
    """The one spelling of a verdict."""
    subjects: list[JsonValue] = [
        {"name": f"slice-{entry.index}", "digest": {"sha256": entry.output_sha256}} for entry in verdict.slices
    ]
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": to_json(verdict),
        }
    )


def read_job_verdict(database: Database, job: str, first: int) -> JobVerdict | None:
    """What is to be said of a job that is over, from slice `first` on; None: nothing, or not yet.

    Use from the thread that owns the book. Raises DatabaseLostError.
    """
    about = database.row("SELECT * FROM jobs WHERE job = :job", job=job)
    rows = database.rows(
        "SELECT slice, results.items, failed_items, output_sha256, handins.unit, handins.at_ms FROM results"
        " JOIN handins ON handins.job = results.job AND handins.epoch = results.epoch"
        " WHERE results.job = :job AND slice >= :first ORDER BY slice LIMIT :most",
        job=job,
        first=first,
        most=PAGE_SLICES,
    )
    if about is None or about["state"] not in OVER or not rows:
        return None
    compared = _Compared(database, job, rows[0]["slice"], rows[-1]["slice"])
    units = {row["unit"] for row in rows} | compared.units
    return JobVerdict(
        job=job,
        package=Package(name=about["package"], sha256=about["package_sha256"]),
        input_sha256=about["input_sha256"],
        job_slices=-(-about["items"] // about["slice_items"]),
        slices=tuple(
            JudgedSlice(
                index=row["slice"],
                items=row["items"],
                failed_items=row["failed_items"],
                output_sha256=row["output_sha256"],
                verification=compared.verification(row["slice"], row["unit"]),
            )
            for row in rows
        ),
        units=len(units),
        settled_hour=max(row["at_ms"] for row in rows) // HOUR_MS,
    )


class _Compared:
    """What checks said of a job's slices, from `first` to `last`."""

    def __init__(self, database: Database, job: str, first: int, last: int) -> None:
        self.units: set[str] = set()
        self._same: defaultdict[tuple[int, str], dict[str, bool]] = defaultdict(dict)
        rows = database.rows(
            "SELECT slice, unit, copy_unit, same FROM comparisons"
            " WHERE job = :job AND slice >= :first AND slice <= :last",
            job=job,
            first=first,
            last=last,
        )
        for row in rows:
            one, other = row["unit"], row["copy_unit"]
            self.units |= {one, other} - {OPERATOR}
            self._same[row["slice"], one][other] = self._same[row["slice"], other][one] = bool(row["same"])

    def verification(self, index: int, unit: str) -> str:
        """How the answers that this unit gave to a slice were verified; what the operator found himself decides."""
        same = self._same.get((index, unit), {})
        if OPERATOR in same:
            return "recomputed" if same[OPERATOR] else "disputed"
        if not same:
            return "unreplicated"
        return "agreed" if any(same.values()) else "disputed"
