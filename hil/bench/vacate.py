"""How fast the driver gets the computer back: from the frame on the bus to the end of the worker's process.

    driveway-hil bench vacate --json vacate.json                   1,000 edges: about 35 minutes on two cores
    python -m hil.bench.vacate --edges 20 --json vacate.json       fewer

Real processes throughout: the daemon, its worker with the OCR package computing on every thread it may use, the
broker, the dispatcher and the simulated car on its CAN buses. A round: the worker is seen computing; after a random
while the driver's door opens; the worker's process ends; the driver sits down, gets out and shuts the door; the gate
opens again, and the daemon leases and starts a new worker, which is what it does after every vacate: a closed gate
ends the worker, so nothing is kept warm over it.

Measured from outside, on CLOCK_BOOTTIME: from the car's first frame that shows the door (the car notes when it sent
it) to the end of the worker's process, as the kernel tells through its pidfd. An ended process computes nothing and
holds no memory, so this bounds 'no more work running' from above. The daemon's own record, from when it received the
frame, is printed beside it. The slices are longer than a round, so every edge falls into one that is being computed.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import select
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import DrivewayError
from hil.demo.story import quiet_logs
from hil.images import drawn_lines
from hil.rig import Rig

EDGES = 1_000
PARKED_FOR_S = 0.2
LINES = 100
SLICE_ITEMS = 400
"""Several seconds of work, and no answer of it ever outgrows a message, since none is finished."""
JOBS = 3
LONGEST_WAIT_S = 0.3
WAIT_S = 60.0
POLL_S = 0.02
SEED = 2026


class VacateFigures(msgspec.Struct, frozen=True):
    """What came of it, in milliseconds; `daemon_*` is the daemon's own record."""

    edges: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    daemon_p50_ms: int | None
    daemon_p99_ms: int | None
    daemon_max_ms: int | None
    round_s: float
    cores: int


def run(edges: int = EDGES) -> VacateFigures:
    """Vacate so often, with a line of progress on standard error. Raises DrivewayError when the rig is stuck."""
    quiet_logs()
    with (
        tempfile.TemporaryDirectory(prefix="driveway-vacate-") as folder,
        Rig(Path(folder) / "rig", parked_for_s=PARKED_FOR_S) as rig,
    ):
        package = rig.build_package()
        images = [image.png for image in drawn_lines(LINES, SEED)]
        items = [images[index % LINES] for index in range(SLICE_ITEMS)]
        for _ in range(JOBS):
            rig.submit(package, items, slice_items=SLICE_ITEMS, price_micro_per_item=1)
        rig.start()
        rig.car("driver_leaves")
        return _measure(rig, edges)


def _measure(rig: Rig, edges: int) -> VacateFigures:
    chance = random.Random(SEED)
    times_ms: list[float] = []
    began_s = time.monotonic()
    for edge in range(edges):
        times_ms.append(_vacate(rig, chance.uniform(0.0, LONGEST_WAIT_S)))
        print(f"\r{edge + 1} of {edges}: {times_ms[-1]:.0f} ms   ", end="", file=sys.stderr, flush=True)
        rig.car("sit")
        rig.car("leave")
        rig.car("close_door")
    status = _wait(rig, "the last vacate to be recorded", lambda status: status["vacate"]["count"] >= edges)
    print(file=sys.stderr)
    own = status["vacate"]
    ordered = sorted(times_ms)
    return VacateFigures(
        edges=edges,
        p50_ms=percentile(ordered, 50),
        p99_ms=percentile(ordered, 99),
        max_ms=ordered[-1],
        mean_ms=sum(ordered) / edges,
        daemon_p50_ms=own["p50_ms"],
        daemon_p99_ms=own["p99_ms"],
        daemon_max_ms=own["max_ms"],
        round_s=(time.monotonic() - began_s) / edges,
        cores=len(os.sched_getaffinity(0)),
    )


def _vacate(rig: Rig, wait_s: float) -> float:
    """One edge, in the middle of a slice; milliseconds from the frame to the end of the worker."""
    status = _wait(rig, "the worker to compute", _computing)
    pid = status["worker"]["pid"]
    pidfd = os.pidfd_open(pid)
    try:
        time.sleep(wait_s)
        opened_ms = rig.car("open_door")["at_boot_ms"]
        ended, _, _ = select.select([pidfd], [], [], WAIT_S)
        gone_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    finally:
        os.close(pidfd)
    if not ended:
        raise DrivewayError(f"the worker {pid} was still there {WAIT_S:.0f} s after the door opened")
    return gone_ns / 1e6 - float(opened_ms)


def _computing(status: dict[str, Any]) -> bool:
    """A worker is in the middle of a slice. The first progress it reports is of work that goes on for seconds."""
    lease, worker = status["lease"], status["worker"]
    return (
        lease is not None
        and worker is not None
        and worker["phase"] == "ready"
        and lease["items_done_in_slice"] > 0
        and lease["items_done_in_slice"] < SLICE_ITEMS // 2
    )


def _wait(rig: Rig, what: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline_s = time.monotonic() + WAIT_S
    status: dict[str, Any] | None = None
    while time.monotonic() < deadline_s:
        rig.alive()
        status = rig.status()
        if status is not None and reached(status):
            return status
        time.sleep(POLL_S)
    reasons = "" if status is None else "; ".join(reason["text"] for reason in status["reasons"])
    log = (rig.folder / "daemon.log").read_text("utf-8", "replace").splitlines()[-5:]
    raise DrivewayError(f"waited {WAIT_S:.0f} s in vain for {what}. {reasons}", hint="\n".join(log))


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank: the smallest value that `percent` of all are not above."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Vacate latency, from the frame on the bus to the worker's end.")
    parser.add_argument("--edges", type=int, default=EDGES, help=f"how often (default: {EDGES})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    try:
        figures = run(options.edges)
    except DrivewayError as error:
        print(f"\nvacate: {error}", file=sys.stderr)
        return 1
    encoded = msgspec.json.format(msgspec.json.encode(figures))
    print(encoded.decode())
    if options.json is not None:
        options.json.write_bytes(encoded + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
