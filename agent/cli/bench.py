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
from agent.cli.gate import Gate, GateShutError, while_open
from agent.cli.infer import check_signature, read_input
from agent.cli.text import print_json
from agent.clock import SystemClock
from agent.commission import Schedule, StepTest
from agent.config import load
from agent.core.commissioning import Bounds, StepSample, StepTestError, fit
from agent.errors import ComputerError
from agent.inference.runner import PackageRunner
from agent.load import Burner, Load, PackageLoad
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
    if options.package is not None:
        check_signature(options.config, options.package)
    work = _commission(options) if options.commission else _throughput(options)
    try:
        asyncio.run(while_open(partial(taken, WHILE if options.commission else BEFORE), work))
    except GateShutError as error:
        print(f"driveway: stopped by policy: {error}", file=sys.stderr)
        return exits.REFUSED
    return exits.FINE


# --- throughput -----------------------------------------------------------------------------------------------------


async def _throughput(options: argparse.Namespace) -> None:
    runner = PackageRunner(options.package, options.threads)
    items = _repeated(options)
    rates = []
    try:
        loaded = await runner.open()
        runner.give(items)
        await runner.compute()  # the first slice pays for what is only done once
        for _ in range(options.rounds):
            began_s = time.perf_counter()
            await runner.compute()
            rates.append(len(items) / (time.perf_counter() - began_s))
    finally:
        await runner.close()
    figures = {
        "items_per_s": statistics.median(rates),
        "min_items_per_s": min(rates),
        "max_items_per_s": max(rates),
        "rounds": len(rates),
        "slice_items": len(items),
        "executor": loaded.executor,
        "device": loaded.device,
    }
    if options.json:
        print_json(figures)
    else:
        spread = f"{min(rates):.1f} to {max(rates):.1f} in {len(rates)} slices of {len(items)}"
        print(f"{figures['items_per_s']:.1f} items/s ({spread})")


def _repeated(options: argparse.Namespace) -> list[bytes]:
    """The inputs, over and over, until they fill a slice."""
    inputs = [read_input(path) for path in options.inputs]
    return [inputs[index % len(inputs)] for index in range(max(SLICE_ITEMS, len(inputs)))]


# --- commissioning --------------------------------------------------------------------------------------------------


async def _commission(options: argparse.Namespace) -> None:
    config = load(options.config)
    load_of_choice: Load = Burner()
    if options.package is not None:
        load_of_choice = PackageLoad(PackageRunner(options.package, options.threads), _repeated(options))
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
