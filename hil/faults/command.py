"""`driveway-hil faults`: jobs through real processes under continuous faults, and then the accounts.

    driveway-hil faults --jobs 1000 --seed 1 --json faults.json [--broker mosquitto|embedded|both] [--cars 5] …

Exit status 1 when anything was lost or paid twice, or when not every job was settled in time; then what each car saw
and decided is kept beside the figures (`hil.faults.recordings`).

Not made here, since they need a kernel or a machine of their own (the virtual machine has them): loss and reordering of
single packets (netem), power cuts (what a disk forgets), suspend, jumps of the wall clock (the deterministic simulation
has those), a broker cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import platform
import re
import signal
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from agent import __version__
from agent.errors import ConfigError, StoreError
from agent.package import Package
from hil.broker import Mosquitto
from hil.demo.story import quiet_logs
from hil.faults.accounts import Loss, audit
from hil.faults.disk import own_namespace
from hil.faults.figures import Figures, Recovery, by_kind, draw, percentile
from hil.faults.ground import BrokerKind, DatabaseKind, Ground, executions
from hil.faults.recordings import keep
from hil.faults.schedule import Injector, possible, schedule

POLL_S = 1.0
JOBS_PER_S = 0.6
"""For each car: a quarter of what it can do in peace, and about what the faults leave of it."""
TIMELINE = "timeline.json"
"""What was injected when, to be laid beside the logs."""
ORDERED = "ordered.json"
"""What was put in: with it and the databases that are left in the folder the accounts can be done again."""
CALM_S = 90.0
"""So long agents have, once the faults are over, to bring what they still hold."""
PUBLISH = re.compile(rb"Received PUBLISH from (?!dispatcher)|Sending PUBLISH to (?!dispatcher)")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was asked for."""

    jobs: int
    seed: int
    cars: int
    dispatchers: int
    database: DatabaseKind
    folder: Path
    minutes: float


def faults(asked: argparse.Namespace) -> int:
    """Run once with each broker that was asked for (`hil.faults.arguments`); 0 when everything held each time."""
    json_file: Path | None = asked.json
    if json_file is not None and not json_file.parent.is_dir():
        raise ConfigError(f"cannot write {json_file}: there is no folder {json_file.parent}")
    options = Options(
        jobs=asked.jobs,
        seed=asked.seed,
        cars=asked.cars,
        dispatchers=asked.dispatchers,
        database=asked.database,
        folder=asked.dir,
        minutes=asked.minutes,
    )
    brokers: tuple[BrokerKind, ...] = ("mosquitto", "embedded") if asked.broker == "both" else (asked.broker,)
    quiet_logs()
    mounting, console = own_namespace(), Console()
    runs: dict[BrokerKind, Figures] = {}
    for broker in brokers:
        runs[broker] = figures = asyncio.run(_until_told(run(options, broker, mounting=mounting)))
        draw(console, figures)
        if not figures.held:
            _keep_recordings(console, options, broker, json_file)
        if json_file is not None:
            told = figures if len(brokers) == 1 else {"runs": runs}
            json_file.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    return 0 if all(figures.held for figures in runs.values()) else 1


def _keep_recordings(console: Console, options: Options, broker: BrokerKind, json_file: Path | None) -> None:
    """What the cars saw and decided, beside the figures: the next run makes its folder anew."""
    beside = options.folder if json_file is None else json_file.with_suffix("")
    kept = keep(options.folder, beside.with_name(f"{beside.name}-recordings") / broker)
    console.print(f"{len(kept)} recordings of cars: {kept[0].parent}" if kept else "no car has a recording")


