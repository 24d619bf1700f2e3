"""An update's life: `step` folds what the program heard into the update and names what it does next. Pure.

The program writes the journal down, if it has become another, before it carries out what is named here. That order,
and that every action may be carried out again, is what makes a power cut harmless:

    the power went            and the program finds                     so it
    before the switch         `current` leads to the version before     begins again to wait
    in the switch             either                                    waits again, or goes on with the trial
    in the trial              the candidate                             counts it; too many of them: goes back
    in the commit             `good` leads to the candidate             has committed, and writes that down
    on the way back           either                                    goes back

`good` is moved before the journal says "committed", and `current` before the journal forgets a rollback. So while the
journal is idle both links lead to one version; where they do not (the journal was lost), `good` is right.

A version is taken if it is newer than `good`, not below the floor (the newest that was ever committed), and was not
rolled back. The way back to `before` asks for no floor: it is no choice of anybody's, and leads to what ran last.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import assert_never

from agent.trust.version_floors import version_key
from agent.update.model import (
    Action,
    Answered,
    Ask,
    Began,
    Check,
    Checked,
    Disk,
    Event,
    Examine,
    Examined,
    GoBack,
    Health,
    Journal,
    Limits,
    Looked,
    Past,
    Phase,
    Point,
    Prune,
    Result,
    Start,
    Started,
    Switch,
    Switched,
    WentBack,
)

KEPT_PAST = 20
KEPT_ROLLED_BACK = 200
"""Those newer than the floor, which could be tried again, are remembered for longer."""
MAX_REASON = 300
CURRENT, GOOD = "current", "good"


@dataclass(frozen=True)
class Now:
    """Boot time, which only runs forward, and wall time, which is for people."""

    boot_s: float
    wall_s: int


@dataclass(frozen=True)
class Update:
    """The journal, and what is known of this boot alone."""

    journal: Journal = field(default_factory=Journal)
    limits: Limits = field(default_factory=Limits)
    boot: str = ""
    checked: str = ""
    """The version whose files were found right."""
    is_started: bool = False
    """The candidate was started in this run of the program."""
    began_s: float = 0.0
    """When its trial began in this run."""
    ill_since_s: float | None = None
    computed: bool = False


Step = tuple[Update, tuple[Action, ...]]


def step(update: Update, event: Event, now: Now) -> Step:  # noqa: C901, PLR0911, PLR0912 - one case an event
    """What the update is after an event, and what is to be done; events of another phase change nothing."""
    journal = update.journal
    match event:
        case Began(boot=boot):
            return _began(replace(update, boot=boot), event, now)
        case Looked(disk=disk):
            return _looked(update, disk, now)
        case Checked(version=version, problem=problem):
            if journal.phase is not Phase.WAITING or version != journal.candidate:
                return update, ()
            if problem:
                return _refuse(update, version, problem, now)
            return replace(update, checked=version), (Ask(version),)
        case Answered(ready=ready, was=was):
            if journal.phase is not Phase.WAITING or not ready:
                return update, ()
            switching = replace(journal, phase=Phase.SWITCHING, was=was)
            return replace(update, journal=switching), (Switch(journal.candidate),)
        case Switched(problem=problem):
            if journal.phase is not Phase.SWITCHING:
                return update, ()
            if problem:
                return _roll_back(update, problem)
            return _start(replace(update, journal=_on_trial(update)), now)
        case Started(problem=problem):
            return _started(update, problem)
        case Examined(health=health):
            return _examined(update, health, now)
        case WentBack(problem=problem):
            return _went_back(update, problem, now)
        case _:
            assert_never(event)


def candidate(journal: Journal, disk: Disk) -> str:
    """The newest version that is there and may be tried; empty where there is none."""
    if not disk.good:
        return ""
    newer = (one for one in disk.staged if version_key(one) > version_key(disk.good))
    fit = [one for one in newer if version_key(one) >= version_key(journal.floor) and not _was_bad(journal, one)]
    return max(fit, key=version_key, default="")


def _was_bad(journal: Journal, version: str) -> bool:
    said = journal.decided(version)
    return said is not None and said.result is Result.ROLLED_BACK


def _began(update: Update, began: Began, now: Now) -> Step:  # noqa: PLR0911 - one case a phase
    """The links as they should be. At boot no more is done; else a daemon that was left stopped is started."""
    journal, disk = update.journal, began.disk
    if journal.phase not in {Phase.IDLE, Phase.WAITING} and journal.candidate not in disk.staged:
        return _gone(update, began, now)
    match journal.phase:
        case Phase.IDLE | Phase.WAITING:
            if not disk.good and disk.current:
                return update, (Point(GOOD, disk.current),)
            if disk.good and journal.phase is Phase.IDLE and journal.decided(disk.good) is None:
                journal = _with_past(journal, disk.good, Result.COMMITTED, "installed", now)
            return replace(update, journal=journal), _pointing(disk, disk.good)
        case Phase.SWITCHING:
            if disk.current == journal.candidate:
                return replace(update, journal=_on_trial(update)), ()
            if began.at_boot:
                return replace(update, journal=replace(journal, phase=Phase.WAITING)), _pointing(disk, disk.good)
            return update, (*_pointing(disk, disk.good), Start())
        case Phase.TRIAL:
            return _began_on_trial(update, disk, now)
        case Phase.ROLLING_BACK:
            return update, _pointing(disk, journal.before)
        case _:
            assert_never(journal.phase)


def _gone(update: Update, began: Began, now: Now) -> Step:
    """Somebody has removed the candidate's files: it was not judged, unless it had been before."""
    journal, disk = update.journal, began.disk
    if journal.phase is Phase.ROLLING_BACK:
        done = _with_past(journal, journal.candidate, Result.ROLLED_BACK, journal.reason, now)
    else:
        done = _with_past(journal, journal.candidate, Result.REFUSED, "its files are gone", now)
    if began.at_boot or not disk.good:
        return replace(update, journal=done), _pointing(disk, disk.good)
    return replace(update, journal=done), (GoBack(disk.good),)


