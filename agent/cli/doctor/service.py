"""Offline: the units, where systemd runs this computer and they are installed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent.cli.doctor.model import Finding, fail, missing, ok, warn
from agent.config import Config

BOOTED = Path("/run/systemd/system")
"""sd_booted(3)."""
DAEMON, WORKERS = "driveway.service", "driveway-worker.socket"
ASK_S = 10.0


def units(config: Config, booted: Path = BOOTED, systemctl: str | None = None) -> Iterator[Finding]:
    """Each is installed, enabled and active."""
    systemctl = systemctl or shutil.which("systemctl")
    wanted = (DAEMON, WORKERS) if config.inference.worker_socket else (DAEMON,)
    for unit in wanted:
        name = f"units.{unit}"
        if not booted.is_dir() or systemctl is None:
            yield missing(name, "systemd does not run this computer")
            continue
        said = _properties(systemctl, unit)
        if said.get("LoadState") != "loaded":
            state = said.get("LoadState", "unknown")
            mend = "install the package again" if state != "not-found" else "install the package, or run it another way"
            yield missing(name, f"the unit is {state}", mend)
        else:
            yield _state(name, unit, said)


def _state(name: str, unit: str, said: dict[str, str]) -> Finding:
    active, enabled = said.get("ActiveState", ""), said.get("UnitFileState", "")
    if active == "failed":
        return fail(name, f"it has failed ({said.get('Result', '')})", f"journalctl -u {unit} -b says why")
    if active != "active":
        return warn(name, f"it is {active}", f"systemctl start {unit}")
    restarts = said.get("NRestarts", "0")
    if restarts not in {"0", ""}:
        return warn(name, f"it was started anew {restarts} times since boot", f"journalctl -u {unit} -b says why")
    if enabled not in {"enabled", "static", "enabled-runtime"}:
        return warn(name, f"it is active, and {enabled or 'not enabled'}", f"systemctl enable {unit}")
    return ok(name, "active and enabled")


def _properties(systemctl: str, unit: str) -> dict[str, str]:
    names = "LoadState,ActiveState,UnitFileState,Result,NRestarts"
    said = subprocess.run(
        [systemctl, "show", "--property", names, unit], capture_output=True, text=True, timeout=ASK_S, check=False
    )
    pairs = (line.partition("=") for line in said.stdout.splitlines())
    return {name: value for name, _, value in pairs}
