"""One size of the fleet, measured: connect what is new, let it come to rest, then count for a while."""

from __future__ import annotations

import time

from hil.fleet.broker import BrokerCounts
from hil.fleet.figures import Tally, best_second
from hil.fleet.park import Park
from hil.fleet.plan import REAL_LEASE_S, FleetPlan
from hil.fleet.processes import Usage
from hil.fleet.region import Region
from hil.fleet.report import Step

SETTLE_S = 10.0
"""Until the rush of those that came is over; leases end evenly from the start, since the first are of any length."""
CONNECT_TIMEOUT_S = 180.0
"""A fleet that is not connected by then goes on with those that are, and the report says how many."""


class Measured:
    """What the region and the cars had used at one moment."""

    def __init__(self, region: Region, park: Park) -> None:
        self.at_s = time.monotonic()
        self.broker, self.dispatcher = region.broker_usage(), region.dispatcher_usage()
        self.database, self.cars = region.database_usage(), park.usage()
        self.counts = BrokerCounts() if region.sys is None else region.sys.counts()


class Empty:
    """What the broker and the processes of cars take without any car."""

    def __init__(self, region: Region, park: Park) -> None:
        self.broker_rss_bytes = region.broker_usage().rss_bytes
        self.cars_rss_bytes = park.usage().rss_bytes


def measure(plan: FleetPlan, region: Region, park: Park, cars: int, empty: Empty) -> Step:
    """Grow the fleet to so many cars and measure it at that size."""
    began_s = time.monotonic()
    park.grow(cars)
    standing = park.wait(lambda now: now.connected >= cars, CONNECT_TIMEOUT_S + cars / (plan.ramp_per_s or cars))
    connecting_s = time.monotonic() - began_s
    time.sleep(SETTLE_S)
    ramp = park.take()
    before = Measured(region, park)
    time.sleep(plan.seconds)
    tally, after = park.take(), Measured(region, park)
    region.check_alive()
    return _step(cars, standing.connected, ramp, connecting_s, tally, before, after, empty)


def _step(  # noqa: PLR0917 - all of it is one measurement
    cars: int,
    connected: int,
    ramp: Tally,
    connecting_s: float,
    tally: Tally,
    before: Measured,
    after: Measured,
    empty: Empty,
) -> Step:
    seconds = after.at_s - before.at_s
    jobs = tally.events.get("settled", 0)
    counts = after.counts.since(before.counts)

    def per_job(amount: float) -> float | None:
        return amount / jobs if jobs else None

    def cpu(first: Usage, last: Usage) -> float:
        return last.cpu_s - first.cpu_s

    return Step(
        cars=cars,
        connected=connected,
        equivalent_cars=round(jobs / seconds * REAL_LEASE_S),
        connects_per_s=sum(ramp.ups.values()) / connecting_s,
        connects_best_s=best_second(ramp.ups),
        connect_p50_ms=ramp.connect.quantile_ms(0.5),
        connect_p99_ms=ramp.connect.quantile_ms(0.99),
        seconds=seconds,
        jobs=jobs,
        jobs_per_s=jobs / seconds,
        grant_p50_ms=_both(ramp, tally, "grant", 0.5),
        grant_p99_ms=_both(ramp, tally, "grant", 0.99),
        verdict_p50_ms=tally.verdict.quantile_ms(0.5),
        verdict_p99_ms=tally.verdict.quantile_ms(0.99),
        renewals=tally.renewal.total,
        renewals_per_s=tally.renewal.total / seconds,
        renewal_p50_ms=tally.renewal.quantile_ms(0.5),
        renewal_p99_ms=tally.renewal.quantile_ms(0.99),
        publishes_up_per_job=per_job(sum(tally.sent.values())),
        publishes_down_per_job=per_job(sum(tally.received.values())),
        bytes_up_per_job=per_job(sum(tally.sent_bytes.values())),
        bytes_down_per_job=per_job(sum(tally.received_bytes.values())),
        broker_publishes_per_job=per_job(counts.publishes_received + counts.publishes_sent)
        if counts.bytes_sent
        else None,
        broker_bytes_per_job=per_job(counts.bytes_received + counts.bytes_sent) if counts.bytes_sent else None,
        broker_dropped=counts.publishes_dropped,
        asked_again=tally.events.get("asked_again", 0),
        handed_in_again=tally.events.get("handed_in_again", 0),
        dispatcher_cpu_ms_per_job=per_job(1000 * cpu(before.dispatcher, after.dispatcher)),
        broker_cpu_ms_per_job=per_job(1000 * cpu(before.broker, after.broker)),
        database_cpu_ms_per_job=per_job(1000 * cpu(before.database, after.database)),
        car_cpu_ms_per_job=per_job(1000 * cpu(before.cars, after.cars)),
        dispatcher_cores=cpu(before.dispatcher, after.dispatcher) / seconds,
        broker_cores=cpu(before.broker, after.broker) / seconds,
        database_cores=cpu(before.database, after.database) / seconds,
        car_cores=cpu(before.cars, after.cars) / seconds,
        broker_bytes_per_connection=max(0, after.broker.rss_bytes - empty.broker_rss_bytes) / max(1, connected),
        car_bytes=max(0, after.cars.rss_bytes - empty.cars_rss_bytes) / cars,
        dispatcher_rss_bytes=after.dispatcher.rss_bytes,
    )


def _both(ramp: Tally, tally: Tally, name: str, share: float) -> float | None:
    """Requests come when cars come, so most of them were in the ramp; later the next grant rides on a verdict."""
    ramp_one, later = getattr(ramp, name), getattr(tally, name)
    whole = type(ramp_one)()
    whole.merge(ramp_one)
    whole.merge(later)
    return whole.quantile_ms(share)  # type: ignore[no-any-return]