async def _until_told(running: Coroutine[Any, Any, Figures]) -> Figures:
    """A closed terminal or a cancelled job ends the run's processes, too."""
    task = asyncio.get_running_loop().create_task(running)
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def run(options: Options, broker: BrokerKind, *, mounting: bool) -> Figures:
    """One run. Raises DrivewayError when the fleet does not come up."""
    began_s = time.monotonic()
    ground = Ground(
        options.folder,
        cars=options.cars,
        dispatchers=options.dispatchers,
        broker=broker,
        database=options.database,
        seed=options.seed,
        mounting=mounting,
    )
    async with ground:
        package = ground.build_package()
        ground.order(package, min(options.cars, options.jobs))
        await ground.start()
        kinds = possible(tls=ground.authority is not None)
        plan = schedule(options.seed, kinds, cars=options.cars, dispatchers=options.dispatchers)
        injector = Injector(ground, plan)
        watching = asyncio.create_task(_watch(ground))
        injecting = asyncio.create_task(injector.run())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + 60 * options.minutes):
                await _feed(ground, package, options.jobs)
                await _until_done(ground, options.jobs)
        injecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await injecting
        await _calm(ground)
        watching.cancel()
        full_disk_by = "tmpfs" if all(agent.disk.mounted for agent in ground.agents) else "file size limit"
        wall_s = time.monotonic() - began_s
        await ground.stop_agents()
        for name, told in ((TIMELINE, injector.done), (ORDERED, ground.ordered)):
            (ground.folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
        return _figures(ground, options, injector, full_disk_by, wall_s)


async def _watch(ground: Ground) -> None:
    """Look at every agent about once a second: what it has begun is not written down anywhere else."""
    while True:
        for agent in ground.agents:
            await asyncio.to_thread(agent.look)
        await asyncio.sleep(POLL_S)


async def _feed(ground: Ground, package: Package, jobs: int) -> None:
    """Put the jobs in while the faults go on: all at once they would be done before a dozen faults have come."""
    began_s, jobs_per_s = time.monotonic(), JOBS_PER_S * len(ground.agents)
    while (left := jobs - len(ground.ordered)) > 0:
        due = int((time.monotonic() - began_s) * jobs_per_s) - len(ground.ordered)
        with contextlib.suppress(StoreError):  # the database is held up: again in a moment
            await asyncio.to_thread(ground.order, package, max(0, min(left, due)))
        await asyncio.sleep(POLL_S / 2)


async def _until_done(ground: Ground, jobs: int) -> None:
    while await asyncio.to_thread(ground.jobs_done) < jobs:  # noqa: ASYNC110 - a database, which tells nobody
        await asyncio.sleep(POLL_S)


async def _calm(ground: Ground) -> None:
    """Without faults, until no agent owes anything."""
    until_s = time.monotonic() + CALM_S
    while time.monotonic() < until_s:
        if not any([await asyncio.to_thread(agent.pending) for agent in ground.agents]):
            return
        await asyncio.sleep(POLL_S)


def _figures(ground: Ground, options: Options, injector: Injector, full_disk_by: str, wall_s: float) -> Figures:
    dispatcher, agents = ground.book(), [agent.book() for agent in ground.agents]
    public_key = (ground.folder / "dispatcher" / "dispatcher.pub").read_text("ascii")
    findings = audit(ground.ordered, dispatcher, agents, public_key)
    recovery = Recovery(dispatcher, [agent.unit for agent in agents])
    samples_s = [sample for injection in injector.done for sample in recovery.samples_s(injection)]
    begun = executions(ground.agents)
    leases = sum(len(agent.leases) for agent in agents)
    ordered = {job.job for job in ground.ordered}
    return Figures(
        broker=ground.broker_kind,
        database=options.database,
        seed=options.seed,
        cars=options.cars,
        dispatchers=options.dispatchers,
        jobs=options.jobs,
        settled=sum(row.state == "done" and row.job in ordered for row in dispatcher.jobs),
        lost=sum(finding.loss is Loss.LOST for finding in findings),
        doubled=sum(finding.loss is Loss.DOUBLED for finding in findings),
        executions=begun,
        extra_executions=begun - len(dispatcher.results),
        leases=leases,
        epochs_above_one=sum(row.epoch > 1 for row in dispatcher.jobs),
        pending=sum(len(agent.outbox) for agent in agents),
        faults=by_kind(injector.done, recovery, findings, agents),
        faults_injected=len(injector.done),
        recovery_p50_s=percentile(samples_s, 0.5),
        recovery_p99_s=percentile(samples_s, 0.99),
        publishes_per_lease=_publishes_per_lease(ground, leases),
        full_disk_by=full_disk_by,
        gave_up=ground.ended,
        findings=findings,
        not_injected=injector.failed,
        wall_s=round(wall_s, 1),
        versions=_versions(),
    )


def _publishes_per_lease(ground: Ground, leases: int) -> float | None:
    """Publishes to and from cars a lease, by Mosquitto's own log; the other broker does not tell."""
    if ground.broker_kind != "mosquitto" or not leases:
        return None
    return round(len(PUBLISH.findall(ground.broker.log.read_bytes())) / leases, 2)


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("paho-mqtt", "iotcore", "msgspec")}
    versions |= {"driveway": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if (binary := Mosquitto.binary()) is not None:
        told = subprocess.run([binary, "-h"], capture_output=True, text=True, check=False).stdout
        versions["mosquitto"] = told.partition("\n")[0].removeprefix("mosquitto version ")
    return versions
