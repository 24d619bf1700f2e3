"""Is the answer right? Now and then the same work is done once more, by somebody else, and what they said is compared.

This page decides, and touches nothing: which job is checked, whether two answers are the same, and who was wrong.

* `AdaptiveReplication` is BOINC's rule: every job of a unit is checked until ten in a row were right, then one in as
  many as were right in a row, never less than one in `RAREST_CHECK`; one wrong answer begins it anew. Whether a job is
  drawn comes of a secret and of the statement's digest: nobody, the operator included, can know it before the statement
  is here, and nobody can argue about it afterwards.
* `ByClassOrValue` compares: equal answers are equal, and all else is compared by value, with what the package allows.
  Where nothing says what that is, digests decide, between units of one equivalence class only.
* `judge_results` finds who was wrong. Two that disagree prove nothing, so a third is asked, and more. Only he who
  disagrees with a majority that agrees among itself is outvoted; what the operator computed himself outvotes anyone.
* `odd_ones` finds whose values are right and whose bits are not those of his class, where the class was often seen to
  repeat itself: a lower precision, or a computer that only looks like the others. So it costs trust, and never pay:
  plans are built on each car, and a class of processors can differ inside.

`NoReplication` is the default: a rig with one car has nobody to ask.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from hil.dispatcher.tolerance import Agreement, Tolerance, compare_slices

VALIDS_FOR_TRUST = 10
RAREST_CHECK = 50
"""One job in so many of the most trusted unit is checked: it never pays to begin cheating."""
REPEATS_FOR_EXACT = 20
INEXACT_SHARE = 5
"""A class repeats itself when so many pairs were the same to the bit, and at least so many for each that was not."""
MOST_RESULTS = 5
"""Of one slice; when that many do not show who is right, nobody is held to be wrong."""


class UnitRecord(msgspec.Struct, frozen=True):
    """What checks said of a unit: jobs in a row that were right, and jobs ever that were wrong."""

    unit: str
    agreed: int
    disagreed: int


class Replication(Protocol):
    """Decides which finished jobs are done once more."""

    def wants_copy(self, unit_record: UnitRecord, draw: float) -> bool:
        """Whether a job that this unit worked on is to be copied; `draw` is in [0, 1), see `drawn`."""
        ...


class NoReplication:
    """Nothing is copied."""

    def wants_copy(self, unit_record: UnitRecord, draw: float) -> bool:  # noqa: ARG002 - the protocol's
        """Never."""
        return False


class AdaptiveReplication:
    """Everything of a unit without `trust` valid jobs in a row, then ever less, down to one job in `rarest`."""

    def __init__(self, *, trust: int = VALIDS_FOR_TRUST, rarest: int = RAREST_CHECK) -> None:
        self._trust, self._rarest = trust, rarest

    def share(self, agreed: int) -> float:
        """Of the jobs of a unit with so many valid ones in a row, which share is checked; never 0."""
        return 1.0 if agreed < self._trust else 1.0 / max(1, min(agreed, self._rarest))

    def wants_copy(self, unit_record: UnitRecord, draw: float) -> bool:
        """With probability `share`."""
        return draw < self.share(unit_record.agreed)


def drawn(secret: str, statement_sha256: str) -> float:
    """A number in [0, 1) that follows from the statement and a secret of the operator's, and from nothing else."""
    mac = hmac.new(secret.encode(), statement_sha256.encode(), hashlib.sha256).digest()
    return int.from_bytes(mac[:6], "big") / 2**48


class SliceResult(msgspec.Struct, frozen=True, kw_only=True):
    """Who said what about a slice. `answers` reads the JSON array; None: it is gone.

    `equivalence_class` is "" where nobody knows. `precision` is the one that it claims to have been computed in ("": in
    full). `reference`: the operator's own.
    """

    unit: str
    equivalence_class: str
    output_sha256: str
    raw_sha256: str
    answers: Callable[[], bytes | None]
    precision: str = ""
    reference: bool = False


class ClassRecord(msgspec.Struct, frozen=True):
    """How often two units of a class gave one slice the same raw results, and how often only the same values."""

    exact: int = 0
    inexact: int = 0

    @property
    def repeats(self) -> bool:
        """Whether equal bits can be expected of this class."""
        return self.exact >= REPEATS_FOR_EXACT and self.inexact * INEXACT_SHARE <= self.exact


