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
    """Each is installed, enabled and active, and the daemon's is watched and confined."""
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
    lacks = _taken_away(said) if unit == DAEMON else ""
    if lacks:
        return warn(name, lacks, f"systemctl cat {unit} shows which drop-in did it; systemctl revert {unit}")
    well = enabled in {"enabled", "static", "enabled-runtime"}
    said_so = f"it is active, and {enabled or 'not enabled'}"
    return ok(name, "active and enabled") if well else warn(name, said_so, f"systemctl enable {unit}")


def _taken_away(said: dict[str, str]) -> str:
    """What a drop-in took from the daemon's unit that the package gave it; "" where nothing is missing."""
    if said.get("WatchdogUSec") in {"0", "infinity"}:
        return "nobody notices when it hangs: the unit has no watchdog"
    return "its sandbox was taken away" if said.get("NoNewPrivileges") == "no" else ""


def _properties(systemctl: str, unit: str) -> dict[str, str]:
    names = "LoadState,ActiveState,UnitFileState,Result,NRestarts,WatchdogUSec,NoNewPrivileges"
    said = subprocess.run(
        [systemctl, "show", "--property", names, unit], capture_output=True, text=True, timeout=ASK_S, check=False
    )
    pairs = (line.partition("=") for line in said.stdout.splitlines())
    return {name: value for name, _, value in pairs}
