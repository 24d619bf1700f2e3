"""Bugs of the lease protocol, planted for a test: those of the dispatcher, and the table of all.

Each breaks one invariant, in the world of one seed and under the kinds of faults that it takes to meet it. The car's
are in `protocol_bugs_car`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from agent.core.model import JobKey, Verdict
from agent.fleet.messages import VerdictMessage
from agent.trust.statement import Statement
from hil.dispatcher import answers, judge, service, verdicts
from hil.dispatcher.answers import Answers
from hil.dispatcher.database import Row
from hil.dispatcher.handins import HandedIn, HandIns
from hil.dispatcher.judge import MisstatementError
from hil.dispatcher.leases import Leases
from hil.dispatcher.pump import Intake
from hil.dispatcher.units import Unit
from hil.sim.protocol.counter import ReplicasDatabase
from hil.sim.protocol.faults import Fault
from hil.sim.protocol.invariants import Invariant
from hil.sim.protocol.plan import Plan
from tests.hil import protocol_bugs_car as car

Patch = pytest.MonkeyPatch
REPLACE = msgspec.structs.replace


CARS, DISPATCHERS, FAULTS_MS = 3, 2, 900_000


class Bug(msgspec.Struct, frozen=True):
    """A planted bug, what it breaks, and the runs in which it is met: under these faults, from this seed on."""

    plant: Callable[[Patch], None]
    breaks: Invariant
    faults: tuple[Fault, ...] = ()
    seed: int = 1
    cars: int = CARS
    jobs: int = 20

    @property
    def name(self) -> str:
        """For the report."""
        return self.plant.__name__

    def runs(self, seeds: int) -> Iterator[Plan]:
        """The runs to look at, one a seed."""
        for seed in range(self.seed, self.seed + seeds):
            yield Plan(
                cars=self.cars,
                dispatchers=DISPATCHERS,
                jobs=self.jobs,
                seed=seed,
                faults_ms=FAULTS_MS,
                faults=self.faults,
            )


def always(kind: str, amount: float) -> tuple[Fault, ...]:
    """A fault from the beginning to the end."""
    return (Fault(at_ms=0, kind=kind, for_ms=FAULTS_MS, amount=amount),)


def every(gap_ms: int, kind: str, *, for_ms: int = 0, amount: float = 0.0) -> tuple[Fault, ...]:
    """A fault again and again, of one target after the other."""
    count = FAULTS_MS // gap_ms
    return tuple(
        Fault(at_ms=(number + 1) * gap_ms, kind=kind, target=number, for_ms=for_ms, amount=amount + number % 7)
        if kind in {"crash", "kill"}
        else Fault(at_ms=(number + 1) * gap_ms, kind=kind, target=number, for_ms=for_ms, amount=amount)
        for number in range(count)
    )


def _rewritten(patch: Patch, rewrite: Callable[[str], str]) -> None:
    """Every statement of the dispatcher's database, written otherwise."""
    run, many = ReplicasDatabase._run, ReplicasDatabase.many

    def ran(self: ReplicasDatabase, sql: str, values: Mapping[str, object]) -> tuple[int, list[Row]]:
        return run(self, rewrite(sql), values)

    def ran_many(self: ReplicasDatabase, sql: str, values: Any) -> None:
        many(self, rewrite(sql), values)

    patch.setattr(ReplicasDatabase, "_run", ran)
    patch.setattr(ReplicasDatabase, "many", ran_many)


def old_hand_ins_are_cleared_away(patch: Patch) -> None:
    """When a job is granted again, what an earlier lease of it delivered goes."""
    lease = Leases._lease

    def leased(self: Leases, job: Row, *rest: Any) -> Row | None:
        for table in ("results", "handins"):
            self._database.execute(f"DELETE FROM {table} WHERE job = :job", job=job["job"])
        return lease(self, job, *rest)

    patch.setattr(Leases, "_lease", leased)


