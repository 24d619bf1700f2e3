"""The gate of the daemon on this computer, as a technician's own work obeys it: the driver comes first for that too."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from agent.cli.client import UnreachableError, ask, socket_path

WATCH_S = 0.1
"""How often to look while something runs."""

Result = TypeVar("Result")


class GateShutError(Exception):
    """The gate shut while something ran."""


class Gate:
    """The daemon's gate; only a socket that nobody serves means that there is no daemon.

    A computer without a configuration has no car around it, and with `--rig` somebody says the same: nothing is asked
    there. On a car whose daemon does not run nobody would see the driver come back, so it counts as shut. A rig on
    which a daemon answers after all is none.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        exists = options.socket is not None or options.config.exists()
        self._path: Path | None = socket_path(options.socket, options.config) if exists else None
        self._rig: bool = options.rig

    def shut(self) -> str | None:
        """Why the gate is shut; None when it is open or there is none. Raises UnreachableError when in doubt."""
        reasons = self._ask("why")
        if reasons is None or self._rig:
            return self._not_as_it_should_be(answered=reasons is not None)
        return reasons[0]["text"] if reasons else None

    def taken(self, but_for: Collection[str], *, paused: bool = False) -> str | None:
        """Why the computer cannot be had for a measurement; None when it can, whatever the gates `but_for` say.

        A daemon that works, or whose worker is there, has it already; with `paused`, so has one that may take on work
        at any moment. Raises UnreachableError when in doubt.
        """
        status = self._ask("status")
        if status is None or self._rig:
            return self._not_as_it_should_be(answered=status is not None)
        shut = [reason["text"] for reason in status["reasons"] if reason["gate"] not in but_for]
        if shut:
            return str(shut[0])
        if status["lease"] is not None or status["worker"] is not None:
            return "the daemon is working, or its worker still stands"
        if paused and status["owner"]["mode"] != "paused":
            return "the daemon is not paused, so it may take on work at any moment; first: driveway pause"
        return None

    def _not_as_it_should_be(self, *, answered: bool) -> str | None:
        if answered:
            return "a daemon runs here, so this is no rig without one; leave --rig out"
        if self._path is None or self._rig:
            return None
        return "no daemon runs here, so nobody would see the driver come back; on a rig: --rig"

    def _ask(self, verb: str) -> Any:
        """The daemon's answer; None where there is no daemon."""
        if self._path is None:
            return None
        try:
            return ask(self._path, verb)
        except UnreachableError as error:
            if error.absent:
                return None
            raise


async def while_open(look: Callable[[], str | None], work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work while `look` names no reason against it; it is cancelled, and over, when GateShutError is raised."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=WATCH_S))[0]:
            if (reason := await asyncio.to_thread(look)) is not None:
                raise GateShutError(reason)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
