#!/usr/bin/python3 -IS
"""Stands for systemctl in an update's rehearsal: starts and stops one daemon, whose READY is a file.

What systemd does by itself between two calls (start a daemon anew that has died) is done when it is asked next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RIG = Path(os.environ["DRIVEWAY_UPDATE_RIG"])
STATE, READY = RIG / "unit.json", RIG / "ready"
DAEMON = RIG.parent / "vehicle/opt/driveway/current/bin/driveway"
START_S, STOP_S = 1.5, 1.0


def lives(pid: int) -> bool:
    """Whether this process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def load() -> dict[str, Any]:
    """The unit as it was left."""
    known: dict[str, Any] = {"active": "inactive", "restarts": 0, "pid": 0}
    return known | json.loads(STATE.read_text()) if STATE.exists() else known


def start(unit: dict[str, Any]) -> None:
    """Start it and wait for READY."""
    READY.unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([str(DAEMON), "run"], env=clean, start_new_session=True, **quiet)  # type: ignore[call-overload]
    unit |= {"active": "activating", "pid": child.pid}
    STATE.write_text(json.dumps(unit))
    until_s = time.monotonic() + START_S
    while child.poll() is None and time.monotonic() < until_s:
        if READY.exists() and READY.read_text() == str(child.pid):
            unit["active"] = "active"
            return
        time.sleep(0.01)
    if child.poll() is None:
        child.kill()
        child.wait()
    unit["active"] = "failed"


def stop(unit: dict[str, Any]) -> None:
    """Stop it, by force if it does not end."""
    until_s = time.monotonic() + STOP_S
    if lives(unit["pid"]):
        os.kill(unit["pid"], signal.SIGTERM)
    while lives(unit["pid"]):
        if time.monotonic() > until_s:
            os.kill(unit["pid"], signal.SIGKILL)
        time.sleep(0.01)
    unit["active"] = "inactive"


def main() -> int:
    """One verb."""
    verb, unit = sys.argv[1], load()
    if unit["active"] == "active" and not lives(unit["pid"]):
        unit["restarts"] += 1
        start(unit)
    match verb:
        case "start" if unit["active"] != "active":
            start(unit)
        case "stop":
            stop(unit)
        case "reset-failed":
            unit |= {"restarts": 0, "active": "inactive" if unit["active"] == "failed" else unit["active"]}
        case "show":
            print(f"ActiveState={unit['active']}\nNRestarts={unit['restarts']}")
        case _:
            pass
    STATE.write_text(json.dumps(unit))
    return int(verb == "start" and unit["active"] != "active")


if __name__ == "__main__":
    sys.exit(main())
