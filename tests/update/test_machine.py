"""An update's life as values: any order of events and power cuts, against what must never be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase as Phases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.trust.version_floors import version_key
from agent.update import machine
from agent.update.machine import CURRENT, GOOD, Now, Update, candidate, step
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

OLD, NEW = "1.0.0", "1.1.0"
VERSIONS = ("0.9.0", OLD, NEW, "1.2.0", "1.10.0")
LIMITS = Limits(boots=6)
WELL, ILL, DEAD = Health(computed=True), Health("it is ill"), Health("it fell over", dead=True)
LEASED = Health(leased=True)


class Vehicle(RuleBasedStateMachine):
    """The disk, the journal that is on it, and a program that is killed between any two things it does.

    A release has a fate that the program does not know: whole or damaged, starts or not, well or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk(OLD, OLD, frozenset({OLD}))
        self.kept = Journal()
        self.update = Update(limits=LIMITS)
        self.runs, self.boots, self.now_s = OLD, 1, 0.0
        self.is_driven = False
        self.trial_boots = self.boots_in_a_row = 0
        self.fates: dict[str, tuple[bool, bool, Health]] = {OLD: (True, True, WELL)}

    @initialize()
    def installed(self) -> None:
        self.boot()

    # --- what happens to it -----------------------------------------------------------------------------------------

    @rule(
        version=st.sampled_from(VERSIONS),
        whole=st.booleans(),
        starts=st.booleans(),
        health=st.sampled_from((WELL, ILL, DEAD, LEASED)),
    )
    def stage(self, version: str, whole: bool, starts: bool, health: Health) -> None:
        if version not in self.disk.staged:
            self.disk = replace(self.disk, staged=self.disk.staged | {version})
            self.fates[version] = (whole, starts, health)

    @rule()
    def drive(self) -> None:
        self.is_driven = not self.is_driven

    @rule(cut=st.integers(0, 6))
    def look(self, cut: int) -> None:
        """The program looks; `cut`: it is killed, and the computer with it, after so many of the things it does."""
        self.now_s += LIMITS.poll_s
        self.boots_in_a_row = 0
        if not self.fold(Looked(self.disk), budget=cut or 100):
            self.boot()

    @rule(times=st.integers(1, 5))
    def power_cut(self, times: int) -> None:
        for _ in range(times):
            self.boot()

    @rule()
    def killed_alone(self) -> None:
        """The program dies and is started anew; the daemon lives on, as it was."""
        self.update = Update(self.kept, LIMITS)
        self.fold(Began(f"boot-{self.boots}", self.disk), budget=100)

    @precondition(lambda self: self.kept.phase is Phase.TRIAL and self.kept.candidate != self.disk.good)
    @rule()
    def removed_by_hand(self) -> None:
        gone = self.kept.candidate
        current = "" if self.disk.current == gone else self.disk.current
        self.disk = Disk(current, self.disk.good, self.disk.staged - {gone})
        self.boot()

    # --- what is always so --------------------------------------------------------------------------------------------

    @invariant()
    def the_links_lead_to_versions_that_are_there(self) -> None:
        assert {self.disk.current, self.disk.good} <= self.disk.staged

    @invariant()
    def what_was_rolled_back_does_not_run(self) -> None:
        said = self.kept.decided(self.disk.current)
        if said is not None and self.kept.phase is not Phase.ROLLING_BACK:
            assert said.result is Result.COMMITTED or self.kept.candidate == self.disk.current

    @invariant()
    def what_was_rolled_back_is_not_tried_again(self) -> None:
        for one in self.kept.past:
            if one.result is Result.ROLLED_BACK:
                assert self.kept.candidate != one.version

    @invariant()
    def only_what_proved_itself_is_good(self) -> None:
        whole, starts, health = self.fates[self.disk.good]
        assert whole
        assert starts
        assert not health.problem

    @invariant()
    def good_never_goes_back(self) -> None:
        assert version_key(self.disk.good) >= version_key(self.kept.floor)

    @invariant()
    def a_trial_sees_few_boots(self) -> None:
        assert self.trial_boots <= LIMITS.boots
        assert self.boots_in_a_row <= LIMITS.unwell_boots
        assert self.kept.boots <= LIMITS.boots
        assert self.kept.unwell <= LIMITS.unwell_boots

    def teardown(self) -> None:
        """From wherever it is, it comes to an end when nobody disturbs it."""
        self.is_driven = False
        for _ in range(40 * len(VERSIONS)):
            self.now_s += LIMITS.lease_s
            self.fold(Looked(self.disk), budget=100)
            if self.kept.phase is Phase.IDLE and not candidate(self.kept, self.disk):
                break
        else:
            raise AssertionError(f"it never ends: {self.kept}, {self.disk}")
        assert self.disk.current == self.disk.good == self.runs
        assert all(one.result in set(Result) for one in self.kept.past)

    # --- the shell, in short ------------------------------------------------------------------------------------------

    def holds(self) -> None:
        """Whatever is asked of it between two rules holds between any two things it does, too."""
        self.what_was_rolled_back_is_not_tried_again()
        self.only_what_proved_itself_is_good()
        self.good_never_goes_back()
        self.a_trial_sees_few_boots()

    def boot(self) -> None:
        self.boots += 1
        self.update = Update(self.kept, LIMITS)
        self.fold(Began(f"boot-{self.boots}", self.disk, at_boot=True), budget=100)
        on_trial = self.kept.phase is Phase.TRIAL
        self.trial_boots = self.trial_boots + 1 if on_trial else 0
        self.boots_in_a_row = self.boots_in_a_row + 1 if on_trial else 0
        self.runs = self.disk.current if self.fates[self.disk.current][1] else ""
        self.update = Update(self.kept, LIMITS)
        self.fold(Began(f"boot-{self.boots}", self.disk), budget=100)

    def fold(self, event: Event | None, budget: int) -> bool:
        while event is not None:
            self.update, actions = step(self.update, event, Now(self.now_s, 0))
            event = None
            if self.update.journal != self.kept:
                budget -= 1
                if budget <= 0:
                    return False
                self.kept = self.update.journal
                self.holds()
            for action in actions:
                budget -= 1
                if budget <= 0:
                    return False
                event = self.carry_out(action)
                self.holds()
        return True

    def carry_out(self, action: Action) -> Event | None:  # noqa: PLR0911 - one case an action
        match action:
            case Check(version=version):
                return Checked(version, "" if self.fates[version][0] else "a byte is flipped")
            case Ask():
                return Answered(ready=not self.is_driven)
            case Switch(version=version):
                self.runs = ""
                self.disk = replace(self.disk, current=version)
                return Switched()
            case Start():
                return self.start(Started)
            case Examine():
                return Examined(self.fates[self.disk.current][2] if self.runs else ILL)
            case GoBack(version=version):
                assert version in self.disk.staged
                self.disk = replace(self.disk, current=version)
                return self.start(WentBack)
            case Point(link=link, version=version):
                assert link in {CURRENT, GOOD}
                good, current = (version if one == link else kept for one, kept in self.links())
                self.disk = Disk(current, good, self.disk.staged)
            case Prune(versions=versions, but=but):
                gone = self.disk.staged - versions if but else self.disk.staged & versions
                kept = self.disk.staged - (gone - {self.disk.current, self.disk.good})
                self.disk = replace(self.disk, staged=kept)
        return None

    def links(self) -> tuple[tuple[str, str], ...]:
        return (GOOD, self.disk.good), (CURRENT, self.disk.current)

    def start(self, how: type[Started | WentBack]) -> Event:
        version = self.disk.current
        self.runs = version if self.fates[version][1] else ""
        return how("" if self.runs else "it did not say READY")


