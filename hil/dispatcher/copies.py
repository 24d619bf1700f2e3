"""Checks finished work: has it done once more, holds what came against each other, and draws the consequences.

A copy is a job of its own, of the same priority: else it would wait for ever where there is always work, and pay would
age unseen. It looks like any other to a car, and is never granted to a unit that worked on the original or on another
copy of it. It is settled and paid like any other: a check never settles anything anew, and the customer's answers stay
those of the original. Where nobody knows how far apart two answers may be, digests decide, so the copy is for units of
the same equivalence class.

While the results of a slice do not show who is right, another copy is made, until there are `MOST_RESULTS` results; so
long the hand-ins are disputed, and their pay stays held. Every hand-in has one outcome, the first. What the operator
knows beforehand (`known_answers`) or computes himself counts as a result of his own, and needs no majority.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from hil.dispatcher.database import Database, Row
from hil.dispatcher.job_names import name_like
from hil.dispatcher.pay import Pay
from hil.dispatcher.replication import (
    MOST_RESULTS,
    Bits,
    ClassRecord,
    Comparator,
    Judgement,
    NoReplication,
    Replication,
    SliceResult,
    UnitRecord,
    drawn,
    judge_results,
    odd_ones,
    same_class,
)
from hil.dispatcher.tolerance import Agreement, Tolerance

OPERATOR = ""
"""In the place of a unit: the operator's own result."""

Tolerances = Callable[[str], Tolerance | None]
"""By a package's digest: how far apart answers may be; None where nobody knows."""
ReadObject = Callable[[str], bytes | None]
"""By its digest: an object; None where there is none."""


class Checking(msgspec.Struct, frozen=True, kw_only=True):
    """How work is checked."""

    replication: Replication
    comparator: Comparator
    tolerances: Tolerances
    read_object: ReadObject
    has_referee: bool = False
    """Whether the operator computes what is disputed himself (`hil.dispatcher.referee`): then no third car is asked.

    Not so for a package of which he does not know how far apart answers may be: he has it not, or could not compare.
    """


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """A result of a slice, and the hand-in that brought it: ("", 0) where the operator did."""

    result: SliceResult
    job: str = ""
    epoch: int = 0
    counts: bool = False
    """Whether it says something new of its class: it has no outcome yet, and its unit's bits were never odd."""


@dataclass
class _Outcome:
    """What came of all slices of a job, by hand-in: whether all of it is right, and whether any of it is wrong."""

    right: dict[tuple[str, int], bool] = field(default_factory=dict)
    wrong: set[tuple[str, int]] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)
    disputed: bool = False
    unclear: str = ""

    @property
    def open(self) -> bool:
        """Whether another result would help."""
        return self.disputed or bool(self.unclear)

    def add(self, results: Sequence[_Found], judgement: Judgement, bits: Bits, *, differs: bool) -> None:
        """What came of a slice, two results of which differ or not."""
        self.disputed |= differs and not judgement.settled
        self.unclear = self.unclear or bits.unclear
        self.odd |= {results[place].result.unit for place in bits.odd}
        for place, one in enumerate(results):
            key = (one.job, one.epoch)
            self.right[key] = self.right.get(key, True) and place in judgement.upheld
            if place in judgement.outvoted:
                self.wrong.add(key)


