"""What a fleet run found, as `--json` writes it. Every figure has its unit in its name; None: nothing was measured.

Top level: `plan` (what was asked, see `hil.fleet.plan.FleetPlan`), `compression` (how many times shorter a lease is
than the ten minutes of a real fleet), `steps`, `outages`, `books`, `held`, `machine` (as in `driveway-hil bench`),
`wall_s`.

`steps`, one for each size of the fleet:
  cars, connected; equivalent_cars (cars whose leases of ten minutes would make the same load);
  connects_per_s (over the whole ramp of this step), connects_best_s (in its best second), connect_p50_ms,
  connect_p99_ms (an attempt, from TCP to the granted subscriptions);
  seconds, jobs (leases with a verdict `settled` in that time), jobs_per_s;
  grant_p50_ms, grant_p99_ms (request to grant), verdict_p50_ms, verdict_p99_ms (hand-in to verdict, with which the next
  grant comes), renewals, renewals_per_s, renewal_p50_ms, renewal_p99_ms;
  publishes_up_per_job, publishes_down_per_job, bytes_up_per_job, bytes_down_per_job (payloads, counted at the cars);
  broker_publishes_per_job, broker_bytes_per_job (in and out, with headers, as Mosquitto counts: None for others);
  broker_dropped (publishes that the broker threw away);
  asked_again, handed_in_again (questions and hand-ins that went unanswered and were sent again);
  dispatcher_cpu_ms_per_job, broker_cpu_ms_per_job, database_cpu_ms_per_job, car_cpu_ms_per_job;
  dispatcher_cores, broker_cores, database_cores, car_cores (CPU seconds per second);
  broker_bytes_per_connection, car_bytes (RSS above that without cars, per car), dispatcher_rss_bytes.

`outages`, one for each thing that was killed (`what`: broker, dispatchers; `paced`: with spread and ramp, or without):
  down_s, cars, back_p50_s, back_p99_s (until so many of those that were cut off are connected; None: nobody was),
  served_p50_s, served_p99_s (until so many were answered; None: it did not come to that), all from the moment that what
  was killed is up again; connects_best_s; connects, served (by second, from the kill on), restored_at_s (where in those
  seconds it was up again); asked_again, handed_in_again.

`books`, after every car has handed in what it had: made (hand-ins with a statement), settled, duplicate, stale, bad
(verdicts that cars have), owed (no verdict yet), paid_micro (by the cars' verdicts), book_settled, book_paid_micro (by
the dispatcher's rows), lost (settled by one side only, or neither settled nor owed), doubled (settled more than once).
"""

from __future__ import annotations

import msgspec

from hil.bench.command import Machine
from hil.fleet.plan import FleetPlan


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One size of the fleet; see the module."""

    cars: int
    connected: int
    equivalent_cars: int
    connects_per_s: float
    connects_best_s: int
    connect_p50_ms: float | None
    connect_p99_ms: float | None
    seconds: float
    jobs: int
    jobs_per_s: float
    grant_p50_ms: float | None
    grant_p99_ms: float | None
    verdict_p50_ms: float | None
    verdict_p99_ms: float | None
    renewals: int
    renewals_per_s: float
    renewal_p50_ms: float | None
    renewal_p99_ms: float | None
    publishes_up_per_job: float | None
    publishes_down_per_job: float | None
    bytes_up_per_job: float | None
    bytes_down_per_job: float | None
    broker_publishes_per_job: float | None
    broker_bytes_per_job: float | None
    broker_dropped: int
    asked_again: int
    handed_in_again: int
    dispatcher_cpu_ms_per_job: float | None
    broker_cpu_ms_per_job: float | None
    database_cpu_ms_per_job: float | None
    car_cpu_ms_per_job: float | None
    dispatcher_cores: float
    broker_cores: float
    database_cores: float
    car_cores: float
    broker_bytes_per_connection: float
    car_bytes: float
    dispatcher_rss_bytes: int


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was killed and came back; see the module."""

    what: str
    paced: bool
    down_s: float
    restored_at_s: float
    cars: int
    back_p50_s: float | None
    back_p99_s: float | None
    served_p50_s: float | None
    served_p99_s: float | None
    connects_best_s: int
    connects: list[int]
    served: list[int]
    asked_again: int
    handed_in_again: int


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """The accounts at the end; see the module."""

    made: int
    settled: int
    duplicate: int
    stale: int
    bad: int
    owed: int
    paid_micro: int
    book_settled: int
    book_paid_micro: int
    lost: int
    doubled: int


class FleetReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run; see the module."""

    plan: FleetPlan
    compression: float
    steps: list[Step]
    outages: list[Outage]
    books: Books
    held: bool
    machine: Machine
    wall_s: float