def _began_on_trial(update: Update, disk: Disk, now: Now) -> Step:
    journal, limits = update.journal, update.limits
    if disk.good == journal.candidate:
        return replace(update, journal=_committed(journal, now)), _pointing(disk, disk.good)
    if journal.boot == update.boot:
        return update, _pointing(disk, journal.candidate)
    if journal.unwell >= limits.unwell_boots:
        reason = f"{journal.unwell} starts of the computer in a row ended before it was once found well"
    elif journal.boots >= limits.boots:
        reason = f"it did not prove itself in {journal.boots} starts of the computer"
    else:
        counted = replace(journal, boot=update.boot, boots=journal.boots + 1, unwell=journal.unwell + 1)
        return replace(update, journal=counted), _pointing(disk, journal.candidate)
    back, _ = _roll_back(update, reason)
    return back, _pointing(disk, journal.before)


def _on_trial(update: Update) -> Journal:
    return replace(update.journal, phase=Phase.TRIAL, boot=update.boot, boots=1, unwell=1)


def _started(update: Update, problem: str) -> Step:
    """The candidate on trial; or the version before, which an interrupted switch had left stopped."""
    journal = update.journal
    if journal.phase is Phase.SWITCHING:
        return replace(update, journal=replace(journal, phase=Phase.WAITING)), ()
    if journal.phase is not Phase.TRIAL:
        return update, ()
    return _roll_back(update, problem) if problem else (update, (Examine(journal.was, prove=True),))


def _pointing(disk: Disk, version: str) -> tuple[Action, ...]:
    return (Point(CURRENT, version),) if version and disk.current != version else ()


def _looked(update: Update, disk: Disk, now: Now) -> Step:
    journal = update.journal
    match journal.phase:
        case Phase.IDLE | Phase.WAITING:
            return _wait(update, disk, now)
        case Phase.SWITCHING:
            return update, (Switch(journal.candidate),)
        case Phase.TRIAL:
            if disk.good == journal.candidate:
                keep = frozenset({journal.candidate, journal.before})
                return replace(update, journal=_committed(journal, now)), (Prune(keep, but=True),)
            if not update.is_started:
                return _start(update, now)
            return update, (Examine(journal.was, prove=not update.computed),)
        case Phase.ROLLING_BACK:
            return update, (GoBack(journal.before),)
        case _:
            assert_never(journal.phase)


