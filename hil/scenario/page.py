"""The report of one scenario's run: verdict, figures against limits, plots over time, what happened, what was vacated.

One HTML file that refers to nothing outside itself, drawn with the plots and the style of `hil.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.core.policy import Policy
from agent.errors import StoreError
from hil.record import LeaseSpan, Moment, Outcome, RunRecord, Sample
from hil.rigs.observation import LeaseSeen, Observation
from hil.scenario.model import Scenario
from hil.scenario.output import limit_text, value_text
from hil.scenario.run import Run, Verdict

MOST_SAMPLES = 4_000
"""More than a plot has points; of a longer run every so-many-th look is drawn, and every change of the gate."""
MOST_VACATES = 40
"""So many are marked in the plots; the table has all."""
NO_OUTCOME = Outcome(
    images=0,
    accuracy=0.0,
    slices_done=0,
    slices_lost=0,
    vacate_ms=0.0,
    attestations=0,
    attestations_verified=0,
    energy_wh=0.0,
    gross=0.0,
    energy_cost=0.0,
    net=0.0,
    currency="",
)
"""The demonstration's figures, which a scenario has not got; they are not drawn."""


def write_report(run: Run, path: Path) -> None:
    """Write the page. Raises StoreError."""
    from hil.report.figure import inline_svg  # noqa: PLC0415 - matplotlib takes a second to import
    from hil.report.page import scenario_page  # noqa: PLC0415 - beside the figure it is written with

    record = record_of(run)
    plots = inline_svg(record) if record.samples else None
    try:
        path.write_text(scenario_page(_chapters(run), record, plots), "utf-8")
    except OSError as error:
        raise StoreError(f"{path} was not written: {error.strerror}") from error


class Chapters(msgspec.Struct, frozen=True, kw_only=True):
    """What the page says besides its plots: text, and rows of tables."""

    title: str
    about: tuple[str, ...]
    verdict: str
    passed: bool
    limits: tuple[tuple[str, str, str, bool, str], ...]
    """Name, value, limit, held, remark."""
    happened: tuple[tuple[str, str, str], ...]
    vacates: tuple[tuple[str, str, str, str], ...]
    leases: tuple[tuple[str, str, str, str, str], ...]
    files: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]


def _chapters(run: Run) -> Chapters:
    scenario = run.scenario
    missed = sum(not one.held for one in run.measurements)
    words = {
        Verdict.PASSED: f"✓ All {len(run.measurements)} limits held",
        Verdict.FAILED: f"✗ {missed} of {len(run.measurements)} limits did not hold",
        Verdict.ERROR: f"✗ The rig broke: {run.why}",
        Verdict.SKIPPED: f"Not played: {run.why}",
    }
    relaxed = sorted({one.relaxed for one in run.measurements if one.relaxed})
    notes = [*run.evidence.notes, *(("Limits of time are not the scenario's own here.",) if relaxed else ())]
    return Chapters(
        title=f"{scenario.title} ({run.rig})",
        about=(scenario.why, f"Run started {run.started_at}; proves {', '.join(scenario.proves)}.", *notes),
        verdict=words[run.verdict],
        passed=run.verdict is Verdict.PASSED,
        limits=tuple(
            (one.name, value_text(one), limit_text(one), one.held, "; ".join(filter(None, (one.detail, one.relaxed))))
            for one in sorted(run.measurements, key=lambda one: one.held)
        ),
        happened=tuple((moment(one.at_ms), one.who, one.what) for one in run.happened),
        vacates=tuple(
            (moment(one.at_ms), one.cause, _ms(one.idle_ms), _ms(one.gone_ms)) for one in run.evidence.vacates
        ),
        leases=tuple(
            (
                one.job,
                moment(one.start_ms),
                moment(one.end_ms),
                one.outcome,
                f"{one.slices_done} of {one.slices_wanted}",
            )
            for one in run.evidence.leases
        ),
        files=tuple((what, path.name) for what, path in run.evidence.files.items()),
        versions=tuple(run.evidence.versions.items()),
    )


def _slices(lease: LeaseSeen) -> str:
    return f"{lease.slices_done} of {lease.slices_wanted}"


def moment(at_ms: int) -> str:
    """A time since the beginning, for people."""
    seconds = at_ms / 1000
    if seconds < 600:
        return f"{seconds:.2f} s"
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours:d}:{minutes:02d}:{round(seconds) % 60:02d} h"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} ms"


# --- the record that the plots are drawn from -------------------------------------------------------------------


def record_of(run: Run) -> RunRecord:
    """The run as the plots of `hil.report` take it."""
    policy: Policy = run.scenario.policy
    acts = [
        Moment(t_s=one.at_ms / 1000, who="driver" if one.who == "car" else "rig", what=_act(one.who, one.what))
        for one in run.happened
    ]
    given_back = [
        Moment(t_s=one.at_ms / 1000, who="agent", what=f"vacated in {_ms(one.idle_ms)}: {one.cause}")
        for one in run.evidence.vacates[:MOST_VACATES]
    ]
    return RunRecord(
        title=run.scenario.title,
        started_at=run.started_at,
        samples=[_sample(look) for look in thinned(run.observations)],
        moments=acts + given_back,
        leases=[
            LeaseSpan(
                job=lease.job.rpartition("/")[0],
                epoch=int(lease.job.rpartition("/")[2]),
                start_s=lease.start_ms / 1000,
                end_s=lease.end_ms / 1000,
                outcome=lease.outcome,
                slices_done=lease.slices_done,
                slices_wanted=lease.slices_wanted,
                energy_wh=0.0,
                net=0.0,
            )
            for lease in run.evidence.leases
        ],
        outcome=NO_OUTCOME,
        limits=[],
        versions=run.evidence.versions,
        die_limit_c=policy.die_limit_c,
        die_target_c=policy.die_target_c,
        examples=[],
        counted="Hand-ins settled",
    )


def _act(who: str, what: str) -> str:
    return what if who == "car" else f"{who}: {what}"


def _sample(look: Observation) -> Sample:
    return Sample(
        t_s=look.at_ms / 1000,
        state=look.state if look.answers else "",
        gate=look.gate if look.answers else "",
        reason=look.reasons[0].code.replace("_", " ") if look.reasons else "",
        die_c=look.die_c,
        power_w=look.power_w,
        power_cap_w=look.power_cap_w,
        charge_percent=look.charge_percent,
        pack_power_w=look.pack_power_w,
        lease=look.lease,
        slices_kept=look.slices_kept,
        images_settled=look.settled,
        price_micro_per_kwh=look.price_micro_per_kwh,
    )


def thinned(looks: Sequence[Observation]) -> list[Observation]:
    """Few enough to draw: every so-many-th, and each at which the gate, the state or the first reason changed."""
    every = max(1, len(looks) // MOST_SAMPLES)
    kept: list[Observation] = []
    told: tuple[object, ...] = ()
    for number, look in enumerate(looks):
        now = (look.gate, look.state, look.reasons[:1])
        if now != told or number % every == 0 or number == len(looks) - 1:
            kept.append(look)
        told = now
    return kept


def name_of(scenario: Scenario, rig: str) -> str:
    """The folder of a run."""
    return f"{scenario.name}-{rig}"