def answers_leave_before_the_commit(patch: Patch) -> None:
    """What is decided is said at once, though the transaction may still be rolled back."""
    verdict = Answers.verdict

    def said(self: Answers, message: VerdictMessage) -> None:
        verdict(self, message)
        self.flush()

    patch.setattr(Answers, "verdict", said)


def the_work_is_held_against_the_last_run_alone(patch: Patch) -> None:
    """After a restart of the agent, slices from before took longer than its statement says that it ran."""

    def plausible(statement: Statement, _lease: judge.Lease) -> None:
        duration_ms = statement.times.finished_boot_ms - statement.times.started_boot_ms
        for entry in statement.slices:
            if entry.compute_ms > duration_ms + 1_000:
                raise MisstatementError(f"slice {entry.index} computed for {entry.compute_ms} ms of {duration_ms} ms")

    patch.setattr(judge, "_check_plausible", plausible)


def slices_with_a_result_are_granted_and_paid_again(patch: Patch) -> None:
    patch.setattr(Leases, "missing", lambda _self, job: tuple(range(-(-job["items"] // job["slice_items"]))))
    _rewritten(patch, lambda sql: sql.replace("INSERT INTO results", "INSERT OR REPLACE INTO results"))


def no_fence(patch: Patch) -> None:
    """Any epoch that a job ever had settles, whoever holds it now."""
    patch.setattr(HandIns, "_holds", lambda _self, row, _unit, key: row["epoch"] >= key.epoch)
    _rewritten(
        patch,
        lambda sql: sql.replace(
            " WHERE job = :job AND epoch = :epoch AND holder = :unit AND settled_epoch < :epoch", " WHERE job = :job"
        ),
    )


def a_lost_grant_goes_to_whoever_asks(patch: Patch) -> None:
    """The next car gets a lease that runs, in its epoch."""
    following = Leases._next

    def granted(self: Leases, unit: Unit, outlook: Any, now_ms: int) -> Row | None:
        found = following(self, unit, outlook, now_ms)
        if found is not None:
            return found
        return self._database.row("SELECT * FROM jobs WHERE state = 'leased' ORDER BY seq LIMIT 1")

    patch.setattr(Leases, "_next", granted)


def leases_never_run_out(patch: Patch) -> None:
    patch.setattr(Leases, "expire", lambda _self, _now_ms: 0)


def a_verdict_said_again_pays_nothing(patch: Patch) -> None:
    again = verdicts._again

    def said(unit: Unit, key: JobKey, rid: str, judged: HandedIn | None, claimed: str) -> VerdictMessage:
        return REPLACE(again(unit, key, rid, judged, claimed), paid_micro=0)

    patch.setattr(verdicts, "_again", said)


def every_item_is_paid_twice(patch: Patch) -> None:
    _rewritten(patch, lambda sql: sql.replace(":raw, :paid, :sha256", ":raw, 2 * :paid, :sha256"))


def a_message_that_says_too_little_is_no_message(patch: Patch) -> None:
    """What cannot be read is taken for a hand-in anyway."""

    def about(unit: str, _verb: str, payload: bytes, reason: str, retry_s: int) -> VerdictMessage:
        said = msgspec.json.decode(payload)
        key = JobKey(said["job"], said["epoch"])
        return answers.verdict(unit, key, said["rid"], Verdict.LATER, reason, retry_s=retry_s)

    patch.setattr(service, "later", about)


def the_dispatchers_intake_has_no_end(patch: Patch) -> None:
    patch.setattr(Intake, "_drop", lambda _self: None)


CRASHES = every(30_000, "crash", for_ms=2_000)
DRIVERS = every(40_000, "driver", for_ms=5_000)
OFFLINE = every(60_000, "offline", for_ms=150_000)
ASLEEP = every(20_000, "suspend", for_ms=300_000)
ALL_STALLED = tuple(
    REPLACE(fault, target=replica)
    for fault in every(200_000, "stall", for_ms=190_000)
    for replica in range(DISPATCHERS)
)
NO_OBJECTS = every(100_000, "no_objects", for_ms=150_000, amount=1.0)
BUGS: tuple[Bug, ...] = (
    Bug(old_hand_ins_are_cleared_away, Invariant.SETTLED_STAYS, DRIVERS),
    Bug(answers_leave_before_the_commit, Invariant.SETTLED_STAYS),
    Bug(car.a_puback_counts_as_a_verdict, Invariant.LET_GO_FOR_A_VERDICT),
    Bug(car.a_verdict_ends_all_hand_ins, Invariant.LET_GO_FOR_A_VERDICT, always("lose", 0.4)),
    Bug(
        car.a_verdict_on_any_statement_counts,
        Invariant.LET_GO_FOR_A_VERDICT,
        always("hostile", 0.6) + CRASHES,
        jobs=40,
        seed=2,
    ),
    Bug(car.slices_are_forgotten_when_the_lease_is_opened_again, Invariant.LET_GO_FOR_A_VERDICT, CRASHES),
    Bug(the_work_is_held_against_the_last_run_alone, Invariant.HONEST_ACCEPTED, CRASHES),
    Bug(car.the_statements_are_counted_anew_after_a_restart, Invariant.HONEST_ACCEPTED, CRASHES),
    Bug(slices_with_a_result_are_granted_and_paid_again, Invariant.PAID_ONCE, DRIVERS),
    Bug(no_fence, Invariant.ONE_HOLDER, OFFLINE, seed=5),
    Bug(a_lost_grant_goes_to_whoever_asks, Invariant.ONE_HOLDER),
    Bug(leases_never_run_out, Invariant.EVERY_JOB_ENDS, CRASHES + always("lose", 0.3), seed=3),
    Bug(car.a_hand_in_is_sent_once, Invariant.EVERY_JOB_ENDS, always("lose", 0.3)),
    Bug(car.a_hand_in_waits_for_an_upload_that_nobody_takes, Invariant.EVERY_JOB_ENDS, NO_OBJECTS, jobs=40, seed=9),
    Bug(car.a_lost_answer_is_waited_for, Invariant.EVERY_JOB_ENDS, always("lose", 0.3)),
    Bug(car.the_outbox_has_no_end, Invariant.QUEUES_BOUNDED, cars=1, jobs=40),
    Bug(car.the_link_takes_any_number, Invariant.QUEUES_BOUNDED, every(60_000, "half_open"), cars=1, jobs=40),
    Bug(
        the_dispatchers_intake_has_no_end,
        Invariant.QUEUES_BOUNDED,
        ALL_STALLED + always("duplicate", 0.9),
        cars=30,
        jobs=60,
    ),
    Bug(car.a_hand_in_is_sent_again_at_once, Invariant.NO_TIGHT_LOOPS, always("lose", 0.9), seed=2),
    Bug(car.who_got_nothing_asks_again_at_once, Invariant.NO_TIGHT_LOOPS),
    Bug(car.a_lease_begins_when_it_is_heard_of, Invariant.ENDS_FIRST),
    Bug(car.clocks_do_not_drift, Invariant.ENDS_FIRST),
    Bug(car.the_cars_clock_stops_while_it_sleeps, Invariant.ENDS_FIRST, ASLEEP, cars=8, jobs=150),
    Bug(car.any_grant_is_an_answer, Invariant.ENDS_FIRST, always("late", 0.5)),
    Bug(
        car.time_does_not_end_a_lease,
        Invariant.ENDS_FIRST,
        every(90_001, "bad_worker", for_ms=80_000, amount=0.9),
        seed=2,
    ),
    Bug(a_verdict_said_again_pays_nothing, Invariant.MONEY, always("lose", 0.3)),
    Bug(every_item_is_paid_twice, Invariant.MONEY),
    Bug(car.verdicts_are_no_part_of_the_ledgers_head, Invariant.LEDGER),
    Bug(car.old_leaves_are_pruned_at_a_start, Invariant.LEDGER, CRASHES),
    Bug(a_message_that_says_too_little_is_no_message, Invariant.NOTHING_FAILS, always("hostile", 0.6)),
)
