"""What the operator's own worker is to compute, and which replica is at it: rows, so that any of them may be killed.

Two kinds of task. *Decide*: a job about which units disagree, as long as it is in dispute; what disputes there are is
in the hand-ins, and a row here begins with the first replica that takes it. *Known*: make one more job after the
pattern of one that was just finished, with answers that are known (`hil.dispatcher.known_jobs`); some finished jobs are
drawn for that, so such jobs come only as fast as cars work.

A replica claims a task for `CLAIM_MS`, and says again and again that it still is at it; a claim that ran out is
anybody's. What it found counts only while the claim is its own, in the transaction that writes it down, so nothing is
decided twice. A task that failed waits, longer each time, up to an hour. A dispute is tried until it has aged
(`hil.dispatcher.pay`), a known job `KNOWN_TRIES` times or for `KNOWN_AGE_MS`: by then the demand has passed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import msgspec

from hil.dispatcher.database import Database
from hil.dispatcher.replication import drawn

CLAIM_MS = 120_000
BACK_OFF_MS = 30_000
BACK_OFF_DOUBLINGS = 7
"""At most an hour and four minutes."""
KNOWN_TRIES = 3
KNOWN_AGE_MS = 3_600_000
MOST_UNTAKEN = 4
"""Known jobs of a package, made within that time and untaken: while there are so many, nobody needs another."""


class Task(enum.Enum):
    """What there is to do about a job."""

    DECIDE = "decide"
    KNOWN = "known"


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """A task that is this replica's for now: the job that is in dispute, or to be imitated. `tries` failed before."""

    task: Task
    job: str
    claimed_by: str
    tries: int
    package_sha256: str
    input_sha256: str
    items: int
    slice_items: int
    sealed: bool


class RefereeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many disputes wait (of which so many were tried in vain) and were decided by computing.

    And jobs with known answers: wanted, made, of these finished by a car, and given up before they were made.
    """

    disputes_waiting: int = 0
    disputes_failing: int = 0
    disputes_decided: int = 0
    known_wanted: int = 0
    known_made: int = 0
    known_done: int = 0
    known_given_up: int = 0


class RefereeTasks:
    """Part of the book; see there for threads and errors. Call inside a transaction.

    `known_permille` of the jobs that are finished are imitated; `secret` makes the draws.
    """

    def __init__(self, database: Database, known_permille: int, secret: Callable[[], str]) -> None:
        self._database, self._known_permille, self._secret = database, known_permille, secret

    def on_done(self, job: str, now_ms: int) -> None:
        """A customer's job was finished: perhaps it is drawn to be imitated."""
        if drawn(self._secret(), f"known {job}") * 1000 < self._known_permille:
            self._database.execute(
                "INSERT INTO referee_tasks (job, task, at_ms) SELECT job, 'known', :now FROM jobs WHERE job = :job"
                " AND NOT EXISTS (SELECT 1 FROM known_jobs WHERE known_jobs.job = jobs.job) ON CONFLICT DO NOTHING",
                job=job,
                now=now_ms,
            )

    def claim(self, packages: tuple[str, ...], name: str, now_ms: int) -> Claimed | None:
        """The next task whose package is among these, claimed for `name`; None: there is nothing to do.

        Disputes come first: somebody's pay waits for them.
        """
        self._give_up(now_ms)
        for task, job in ((Task.DECIDE, self._dispute(packages, now_ms)), (Task.KNOWN, self._wanted(packages, now_ms))):
            if job is not None:
                return self._claimed(task, job, name, now_ms)
        return None

    def keep(self, claimed: Claimed, now_ms: int) -> bool:
        """Still at it; False when it is another's by now."""
        return (
            self._database.execute(
                "UPDATE referee_tasks SET claimed_until_ms = :until"
                " WHERE job = :job AND task = :task AND claimed_by = :name AND state = 'open'",
                until=now_ms + CLAIM_MS,
                job=claimed.job,
                task=claimed.task.value,
                name=claimed.claimed_by,
            )
            == 1
        )

    def finish(self, claimed: Claimed) -> bool:
        """It is done, if it is still this replica's: False when it is not, and what was found is not to be written."""
        return self._end(claimed, "done")

    def fail(self, claimed: Claimed, why: str, now_ms: int, *, for_good: bool = False) -> None:
        """It could not be done: again later, or never."""
        tries = claimed.tries + 1
        wait_ms = BACK_OFF_MS << min(claimed.tries, BACK_OFF_DOUBLINGS)
        if for_good or (claimed.task is Task.KNOWN and tries >= KNOWN_TRIES):
            self._end(claimed, "given up", why)
            return
        self._database.execute(
            "UPDATE referee_tasks SET claimed_by = '', claimed_until_ms = 0, tries = :tries, not_before_ms = :before,"
            " detail = :why WHERE job = :job AND task = :task AND claimed_by = :name AND state = 'open'",
            tries=tries,
            before=now_ms + wait_ms,
            why=why[:512],
            job=claimed.job,
            task=claimed.task.value,
            name=claimed.claimed_by,
        )

    def let_go(self, claimed: Claimed) -> None:
        """This replica ends: another may begin anew at once."""
        self._database.execute(
            "UPDATE referee_tasks SET claimed_by = '', claimed_until_ms = 0"
            " WHERE job = :job AND task = :task AND claimed_by = :name AND state = 'open'",
            job=claimed.job,
            task=claimed.task.value,
            name=claimed.claimed_by,
        )

    def _end(self, claimed: Claimed, state: str, why: str = "") -> bool:
        return (
            self._database.execute(
                "UPDATE referee_tasks SET state = :state, claimed_by = '', claimed_until_ms = 0, detail = :why"
                " WHERE job = :job AND task = :task AND claimed_by = :name AND state = 'open'",
                state=state,
                why=why[:512],
                job=claimed.job,
                task=claimed.task.value,
                name=claimed.claimed_by,
            )
            == 1
        )

    def _give_up(self, now_ms: int) -> None:
        """What is in dispute no more, and imitations that nobody asks for any more."""
        self._database.execute(
            "UPDATE referee_tasks SET state = 'given up', claimed_by = '', claimed_until_ms = 0 WHERE state = 'open'"
            " AND (task = 'known' AND at_ms <= :before OR task = 'decide' AND NOT EXISTS (SELECT 1 FROM handins"
            " JOIN jobs ON jobs.job = handins.job WHERE disputed = 1"
            " AND (jobs.job = referee_tasks.job OR jobs.replica_of = referee_tasks.job)))",
            before=now_ms - KNOWN_AGE_MS,
        )

    def _dispute(self, packages: tuple[str, ...], now_ms: int) -> str | None:
        """The job that has been in dispute for longest, of those that may be tried now."""
        row = self._database.row(
            "SELECT coalesce(replica_of, jobs.job) AS job, min(handins.at_ms) AS since FROM handins"  # noqa: S608
            " JOIN jobs ON jobs.job = handins.job LEFT JOIN referee_tasks AS tasks"
            " ON tasks.job = coalesce(replica_of, jobs.job) AND tasks.task = 'decide'"
            f" WHERE disputed = 1 AND {self._database.among('package_sha256', 'packages')} AND (tasks.job IS NULL"
            " OR tasks.state != 'done' AND tasks.claimed_until_ms <= :now AND tasks.not_before_ms <= :now)"
            " GROUP BY coalesce(replica_of, jobs.job) ORDER BY since, job LIMIT 1",
            packages=packages,
            now=now_ms,
        )
        return None if row is None else str(row["job"])

    def _wanted(self, packages: tuple[str, ...], now_ms: int) -> str | None:
        """The job to be imitated next, unless imitations of its package still lie there.

        Those are looked for by age, and not by state: most free jobs are no imitations.
        """
        row = self._database.row(
            "SELECT tasks.job FROM referee_tasks AS tasks JOIN jobs ON jobs.job = tasks.job WHERE task = 'known'"  # noqa: S608
            " AND tasks.state = 'open' AND tasks.claimed_until_ms <= :now AND tasks.not_before_ms <= :now"
            f" AND {self._database.among('package_sha256', 'packages')}"
            " AND (SELECT count(*) FROM known_jobs JOIN jobs AS made ON made.job = known_jobs.job"
            " WHERE made_ms > :lately AND (made.state || '') = 'free'"
            " AND made.package_sha256 = jobs.package_sha256) < :most"
            " ORDER BY tasks.at_ms, tasks.job LIMIT 1",
            packages=packages,
            now=now_ms,
            lately=now_ms - KNOWN_AGE_MS,
            most=MOST_UNTAKEN,
        )
        return None if row is None else str(row["job"])

    def _claimed(self, task: Task, job: str, name: str, now_ms: int) -> Claimed | None:
        """Compare-and-set: of two replicas that want it, one gets it."""
        row = self._database.row(
            "INSERT INTO referee_tasks (job, task, at_ms, claimed_by, claimed_until_ms)"
            " VALUES (:job, :task, :now, :name, :until) ON CONFLICT (job, task) DO UPDATE"
            " SET state = 'open', claimed_by = excluded.claimed_by, claimed_until_ms = excluded.claimed_until_ms"
            " WHERE referee_tasks.state != 'done' AND referee_tasks.claimed_until_ms <= :now RETURNING tries",
            job=job,
            task=task.value,
            now=now_ms,
            name=name,
            until=now_ms + CLAIM_MS,
        )
        about = self._database.row("SELECT * FROM jobs WHERE job = :job", job=job)
        if row is None or about is None:
            return None
        return Claimed(
            task=task,
            job=job,
            claimed_by=name,
            tries=row["tries"],
            package_sha256=about["package_sha256"],
            input_sha256=about["input_sha256"],
            items=about["items"],
            slice_items=about["slice_items"],
            sealed=bool(about["sealed"]),
        )


def referee_counts(database: Database) -> RefereeCounts:
    """What waits for the operator's own worker, and what it has done."""
    states = {
        (row["task"], row["state"]): row["many"]
        for row in database.rows("SELECT task, state, count(*) AS many FROM referee_tasks GROUP BY task, state")
    }
    waiting = database.row(
        "SELECT count(DISTINCT coalesce(replica_of, jobs.job)) AS many FROM handins"
        " JOIN jobs ON jobs.job = handins.job WHERE disputed = 1"
    )
    failing = database.row(
        "SELECT count(*) AS many FROM referee_tasks WHERE task = 'decide' AND state = 'open' AND tries > 0"
    )
    known = database.row(
        "SELECT count(*) AS many, count(CASE WHEN state = 'done' THEN 1 END) AS done FROM known_jobs"
        " JOIN jobs ON jobs.job = known_jobs.job"
    )
    return RefereeCounts(
        disputes_waiting=0 if waiting is None else waiting["many"],
        disputes_failing=0 if failing is None else failing["many"],
        disputes_decided=states.get(("decide", "done"), 0),
        known_wanted=states.get(("known", "open"), 0),
        known_made=0 if known is None else known["many"],
        known_done=0 if known is None else known["done"],
        known_given_up=states.get(("known", "given up"), 0),
    )