class Copies:
    """Part of the book; call inside a transaction. `secret` makes the draws, and is asked for when it is needed.

    `finished` is told of customers' jobs that are finished, with the time, where their answers could be known.
    """

    def __init__(
        self,
        database: Database,
        checking: Checking,
        pay: Pay,
        secret: Callable[[], str],
        finished: Callable[[str, int], None] | None = None,
    ) -> None:
        self._database, self._checking, self._pay, self._secret = database, checking, pay, secret
        self._finished = finished

    def on_done(self, job: str, replica_of: str | None, now_ms: int) -> None:
        """A job was finished in this transaction: hold it against what is known, and copy it where that is wanted."""
        if replica_of is not None:
            self.examine(replica_of, now_ms)
            return
        if self._is_known(job):
            self.examine(job, now_ms)
            return
        if self._finished is not None and self._tolerance(job) is not None:
            self._finished(job, now_ms)
        if not isinstance(self._checking.replication, NoReplication) and self._wanted(job):
            self._make(job, "")

    def know(self, job: str, answers: Mapping[int, bytes], now_ms: int) -> None:
        """The operator knows what is right for these slices of a job, a JSON array each; results are held to that.

        For a job whose answers he knew beforehand, and for one that he computed himself.
        """
        self._database.many(
            "INSERT INTO known_answers (job, slice, answers) VALUES (:job, :slice, :answers) ON CONFLICT DO NOTHING",
            [{"job": job, "slice": index, "answers": body} for index, body in sorted(answers.items())],
        )
        self.examine(job, now_ms)

    def note_class(self, unit: str, package_sha256: str, equivalence_class: str) -> None:
        """Of which class the unit is, with this package, by its newest statement."""
        self._database.execute(
            "INSERT INTO unit_classes (unit, package_sha256, equivalence_class) VALUES (:unit, :package, :class)"
            " ON CONFLICT (unit, package_sha256) DO UPDATE SET equivalence_class = excluded.equivalence_class"
            " WHERE unit_classes.equivalence_class != excluded.equivalence_class",
            unit=unit,
            package=package_sha256,
            **{"class": equivalence_class},
        )

    def precisions(self, package_sha256: str) -> frozenset[str]:
        """In which a package may be run, as far as its manifest says so; empty: in any."""
        tolerance = self._checking.tolerances(package_sha256)
        return frozenset() if tolerance is None else frozenset(tolerance.bands_ppm)

    def _is_known(self, job: str) -> bool:
        return self._database.row("SELECT 1 AS it FROM known_answers WHERE job = :job LIMIT 1", job=job) is not None

    def _wanted(self, job: str) -> bool:
        rows = self._database.rows(
            "SELECT units.unit, agreed, disagreed, statement_sha256 FROM handins"
            " JOIN units ON units.unit = handins.unit WHERE job = :job AND verdict = 'settled' ORDER BY epoch",
            job=job,
        )
        secret = self._secret()
        return any(
            self._checking.replication.wants_copy(
                UnitRecord(row["unit"], row["agreed"], row["disagreed"]), drawn(secret, row["statement_sha256"])
            )
            for row in rows
        )

    def _make(self, job: str, wanted_class: str) -> bool:
        """One more copy, for this class's units where one is named; whether one is on its way."""
        told = self._database.row(
            "SELECT package_sha256, (SELECT count(*) FROM jobs AS copies WHERE copies.replica_of = jobs.job) AS copies,"
            " (SELECT count(*) FROM jobs AS copies WHERE copies.replica_of = jobs.job"
            " AND copies.state IN ('free', 'leased')) AS waiting, (SELECT min(handins.equivalence_class) FROM handins"
            " WHERE handins.job = jobs.job AND verdict = 'settled') AS class FROM jobs WHERE job = :job",
            job=job,
        )
        if told is None or told["waiting"] or told["copies"] + 1 >= MOST_RESULTS:
            return told is not None and told["waiting"] > 0
        if self._checking.tolerances(told["package_sha256"]) is None:
            wanted_class = told["class"] or ""
        self._database.execute(
            "INSERT INTO jobs (job, seq, customer, package, package_sha256, input_sha256, input_bytes, items,"
            " slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor, device_class, sealed,"
            " priority, estimate_us_per_item, replica_of, replica, equivalence_class)"
            " SELECT :copy, (SELECT max(seq) + 1 FROM jobs), customer, package, package_sha256, input_sha256,"
            " input_bytes, items, slice_items, price_micro_per_item, currency, ttl_s, workload_class, executor,"
            " device_class, sealed, priority, estimate_us_per_item, job, :replica, :class FROM jobs WHERE job = :job"
            " ON CONFLICT DO NOTHING",
            copy=name_like(job),  # as any other: a car is not to know that it checks somebody
            job=job,
            replica=told["copies"] + 1,
            **{"class": wanted_class},
        )
        return True

    # --- comparing ---------------------------------------------------------------------------------------------

    def examine(self, original: str, now_ms: int) -> None:
        """Judge all that is known of a job's slices, and draw the consequences; ask again where nobody can say."""
        tolerance = self._tolerance(original)
        outcome = _Outcome()
        for index, results in sorted(self._found(original).items()):
            judgement, differs = self._judge(original, index, results, tolerance, now_ms)
            outcome.add(results, judgement, self._bits(results, judgement), differs=differs)
        asked = outcome.open and self._ask(original, outcome)
        self._conclude(outcome, now_ms, only_wrong=bool(outcome.unclear) and asked)
        self._database.execute(
            "UPDATE handins SET disputed = :disputed WHERE checked = '' AND disputed != :disputed"
            " AND job IN (SELECT job FROM jobs WHERE job = :job OR replica_of = :job)",
            disputed=int(outcome.disputed and asked),
            job=original,
        )

    def _ask(self, original: str, outcome: _Outcome) -> bool:
        """Have somebody else say what is right; whether anybody will."""
        if outcome.disputed and self._checking.has_referee and self._tolerance(original) is not None:
            return True
        return self._make(original, "" if outcome.disputed else outcome.unclear)

    def disputes(self) -> list[str]:
        """The jobs about which two units disagree and nobody has decided yet, oldest first."""
        rows = self._database.rows(
            "SELECT job, seq FROM jobs WHERE replica_of IS NULL AND EXISTS (SELECT 1 FROM handins"
            " WHERE handins.job = jobs.job AND disputed = 1) ORDER BY seq"
        )
        return [row["job"] for row in rows]

    def _judge(
        self, original: str, index: int, results: Sequence[_Found], tolerance: Tolerance | None, now_ms: int
    ) -> tuple[Judgement, bool]:
        """Who is right about a slice, and whether any two differ; each comparison is written down, once."""
        said: dict[tuple[str, str], Agreement] = {}

        def compare(one: SliceResult, other: SliceResult) -> Agreement:
            agreement = said[one.unit, other.unit] = self._checking.comparator.compare(one, other, tolerance)
            return agreement

        judgement = judge_results([one.result for one in results], compare)
        self._database.many(
            "INSERT INTO comparisons (job, slice, unit, copy_unit, same, at_ms)"
            " VALUES (:job, :slice, :unit, :copy_unit, :same, :now) ON CONFLICT DO NOTHING",
            [
                {
                    "job": original,
                    "slice": index,
                    "unit": unit,
                    "copy_unit": copy_unit,
                    "same": int(agreement is Agreement.SAME),
                    "now": now_ms,
                }
                for (unit, copy_unit), agreement in said.items()
                if agreement is not Agreement.UNKNOWN
            ],
        )
        return judgement, Agreement.DIFFERENT in said.values()

    def _found(self, original: str) -> dict[int, list[_Found]]:
        """All results of the job's slices, its copies' included; the operator's own last."""
        rows = self._database.rows(
            "SELECT slice, results.job, results.epoch, output_sha256, raw_sha256, body, handins.unit,"
            " handins.equivalence_class, handins.precision, checked, odd_bits FROM results"
            " JOIN jobs ON jobs.job = results.job"
            " JOIN handins ON handins.job = results.job AND handins.epoch = results.epoch"
            " JOIN units ON units.unit = handins.unit"
            " WHERE jobs.job = :job OR jobs.replica_of = :job ORDER BY jobs.replica, slice",
            job=original,
        )
        found: defaultdict[int, list[_Found]] = defaultdict(list)
        for row in rows:
            counts = not row["checked"] and not row["odd_bits"]
            one = _Found(result=self._result(row), job=row["job"], epoch=row["epoch"], counts=counts)
            found[row["slice"]].append(one)
        known = self._database.rows("SELECT slice, answers FROM known_answers WHERE job = :job", job=original)
        for row in known:
            if row["slice"] in found:
                found[row["slice"]].append(_Found(result=_operators(bytes(row["answers"]))))
        return {index: results for index, results in found.items() if len(results) > 1}

    def _result(self, row: Row) -> SliceResult:
        body, sha256 = row["body"], row["output_sha256"]
        return SliceResult(
            unit=row["unit"],
            equivalence_class=row["equivalence_class"],
            output_sha256=sha256,
            raw_sha256=row["raw_sha256"],
            precision=row["precision"],
            answers=lambda: self._checking.read_object(sha256) if body is None else bytes(body),
        )

    def _tolerance(self, job: str) -> Tolerance | None:
        row = self._database.row("SELECT package_sha256 FROM jobs WHERE job = :job", job=job)
        return None if row is None else self._checking.tolerances(row["package_sha256"])

    def _bits(self, results: Sequence[_Found], judgement: Judgement) -> Bits:
        """Whose bits are not their class's; what was seen of the classes is counted."""
        sliced = [one.result for one in results]
        records = {
            row["equivalence_class"]: ClassRecord(row["exact"], row["inexact"])
            for name in sorted({one.equivalence_class for one in sliced})
            for row in self._database.rows("SELECT * FROM classes WHERE equivalence_class = :name", name=name)
        }
        for one, other in itertools.combinations(sorted(judgement.upheld), 2):
            if same_class(sliced[one], sliced[other]) and results[one].counts and results[other].counts:
                same = sliced[one].raw_sha256 == sliced[other].raw_sha256
                self._database.execute(
                    "INSERT INTO classes (equivalence_class, exact, inexact) VALUES (:class, :exact, :inexact)"
                    " ON CONFLICT (equivalence_class) DO UPDATE SET exact = classes.exact + excluded.exact,"
                    " inexact = classes.inexact + excluded.inexact",
                    **{"class": sliced[one].equivalence_class, "exact": int(same), "inexact": int(not same)},
                )
        return odd_ones(sliced, judgement.upheld, records)

    # --- consequences ------------------------------------------------------------------------------------------

    def _conclude(self, outcome: _Outcome, now_ms: int, *, only_wrong: bool) -> None:
        """Each hand-in has its outcome once: all its slices were right, or one of them was not."""
        for (job, epoch), is_right in sorted(outcome.right.items()):
            is_wrong = (job, epoch) in outcome.wrong
            if not job or not (is_wrong or (is_right and not only_wrong)):
                continue
            noted = self._database.row(
                "UPDATE handins SET checked = :checked, disputed = 0"
                " WHERE job = :job AND epoch = :epoch AND checked = '' RETURNING unit",
                checked="wrong" if is_wrong else "right",
                job=job,
                epoch=epoch,
            )
            if noted is None:
                continue
            if is_wrong:
                self._note(noted["unit"], "agreed = 0, disagreed = disagreed + 1")
                self._pay.forfeit(noted["unit"])
            elif noted["unit"] in outcome.odd:
                self._note(noted["unit"], "agreed = 0, odd_bits = odd_bits + 1")
                self._pay.release(noted["unit"], now_ms)
            else:
                self._note(noted["unit"], "agreed = agreed + 1")
                self._pay.release(noted["unit"], now_ms)

    def _note(self, unit: str, change: str) -> None:
        self._database.execute(f"UPDATE units SET {change} WHERE unit = :unit", unit=unit)  # noqa: S608 - ours


def _operators(answers: bytes) -> SliceResult:
    """What the operator knows to be right, as a result of nobody's."""
    return SliceResult(
        unit=OPERATOR,
        equivalence_class="",
        output_sha256="",
        raw_sha256="",
        answers=lambda: answers,
        reference=True,
    )
