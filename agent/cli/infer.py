"""`driveway infer PACKAGE INPUT…`: run a package here and now, in a worker process of its own.

When a daemon runs on this computer, its gate is obeyed, before and while the package runs: the driver comes first for a
technician's question too. On a car whose daemon does not run it is refused, since nobody would see the driver. A
computer without a configuration (a laptop), or with `--rig`, has no driver, and nothing is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from agent.cli import exits
from agent.cli.answer_text import answer_text
from agent.cli.engine import open_wanted, read_input, runner_for, takes
from agent.cli.gate import Gate, GateShutError, while_open
from agent.cli.progress import Progress
from agent.cli.text import print_json
from agent.inference.runner import PackageRunner
from agent.inference.slices import fitting_items

SLICE_ITEMS = 32


def infer(options: argparse.Namespace) -> int:
    """Print one answer an input, in order."""
    gate = Gate(options)
    if (reason := gate.shut()) is not None:
        print(f"driveway: refused by policy: {reason}", file=sys.stderr)
        return exits.REFUSED
    items = [read_input(path) for path in options.inputs]
    package = open_wanted(options)
    progress = Progress()
    slice_items = fitting_items(package, SLICE_ITEMS)
    work = _answers(runner_for(options, package, progress), items, slice_items, progress)
    try:
        answers = asyncio.run(while_open(gate.shut, work))
    except GateShutError as error:
        print(f"driveway: stopped by policy: {error}", file=sys.stderr)
        return exits.REFUSED
    finally:
        progress.end()
    if options.json:
        print_json([{"input": str(path), **answer} for path, answer in zip(options.inputs, answers, strict=True)])
    else:
        for path, answer in zip(options.inputs, answers, strict=True):
            print(f"{path}: {answer_text(answer)}")
    failed = sum("error" in answer for answer in answers)
    if failed:
        said = f"{failed} of {len(answers)} inputs have no answer; the package takes {takes(package)}"
        print(f"driveway: {said}", file=sys.stderr)
    return exits.FAILED if failed else exits.FINE


async def _answers(
    runner: PackageRunner, items: list[bytes], slice_items: int, progress: Progress
) -> list[dict[str, Any]]:
    """Run all items, slice by slice; raises DrivewayError with the worker's own words when it fails."""
    answers: list[dict[str, Any]] = []
    try:
        await runner.open()
        runner.give(items)
        progress.count("inference", 0, len(items), "inputs")
        for first in range(0, len(items), slice_items):
            done = await runner.compute(first, min(first + slice_items, len(items)))
            answers += json.loads(done.output)
            progress.count("inference", len(answers), len(items), "inputs")
    finally:
        await runner.close()
    return answers
