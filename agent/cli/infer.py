"""`driveway infer PACKAGE INPUT…`: run a package here and now, in a worker process of its own.

When a daemon runs on this computer, its gate is obeyed, before and while the package runs: the driver comes first for a
technician's question too. Without one (a laptop, a bench) nothing is asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from agent import wire
from agent.cli import exits
from agent.cli.client import UnreachableError, ask, socket_path
from agent.cli.text import print_json
from agent.clock import SystemClock
from agent.config import load
from agent.errors import DrivewayError, PackageError, WorkerError
from agent.identity import read_key
from agent.inference.launcher import launch
from agent.inference.shelf import open_signed
from agent.package import open_package

GATE_POLL_S = 0.1


def infer(options: argparse.Namespace) -> int:
    """Print one answer an input, in order."""
    gate = _Gate(options)
    if (reason := gate.shut()) is not None:
        print(f"driveway: refused by policy: {reason}", file=sys.stderr)
        return exits.REFUSED
    items = [_read(path) for path in options.inputs]
    _check_signature(options)
    try:
        answers = asyncio.run(_answers(options.package, items, options.threads, gate))
    except GateShutError as error:
        print(f"driveway: stopped by policy: {error}", file=sys.stderr)
        return exits.REFUSED
    if options.json:
        print_json([{"input": str(path), **answer} for path, answer in zip(options.inputs, answers, strict=True)])
    else:
        for path, answer in zip(options.inputs, answers, strict=True):
            print(f"{path}: {answer.get('text', answer.get('error', json.dumps(answer)))}")
    return exits.FAILED if any("error" in answer for answer in answers) else exits.FINE


def _check_signature(options: argparse.Namespace) -> None:
    """Under a configuration only what its publisher signed runs; without one, say that nobody vouches for it."""
    if not options.config.exists():
        print(f"driveway: without a configuration nobody vouches for {options.package}", file=sys.stderr)
        return
    config = load(options.config)
    open_signed(options.package, read_key(config, config.inference.publisher_key, "inference.publisher_key"))


class GateShutError(Exception):
    """The gate shut while the package ran."""


class _Gate:
    """The gate of the daemon on this computer; only a socket that nobody serves means that there is no daemon."""

    def __init__(self, options: argparse.Namespace) -> None:
        exists = options.socket is not None or options.config.exists()
        self._path = socket_path(options.socket, options.config) if exists else None

    def shut(self) -> str | None:
        """Why the gate is shut; None when it is open or nobody keeps one. Raises UnreachableError when in doubt."""
        if self._path is None:
            return None
        try:
            reasons = ask(self._path, "why")
        except UnreachableError as error:
            if error.absent:
                return None
            raise
        return reasons[0]["text"] if reasons else None


async def _answers(package: Path, items: list[bytes], threads: int, gate: _Gate) -> list[dict[str, Any]]:
    """Run all items as one slice; raises DrivewayError with the worker's own words when it fails."""
    opened = open_package(package)
    loop = asyncio.get_running_loop()
    over: asyncio.Future[bytes] = loop.create_future()

    def fail(error: DrivewayError) -> None:
        if not over.done():
            over.set_exception(error)

    def said(message: wire.WorkerMessage) -> None:
        match message:
            case wire.Loaded():
                body = wire.encode_input(items)
                worker.send_input(body, items=len(items))
                worker.run(0, 0, len(items))
            case wire.Refused():
                fail(PackageError(f"the package {package} was refused: {message.detail}"))
            case wire.SliceError():
                fail(WorkerError(f"the inputs could not be computed: {message.detail}"))
            case wire.SliceDone() if not over.done():
                over.set_result(message.output)
            case _:
                pass

    worker = launch(
        SystemClock(), said, lambda _pid, _expected, detail: fail(WorkerError(f"the worker was lost: {detail}"))
    )
    try:
        worker.load(opened.path.resolve(), threads=threads, memory_mb=opened.manifest.limits.memory_mb)
        while not (await asyncio.wait({over}, timeout=GATE_POLL_S))[0]:
            if (reason := await asyncio.to_thread(gate.shut)) is not None:
                raise GateShutError(reason)
        answers: list[dict[str, Any]] = json.loads(over.result())
        return answers
    finally:
        worker.stop(0)
        await worker.gone()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DrivewayError(f"cannot read the input {path}: {error.strerror}") from error
