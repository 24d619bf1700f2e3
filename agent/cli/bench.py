"""`driveway bench`: what this computer can do, measured on itself.

    driveway bench --package DIR INPUT…      items per second through a worker, as the daemon would run it
    driveway bench --commission              the step test: the bounds that the thermal guard needs

Both obey the daemon's gate before and while they run; a measurement wants the computer for itself, so a daemon that
works is a refusal too. `driveway pause` before and `driveway resume` after keep it from taking on work meanwhile: a
gate that only the owner shuts does not stand in the way. The step test insists on the pause: it takes half an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from functools import partial
from typing import Any

import msgspec

from agent.cli import exits
from agent.cli.engine import open_wanted, read_input, runner_for
from agent.cli.gate import Gate, GateShutError, while_open
from agent.cli.progress import Progress
from agent.cli.text import print_json
from agent.clock import SystemClock
from agent.commission import Schedule, StepTest
from agent.config import load
from agent.core.commissioning import Bounds, StepSample, StepTestError, fit
from agent.errors import ComputerError
from agent.inference.runner import PackageRunner
from agent.inference.slices import fitting_items
from agent.load import Burner, Load, PackageLoad
from agent.package import Package
from agent.telemetry.source import build_reader

BEFORE = frozenset({"owner"})
"""Gates that may be shut when a measurement begins: the owner's own pause."""
WHILE = frozenset({"owner", "temperature"})
"""And while it runs: it heats the computer on purpose, and watches that itself."""
SLICE_ITEMS = 32
IDLE_SHARE = 0.1
"""The lowest tenth of the powers is idle, the highest tenth full power."""


def bench(options: argparse.Namespace) -> int:
    """Measure, and print what came out."""
    if not options.commission and options.package is None:
        raise exits.UsageError("nothing to measure", hint="give --package DIR INPUT…, or --commission")
    if options.package is not None and not options.inputs:
        raise exits.UsageError(f"no inputs for {options.package}", hint="give one or more input files")
    taken = partial(Gate(options).taken, paused=options.commission)
    if (reason := taken(BEFORE)) is not None:
        print(f"driveway: refused by policy: {reason}", file=sys.stderr)
        return exits.REFUSED
    package = None if options.package is None else open_wanted(options)
    work = _throughput(options, package) if package and not options.commission else _commission(options, package)
    try:
        asyncio.run(while_open(partial(taken, WHILE if options.commission else BEFORE), work))
    except GateShutError as error:
        print(f"driveway: stopped by policy: {error}", file=sys.stderr)
        return exits.REFUSED
    return exits.FINE


# --- throughput -----------------------------------------------------------------------------------------------------


async def _throughput(options: argparse.Namespace, package: Package) -> None:
    progress = Progress()
    runner = runner_for(options, package, progress)
    items = _repeated(options, package)
    rates = []
    try:
        began_s = time.perf_counter()
        loaded = await runner.open()
        progress.end()
        cold_ms = await _first_answer_ms(runner, items, since_s=began_s)
        warm_ms = await _first_answer_ms(runner, items, since_s=time.perf_counter())
        runner.give(items)
        await runner.compute()  # the first slice pays for what is only done once
        progress.count("measuring", 0, options.rounds, "slices")
        for done in range(1, options.rounds + 1):
            began_s = time.perf_counter()
            await runner.compute()
            rates.append(len(items) / (time.perf_counter() - began_s))
            progress.count("measuring", done, options.rounds, "slices")
    finally:
        progress.end()
        await runner.close()
    figures = {
        "items_per_s": statistics.median(rates),
        "min_items_per_s": min(rates),
        "max_items_per_s": max(rates),
        "rounds": len(rates),
        "slice_items": len(items),
        "micro_batch_ms": round(loaded.micro_batch_ms, 3),
        "cold_start_ms": None if progress.built else round(cold_ms, 1),
        "warm_start_ms": round(warm_ms, 1),
        "package": package.manifest.name,
        "package_sha256": package.package_sha256,
        "executor": loaded.executor,
        "device": loaded.device,
    }
    if options.json:
        print_json(figures)
    else:
        print(_throughput_text(figures))


async def _first_answer_ms(runner: PackageRunner, items: list[bytes], *, since_s: float) -> float:
    """How long it took until the first item had its answer."""
    runner.give(items[:1])
    await runner.compute()
    return (time.perf_counter() - since_s) * 1000


def _throughput_text(figures: dict[str, Any]) -> str:
    spread = f"{figures['min_items_per_s']:.1f} to {figures['max_items_per_s']:.1f}"
    slices = f"in {figures['rounds']} slices of {figures['slice_items']}"
    cold = "not measured (its engine was built first)"
    if figures["cold_start_ms"] is not None:
        cold = f"after {figures['cold_start_ms']} ms"
    return "\n".join(
        (
            f"{figures['items_per_s']:.1f} items/s ({spread} {slices})",
            f"a vacate waits at most {figures['micro_batch_ms']} ms for a micro-batch",
            f"first answer of a new worker {cold}, of one that stands after {figures['warm_start_ms']} ms",
            f"{figures['package']} on {figures['executor']}, {figures['device']}",
        )
    )


def _repeated(options: argparse.Namespace, package: Package) -> list[bytes]:
    """The inputs, over and over, until they fill a slice; never more than one holds."""
    inputs = [read_input(path) for path in options.inputs]
    return [inputs[index % len(inputs)] for index in range(fitting_items(package, max(SLICE_ITEMS, len(inputs))))]


# --- commissioning --------------------------------------------------------------------------------------------------


async def _commission(options: argparse.Namespace, package: Package | None) -> None:
    config = load(options.config)
    load_of_choice: Load = Burner()
    if package is not None:
        load_of_choice = PackageLoad(runner_for(options, package, Progress()), _repeated(options, package))
    test = StepTest(
        Schedule.of_minutes(options.duration),
        reader=build_reader(config),
        load=load_of_choice,
        clock=SystemClock(),
        sleep=asyncio.sleep,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
        die_limit_c=config.policy.die_limit_c,
    )
    samples = await test.run()
    try:
        bounds = fit(samples)
    except StepTestError as error:
        raise ComputerError(f"the step test gives no bounds: {error}", hint="see `driveway bench --help`") from error
    figures = report(bounds, samples, test.sensor)
    if options.json:
        print_json(figures)
    else:
        print(ready_to_paste(bounds, figures))


def report(bounds: Bounds, samples: list[StepSample], sensor: str) -> dict[str, Any]:
    """The bounds and estimates by their names, and what they rest on."""
    powers_w = sorted(sample.power_w for sample in samples)
    tenth = max(1, round(len(powers_w) * IDLE_SHARE))
    return {
        **{name: round(value, 4) for name, value in msgspec.structs.asdict(bounds).items()},
        "power_idle_w": round(statistics.median(powers_w[:tenth]), 1),
        "power_max_w": round(statistics.median(powers_w[-tenth:]), 1),
        "die_max_c": max(sample.die_c for sample in samples),
        "samples": len(samples),
        "sensor": sensor,
    }


def ready_to_paste(bounds: Bounds, figures: dict[str, Any]) -> str:
    """The lines for the `[policy]` table, under what they rest on."""
    felt = f"{figures['samples']} samples of {figures['sensor']}, die up to {figures['die_max_c']:.1f} C"
    drew = f"idle {figures['power_idle_w']} W, full power {figures['power_max_w']} W"
    about = (f"# {felt}, fit within {bounds.residual_k:.2f} K", f"# {drew} (compare power_idle_w and power_max_w)")
    return "\n".join((*about, *bounds.policy_lines()))