Vehicle.TestCase.settings = settings(max_examples=150, stateful_step_count=25, derandomize=True, deadline=None)
TestAnyOrder = Vehicle.TestCase


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("_was_bad", lambda _journal, _version: False),
        ("_pointing", lambda _disk, _version: ()),
        ("_began_on_trial", lambda update, _disk, _now: (update, ())),
        ("_roll_back", lambda update, _reason: (replace(update, journal=Journal()), ())),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, name: str, bug: object) -> None:
    monkeypatch.setattr(machine, name, bug)
    quick = settings(Vehicle.TestCase.settings, phases=[Phases.generate], database=None, max_examples=400)
    with pytest.raises((AssertionError, ExceptionGroup, KeyError)):
        run_state_machine_as_test(Vehicle, settings=quick)


# --- by example -------------------------------------------------------------------------------------------------------


def on_trial(**changed: object) -> Update:
    journal = Journal(Phase.TRIAL, NEW, OLD, boot="boot-1", boots=1, unwell=1)
    return Update(replace(journal, **changed), Limits(), boot="boot-1", is_started=True)  # type: ignore[arg-type]


def now(boot_s: float = 0.0) -> Now:
    return Now(boot_s, 0)


def test_an_ill_version_may_recover_and_a_dead_one_may_not() -> None:
    ill, actions = step(on_trial(), Examined(ILL), now(10))
    assert actions == ()
    well, _ = step(ill, Examined(Health()), now(50))
    assert well.ill_since_s is None
    again, actions = step(well, Examined(ILL), now(200))
    assert actions == ()
    _, actions = step(again, Examined(ILL), now(200 + Limits().ill_s))
    assert actions == (GoBack(OLD),)
    assert step(on_trial(), Examined(DEAD), now())[1] == (GoBack(OLD),)