class Comparator(Protocol):
    """Says whether two results of one slice are the same."""

    def compare(self, one: SliceResult, other: SliceResult, tolerance: Tolerance | None) -> Agreement:
        """`tolerance` is the package's, None where nobody knows it."""
        ...


class ByClassOrValue:
    """By the digest where that is enough, and inside a class only; by value elsewhere; see above."""

    def compare(self, one: SliceResult, other: SliceResult, tolerance: Tolerance | None) -> Agreement:
        """See `Comparator`."""
        if one.output_sha256 == other.output_sha256:
            return Agreement.SAME
        if tolerance is not None:
            return by_value(one, other, tolerance)
        return Agreement.DIFFERENT if same_class(one, other) else Agreement.UNKNOWN


def same_class(one: SliceResult, other: SliceResult) -> bool:
    """Whether both ran what can be expected to give the same bits."""
    return one.equivalence_class == other.equivalence_class != ""


def by_value(one: SliceResult, other: SliceResult, tolerance: Tolerance) -> Agreement:
    """Whether the answers themselves agree."""
    mine, theirs = one.answers(), other.answers()
    if mine is None or theirs is None:
        return Agreement.UNKNOWN
    return compare_slices(mine, theirs, tolerance, (one.precision, other.precision))


class Judgement(msgspec.Struct, frozen=True):
    """Of the results of a slice, by their places: who is upheld, and who was outvoted. Neither: nobody can say."""

    upheld: frozenset[int] = frozenset()
    outvoted: frozenset[int] = frozenset()

    @property
    def settled(self) -> bool:
        """Whether it is known what is right."""
        return bool(self.upheld)


def judge_results(
    results: Sequence[SliceResult], compare: Callable[[SliceResult, SliceResult], Agreement]
) -> Judgement:
    """Who is right about a slice, of those few who worked on it (`MOST_RESULTS`, and the operator).

    Upheld is the largest group whose members all agree with each other, if it is more than half and no other is as
    large; a group with the operator's own result in it needs no majority. Outvoted is who disagrees with every one of
    them. Who agrees with some and not with others stands at the edge of the tolerance, and nothing is held against him.
    """
    agreement: dict[tuple[int, int], Agreement] = {}
    for one, other in itertools.combinations(range(len(results)), 2):
        agreement[one, other] = agreement[other, one] = compare(results[one], results[other])
    group = _upheld(results, agreement)
    outvoted = frozenset(
        place
        for place in range(len(results))
        if group and place not in group and all(agreement[place, member] is Agreement.DIFFERENT for member in group)
    )
    return Judgement(group, outvoted)


def _upheld(results: Sequence[SliceResult], agreement: Mapping[tuple[int, int], Agreement]) -> frozenset[int]:
    everybody = range(len(results))
    reference = next((place for place in everybody if results[place].reference), None)
    if reference is not None:
        agreeing = {one for one in everybody if one != reference and agreement[reference, one] is Agreement.SAME}
        return frozenset({reference, *agreeing})
    for size in range(len(results), len(results) // 2, -1):
        groups = [
            frozenset(group)
            for group in itertools.combinations(everybody, size)
            if size > 1 and all(agreement[pair] is Agreement.SAME for pair in itertools.combinations(group, 2))
        ]
        if groups:
            return groups[0] if len(groups) == 1 else frozenset()
    return frozenset()


class Bits(msgspec.Struct, frozen=True):
    """Of results that are right: by their places, whose bits are not their class's.

    `unclear` is a class in which one more result would show that; "": there is none.
    """

    odd: frozenset[int] = frozenset()
    unclear: str = ""


def odd_ones(results: Sequence[SliceResult], upheld: frozenset[int], records: Mapping[str, ClassRecord]) -> Bits:
    """Whose bits are not those that most of his class gave, where that class repeats itself."""
    odd: set[int] = set()
    unclear = ""
    for name in sorted({results[place].equivalence_class for place in upheld} - {""}):
        members = [place for place in upheld if results[place].equivalence_class == name]
        bits, times = Counter(results[place].raw_sha256 for place in members).most_common(1)[0]
        if not records.get(name, ClassRecord()).repeats or times == len(members):
            continue
        if 2 * times > len(members):
            odd |= {place for place in members if results[place].raw_sha256 != bits}
        else:
            unclear = name
    return Bits(frozenset(odd), unclear)