def _wait(update: Update, disk: Disk, now: Now) -> Step:
    """Look for the version to wait with; what is older than what ran here is refused and removed."""
    journal = update.journal
    wanted = candidate(journal, disk)
    if wanted:
        if (journal.phase, journal.candidate, journal.before) != (Phase.WAITING, wanted, disk.good):
            journal = replace(journal, phase=Phase.WAITING, candidate=wanted, before=disk.good)
        return replace(update, journal=journal), (Ask(wanted) if update.checked == wanted else Check(wanted),)
    if old := _downgrade(journal, disk):
        above = max((journal.floor, disk.good), key=version_key)
        return _refuse(update, old, f"it is older than {above}; publish it again under a higher number", now)
    idle = replace(journal, phase=Phase.IDLE, candidate="", before="")
    return replace(update, journal=idle), ()


def _downgrade(journal: Journal, disk: Disk) -> str:
    """A version that is older than `good` or the floor, and that never ran here."""
    if not disk.good:
        return ""
    least = max(version_key(disk.good), version_key(journal.floor))
    told = (one for one in sorted(disk.staged) if version_key(one) < least)
    return next((one for one in told if one not in {disk.good, disk.current} and journal.decided(one) is None), "")


def _start(update: Update, now: Now) -> Step:
    return replace(update, is_started=True, began_s=now.boot_s, ill_since_s=None, computed=False), (Start(),)


def _examined(update: Update, health: Health, now: Now) -> Step:
    journal, limits = update.journal, update.limits
    if journal.phase is not Phase.TRIAL:
        return update, ()
    if health.problem:
        since_s = now.boot_s if update.ill_since_s is None else update.ill_since_s
        if health.dead or now.boot_s - since_s >= limits.ill_s:
            return _roll_back(update, health.problem)
        return replace(update, ill_since_s=since_s), ()
    well = replace(journal, unwell=0)
    update = replace(update, journal=well, ill_since_s=None, computed=update.computed or health.computed)
    lasted_s = now.boot_s - update.began_s
    if health.leased or (update.computed and lasted_s >= limits.lease_s):
        return update, (Point(GOOD, journal.candidate),)
    if lasted_s >= limits.trial_s:
        return _roll_back(update, f"in {limits.trial_s / 3600:.0f} h it never came to compute")
    return update, ()


def _roll_back(update: Update, reason: str) -> Step:
    back = replace(update.journal, phase=Phase.ROLLING_BACK, reason=reason[:MAX_REASON])
    return replace(update, journal=back, is_started=False), (GoBack(back.before),)


def _went_back(update: Update, problem: str, now: Now) -> Step:
    journal = update.journal
    if journal.phase is not Phase.ROLLING_BACK:
        return update, ()
    reason = f"{journal.reason}; and {journal.before} did not start at once: {problem}" if problem else journal.reason
    done = _with_past(journal, journal.candidate, Result.ROLLED_BACK, reason, now)
    return replace(update, journal=done, checked=""), (Prune(frozenset({journal.candidate})),)


def _refuse(update: Update, version: str, reason: str, now: Now) -> Step:
    """Not tried, and removed: a version whose files were damaged may be staged once more."""
    journal = _with_past(update.journal, version, Result.REFUSED, reason, now)
    return replace(update, journal=journal, checked=""), (Prune(frozenset({version})),)


def _committed(journal: Journal, now: Now) -> Journal:
    floor = max((journal.floor, journal.candidate), key=version_key)
    return _with_past(replace(journal, floor=floor), journal.candidate, Result.COMMITTED, "", now)


def _with_past(journal: Journal, version: str, result: Result, reason: str, now: Now) -> Journal:
    """Idle again, with the newest decisions, and those that keep a version from being tried again."""
    past = (*journal.past, Past(version, result, reason[:MAX_REASON], now.wall_s))
    bad = [one for one in past[:-KEPT_PAST] if _still_counts(journal, one)]
    return Journal(floor=journal.floor, past=(*bad[-KEPT_ROLLED_BACK:], *past[-KEPT_PAST:]))


def _still_counts(journal: Journal, one: Past) -> bool:
    return one.result is Result.ROLLED_BACK and version_key(one.version) > version_key(journal.floor)
