"""The story of the demonstration, told by driving the car and watching what the daemon makes of it.

The car drives; the driver parks it, leaves and plugs it in; the daemon says why it waits, then leases and works; in the
middle of a slice the driver opens the door; the computer is given back and the finished slices are handed in; the
driver leaves again and the rest is done. Nothing here tells the daemon what to do.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import select
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import msgspec
import structlog

from agent.clock import SystemClock
from agent.core.policy import Policy
from agent.errors import DrivewayError
from hil.demo.evidence import keep_evidence
from hil.demo.observer import Observer, Seen
from hil.demo.outcome import assess, evidence_limits, given_back_limit, limits, statements_limit
from hil.demo.screen import Screen
from hil.dispatcher.view import View
from hil.images import LineImage, drawn_lines, scanned_lines
from hil.record import RunRecord
from hil.rig import Rig

JOBS = 6
LINES_PER_JOB = 80
SLICE_ITEMS = 16
PRICE_MICRO_PER_ITEM = 25
SEED = 2026
WAIT_S = 60.0
POLL_S = 0.05
VERSIONS = ("driveway-agent", "onnxruntime", "paho-mqtt", "iotcore", "opendbc", "rapidocr", "securesystemslib")

Jobs = list[tuple[str, list[LineImage]]]


def tell_story(rig: Rig, screen: Screen) -> RunRecord:
    """Run the demonstration on a rig that has not been started; raises DrivewayError when it gets stuck."""
    started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    began_s = time.monotonic()
    screen.tell(0.0, "rig", "building the OCR package and drawing lines of text")
    jobs = _submit(rig)
    total = sum(len(images) for _, images in jobs)
    rig.start()
    with Observer(rig, screen, total, began_s) as observer:
        observer.tell("rig", f"broker, dispatcher, car and daemon are up; {total} images in {JOBS} jobs wait")
        _drive_and_park(rig, observer)
        vacate_ms = _driver_returns(rig, observer)
        _finish(rig, observer, total)
        status = rig.status()
        leases = rig.ask("earnings", limit=1000)["leases"]
        statements = sum(leaf["kind"] == "statement" for leaf in rig.ask("ledger", limit=1000)["leaves"])
    if status is None:
        raise DrivewayError("the daemon stopped answering", hint=f"see {rig.folder}/daemon.log")
    with View(rig.folder / "dispatcher") as view:
        evidence = keep_evidence(rig.folder / "attestations", view, rig)
    told = f"{evidence.results_verified} results and {evidence.proofs_verified} proofs of its ledger hold"
    observer.tell("rig", f"`driveway verify` says that {told}")
    record = _record(rig, observer, started_at=started_at, jobs=jobs, status=status, leases=leases, vacate_ms=vacate_ms)
    more = [given_back_limit(leases), statements_limit(record.outcome, statements), *evidence_limits(evidence)]
    return msgspec.structs.replace(record, limits=[*record.limits, *more])


def _submit(rig: Rig) -> Jobs:
    package = rig.build_package()
    lines = drawn_lines(JOBS * LINES_PER_JOB, SEED)
    scan = scanned_lines()
    jobs: Jobs = []
    for number in range(JOBS):
        images = lines[number * LINES_PER_JOB : (number + 1) * LINES_PER_JOB]
        if number == JOBS - 1:
            images = [*images, *scan]
        job = rig.submit(
            package,
            [image.png for image in images],
            slice_items=SLICE_ITEMS,
            price_micro_per_item=PRICE_MICRO_PER_ITEM,
        )
        jobs.append((job, images))
    return jobs


def _drive_and_park(rig: Rig, observer: Observer) -> None:
    seen = _wait(rig, observer, "the car's signals", lambda seen: _because(seen, "moving"))
    observer.tell("agent", f"waits: {seen.status['reasons'][0]['text']}")
    observer.tell("driver", "parks, gets out and plugs in")
    rig.car("driver_leaves")
    seen = _wait(rig, observer, "the parked gate to count", lambda seen: _because(seen, "occupied_not_long_enough"))
    observer.tell("agent", f"waits: {seen.status['reasons'][-1]['text']}")
    _wait(rig, observer, "the gate to open", lambda seen: seen.status["gate"] == "open")
    observer.tell("agent", "the gate is open: asks for work")
    _wait(rig, observer, "a lease", lambda seen: seen.status["lease"] is not None)
    observer.tell("agent", "has a lease; the worker loads the package and checks its golden vector")
    _wait(rig, observer, "the first slice", lambda seen: seen.status["slices"]["kept"] > 0)
    observer.tell("agent", "reads images")


def _driver_returns(rig: Rig, observer: Observer) -> float:
    """The door opens in the middle of a lease; how long until the worker process was gone, in milliseconds.

    Measured from outside: from the first frame that shows the door, by the car's clock, to the end of the worker's
    process, by its pidfd. Both are CLOCK_BOOTTIME.
    """
    seen = _wait(rig, observer, "a lease half done", _in_the_middle)
    pid = seen.status["worker"]["pid"]
    pidfd = os.pidfd_open(pid)
    try:
        opened_ms = rig.car("open_door")["at_boot_ms"]
        ended, _, _ = select.select([pidfd], [], [], WAIT_S)
        gone_ms = SystemClock().boot_ms()
    finally:
        os.close(pidfd)
    if not ended:
        raise DrivewayError(f"the worker {pid} was still there {WAIT_S:.0f} s after the door opened")
    vacate_ms = float(gone_ms - opened_ms)
    observer.tell("driver", "opens the door", ago_s=(SystemClock().boot_ms() - opened_ms) / 1000)
    observer.tell("agent", f"the computer is the driver's again after {vacate_ms:.0f} ms")
    rig.car("sit")
    _wait(rig, observer, "the lease to be handed back", _settled)
    lease = rig.ask("leases")[0]["lease"]
    kept = f"{lease['slices_done']} of {lease['slices_wanted']} slices"
    observer.tell("agent", f"handed the lease back ({lease['why']}) with {kept} finished and kept")
    time.sleep(1.0)
    rig.car("leave")
    rig.car("close_door")
    observer.tell("driver", "leaves again")
    return vacate_ms


def _finish(rig: Rig, observer: Observer, total: int) -> None:
    _wait(rig, observer, "the work to go on", lambda seen: seen.status["gate"] == "open")
    observer.tell("agent", "the gate is open again: goes on")
    _wait(rig, observer, "the rest of the images", lambda seen: seen.images == total and _settled(seen))
    observer.tell("agent", "everything is done, settled and paid")


def _because(seen: Seen, code: str) -> bool:
    return any(reason["code"] == code for reason in seen.status["reasons"])


def _in_the_middle(seen: Seen) -> bool:
    """The second lease or later, some slices of it done, one being computed."""
    lease, worker = seen.status["lease"], seen.status["worker"]
    return (
        lease is not None
        and worker is not None
        and worker["phase"] == "ready"
        and seen.images >= LINES_PER_JOB
        and 2 <= lease["slices_done"] < lease["slices_wanted"] - 1
        and lease["items_done_in_slice"] > 0
    )


def _settled(seen: Seen) -> bool:
    return seen.status["lease"] is None and seen.status["outbox"]["pending"] == 0


def _wait(rig: Rig, observer: Observer, what: str, reached: Callable[[Seen], bool]) -> Seen:
    """Wait until a fresh look at the rig shows what is waited for."""
    deadline_s = time.monotonic() + WAIT_S
    since = observer.last
    while time.monotonic() < deadline_s:
        rig.alive()
        seen = observer.last
        if seen is not None and seen is not since and reached(seen):
            return seen
        time.sleep(POLL_S)
    reasons = "" if observer.last is None else "; ".join(one["text"] for one in observer.last.status["reasons"])
    raise DrivewayError(f"waited {WAIT_S:.0f} s in vain for {what}. {reasons}", hint=f"see {rig.folder}/daemon.log")


def _record(
    rig: Rig,
    observer: Observer,
    *,
    started_at: str,
    jobs: Jobs,
    status: dict[str, Any],
    leases: list[dict[str, Any]],
    vacate_ms: float,
) -> RunRecord:
    with View(rig.folder / "dispatcher") as view:
        outcome = assess(view, jobs, status, vacate_ms)
        paid_micro = sum(payout.paid_micro for payout in view.payouts())
        last_job, last_images = jobs[-1]
        answers = [answer.get("text", answer.get("error", "")) for answer in view.answers(last_job)]
        (rig.folder / "line.png").write_bytes(last_images[0].png)
        examples = [(answer, image.text or "") for answer, image in zip(answers, last_images, strict=True)]
    policy = Policy()
    return RunRecord(
        title="A parked car earns, and the driver comes back",
        started_at=started_at,
        samples=observer.samples,
        moments=observer.moments,
        leases=observer.spans(leases),
        outcome=outcome,
        limits=limits(outcome, sum(len(images) for _, images in jobs), paid_micro),
        versions={name: metadata.version(name) for name in VERSIONS} | {"python": platform.python_version()},
        die_limit_c=policy.die_limit_c,
        die_target_c=policy.die_target_c,
        examples=examples[:5] + examples[-7:],
    )


def quiet_logs() -> None:
    """The demonstration's own process says what it does through the screen alone."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