def test_a_golden_vector_is_enough_once_a_lease_had_its_time() -> None:
    computed, actions = step(on_trial(), Examined(WELL), now(1))
    assert actions == ()
    assert step(computed, Examined(Health()), now(Limits().lease_s))[1] == (Point(GOOD, NEW),)
    assert step(on_trial(), Examined(Health()), now(Limits().lease_s))[1] == ()
    assert step(on_trial(), Examined(LEASED), now(1))[1] == (Point(GOOD, NEW),)


def test_a_version_that_never_computes_does_not_prove_itself() -> None:
    update, actions = step(on_trial(), Examined(Health()), now(Limits().trial_s))
    assert actions == (GoBack(OLD),)
    assert "never came to compute" in update.journal.reason


def boots_until_it_goes_back(*, well_between: bool) -> int:
    limits, disk, update = Limits(), Disk(NEW, OLD, frozenset({OLD, NEW})), on_trial()
    for number in range(2, 100):
        update, _ = step(Update(update.journal, limits), Began(f"boot-{number}", disk, at_boot=True), now())
        if update.journal.phase is Phase.ROLLING_BACK:
            return number
        if well_between:
            update, _ = step(update, Examined(Health()), now())
    raise AssertionError("it never goes back")


def test_power_cuts_before_it_was_well_count_for_more() -> None:
    assert boots_until_it_goes_back(well_between=False) == Limits().unwell_boots + 1
    assert boots_until_it_goes_back(well_between=True) == Limits().boots + 1


def test_what_failed_here_is_remembered_for_longer_than_what_did_not() -> None:
    bad = Past(NEW, Result.ROLLED_BACK, "it fell over", 0)
    journal = Journal(past=(bad, *(Past("1.0.1", Result.REFUSED, f"{one}", 0) for one in range(30))))
    disk = Disk(OLD, OLD, frozenset({OLD, NEW, "0.9.0"}))
    assert candidate(journal, disk) == ""
    update, actions = step(Update(journal), Looked(disk), now())
    assert actions == (Prune(frozenset({"0.9.0"})),)
    assert update.journal.decided(NEW) == bad
    assert len(update.journal.past) < 25


def test_a_lost_journal_means_the_good_version() -> None:
    disk = Disk(NEW, OLD, frozenset({OLD, NEW}))
    update, actions = step(Update(Journal()), Began("boot-1", disk, at_boot=True), now())
    assert actions == (Point(CURRENT, OLD),)
    assert update.journal.decided(OLD) == Past(OLD, Result.COMMITTED, "installed", 0)


def test_a_switch_that_left_the_daemon_stopped_starts_it() -> None:
    disk, journal = Disk(OLD, OLD, frozenset({OLD, NEW})), Journal(Phase.SWITCHING, NEW, OLD)
    update, actions = step(Update(journal), Began("boot-1", disk), now())
    assert (update.journal.phase, actions) == (Phase.SWITCHING, (Start(),))
    update, _ = step(update, Started(), now())
    assert update.journal.phase is Phase.WAITING
    assert step(Update(journal), Began("boot-2", disk, at_boot=True), now())[1] == ()
