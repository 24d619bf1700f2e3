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
from pathlib import Path
from typing import Any

from agent.cli import exits
from agent.cli.gate import Gate, GateShutError, while_open
from agent.cli.text import print_json
from agent.config import load
from agent.errors import DrivewayError
from agent.identity import read_key
from agent.inference.runner import PackageRunner
from agent.inference.shelf import open_signed


def infer(options: argparse.Namespace) -> int:
    """Print one answer an input, in order."""
    gate = Gate(options)
    if (reason := gate.shut()) is not None:
        print(f"driveway: refused by policy: {reason}", file=sys.stderr)
        return exits.REFUSED
    items = [read_input(path) for path in options.inputs]
    check_signature(options.config, options.package)
    try:
        answers = asyncio.run(_answers(PackageRunner(options.package, options.threads), items, gate))
    except GateShutError as error:
        print(f"driveway: stopped by policy: {error}", file=sys.stderr)
        return exits.REFUSED
    if options.json:
        print_json([{"input": str(path), **answer} for path, answer in zip(options.inputs, answers, strict=True)])
    else:
        for path, answer in zip(options.inputs, answers, strict=True):
            print(f"{path}: {answer.get('text', answer.get('error', json.dumps(answer)))}")
    return exits.FAILED if any("error" in answer for answer in answers) else exits.FINE


def check_signature(config_file: Path, package: Path) -> None:
    """Under a configuration only what its publisher signed runs; without one, say that nobody vouches for it."""
    if not config_file.exists():
        print(f"driveway: without a configuration nobody vouches for {package}", file=sys.stderr)
        return
    config = load(config_file)
    open_signed(package, read_key(config, config.inference.publisher_key, "inference.publisher_key"))


def read_input(path: Path) -> bytes:
    """One input file; raises DrivewayError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DrivewayError(f"cannot read the input {path}: {error.strerror}") from error


async def _answers(runner: PackageRunner, items: list[bytes], gate: Gate) -> list[dict[str, Any]]:
    """Run all items as one slice; raises DrivewayError with the worker's own words when it fails."""

    async def compute() -> bytes:
        await runner.open()
        runner.give(items)
        return (await runner.compute()).output

    try:
        answers: list[dict[str, Any]] = json.loads(await while_open(gate.shut, compute()))
        return answers
    finally:
        await runner.close()
