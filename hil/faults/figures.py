"""What a fault run has to say: its figures, how they come about, and the table.

Recovery is measured from the rows, not by watching. A fault's recovery is the time from its end until the next hand-in
with at least one slice is settled (`at_ms` of the dispatcher's row): one of the car that it hit, or, where it hit the
broker, a dispatcher, the database or everybody, of each car, which gives a sample a car. The faults go on meanwhile, so
this is an upper bound: a car that is hit again before it has recovered counts the time of both, and a car that has
nothing to hand in because the others are quicker counts that, too. A fault after which a car settles nothing more,
because the run was at its end, gives no sample.

A finding (something lost or doubled) is counted for every kind of fault that was on, or from which its car had not
recovered, between the opening of the first and the end of the last lease of that job; so one finding may count for
several kinds, and the sum over kinds may be more than what was found.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from hil.faults.accounts import Finding, Loss
from hil.faults.books import AgentBook, DispatcherBook
from hil.faults.processes import Ended
from hil.faults.schedule import Injection


class KindFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault; recovery is None where there was no sample."""

    injected: int
    lost: int
    doubled: int
    samples: int
    recovery_p50_s: float | None
    recovery_p99_s: float | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly what `--json` writes for one broker.

    `settled` are jobs of which every slice is settled. `executions` are slices that were begun; `extra_executions` is
    how many more than were settled: work that was cut off, or done by two. `pending` are hand-ins still without a
    verdict, and `gave_up` processes that ended by themselves.
    """

    broker: str
    database: str
    seed: int
    cars: int
    dispatchers: int
    jobs: int
    settled: int
    lost: int
    doubled: int
    executions: int
    extra_executions: int
    leases: int
    epochs_above_one: int
    pending: int
    faults: dict[str, KindFigures]
    faults_injected: int
    recovery_p50_s: float | None
    recovery_p99_s: float | None
    publishes_per_lease: float | None
    full_disk_by: str
    gave_up: list[Ended]
    findings: list[Finding]
    not_injected: list[str]
    wall_s: float
    versions: dict[str, str]

    @property
    def held(self) -> bool:
        """Every job is settled, and nothing was lost or paid twice."""
        return self.settled == self.jobs and not self.lost and not self.doubled


class Recovery:
    """When each car settled slices, in order; see the module's text."""

    def __init__(self, dispatcher: DispatcherBook, units: Sequence[str]) -> None:
        self._at_ms: dict[str, list[int]] = {unit: [] for unit in units}
        with_slices = {(row.job, row.epoch) for row in dispatcher.results}
        for row in sorted(dispatcher.hand_ins, key=lambda one: one.at_ms):
            if row.verdict == "settled" and (row.job, row.epoch) in with_slices:
                self._at_ms[row.unit].append(row.at_ms)

    def samples_s(self, injection: Injection) -> list[float]:
        """Seconds from the fault's end to the next settled slice, of each car that it hit."""
        found = []
        for unit in [injection.unit] if injection.unit else self._at_ms:
            at_ms = self._at_ms[unit]
            place = bisect.bisect_left(at_ms, injection.end_ms)
            if place < len(at_ms):
                found.append((at_ms[place] - injection.end_ms) / 1000)
        return found

    def over_ms(self, injection: Injection) -> int:
        """When the last car that it hit had recovered."""
        return injection.end_ms + round(1000 * max(self.samples_s(injection), default=0.0))


def by_kind(
    injections: Sequence[Injection], recovery: Recovery, findings: Sequence[Finding], agents: Sequence[AgentBook]
) -> dict[str, KindFigures]:
    """Each kind's figures, in the order in which they first came."""
    of_kind: dict[str, list[Injection]] = defaultdict(list)
    for injection in injections:
        of_kind[injection.kind].append(injection)
    blamed = [(finding, _blamed(finding, injections, recovery, agents)) for finding in findings]
    figures = {}
    for kind, some in of_kind.items():
        samples_s = [sample for injection in some for sample in recovery.samples_s(injection)]
        figures[kind] = KindFigures(
            injected=len(some),
            lost=sum(finding.loss is Loss.LOST and kind in kinds for finding, kinds in blamed),
            doubled=sum(finding.loss is Loss.DOUBLED and kind in kinds for finding, kinds in blamed),
            samples=len(samples_s),
            recovery_p50_s=percentile(samples_s, 0.5),
            recovery_p99_s=percentile(samples_s, 0.99),
        )
    return figures


def _blamed(
    finding: Finding, injections: Sequence[Injection], recovery: Recovery, agents: Sequence[AgentBook]
) -> set[str]:
    """The kinds of fault that may have had a part in it."""
    leases = [
        lease
        for agent in agents
        if finding.unit in {"", agent.unit}
        for lease in agent.leases
        if lease.job == finding.job or not finding.job
    ]
    begin_ms = min((lease.opened_ms for lease in leases), default=0)
    ends_ms = [math.inf if lease.closed_ms is None else lease.closed_ms for lease in leases]
    end_ms = max(ends_ms, default=math.inf)
    return {
        one.kind
        for one in injections
        if one.begin_ms <= end_ms
        and recovery.over_ms(one) >= begin_ms
        and finding.unit in {"", one.unit or finding.unit}
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value at the nearest rank, None when there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def draw(console: Console, figures: Figures) -> None:
    """The fault table, and what it comes to."""
    title = f"{figures.jobs} jobs, {figures.cars} cars, {figures.dispatchers} dispatchers, {figures.broker}"
    table = Table(title=f"{title}, {figures.database}, seed {figures.seed}", title_justify="left")
    table.add_column("fault")
    for column in ("injected", "lost", "doubled", "recovery p50", "recovery p99"):
        table.add_column(column, justify="right")
    for kind, row in figures.faults.items():
        table.add_row(
            kind.replace("_", " "),
            str(row.injected),
            str(row.lost),
            str(row.doubled),
            _seconds(row.recovery_p50_s),
            _seconds(row.recovery_p99_s),
        )
    table.add_section()
    table.add_row(
        "all",
        str(figures.faults_injected),
        str(figures.lost),
        str(figures.doubled),
        _seconds(figures.recovery_p50_s),
        _seconds(figures.recovery_p99_s),
    )
    console.print(table)
    told = f"{figures.settled} of {figures.jobs} jobs settled in {figures.wall_s:.0f} s"
    again = f"{figures.epochs_above_one} of them granted more than once"
    console.print(f"{told}, {again}; {figures.pending} hand-ins without a verdict", highlight=False)
    told = f"{figures.leases} leases, {figures.executions} slices begun, {figures.extra_executions} of them for nothing"
    console.print(f"{told}; {len(figures.gave_up)} processes gave up", highlight=False)
    for finding in figures.findings[:20]:
        about = " ".join(part for part in (finding.unit, finding.job) if part)
        console.print(f"[red]{finding.loss}[/red] {finding.rule}: {about} {finding.detail}", highlight=False)
    for end in figures.gave_up[:10]:
        console.print(f"[yellow]gave up[/yellow] {end.name} ({end.status}): {end.said[-300:]}", highlight=False)
    for text in figures.not_injected[:10]:
        console.print(f"[yellow]not injected[/yellow] {text}", highlight=False)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
