"""One run of a plan: until all is done after the last fault, an invariant breaks, or the time for it is over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Self

import msgspec
import structlog

from hil.sim.protocol.faults import HOUR_MS
from hil.sim.protocol.invariants import Violation
from hil.sim.protocol.plan import Plan
from hil.sim.protocol.trouble import Trouble
from hil.sim.protocol.world import World

ENDS_WITHIN_MS = 4 * HOUR_MS
"""After the last fault: the longest wait of a hand-in, and then the longest lease, and then some."""
BUSY_SHARE = 0.25
"""Of the time, cars are at work at least so much while there is some: the bound grows with what there is to do."""
LOOK_MS = 10_000
UNFORESEEN = frozenset({"effect_failed", "message_failed"})
"""What the daemon and the dispatcher log when something raised that nobody expected."""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run. Times are virtual but for `wall_s`; `fingerprint` is equal for equal runs."""

    plan: Plan
    violation: Violation | None
    ended_ms: int
    events: int
    messages_up: int
    messages_down: int
    bytes_up: int
    leases: int
    settled: int
    slices: int
    jobs_done: int
    paid_micro: int
    lives: int
    car_boundaries: int
    """That the first car passed, in all its lives."""
    replica_boundaries: int
    faults: dict[str, int]
    broker: dict[str, int]
    wall_s: float
    fingerprint: str


def play(plan: Plan, looking_for: str = "") -> Played:
    """Play a plan; the first broken invariant (or the one that is looked for) ends it."""
    collects = gc.isenabled()
    gc.disable()
    with warnings.catch_warnings():
        # What was about to be done when the power failed is not done.
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
        try:
            return _play(plan, looking_for)
        finally:
            gc.collect()
            if collects:
                gc.enable()


def _play(plan: Plan, looking_for: str) -> Played:
    began_s = time.perf_counter()
    with _Ear() as ear, contextlib.ExitStack() as stack:
        world = World(plan, looking_for)
        ear.failed = world.failed
        stack.enter_context(_running(world))
        world.start()
        Trouble(world).plan()
        faults_end_ms = max((one.at_ms + one.for_ms for one in plan.faults), default=0)
        _Ends(world, max(faults_end_ms, plan.faults_ms)).look()
        world.loop.run_forever()
        if world.loop.fault is not None:
            raise world.loop.fault
        if world.violation is None:
            world.audit()
        if world.violation is None:
            world.audit_payment()
        played = _played(world, time.perf_counter() - began_s)
        world.close()
    return played


class _Ends:
    """Looks now and then whether the end has come."""

    def __init__(self, world: World, faults_end_ms: int) -> None:
        self._world, self._faults_end_ms = world, faults_end_ms

    def look(self) -> None:
        """Stop the loop when all is done after the faults; and when it should be, and is not."""
        world = self._world
        now_ms = world.now_ms()
        if world.violation is not None:
            return
        if now_ms > self._faults_end_ms and world.at_rest:
            world.loop.stop()
            return
        if now_ms > self._faults_end_ms + ENDS_WITHIN_MS + world.work_ms / BUSY_SHARE / len(world.cars):
            world.overdue()
            world.loop.stop()
            return
        world.loop.after(LOOK_MS, self.look)


@contextlib.contextmanager
def _running(world: World) -> Iterator[None]:
    """The loop is this thread's; what is still waiting at the end goes with it."""
    asyncio.set_event_loop(world.loop)
    try:
        yield
    finally:
        for task in asyncio.all_tasks(world.loop):
            task.cancel()
        world.loop.set_exception_handler(lambda _loop, _context: None)
        world.loop.call_soon(world.loop.stop)
        world.loop.run_forever()
        world.loop.close()
        asyncio.set_event_loop(None)


class _Ear:
    """Nothing is logged meanwhile; a failure that nobody foresaw is heard."""

    def __init__(self) -> None:
        self.failed: Callable[[str], None] = lambda _what: None
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._before = structlog.get_config()
        structlog.configure(
            processors=[structlog.processors.format_exc_info, self._hear],
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=False,
        )
        return self

    def __exit__(self, *_failure: object) -> None:
        structlog.configure(**self._before)

    def _hear(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if event.get("event") in UNFORESEEN:
            self.failed(f"{event['event']}: {dict(event)}")
        raise structlog.DropEvent


def _played(world: World, wall_s: float) -> Played:
    watches = list(world.car_watches.values())
    prints = [world.book_watch.fingerprint, *(one.fingerprint for one in watches), str(world.loop.now_s)]
    events = sum(one.steps for one in watches)
    settled = [one for one in world.book_watch.settled.values() if one.verdict == "settled"]
    return Played(
        plan=world.plan,
        violation=world.violation,
        ended_ms=round(world.now_ms()),
        events=events,
        messages_up=sum(one.messages for one in watches),
        messages_down=world.broker.counts["down"],
        bytes_up=sum(one.bytes for one in watches),
        leases=len(world.book_watch.leases),
        settled=len(settled),
        slices=world.book_watch.slices,
        jobs_done=len(world.jobs) - world.book_watch.unfinished,
        paid_micro=sum(one.paid_micro for one in settled),
        lives=sum(car.lives for car in world.cars),
        car_boundaries=world.cars[0].boundaries,
        replica_boundaries=world.replicas[0].boundaries,
        faults=dict(sorted(world.faults_seen.items())),
        broker=dict(sorted(world.broker.counts.items())),
        wall_s=wall_s,
        fingerprint=hashlib.sha256("".join([*prints, str(events)]).encode()).hexdigest(),
    )
